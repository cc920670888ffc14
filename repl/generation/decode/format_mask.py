"""Hold a reply to a form: at each place only tokens that the grammar allows can come, and what that costs is counted.

In comes the setting `format` as a `Format`, out comes a logits processor that stands before all others, with figures in
the model's own distribution, and the tokens about which the form leaves no choice. llguidance does the grammar.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch

from repl.core import decoding
from repl.core.errors import Failed, MissingExtra, UsageError
from repl.core.library_types import GenerationConfig, PreTrainedTokenizerBase, Tensor
from repl.core.parts import read_parts
from repl.core.reply import FormatCost, Reply, round_figures
from repl.core.reply_format import JSON_OPTIONS, Format, parse_format
from repl.generation.decode.detokenizer import TAIL_TOKENS, reply_form, silent_tokens, token_text
from repl.generation.decode.loop import Proposals
from repl.generation.interface import Model, Request

UNSUPPORTED, QUOTE = re.compile(r"Unimplemented keys: \[(.*)\]"), '"'
LIMITS = {"max_lexer_states": 50_000, "step_lexer_fuel": 500_000, "verbose_errors": False}
"""Of llguidance where its own are wide: a state takes up to 2 kB, 14,000 units of fuel a millisecond."""


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise MissingExtra("a form needs the llguidance package", "pip install 'hub-repl[format]'") from None
    return llguidance


def _limits() -> Any:
    return _library().LLParserLimits(**LIMITS)


@lru_cache(maxsize=16)
def build_grammar(form: Format) -> str:
    """Return a form as llguidance takes it; raises `UsageError` naming what it asks for that cannot be held to."""
    library = _library()
    matcher = library.LLMatcher
    try:
        if form.kind == "json_schema":
            grammar = str(matcher.grammar_from_json_schema(form.body, overrides=JSON_OPTIONS))
        else:
            grammar = str(library.grammar_from(form.kind, form.body))
    except ValueError as error:
        raise refused(str(error)) from None
    failed, said = matcher.validate_grammar_with_warnings(grammar, limits=_limits())
    if failed:
        raise refused(said[0])
    return grammar


def refused(said: str) -> UsageError:
    """Make the error for a form that llguidance refuses, from its first words that say why."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    words = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])
    if found := UNSUPPORTED.match(words):
        words = f"the schema uses {found[1].replace(QUOTE, '')}"
    return UsageError(f"this form is not supported: {words.partition('. Enable')[0]}", "/format off")


def make_mask(
    resident: Model, request: Request, prompt: Sequence[int], config: GenerationConfig
) -> "FormatMask | None":
    """Return what holds the reply to a request to its form, None where it has none; raises `UsageError`."""
    text, (prefill, made) = request.settings.decode.format, request.begins_with
    return _open_mask(resident, text, prefill, prompt, made, config) if text else None


def recorded_mask(
    resident: Model, record: Reply, prompt: Sequence[int], config: GenerationConfig
) -> "FormatMask | None":
    """Return what held a recorded reply to its form in the call with this prompt; None where nothing did."""
    if record.format is None:
        return None
    made = prompt[len(record.prompt_ids) :]
    return _open_mask(resident, record.decode["format"], record.prefill, prompt, made, config)


def _open_mask(
    resident: Model, text: str, prefill: str, prompt: Sequence[int], made: Sequence[int], config: GenerationConfig
) -> "FormatMask":
    """Return what holds a reply to a form; `made` are the last ids of its prompt, that are of the reply.

    What the reply begins with already is the beginning of the form where it fits, and else stands before it.
    """
    if config.do_sample and (config.num_beams or 1) > 1:
        raise UsageError("beam sampling does not support forms", "/greedy", "/format off")
    ends = decoding.end_ids(config)
    if not ends:
        raise UsageError("a form needs an end token, and eos_token_id is none", "/set eos_token_id default")
    grammar, tokenizer = build_grammar(parse_format(text)), _wrap_tokenizer(resident, ends)
    thought = Thought.of(resident, prompt[: len(prompt) - len(made)])
    formed = [token for token in made if not thought.takes(token)]
    lead = tokenizer.tokenize_str(read_parts(prefill).answer)
    for begun in ([*lead, *formed], formed, []):
        matcher = _library().LLMatcher(tokenizer, grammar, log_level=0, limits=_limits())
        if not begun or matcher.try_consume_tokens(begun) == len(begun):
            break
    require_beginning(matcher)
    return FormatMask(Row(matcher, frozenset(ends), thought, Place()), len(prompt), len(made))


