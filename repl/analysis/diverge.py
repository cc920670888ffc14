"""One reply under two load settings: where the most likely token changes, by how much, and how the text goes on.

Both models are teacher-forced over the same ids by the same code, so that their numbers compare.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import exp

from repl import generation, models
from repl.analysis.variants import greedy_settings
from repl.core import decoding
from repl.core.decoding import ModelDefaults
from repl.core.errors import Cancelled, NoMemory, UsageError
from repl.core.events import Progress
from repl.core.jobs import JobContext, Muted
from repl.core.library_types import PreTrainedTokenizerBase, Tensor
from repl.core.reply import Reply
from repl.core.settings import Load, Settings, places
from repl.generation import decode, measure
from repl.generation.interface import Model, Models, Request
from repl.generation.measure.token_text import Speller
from repl.models.store import ModelInfo

TIE_NATS = 0.1  # smaller leads may come from rounding
ONWARD_TOKENS = 24  # shown of each text from the first different token on


@dataclass(frozen=True, slots=True)
class DivergedStep:
    """One token of the reply, with the most likely token of each model at its place; everything in nats.

    `first` and `second` are the ids of those tokens. `margins` are their leads: over the other model's token where
    they differ, else over the second most likely token.
    """

    id: int
    text: str
    kl: float
    """Kullback-Leibler divergence of the second's distribution from the first's."""
    first: int
    second: int
    margins: tuple[float, float]

    @property
    def agrees(self) -> bool:
        """Tell whether the most likely token is the same in both."""
        return self.first == self.second


@dataclass(frozen=True, slots=True)
class DivergedToken:
    """A token at the first difference, with its probability in each model."""

    id: int
    text: str
    probabilities: tuple[float, float]


@dataclass(frozen=True, slots=True)
class FirstFlip:
    """The first place, from 1, where the most likely token differs: both candidates, and the lead of each in nats.

    `tie` tells whether both leads are below 0.1 nats. `onward` is how each text goes on from there.
    """

    place: int
    first: DivergedToken
    second: DivergedToken
    margins: tuple[float, float]
    tie: bool
    onward: tuple[str, str] = ("", "")


@dataclass(frozen=True, slots=True)
class Diverged:
    """The comparison of two load settings over one reply; divergences in nats."""

    names: tuple[str, str]
    made: bool
    """Whether the reply was generated now, as the last one was not greedy or came from another model."""
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    steps: tuple[DivergedStep, ...]
    agreeing: int
    fork: FirstFlip | None
    kl_mean: float
    kl_most: float
    kl_most_at: int
    """The place, from 1, of the largest divergence."""
    whole: bool
    """Whether both models were in memory at once; else they were loaded one after the other."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The reply to compare over: a recorded greedy one, or a request for one."""

    request: Request
    names: tuple[str, str]
    """Short names of the two load settings."""
    record: Reply | None = None


@dataclass(frozen=True, slots=True)
class Led:
    """The reply that both models read, and the logits processors of its settings."""

    done: Reply
    processors: Callable[[Tensor, Tensor], Tensor]

    @property
    def ids(self) -> list[int]:
        """Return all ids, prompt and reply."""
        return [*self.done.prompt_ids, *self.done.token_ids]


def diverge(store: Models, asked: Asked, other: Load, emit: JobContext) -> Diverged:
    """Compare the current model with one under other load settings; for the model thread.

    Raises `UsageError` if the other has a different tokenizer, and the errors of loading and of the forward pass.
    """
    if other.model != store.current().load.model:
        _require_tokenizer(store, other, emit)
    with store.visitors():
        text = _text(store.current(), asked, emit)
        emit(Progress("loading the other model"))
        try:
            second = store.get(other, emit)
        except NoMemory:
            return _in_turn(store, asked, text, other, emit)
        return _compare(second, asked, text, _rows(store.current(), text, emit), emit)


def _in_turn(store: Models, asked: Asked, text: Led, other: Load, emit: JobContext) -> Diverged:
    """Keep the logits of the current model, load the other in its place, and load the first one again at the end."""
    before = store.current().load
    kept = [row.cpu() for row in _rows(store.current(), text, emit)]
    try:
        store.load(other, emit)
        found = _compare(store.current(), asked, text, kept, emit)
    finally:
        emit.begin_cleanup()
        store.load(before, emit)
        store.tidy()
    return replace(found, whole=False)


def is_greedy(record: Reply, facts: ModelInfo, load: Load) -> bool:
    """Tell whether a reply was generated greedily by this model under these load settings."""
    loaded = {name: getattr(load, name) for name in load.__slots__}
    same = {**record.load, "dtype": record.model.dtype} == {**loaded, "dtype": facts.dtype}
    chosen = not record.sampled and record.beams == 1 and not record.taken
    return bool(record.token_ids) and same and chosen and record.model.commit == facts.commit


def recorded_settings(settings: Settings, record: Reply, base: ModelDefaults) -> Settings:
    """Return settings with the decoding values of a recorded reply."""
    others = {name: value for name, value in record.decode.items() if name not in places()}
    for name in record.decode.keys() - others:
        settings = settings.put(name, record.decode[name], "diverge")
    return replace(settings, extra=tuple(pair for pair in others.items() if base.model.get(pair[0]) != pair[1]))


