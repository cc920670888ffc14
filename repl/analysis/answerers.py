"""What answers a message in one way: a model in this process, or one behind a server; the answer with its figures."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from repl import generation
from repl.analysis.variants import Variant
from repl.core.errors import Cancelled, NoMemory, ReplError
from repl.core.events import ColumnEvent, Event, Token
from repl.core.jobs import ForwardingContext, JobContext
from repl.core.library_types import PreTrainedTokenizerBase
from repl.core.reply import Reply
from repl.core.settings import Load, Settings
from repl.generation import measure
from repl.generation.interface import Model, Models, Runtime
from repl.remote.engine import Remote, reach
from repl.session.position import Question


@dataclass(frozen=True, slots=True)
class Problem:
    """Why there is no answer: the sentence, and lines to type next."""

    kind: str
    message: str
    hints: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one way to answer; without a model's tensors, for every thread."""

    variant: Variant
    done: Reply | None = None
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
        """All of the text that was made, without what it was made to begin with."""
        return self.done.raw if self.done else ""

    @property
    def cut(self) -> bool:
        """Whether the answer was broken off, so that its end says nothing."""
        return self.done is not None and self.done.finish in ("cancelled", "failed")


@dataclass
class ColumnContext(ForwardingContext):
    """The job as one of several answers sees it: what it says goes into its column."""

    emit: JobContext
    column: int
    tokens: list[Token] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        """Send an event; raises `Cancelled` once the job was cancelled."""
        self.emit(ColumnEvent(self.column, event))
        if isinstance(event, Token):
            self.tokens.append(event)

    def begin_cleanup(self) -> None:
        """Be left alone, but only once the whole job was cancelled: an answer that fails does not end it."""
        if self.emit.stopped():
            self.emit.begin_cleanup()


class ThreadContext(ColumnContext):
    """The same on a thread of its own: it stops with the job, also while that is putting things in order."""

    def __call__(self, event: Event) -> None:
        """Send an event; raises `Cancelled` once the job was cancelled."""
        self.raise_if_cancelled()
        super().__call__(event)

    def raise_if_cancelled(self) -> None:
        """Raise `Cancelled` once the job was cancelled."""
        if self.stopped():
            raise Cancelled

    def begin_cleanup(self) -> None:
        """Do nothing: nobody interrupts this thread, and the job's own must still be stopped."""


def get_model(store: Models, load: Load, emit: JobContext) -> Model:
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


@contextmanager
def open_answerer(store: Models, variant: Variant, emit: JobContext) -> Iterator["LocalAnswerer | RemoteAnswerer"]:
    """Yield what answers, with a cache or a connection of its own; raises a `ReplError`."""
    if (server := variant.server) is None:
        yield LocalAnswerer(replace(get_model(store, variant.settings.load, emit), runtime=Runtime()))
        return
    if server.listing is None:
        remote = reach(server.where, server.model, emit)
    else:
        remote = Remote(server.where, server.model, server.listing)
    try:
        yield RemoteAnswerer(remote)
    finally:
        remote.close()


@dataclass(frozen=True, slots=True)
class LocalAnswerer:
    """A model in this process, with a cache of its own: each prompt is read from its beginning, so figures compare."""

    resident: Model

    def answer(self, variant: Variant, asked: Question, seed: int, aside: ColumnContext) -> Answer:
        """Answer once."""
        resident, facts = self.resident, self.resident.facts
        request = asked.request(with_seed(variant.settings, seed), facts.chats)
        done = generation.engine.generate_reply(resident, request, aside)
        logprobs = tuple(token.logprob for token in aside.tokens if token.logprob is not None)
        return Answer(
            variant,
            done,
            model=facts.name,
            bytes=facts.bytes,
            chats=request.chats,
            pieces=token_pieces(aside.tokens),
            logprobs=logprobs or _score_tokens(resident, done, aside),
            vocabulary=vocabulary_hash(resident.tokenizer),
        )


@dataclass(frozen=True, slots=True)
class RemoteAnswerer:
    """A model behind a server."""

    remote: Remote

    def answer(self, variant: Variant, asked: Question, seed: int, aside: ColumnContext) -> Answer:
        """Answer once; the draws are the server's own unless the settings have a seed."""
        request = asked.request(variant.settings, self.remote.chats)
        done = self.remote.reply(request, aside)
        logprobs = tuple(token.logprob for token in aside.tokens if token.logprob is not None)
        name = f"{self.remote.name} at {self.remote.host}"
        if variant.server is not None:  # what it was asked about itself is worth keeping
            server = replace(variant.server, model=self.remote.model, listing=self.remote.listing)
            variant = replace(variant, server=server)
        return Answer(
            variant, done, model=name, chats=request.chats, pieces=token_pieces(aside.tokens), logprobs=logprobs
        )


def with_seed(chosen: Settings, seed: int) -> Settings:
    """Return settings that draw what a seed says, where none was chosen."""
    return chosen if chosen.decode.seed is not None else replace(chosen, decode=replace(chosen.decode, seed=seed))


def _score_tokens(resident: Model, done: Reply, emit: JobContext) -> tuple[float, ...]:
    try:
        ids, first = [*done.prompt_ids, *done.token_ids], len(done.prompt_ids)
        return tuple(one.logprob for one in measure.scoring.score(resident, ids, emit, first))
    except ReplError:  # a figure less: the answer itself is there
        return ()


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return a number that is the same for tokenizers with the same ids for the same tokens, within this process."""
    return hash(frozenset(tokenizer.get_vocab().items())) or 1


def token_pieces(tokens: Sequence[Token]) -> tuple[str, ...]:
    """Return the text that each token added; a last rest belongs to the token before it, where ids are known."""
    found: list[str] = []
    known = any(token.id is not None for token in tokens)  # a server gives none
    for token in tokens:
        if token.id is not None or not (known and found):
            found.append(token.text)
        else:
            found[-1] += token.text
    return tuple(found)


def full_text(made: Answer) -> str:
    """Return the text of an answer with what it was made to begin with."""
    return made.done.prefill + made.done.raw if made.done else ""