def require_beginning(matcher: Any) -> None:
    """Raise `UsageError` where nothing at all can begin the form."""
    first = matcher.deep_copy()
    first.compute_bitmask()
    if first.is_error():
        said = stop_reason(first)
        why = "it allows no text" if said.startswith("NoExtension") else said
        raise UsageError(f"this form is not supported: {why}", "/format off")


def _wrap_tokenizer(resident: Model, ends: Sequence[int]) -> Any:
    """Return the tokenizer as llguidance has it; it takes half a second, so it is kept."""
    _library()
    from llguidance import hf

    kept = resident.runtime.format_tokenizers
    if tuple(ends) not in kept:
        try:
            kept[tuple(ends)] = hf.from_tokenizer(resident.tokenizer, eos_token=list(ends))
        except ValueError as error:
            slow = not getattr(resident.tokenizer, "is_fast", False)
            why = "its tokenizer is a slow one (Python)" if slow else f"its tokenizer: {error}"
            raise UsageError(f"{resident.facts.name} does not support forms: {why}", "/format off") from None
    return kept[tuple(ends)]


def stop_reason(matcher: Any) -> str:
    """Return why a matcher stopped, on one line."""
    return str(matcher.get_error()).partition("\n")[0] or str(matcher.stop_reason())


@dataclass
class Thought:
    """The thought that the prompt has opened: the form begins behind the tag that closes it; empty for none."""

    tokenizer: PreTrainedTokenizerBase
    closes: str
    text: str = ""

    @classmethod
    def of(cls, resident: Model, prompt: Sequence[int]) -> "Thought":
        """Return the thought that a reply behind a prompt begins with."""
        tokenizer = resident.tokenizer
        tail = str(tokenizer.decode(prompt[-TAIL_TOKENS:]))
        return cls(tokenizer, reply_form(tokenizer).opened(tail, silent_tokens(tokenizer).values()))

    def takes(self, token: int) -> bool:
        """Tell whether a token is of the thought or closes it."""
        if not self.closes:
            return False
        self.text += token_text(self.tokenizer, token)
        if self.closes.strip() in self.text:
            self.closes = ""
        return True


@dataclass(slots=True, eq=False)
class Place:
    """A place in one of the replies that are made: what the form takes away there, and the places behind its tokens."""

    figures: tuple[bool, bool, float] | None = None
    """Of the token that comes there: given by the form, the likeliest overruled, nats taken away."""
    after: dict[int, "Place"] = field(default_factory=dict)


@dataclass(eq=False)
class Row:
    """One reply as far as it is made, and where it stands in the grammar."""

    matcher: Any
    ends: frozenset[int]
    thought: Thought
    place: Place
    made: list[int] = field(default_factory=list)
    ended: bool = False
    """Whether an end token is among them; what follows is padding."""
    fits: bool = True
    """False in a beam search that had fewer tokens to go on with than beams."""

    def copy(self) -> "Row":
        """Return one that goes its own way."""
        return replace(self, matcher=self.matcher.deep_copy(), thought=replace(self.thought), made=[*self.made])

    def follow(self, made: list[int]) -> None:
        """Go on to the ids that were made, of which this row has the first."""
        for token in made[len(self.made) :]:
            self.made.append(token)
            self.place = self.place.after.setdefault(token, Place())
            self.ended = self.ended or token in self.ends
            if self.fits and not self.ended and not self.thought.takes(token):
                self.fits = self.matcher.consume_token(token)

    @property
    def free(self) -> bool:
        """Tell whether everything may come: in a thought, and behind the end."""
        return self.ended or bool(self.thought.closes)

    def allowed(self, scores: Tensor) -> Tensor:
        """Return which tokens may come, for scores of shape (vocab,); raises `Failed` at a limit."""
        if self.free or not self.fits:
            return torch.full_like(scores, self.fits, dtype=torch.bool)
        packed = torch.frombuffer(bytearray(self.matcher.compute_bitmask()), dtype=torch.uint8).to(scores.device)
        if self.matcher.is_error():
            raise Failed(
                f"the form is too complex at token {len(self.made) + 1}: {stop_reason(self.matcher)}", "/format off"
            )
        bits = packed[:, None] >> torch.arange(8, dtype=torch.uint8, device=scores.device) & 1
        found, known = torch.zeros_like(scores, dtype=torch.bool), bits.flatten()[: len(scores)]
        found[: len(known)] = known.bool()
        return found

    @property
    def finished(self) -> bool:
        """Tell whether the form is whole."""
        return self.fits and not self.thought.closes and bool(self.matcher.is_accepting())


