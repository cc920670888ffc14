"""One message answered in several ways, one after another: each answer with its figures, and where they part."""

import secrets
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

from repl import engine
from repl.errors import Cancelled, NoMemory, ReplError
from repl.events import Columns, Done, Event, InColumn, Notice, Token
from repl.loading import Resident
from repl.request import Message, Request
from repl.reuse import Kept, common
from repl.scoring import score
from repl.settings import Load, Settings
from repl.store import Store
from repl.variants import Variant
from repl.worker import Emit


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be answered: the messages of a chat, none for a text that every model completes, and that text."""

    text: str
    messages: tuple[Message, ...] = ()
    turns: tuple[int, ...] = ()
    prefill: str = ""

    def request(self, chosen: Settings, chats: bool) -> Request:
        """Return what a model is asked that chats or only completes; the setting `mode` decides before it does."""
        mode = chosen.view.mode
        if self.messages and (chats if mode == "auto" else mode == "chat"):
            return Request(chosen, messages=self.messages, turns=self.turns, prefill=self.prefill)
        return Request(chosen, text=self.text)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why there is no answer: the sentence, and lines to type next."""

    kind: str
    message: str
    hints: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Made:
    """What came of one way to answer; without a model's tensors, for every thread."""

    variant: Variant
    done: Done | None = None
    problem: Problem | None = None
    model: str = ""
    bytes: int = 0
    """Memory that the weights take."""
    chats: bool = False
    """Whether it answered in the chat, or completed the text."""
    pieces: tuple[str, ...] = ()
    """The text that each token added."""
    logprobs: tuple[float, ...] = ()
    """What the model itself gave each token, in nats; empty where that was not measured."""
    vocabulary: int = 0
    """The same for equal tokenizers, 0 for one that is not known."""

    @property
    def ids(self) -> tuple[int, ...]:
        """The token ids of the answer."""
        return self.done.token_ids if self.done else ()

    @property
    def text(self) -> str:
        """The text of the answer, without what it was made to begin with."""
        return self.done.text if self.done else ""

    @property
    def cut(self) -> bool:
        """Whether the answer was broken off, so that its end says nothing."""
        return self.done is not None and self.done.finish in ("cancelled", "failed")


@dataclass(frozen=True, slots=True)
class Difference:
    """Where an answer parts from another: its token there, counted from 1, and the characters to mark.

    They are none where the answer ends.
    """

    token: int
    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Column:
    """One answer: how it was asked for, what made it, where it parts from the first, and its record.

    `bytes` are those of the weights, `mean_logprob` is in nats, in the model's own distribution.
    """

    title: str
    model: str
    bytes: int
    mean_logprob: float | None
    text: str
    difference: Difference | None
    problem: Problem | None
    done: Done | None


@dataclass(frozen=True, slots=True)
class Compared:
    """The answers to one message; `whole` is False where it was stopped before the end.

    `turn` is the message of the conversation that was asked again, None for a new one.
    """

    prompt: str
    turn: int | None
    columns: list[Column]
    whole: bool


# run


@dataclass(slots=True)
class Aside:
    """The job as one of several answers sees it: what it says goes into its column."""

    emit: Emit
    column: int
    tokens: list[Token] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        """Send an event; raises `Cancelled` once the job was cancelled."""
        self.emit(InColumn(self.column, event))
        if isinstance(event, Token):
            self.tokens.append(event)

    def check(self) -> None:
        """Raise `Cancelled` once the job was cancelled."""
        self.emit.check()

    def stopped(self) -> bool:
        """Tell whether the job was cancelled."""
        return self.emit.stopped()

    def shield(self) -> AbstractContextManager[None]:
        """Keep the thread from being interrupted."""
        return self.emit.shield()

    def settle(self) -> None:
        """Be left alone, but only once the whole job was cancelled: an answer that fails does not end it."""
        if self.emit.stopped():
            self.emit.settle()


def run(store: Store, variants: Sequence[Variant], asked: Asked, emit: Emit, made: list[Made]) -> None:
    """Answer in every way, adding to `made` as soon as an answer has ended; for the model thread.

    One that fails is told and the next goes on; a cancel ends it with what there is. What was kept of the models'
    last texts stays as it is. Where two models do not fit side by side, the current one has to go.
    """
    seed = secrets.randbits(31)  # one for all: ways to answer differ, not the draws
    emit(Columns(tuple(variant.title for variant in variants)))
    for column, variant in enumerate(variants):
        aside = Aside(emit, column)
        try:
            made.append(_answered(store, variant, asked, seed, aside))
        except Cancelled:
            emit.settle()
        if emit.stopped():
            emit.settle()
            break
    store.trim()
    store.tidy()


def _answered(store: Store, variant: Variant, asked: Asked, seed: int, aside: Aside) -> Made:
    try:
        return answered(brought(store, variant.settings.load, aside), variant, asked, seed, aside)
    except ReplError as error:
        if not aside.stopped():
            aside(Notice(error.message))
        return failed(variant, error, aside.tokens)


def failed(variant: Variant, error: ReplError, tokens: Sequence[Token]) -> Made:
    """Return why there is no answer, with what there is of one."""
    return Made(variant, error.partial, Problem(error.kind, error.message, error.hints), pieces=pieces(tokens))


