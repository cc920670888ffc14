"""The record of a reply: prompt, model, settings, tokens and figures; saved with its turn as JSON, never changed."""

import dataclasses
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, field
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from repl.core.parts import Parts

Decoded = TypeVar("Decoded")
DIGITS = 5  # decimals of what is kept, in nats


@dataclass(frozen=True, slots=True)
class Sequence:
    """One finished sequence; `score` is the length-penalised log-probability, None where the search has none.

    `text`, `raw`, `thinking` and `tool_calls` are as in `Reply`.
    """

    text: str
    token_ids: tuple[int, ...]
    score: float | None = None
    raw: str = ""
    thinking: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if not self.raw:
            object.__setattr__(self, "raw", self.text)


@dataclass(frozen=True, slots=True)
class BeamSearch:
    """The record of a beam search: for each token of each sequence its text and log-probability in nats.

    `margins` has one entry for each step (see `Beams`). Where the numbers cannot be known (sampled beams) there are
    none.
    """

    pieces: tuple[tuple[str, ...], ...]
    logprobs: tuple[tuple[float, ...], ...] = ()
    margins: tuple[float | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds and tokens per second of one reply; None where a figure has no meaning."""

    ttft_s: float | None
    prefill_tps: float | None
    decode_tps: float | None
    total_s: float


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one reply: read, taken over from the kept cache, and made."""

    prompt: int
    reused: int
    completion: int


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Each token of a reply in the model's own distribution, before any processor; in columns, to be small on disk."""

    logprobs: tuple[float, ...] = ()
    """Log-probability of each token, in nats."""
    entropies: tuple[float, ...] = ()
    """Entropy of the distribution at each token, in nats; none of a server's reply: it returns the most likely only."""
    ranks: tuple[int, ...] = ()
    """Rank of each token, 1 for the likeliest; 0 where it is past those that a server gives."""
    ids: tuple[tuple[int, ...], ...] = ()
    """The likeliest tokens at each place, the likeliest first."""
    values: tuple[tuple[float, ...], ...] = ()
    """Their log-probabilities, in nats."""
    texts: dict[int, str] = field(default_factory=dict)
    """The text of every token that occurs, by itself."""
    lengths: tuple[int, ...] = ()
    """Characters that each token adds to the reply's text."""
    made: tuple[int, ...] = ()
    """Of a server's reply: the numbers by which `texts` knows its tokens, below 0 where their ids are not known."""
    limit: int = 0
    """How many of the likeliest a server gives; 0 where the model was here."""


@dataclass(frozen=True, slots=True)
class FormatCost:
    """The cost of a reply's form: where it left one token or overruled the model; places of tokens count from 1."""

    given: tuple[int, ...] = ()
    """Where the form left one token."""
    overruled: tuple[int, ...] = ()
    """Where the model's likeliest token could not come."""
    nats: tuple[float, ...] = ()
    """Of each token that was made: the negative logarithm of the probability that the tokens left had together."""
    finished: bool = False
    """Whether the reply is of the form as it stands."""
    before: int = field(default=0, metadata={"rare": True})
    """Tokens of the reply that were there before: the places count from behind them."""

    @property
    def worst(self) -> int:
        """Return the place in the whole reply where most was taken away, 0 where nothing was."""
        place = max(range(len(self.nats)), key=self.nats.__getitem__, default=0)
        return self.before + place + 1 if any(self.nats) else 0


@dataclass(frozen=True, slots=True)
class SpeculationStats:
    """The figures of speculative decoding: forward passes after the prompt's, tokens proposed and accepted."""

    by: str
    """prompt_lookup or assistant."""
    passes: int
    proposed: int
    accepted: int
    model: dict[str, Any] = field(default_factory=dict)
    """The assistant: id, commit, dtype."""


def rare(default: object) -> Any:
    """Declare a field that is left out of a saved record while it has its default."""
    return field(default=default, metadata={"rare": True})


@dataclass(frozen=True, slots=True)
class TakenBack:
    """Tokens that were taken back because they led to something banned: the first was not to be taken at its place."""

    place: int
    """Of the first one, from 1."""
    token_ids: tuple[int, ...]
    text: str


WARPS_NOTHING = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}
"""Values of a generation config with which the library changes no odds of a draw."""
WARPER_CLASSES = {
    "temperature": "TemperatureLogitsWarper",
    "top_k": "TopKLogitsWarper",
    "top_p": "TopPLogitsWarper",
    "min_p": "MinPLogitsWarper",
    "typical_p": "TypicalLogitsWarper",
}
"""The library's classes, in its order; each takes its value first."""