class FormatMask:
    """A logits processor: scores of shape (rows, vocab) come in, those of tokens that break the form become -inf.

    It is also what knows the tokens that are given, and what the form costs. `prompt` are the tokens before the reply,
    `begun` how many of them are of the reply already.
    """

    def __init__(self, first: Row, prompt: int, begun: int) -> None:
        self._first, self._prompt, self._begun = first, prompt, begun
        self._rows: list[Row] = []  # of the last step
        self._heard: Any = None

    def hear(self, logits: Tensor) -> None:
        """Hear the model's own logits at the next place, where other processors come before this one.

        The first of a step are meant: a processor may run the model again, as for `guidance_scale`.
        """
        if self._heard is None:
            self._heard = logits[:, -1].float()

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores under the form, and note what it takes away in the model's own distribution."""
        rows = self._bring(ids[:, self._prompt :].tolist())
        allowed = torch.stack([row.allowed(own) for row, own in zip(rows, scores, strict=True)])
        masked = scores.masked_fill(~allowed, -torch.inf)
        own = scores if self._heard is None else self._heard.to(scores.device)
        self._heard = None
        left = masked if own is scores else own.masked_fill(~allowed, -torch.inf)
        given = allowed.sum(-1) == 1
        overruled = ~allowed.gather(-1, own.argmax(-1, keepdim=True))[:, 0]
        nats = (own.logsumexp(-1) - left.logsumexp(-1)).clamp_min(0)
        for row, *figures in zip(rows, given.tolist(), overruled.tolist(), nats.tolist(), strict=True):
            row.place.figures = tuple(figures) if row.fits else None
        return masked

    def _bring(self, texts: list[list[int]]) -> list[Row]:
        """Return a row for each text that was made, brought to its end; a beam search changes rows at every step."""
        found: list[Row] = []
        for made in texts:
            before = next((row for row in self._rows if row.made == made[: len(row.made)]), self._first)
            found.append(before.copy() if before is self._first or before in found else before)
        for row, made in zip(found, texts, strict=True):
            row.follow(made)
        self._rows = found
        return found

    def given(self, ids: Tensor, room: int) -> list[int]:
        """Return up to `room` ids that must follow `ids`, shape (1, tokens): the form leaves no other."""
        [row] = self._bring(ids[:, self._prompt :].tolist())
        found = [] if row.free else row.matcher.compute_ff_tokens()
        return [token for token in found if token not in row.ends][: max(room, 0)]

    def cost(self, ids: Sequence[int]) -> FormatCost:
        """Return what the form gave and took of a reply with these ids."""
        [row] = self._bring([[*ids]])
        place, figures = self._first.place, list[tuple[bool, bool, float]]()
        for token in ids:
            if place.figures is None:
                break
            figures.append(place.figures)
            place = place.after[token]
        return FormatCost(
            given=tuple(at for at, (given, _, _) in enumerate(figures, 1) if given),
            overruled=tuple(at for at, (_, overruled, _) in enumerate(figures, 1) if overruled),
            nats=round_figures(tuple(nats for _, _, nats in figures)),
            finished=row.finished,
            before=self._begun,
        )


class GivenFirst:
    """Proposes the tokens that a form leaves no choice about, which are certain; else what others propose.

    `limit` is the length of text up to which there are any (0: no such limit).
    """

    def __init__(self, mask: FormatMask, others: Proposals | None, limit: int = 0) -> None:
        self._mask, self._others, self._limit = mask, others, limit
        self._asked = False

    def offer(self, ids: Tensor, room: int) -> list[int]:
        """Return up to `room` ids that may follow `ids`, shape (1, tokens)."""
        given = self._mask.given(ids, min(room, self._limit - ids.shape[-1] - 1) if self._limit else room)
        self._asked = not given and self._others is not None
        return self._others.offer(ids, room) if self._asked and self._others else given

    def settle(self, made: int) -> None:
        """Pass on how many tokens the pass brought, where the offer was of others."""
        if self._asked and self._others:
            self._others.settle(made)
