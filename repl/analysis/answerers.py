"""Answerers: a local model or a server answers a message in one way; out comes the answer with its figures."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from repl import generation
from repl.analysis.variants import Server, Variant
from repl.core.errors import NoMemory, ReplError, UsageError
from repl.core.events import ColumnEvent, Event, Token
from repl.core.jobs import Aside, JobContext
from repl.core.reply import Reply
from repl.core.settings import Load, Settings
from repl.generation import measure
from repl.generation.interface import Model, Models, Runtime
from repl.remote.engine import Remote, reach
from repl.session.position import Question


@dataclass(frozen=True, slots=True)
class Problem:
    """The error of an answer: its kind, its message, and lines to type next."""

    kind: str
    message: str
    hints: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of one way to answer, without tensors, for every thread."""

    variant: Variant
    done: Reply | None = None
    problem: Problem | None = None
    model: str = ""
    bytes: int = 0
    """The size of the weights."""
    chats: bool = False
    """Whether it answered in the chat; else it completed the text."""
    pieces: tuple[str, ...] = ()
    """The text that each token added."""
    logprobs: tuple[float, ...] = ()
    """Log-probabilities in the model's own distribution, in nats; empty if they were not measured."""
    vocabulary: int = 0
    """A hash of the vocabulary: equal for tokenizers with the same ids, within this process; 0 if it is unknown."""

    @property
    def ids(self) -> tuple[int, ...]:
        """The token ids of the answer."""
        return self.done.token_ids if self.done else ()

    @property
    def text(self) -> str:
        """The text that was generated, without the prefill."""
        return self.done.raw if self.done else ""

    @property
    def whole_text(self) -> str:
        """The text with the prefill."""
        return self.done.prefill + self.done.raw if self.done else ""

    @property
    def cut(self) -> bool:
        """Whether the answer was stopped or failed before its end."""
        return self.done is not None and self.done.finish in ("cancelled", "failed")


@dataclass
class ColumnContext(JobContext):
    """The context of one of several answers: its events go to its column."""

    emit: JobContext
    column: int
    tokens: list[Token] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        """Send an event; raises `Cancelled` once the job was cancelled."""
        self.emit(ColumnEvent(self.column, event))
        if isinstance(event, Token):
            self.tokens.append(event)

    def logprobs(self) -> tuple[float, ...]:
        """Return the log-probabilities that came with tokens."""
        return tuple(token.logprob for token in self.tokens if token.logprob is not None)

    def pieces(self) -> tuple[str, ...]:
        """Return the text that each token added; a final rest without an id belongs to the token before it."""
        found: list[str] = []
        known = any(token.id is not None for token in self.tokens)  # a server gives none
        for token in self.tokens:
            if token.id is not None or not (known and found):
                found.append(token.text)
            else:
                found[-1] += token.text
        return tuple(found)

    def begin_cleanup(self) -> None:
        """Begin the cleanup of the whole job if it was cancelled: one answer that fails does not end it."""
        if self.emit.stopped():
            self.emit.begin_cleanup()


class ThreadContext(Aside, ColumnContext):
    """The same on a thread of its own."""

    def __call__(self, event: Event) -> None:
        """Send an event; raises `Cancelled` once the job was cancelled."""
        self.raise_if_cancelled()
        super().__call__(event)


def get_model(store: Models, load: Load, emit: JobContext) -> Model:
    """Return a model beside the current one, or in its place if both do not fit; raises a `ReplError`."""
    try:
        return store.get(load, emit)
    except NoMemory:
        facts = store.facts()
        if facts is None or store.current().load == load:
            raise
    store.load(load, emit)
    store.tidy()
    return store.current()


Answerer = Callable[[Question, int, ColumnContext], Answer]
"""Answers a question once; the seed is used if the settings have none."""


@contextmanager
def open_answerer(store: Models, variant: Variant, emit: JobContext, chats: bool = False) -> Iterator[Answerer]:
    """Yield an answerer with a KV cache or a connection of its own; raises a `ReplError`.

    With `chats`, a local model needs a chat template.
    """
    if (server := variant.server) is None:
        resident = get_model(store, variant.settings.load, emit)
        name = resident.facts.name
        if chats and not (resident.facts.chats or variant.settings.view.mode == "chat"):
            raise UsageError(f"{name} has no chat template, which a conversation needs", f"/compare now {name}")
        # each prompt is read from its beginning, so that figures compare
        yield partial(_answer_here, replace(resident, runtime=Runtime()), variant)
        return
    with closing(reach_server(server, emit)) as remote:
        yield partial(_answer_there, remote, variant)


def reach_server(server: Server, emit: JobContext) -> Remote:
    """Return a connection to a server, which is asked for its models unless they are known."""
    if server.listing is None:
        return reach(server.where, server.model, emit)
    return Remote(server.where, server.model, server.listing)


def with_seed(chosen: Settings, seed: int) -> Settings:
    """Return settings with a seed where they have none."""
    return chosen if chosen.decode.seed is not None else replace(chosen, decode=replace(chosen.decode, seed=seed))


def _answer_here(resident: Model, variant: Variant, asked: Question, seed: int, aside: ColumnContext) -> Answer:
    facts = resident.facts
    request = asked.request(with_seed(variant.settings, seed), facts.chats)
    done = generation.engine.generate_reply(resident, request, aside)
    return Answer(
        variant,
        done,
        model=facts.name,
        bytes=facts.bytes,
        chats=request.chats,
        pieces=aside.pieces(),
        logprobs=aside.logprobs() or _score_tokens(resident, done, aside),
        vocabulary=hash(frozenset(resident.tokenizer.get_vocab().items())) or 1,
    )


def _answer_there(remote: Remote, variant: Variant, asked: Question, seed: int, aside: ColumnContext) -> Answer:
    """Let a server answer; it draws by itself unless the settings have a seed."""
    request = asked.request(variant.settings, remote.chats)
    done = remote.reply(request, aside)
    if variant.server is not None:  # keep its list of models
        variant = replace(variant, server=replace(variant.server, model=remote.model, listing=remote.listing))
    return Answer(
        variant,
        done,
        model=f"{remote.name} at {remote.host}",
        chats=request.chats,
        pieces=aside.pieces(),
        logprobs=aside.logprobs(),
    )


def _score_tokens(resident: Model, done: Reply, emit: JobContext) -> tuple[float, ...]:
    try:
        ids, first = [*done.prompt_ids, *done.token_ids], len(done.prompt_ids)
        return tuple(one.logprob for one in measure.scoring.score(resident, ids, emit, first))
    except ReplError:  # a figure less: the answer itself is there
        return ()