def named_warpers(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the warpers that the library makes of values in its names, each with its value."""
    return [
        (kind, values[name])
        for name, kind in WARPER_CLASSES.items()
        if values.get(name) not in (None, WARPS_NOTHING[name])
    ]


@dataclass(frozen=True, slots=True)
class ThoughtRecord:
    """How a thought was decoded, in the last call that made the reply; places count from 1, those forced from 0."""

    places: tuple[int, ...]
    """Of the tokens that were chosen inside of it."""
    forced: tuple[tuple[int, int], ...]
    """Place and id of each token that closed it because it was too long."""
    inside: dict[str, Any] = field(default_factory=dict)
    """The warpers there, by the library's names."""
    outside: dict[str, Any] = field(default_factory=dict)

    @property
    def differs(self) -> bool:
        """Tell whether other settings held inside than outside."""
        return self.inside != self.outside


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """The model that made a reply, as it was loaded."""

    id: str = ""
    revision: str = ""
    commit: str = ""
    dtype: str = ""
    device_map: dict[str, str] = field(default_factory=dict)
    quantization: str = ""
    adapter: str = rare("")
    parameters: int = 0
    context: int = 0
    bytes: int = 0
    touched: bool = rare(False)
    """A user may have changed it in /python before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel(ModelRecord):
    """The model of a server: what it says of itself, and how it was asked."""

    server: str
    kind: str = ""
    """The kind of server."""
    served: str = ""
    """The model by the name that the server gives it."""
    asked: str = ""
    """The model that was asked for; empty for the server's only one."""
    fingerprint: str = ""
    sent: dict[str, Any] = field(default_factory=dict)
    """The fields that were sent beside the text and the model."""
    ended: str = ""
    """The end of the reply in the server's word."""
    counted: str = ""
    """Who counted the tokens: by the server, or by pieces."""
    logprobs: str = ""
    """How many of the likeliest tokens it gave; empty for none."""


@dataclass(frozen=True, slots=True)
class Environment:
    """Conditions that may decide between two tokens that are nearly as likely; unknown for a server."""

    attention: str = rare("")
    threads: int = rare(0)
    devices: dict[str, str] = field(default_factory=dict, metadata={"rare": True})
    """The name of each device."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A finished reply, with the record of how it was made.

    `prompt_ids + token_ids` are the ids the model saw and made; `finish` is stop, length, stop_string or cancelled.
    `text` is the answer in `raw`: without what was thought, and without the tools that were called.
    """

    text: str
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    finish: str
    model: ServedModel | ModelRecord
    load: dict[str, Any]
    """Settings for loading by name, those of later versions included; none of a server's reply."""
    decode: dict[str, Any]
    """Settings for decoding by name."""
    seed: int | None
    usage: Usage
    timing: Timing
    sequences: tuple[Sequence, ...] = ()
    dropped: tuple[int, ...] = ()
    """Turns that were left out of the prompt because the context was full."""
    versions: dict[str, str] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)
    """The values that were put into the model's own generation config, in the library's names."""
    system: str = ""
    """The instruction in front of the chat."""
    prefill: str = ""
    """The text that the reply was made to begin with."""
    template: dict[str, Any] = field(default_factory=dict)
    """Values of the chat template's variables."""
    environment: Environment = field(default_factory=Environment)
    search: BeamSearch | None = None
    """The record of the beam search, if it was one."""
    measures: TokenLogprobs = field(default_factory=TokenLogprobs)
    """Of the reply's tokens, one for each; empty where they were not measured."""
    drafts: SpeculationStats | None = None
    """The figures of speculative decoding, if it was used."""
    format: FormatCost | None = field(default=None, metadata={"rare": True})
    """The cost of its form; None if it had none, or a server enforced it."""
    taken: tuple[int, ...] = ()
    """Places, from 1, of tokens that the user put in with /take."""
    continued: tuple[int, ...] = rare(())
    """Tokens that were there each time when the reply was continued."""
    raw: str = ""
    """All that was made, exactly: the joined texts of the tokens."""
    thinking: str = ""
    """The thought before the answer."""
    tool_calls: tuple[dict[str, Any], ...] = ()
    """The tools that were called, each with `name` and `arguments`."""
    taken_back: tuple[TakenBack, ...] = rare(())
    """Tokens that were taken back because of banned phrases."""
    thought: ThoughtRecord | None = field(default=None, metadata={"rare": True})
    """How its thought was decoded, where the setting `think` said so."""
    begun: Parts | None = None
    """The parts of what the reply was made to begin with; None in a record from before there were parts."""

    def __post_init__(self) -> None:
        if not self.raw:  # of a record from before there were parts, the text was all that was made
            object.__setattr__(self, "raw", self.text)

    @property
    def parts(self) -> Parts:
        """Return the parts of the whole reply, with the beginning that it was given."""
        return (self.begun or Parts()) + Parts(self.thinking, self.text, self.tool_calls)

    def logprobs(self, count: int) -> list[dict[str, Any]]:
        """Return the figures of each token with the `count` most likely there, as --json writes a token."""
        found = self.measures
        return [
            {
                "id": token if token >= 0 else None,
                "text": found.texts.get(token, ""),
                "logprob": logprob,
                "entropy": found.entropies[place] if found.entropies else None,
                "top": [
                    [one if one >= 0 else None, found.texts.get(one, ""), value]
                    for one, value in zip(found.ids[place][:count], found.values[place], strict=False)
                ],
            }
            for place, (token, logprob) in enumerate(zip(found.made or self.token_ids, found.logprobs, strict=False))
        ]

    @property
    def server(self) -> str:
        """Return the server that made it; empty for one that was made here."""
        return self.model.server if isinstance(self.model, ServedModel) else ""

    def made_by(self, id: str, commit: str) -> bool:
        """Tell whether it was made here, by this very model."""
        return not self.server and (self.model.id, self.model.commit) == (id, commit)

    @property
    def masked(self) -> dict[int, list[int]]:
        """Return the tokens that were taken back, by the number of ids before them."""
        found: dict[int, list[int]] = {}
        for gone in self.taken_back:
            found.setdefault(len(self.prompt_ids) + gone.place - 1, []).append(gone.token_ids[0])
        return found

    @property
    def sampled(self) -> bool:
        """Tell whether its tokens were drawn."""
        return bool(self.decode.get("do_sample"))

    @property
    def beams(self) -> int:
        """Return with how many beams it was searched for; 1 for no search."""
        return int(self.decode.get("num_beams") or 1)

    @property
    def tokens(self) -> int:
        """Return how many tokens prompt and reply have together; a server may keep their ids to itself."""
        return len(self.prompt_ids) + len(self.token_ids) or self.usage.prompt + self.usage.completion

    @property
    def out_of_time(self) -> bool:
        """Tell whether `max_time` ended the reply, and not a limit on its length."""
        if self.finish != "length" or self.decode.get("max_time") is None:
            return False
        longest = self.decode.get("max_new_tokens") or (self.decode.get("max_length") or 0) - self.usage.prompt
        context = self.model.context or float("inf")
        return self.usage.completion < longest and self.usage.prompt + self.usage.completion < context