def _text(resident: Model, asked: Asked, emit: JobContext) -> Led:
    """Return the reply that both models read: the recorded one, or a greedy one generated now."""
    done, settings = asked.record, greedy_settings(asked.request.settings)
    if done is None:
        made = [0]

        def tell(_: object) -> None:
            made[0] += 1
            emit(Progress("generating a greedy reply", made[0], 0, "tokens"))

        done = generation.engine.generate_reply(resident, replace(asked.request, settings=settings), Muted(emit, tell))
        if done.finish == "cancelled":
            raise Cancelled
    found = measure.processors.processors(
        resident.model, decode.loop.Arguments.of_settings(resident, settings), done.prompt_ids
    )
    return Led(done, found)


def _require_tokenizer(store: Models, other: Load, emit: JobContext) -> None:
    """Refuse a model with another vocabulary; raises `UsageError`."""
    theirs, _ = models.loader.load_tokenizer_alone(other, emit, store.consents)
    name = store.current().facts.name
    one, two = store.current().tokenizer.get_vocab(), theirs.get_vocab()
    if one != two:
        shared = sum(two.get(word) == number for word, number in one.items())
        said = f"{shared:,} of the {len(one):,} tokens of {name} have the same id there"
        raise UsageError(f"{other.model} has a different tokenizer: {said}", "/score TEXT")


def _rows(resident: Model, text: Led, emit: JobContext) -> Iterator[Tensor]:
    """Yield the logits that each token of the reply is chosen from, shape (vocab,)."""
    for _, block in measure.scoring.logits(resident, text.ids, emit, len(text.done.prompt_ids)):
        yield from block


def _compare(second: Model, asked: Asked, text: Led, firsts: Iterable[Tensor], emit: JobContext) -> Diverged:
    done, steps = text.done, []
    fork: FirstFlip | None = None
    speller = Speller(second.tokenizer)
    for place, (one, two) in enumerate(zip(firsts, _rows(second, text, emit), strict=True)):
        step, logs = _step(text, place, one, two.to(one.device), speller)
        if fork is None and not step.agrees:
            mine, theirs = (
                DivergedToken(token, speller.text(token), (exp(float(logs[0][token])), exp(float(logs[1][token]))))
                for token in (step.first, step.second)
            )
            fork = FirstFlip(place + 1, mine, theirs, step.margins, max(step.margins) < TIE_NATS)
        steps.append(step)
        emit(Progress("comparing", place + 1, len(done.token_ids), "tokens"))
    if fork is not None:
        fork = replace(fork, onward=_onward(second, asked, text, fork, emit))
    divergences = [step.kl for step in steps]
    most = max(range(len(steps)), key=divergences.__getitem__)
    return Diverged(
        names=asked.names,
        made=asked.record is None,
        prompt_ids=done.prompt_ids,
        token_ids=done.token_ids,
        text=done.raw,
        steps=tuple(steps),
        agreeing=sum(step.agrees for step in steps),
        fork=fork,
        kl_mean=sum(divergences) / len(steps),
        kl_most=divergences[most],
        kl_most_at=most + 1,
        whole=True,
    )


def _step(
    text: Led, place: int, one: Tensor, two: Tensor, speller: Speller
) -> tuple[DivergedStep, tuple[Tensor, Tensor]]:
    """Compare the logits of both models, shape (vocab,), at a token of the reply; also returns both logprobs."""
    import torch

    size = min(len(one), len(two))  # embeddings may be padded to different widths
    token = text.done.token_ids[place]
    before = torch.tensor([text.ids[: len(text.done.prompt_ids) + place]], device=one.device)
    raw = [each[:size] for each in (one, two)]
    logs = [text.processors(before, each[None].clone())[0].double().log_softmax(-1) for each in raw]
    first, second = (int(each.argmax()) for each in logs)
    margins = _lead(logs[0], first, second), _lead(logs[1], second, first)
    apart = logs[0].exp() * (logs[0] - logs[1])
    kl = float(apart[logs[0] > -torch.inf].sum().clamp_min(0))
    return DivergedStep(token, speller.text(token), kl, first, second, margins), (logs[0], logs[1])


def _lead(logs: Tensor, token: int, other: int) -> float:
    """Return the lead of a token in nats: over `other`, or over the second most likely where they are the same."""
    if token != other:
        return float(logs[token] - logs[other])
    two = logs.topk(2).values
    return float(two[0] - two[1])


def _onward(second: Model, asked: Asked, text: Led, fork: FirstFlip, emit: JobContext) -> tuple[str, str]:
    """Return how both texts go on from the fork: the reply as recorded, and the greedy one of the second model."""
    place = fork.place - 1
    before = tuple(text.ids[: len(text.done.prompt_ids) + place])
    rest = [fork.second.id]
    config = decode.loop.Arguments.of_settings(second, asked.request.settings).config
    if fork.second.id not in decoding.end_ids(config):
        settings = greedy_settings(asked.request.settings).put("max_new_tokens", ONWARD_TOKENS - 1, "diverge")
        request = Request(settings, ids=(*before, fork.second.id))
        done = generation.engine.generate_reply(second, request, Muted(emit))
        if done.finish == "cancelled":
            raise Cancelled
        rest += done.token_ids
    own = text.done.token_ids[place : place + ONWARD_TOKENS]
    return _added(second.tokenizer, before, own), _added(second.tokenizer, before, rest)


def _added(tokenizer: PreTrainedTokenizerBase, before: Sequence[int], ids: Sequence[int]) -> str:
    start = str(tokenizer.decode(list(before), skip_special_tokens=True))
    both = str(tokenizer.decode([*before, *ids], skip_special_tokens=True))
    return both[len(start) :] if both.startswith(start) else str(tokenizer.decode(list(ids), skip_special_tokens=True))