def brought(store: Store, load: Load, emit: Emit) -> Resident:
    """Return a model beside the current one, or instead of it where both do not fit; raises a `ReplError`."""
    try:
        return store.get(load, emit)
    except NoMemory:
        facts = store.facts()
        if facts is None or store.current().load == load:
            raise
    store.load(load, emit)
    store.tidy()
    return store.current()


def answered(resident: Resident, variant: Variant, asked: Asked, seed: int, aside: Aside) -> Made:
    """Answer once, with a cache of its own: every prompt is read from its beginning, so that figures compare."""
    alone = replace(resident, kept=Kept())
    facts = resident.facts
    request = asked.request(measured(variant.settings, seed), facts.chats)
    done = engine.reply(alone, request, aside)
    logprobs = tuple(token.logprob for token in aside.tokens if token.logprob is not None)
    return Made(
        variant,
        done,
        model=facts.name,
        bytes=facts.bytes,
        chats=request.chats,
        pieces=pieces(aside.tokens),
        logprobs=logprobs or weighed(alone, done.prompt_ids, done.token_ids, aside),
        vocabulary=vocabulary(resident.tokenizer),
    )


def measured(chosen: Settings, seed: int) -> Settings:
    """Return settings under which a reply is measured, and draws what a seed says where none was chosen."""
    decode = chosen.decode if chosen.decode.seed is not None else replace(chosen.decode, seed=seed)
    return replace(chosen, decode=decode, view=replace(chosen.view, logprobs=max(1, chosen.view.logprobs)))


def weighed(resident: Resident, prompt: Sequence[int], ids: Sequence[int], emit: Emit) -> tuple[float, ...]:
    """Return the log-probability of each token of a text behind a prompt, in nats; none where that cannot be read."""
    try:
        return tuple(one.logprob for one in score(resident, [*prompt, *ids], emit, len(prompt)))
    except ReplError:  # a figure less: the answer itself is there
        return ()


def vocabulary(tokenizer: Any) -> int:
    """Return a number that is the same for tokenizers with the same ids for the same tokens, within this process."""
    return hash(frozenset(tokenizer.get_vocab().items())) or 1


def pieces(tokens: Sequence[Token]) -> tuple[str, ...]:
    """Return the text that each token added; a last rest belongs to the token before it."""
    found: list[str] = []
    for token in tokens:
        if token.id is not None or not found:
            found.append(token.text)
        else:
            found[-1] += token.text
    return tuple(found)


# compare


def mean(logprobs: Sequence[float]) -> float | None:
    """Return the mean log-probability in nats."""
    return sum(logprobs) / len(logprobs) if logprobs else None


def differences(made: Sequence[Made]) -> list[Difference | None]:
    """Tell of each answer where it parts from the first one, and of the first where another parts from it soonest."""
    good = [place for place, one in enumerate(made) if one.done is not None]
    found: list[Difference | None] = [None] * len(made)
    firsts: list[Difference] = []
    for place in good[1:]:
        if parted := parting(made[good[0]], made[place]):
            firsts.append(parted[0])
            found[place] = parted[1]
    if firsts:
        found[good[0]] = min(firsts, key=lambda one: one.token)
    return found


def parting(one: Made, other: Made) -> tuple[Difference, Difference] | None:
    """Return where two answers part, by token ids where the tokenizers are the same, else by text.

    What was stopped has no end of its own: nothing is known of what would have followed.
    """
    by_ids = one.vocabulary == other.vocabulary != 0
    ways = [made.ids if by_ids else [*map(ord, made.text)] for made in (one, other)]
    same = common(*ways)
    ended = [made for made, way in zip((one, other), ways, strict=True) if same == len(way)]
    if len(ended) == 2 or any(made.cut for made in ended):
        return None
    places = [same if by_ids else piece(made, same) for made in (one, other)]
    return _marked(one, places[0]), _marked(other, places[1])


def piece(made: Made, character: int) -> int:
    """Return the token that a character of the text belongs to."""
    ends = accumulate(map(len, made.pieces))
    return next((place for place, end in enumerate(ends) if end > character), len(made.pieces))


def _marked(made: Made, place: int) -> Difference:
    start = len("".join(made.pieces[:place]))
    text = next((piece for piece in made.pieces[place:] if piece), "")  # half a character shows with its other half
    return Difference(place + 1, text, start, start + len(text))


def spoken(made: Made) -> str:
    """Return the text of an answer with what it was made to begin with."""
    return made.done.prefill + made.done.text if made.done else ""


def compared(prompt: str, turn: int | None, made: Sequence[Made], wanted: int) -> Compared:
    """Put answers beside each other, of as many as were wanted."""
    found = [
        Column(
            title=one.variant.title,
            model=one.model,
            bytes=one.bytes,
            mean_logprob=mean(one.logprobs),
            text=spoken(one),
            difference=difference,
            problem=one.problem,
            done=one.done,
        )
        for one, difference in zip(made, differences(made), strict=True)
    ]
    whole = len(made) == wanted and not any(one.done and one.done.finish == "cancelled" for one in made)
    return Compared(prompt, turn, found, whole)