def round_figures(values: tuple[float, ...]) -> tuple[float, ...]:
    """Return figures with the decimals that are kept, without a minus before zero."""
    return tuple(round(value, DIGITS) + 0.0 for value in values)


# as JSON: fields by their types; free-form parts hold JSON values, so a list stays a list there


def encode_record(record: object) -> str:
    """Return the JSON of a dataclass; lone surrogates stay as they are, what JSON does not have becomes its text."""
    return json.dumps(record, default=_fields, ensure_ascii=False, separators=(",", ":"))


def decode_record(kind: type[Decoded], text: str) -> Decoded:
    """Return the value that `encode_record` was given; raises `ValueError` for a text that does not hold one.

    Fields that a later version wrote are left out, fields that it no longer writes take their defaults.
    """
    try:
        found: Decoded = _build(kind, json.loads(text, object_hook=_untagged))
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a {kind.__name__}: {error}") from error
    return found


def _fields(value: Any) -> object:
    """Return the fields of a dataclass, rare ones where they differ from their defaults."""
    if not dataclasses.is_dataclass(value):
        return str(value)
    there = ((spot, getattr(value, spot.name)) for spot in dataclasses.fields(value))
    return {spot.name: it for spot, it in there if not (spot.metadata.get("rare") and it == _default(spot))}


def _default(spot: dataclasses.Field[Any]) -> object:
    return spot.default if spot.default_factory is MISSING else spot.default_factory()


def _untagged(table: dict[str, Any]) -> object:
    """Read the tags that earlier versions gave to tuples, and to mappings whose keys were no text."""
    match table:
        case {"()": [*items], **rest} if not rest:
            return items
        case {"{}": [*pairs], **rest} if not rest:
            with suppress(TypeError, ValueError):  # keys that were tuples, or no tag but an argument of a tool
                return dict(pairs)
    return table


def _build(kind: Any, value: Any) -> Any:
    if value is None:
        return None
    if get_origin(kind) in (Union, UnionType):  # the first that it holds all that is needed for
        kinds = [part for part in get_args(kind) if part is not NoneType]
        kind = next((part for part in kinds[:-1] if _needed(part) <= value.keys()), kinds[-1])
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = _hints(kind)
        return kind(**{name: _build(hints[name], item) for name, item in value.items() if name in hints})
    of = get_args(kind)[:1]
    if get_origin(kind) is tuple:  # a reply has thousands of numbers
        return tuple(value) if of[0] in (int, float, str) else tuple(_build(of[0], item) for item in value)
    return {int(key): item for key, item in value.items()} if kind == dict[int, str] else value


@cache
def _hints(kind: Any) -> dict[str, object]:
    return get_type_hints(kind)


@cache
def _needed(kind: Any) -> set[str]:
    return {spot.name for spot in dataclasses.fields(kind) if spot.default is spot.default_factory is MISSING}
