"""The state of one session: settings, models, conversation, archive, and jobs in progress.

Commands read it and change it through its methods; it draws nothing.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic

from repl.core import decoding, paths, settings
from repl.core.conversation import Conversation, Turn
from repl.core.decoding import NOTHING, ModelDefaults
from repl.core.errors import Cancelled, NeedsLocal, NoModel, ReplError
from repl.core.format import join_facts
from repl.core.jobs import Job, JobContext, T, Worker
from repl.core.reply import Reply
from repl.core.settings import Load, Settings
from repl.generation.interface import Engine, Local, Models, Request
from repl.hub import catalog
from repl.hub.cache import LocalModel
from repl.hub.validate import NeedsCode
from repl.models.store import ModelInfo
from repl.remote.engine import Remote
from repl.session.archive import Archive

Work = Callable[[JobContext], T]
Settle = Callable[[Job[T]], object]
ARCHIVE_FILE = "archive.db"
MADE_WITH = (
    "model",
    "revision",
    "dtype",
    "quantize",
    "adapter",
    "gguf_file",
)  # what loads when a conversation goes on
CONSENT = "your consent"  # where trust_remote_code comes from that was given with /trust, for one model
TIDY_DELAY_S = 0.05  # seconds in which a load's end is drawn before anything else is done


@dataclass(slots=True)
class Task(Generic[T]):
    """A job with what follows it on the main thread: `settle` is called once, when the job has finished."""

    job: Job[T]
    settle: Callable[[], Any]
    background: bool = False


@dataclass(frozen=True, slots=True)
class ShownView:
    """The result of a command that was shown, with its line and the command's name."""

    line: str
    command: str
    result: object
    about: tuple[tuple[str, str], ...] = ()  # model, commit and settings of that moment
    turns: int = 0  # of the conversation by then


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready; `before` is what was resident when the load began."""

    facts: ModelInfo
    asked: Load
    before: ModelInfo | None = None


@dataclass(frozen=True, slots=True)
class NextMessage:
    """Files, prefill and branch for the next message."""

    files: tuple[tuple[str, str], ...] = ()
    """Texts in front of it, each with its name."""
    prefill: str = ""
    """The text that its reply begins with."""
    replaces: Turn | None = None
    """The message that it replaces, on a branch of its own."""

    def with_files(self, text: str) -> str:
        """Return a message with the files in front of it."""
        return "\n\n".join([*(f"{name}:\n{content}" for name, content in self.files), text])


def _run(worker: Worker, work: Work[T], settle: Settle[T] | None) -> Task[T]:
    job = worker.start(work)
    return Task(job, lambda: settle(job) if settle else job.result())


class Session:
    """One user at one prompt; attributes are read everywhere, and changed by the methods alone."""

    def __init__(self, chosen: Settings, store: Models, worker: Worker, saved: Path | None = None) -> None:
        self.settings = chosen
        self.store = store
        store.keep = lambda: self.settings.view.keep_models
        self.worker = worker
        self._errands, self._network = Worker("errands"), Worker("network")
        self.remote: Remote | None = None  # the server that answers instead of the model in this process
        self.trusted: set[str] = set()  # hosts that may be talked to without encryption
        self.notices: list[str] = []  # sentences for the user that are not said yet
        self._saved = saved  # the file of the archive, None where nothing is saved
        self._archive: Archive | None = None
        self.conversation = Conversation(keep=lambda turn: self.archive.save(turn))
        self.last: Turn | None = None  # the reply that views and /pick speak of
        self.last_sweep: object = None  # the last sweep, see `repl.analysis.sweep`
        self.last_view: ShownView | None = None  # the last view
        self.loading: Task[ModelInfo] | None = None
        self.wanted: Settings | None = None  # the settings as they will be when the load succeeds
        self.untrusted: tuple[Settings, LocalModel | None] | None = (
            None  # a load refused for its code, and where that lies
        )
        self.speed: float | None = None  # tokens per second of the last reply
        self.presets: dict[str, Mapping[str, str]] = {}
        self.engines: Mapping[str, Mapping[str, str]] = {}  # the servers that the config file names
        self.next_message = NextMessage()
        self.context_used = 0  # tokens of the context that the last reply ended with
        self._pick: tuple[Callable[[int], object], Conversation, int] | None = None

    # work

    def run_on_model(self, work: Work[T], settle: Settle[T] | None = None) -> Task[T]:
        """Queue work for the model thread; `settle(job)` turns its end into a result, on the main thread."""
        return _run(self.worker, work, settle)

    def run_io(self, work: Work[T], settle: Settle[T] | None = None) -> Task[T]:
        """Queue work on disk and network that touches no tensor: it need not wait for the model thread."""
        return _run(self._errands, work, settle)

    def run_network(self, work: Work[T], settle: Settle[T] | None = None) -> Task[T]:
        """Queue work for a server: on a thread of its own, which no load holds up."""
        return _run(self._network, work, settle)

    def chat_request(self, asked: Turn, chosen: Settings, prefill: str = "") -> Request:
        """Return the request for a reply to a message of the conversation; the reply begins with `prefill`."""
        talk = self.conversation
        return Request(chosen, messages=tuple(talk.messages(asked.id)), turns=talk.numbers(asked.id), prefill=prefill)

    def generate_turn(
        self, asked: Turn, work: Work[Reply], lead: str = "", whole: Callable[[Reply], Reply] = lambda done: done
    ) -> Task[Reply]:
        """Generate a reply, on the model thread or a server, as a new turn below a message; it is closed at the end.

        `lead` is the text that the reply was given to begin with; `whole` makes its record from what came out.
        """
        turn = self.conversation.add("assistant" if asked.role == "user" else "completion", "", asked.id, state="open")

        def settle(job: Job[Reply]) -> Reply:
            try:
                done = job.result()
            except (ReplError, Cancelled) as error:
                partial = getattr(error, "partial", None)
                self.close_turn(turn, lead, whole(partial) if partial else None, "failed")
                raise
            self.close_turn(turn, lead, whole(done), "cancelled" if done.finish == "cancelled" else "complete")
            return done

        return (self.run_network if self.remote else self.run_on_model)(work, settle)

    def close_turn(self, turn: Turn, lead: str, done: Reply | None, state: str) -> None:
        """End a turn with the record of its reply, None for no reply; an empty one that has failed has no text."""
        there = done is not None and (bool(done.raw) or state == "complete")  # a beginning that was given is no reply
        closed = self.conversation.close(turn, lead + done.raw if done and there else "", state, done)
        if there:
            self.set_last(closed)
            if turn.role == "assistant":
                self.conversation.head = closed.id

    def connect(self, remote: Remote | None) -> None:
        """Answer with a server from now on; None: with the model in this process."""
        self.remote = remote  # the one before may be asked again: it holds no connection between requests

    def load(self, wanted: Settings) -> Task[ModelInfo]:
        """Begin to load the model of the settings; they become the session's own when it is ready.

        A load in progress is cancelled: the new one includes its changes. A model in memory is ready at once, and is
        no background task.
        """
        return self._load(wanted, self.store.load, background=not self.store.holds(wanted.load))

    def reload(self, wanted: Settings | None = None) -> Task[ModelInfo]:
        """Begin to load the model, or another one, anew: from the files as they are now."""
        return self._load(wanted or self.pending(), self.store.reload, background=True)

    def _load(
        self, wanted: Settings, bring: Callable[[Load, JobContext], ModelInfo], background: bool
    ) -> Task[ModelInfo]:
        if self.loading:
            self.loading.job.cancel()
        given, origin = self.store.consents.allows(wanted.load.model), wanted.origins.get("trust_remote_code")
        if given and origin is None:
            wanted = wanted.put("trust_remote_code", True, CONSENT)
        elif origin == CONSENT and not given:  # that of another model, or one that was taken back
            wanted = wanted.reset("trust_remote_code")
        before = self.store.facts()
        job = self.worker.start(lambda emit: bring(wanted.load, emit))
        task = Task(job, lambda: self._settle_load(task, wanted, before), background)
        self.loading, self.wanted = task, wanted
        return task

    def _settle_load(self, task: Task[ModelInfo], wanted: Settings, before: ModelInfo | None) -> Loaded:
        if self.loading is task:
            self.loading = self.wanted = None
        self.worker.start(self._tidy)
        try:
            facts = task.job.result()
        except NeedsCode as error:
            self.untrusted = (wanted, error.found)
            raise
        # decoding and view may have changed meanwhile: only the loading part is taken over
        names = [name for name, part in settings.places().items() if part == "load"]
        kept = {name: word for name, word in self.settings.origins.items() if name not in names}
        mine = {name: word for name, word in wanted.origins.items() if name in names}
        self.settings = replace(self.settings, load=wanted.load, origins={**kept, **mine})
        return Loaded(facts, wanted.load, before)

    def _tidy(self, emit: JobContext) -> None:
        """Free the memory that a load no longer needs, once there was time to show that the model is ready."""
        until = time.monotonic() + TIDY_DELAY_S
        while self.worker.idle() and time.monotonic() < until:
            time.sleep(TIDY_DELAY_S / 10)
        emit.raise_if_cancelled()
        emit.begin_cleanup()  # an interrupt in the middle of collecting garbage would be told on the screen
        self.store.tidy()

    def set_pick(self, take: Callable[[int], object]) -> None:
        """Let /pick choose among answers that are no turns yet: `take(number)` makes one a turn."""
        self._pick = (take, self.conversation, len(self.conversation.turns))

    def get_pick(self) -> Callable[[int], object] | None:
        """Return the function that /pick calls with a number; None once another message was sent."""
        if self._pick is None:
            return None
        take, talk, count = self._pick
        return take if talk is self.conversation and len(talk.turns) == count else None

    def restore(self) -> None:
        """Begin to bring the model back that the settings name, where another had to take its place."""
        if self.loading is None and self.store.facts() and self.store.current().load != self.settings.load:
            self.notify(f"both models do not fit in memory; reloading {settings.short_id(self.settings.load.model)}")
            self.load(self.settings)

    def follow_head(self) -> None:
        """Update the last reply and the context in use after the head of the conversation moved."""
        turn = self.conversation.turns.get(self.conversation.head or 0)
        record = turn.record if turn else None
        self.last = turn if record else self.last
        self.context_used = record.tokens if record else 0
        self.prepare(replaces=None)

    def set_last(self, turn: Turn) -> None:
        """Make a reply the last one, which views and figures are about."""
        self.last = turn
        if turn.record is not None:
            self.speed = turn.record.timing.decode_tps or self.speed
            self.context_used = turn.record.tokens

    def resume(self, talk: Conversation) -> None:
        """Go on with another conversation, where it stands; before any load its own model is the one to load."""
        self.conversation, self.last = talk, None
        self.follow_head()
        if self.last is None:  # completed texts are outside of the conversation
            self.last = next((turn for turn in reversed(talk.turns.values()) if turn.record), None)
        chosen = self.settings.origins.get("model") == "you"
        if self.last and self.last.record and not (chosen or self.remote or self.loading or self.store.facts()):
            for name in (name for name in MADE_WITH if name in self.last.record.load):
                if self.settings.origins.get(name) != "you":
                    self.settings = self.settings.put(name, self.last.record.load[name], "this conversation")

    # what is told

    def configure(self, presets: Mapping[str, Mapping[str, str]], engines: Mapping[str, Mapping[str, str]]) -> None:
        """Take over what the config file names: presets of settings, and servers."""
        self.presets, self.engines = dict(presets), engines

    def add_preset(self, name: str, words: Mapping[str, str]) -> None:
        """Name some settings for the rest of the session."""
        self.presets[name] = words

    def change(self, chosen: Settings) -> None:
        """Take other settings for decoding and view; what is loaded stays."""
        self.settings = chosen

    def prepare(self, **changes: Any) -> None:
        """Change what waits for the next message, field by field."""
        self.next_message = replace(self.next_message, **changes)

    def notify(self, *sentences: str) -> None:
        """Keep sentences for the user until they can be said."""
        self.notices += sentences

    def take_notices(self) -> list[str]:
        """Return the sentences that are not said yet, which they are then."""
        said, self.notices = self.notices, []
        return said

    def keep_view(self, view: ShownView) -> None:
        """Keep the result that a command showed, for /export."""
        facts = None if self.remote else self.store.facts()
        model = join_facts(self.engine.name, *self.engine.traits) if self.remote or facts else ""
        settings = decoding.phrase(self.decoding())
        about = ("model", model), ("commit", facts.commit if facts else ""), ("settings", settings)
        self.last_view = replace(view, about=about, turns=len(self.conversation.turns))

    def keep_sweep(self, found: object) -> None:
        """Remember a sweep."""
        self.last_sweep = found

    def trust_host(self, host: str) -> None:
        """Let a server be talked to without encryption."""
        self.trusted.add(host)

    def forget_refusal(self) -> None:
        """Forget the load that was refused for its code."""
        self.untrusted = None

    # what stays

    @property
    def archive(self) -> Archive:
        """Return the archive; its file is opened when it is first needed."""
        if self._archive is None:
            file = self._saved or paths.data_folder() / ARCHIVE_FILE
            self._archive, said = Archive.open(file, saving=self._saved is not None)
            self._archive.warn = self.notify
            self.notify(*filter(None, [said]))
        return self._archive

    def save_head(self) -> None:
        """Save the head of the conversation and its system message."""
        if self._archive is not None:
            self._archive.mark(self.conversation.head, self.conversation.system)

    # what is so now

    def pending(self) -> Settings:
        """Return the settings with the load that is on its way: what a further change builds on."""
        if self.wanted is None:
            return self.settings
        return replace(self.settings, load=self.wanted.load, origins={**self.settings.origins, **self.wanted.origins})

    def facts(self) -> ModelInfo:
        """Return the facts of the loaded model; raises `NoModel`, and `NeedsLocal` while a server answers."""
        self.require_local()
        return self.store.current().facts

    def require_local(self, what: str = "this") -> None:
        """Raise `NeedsLocal` while a server answers."""
        if self.remote is not None:
            facts = self.store.facts()
            raise NeedsLocal(what, back=facts.id if facts else self.pending().load.model)

    @property
    def engine(self) -> Engine:
        """Return the engine that answers: the server that is connected, else the model in this process."""
        return self.remote or Local(self.store)

    def base(self) -> ModelDefaults:
        """Return the model's own decoding defaults; empty before one is loaded."""
        return self.engine.base if self.remote or self.store.facts() else NOTHING

    def uses_template(self) -> bool:
        """Tell whether a message is part of a chat, or else a text to go on from; raises `NoModel`."""
        mode = self.settings.view.mode
        return self.engine.chats if mode == "auto" else mode == "chat"

    def model_names(self) -> list[str]:
        """Return the models to complete: in memory, in the cache, found, and the most used of the Hub."""
        return catalog.names(self.store.offline, [each.facts.id for each in self.store.residents()])

    def decoding(self) -> dict[str, decoding.Value]:
        """Return the decoding values in effect; to a server no limit is sent that nobody chose."""
        found = decoding.effective_values(self.settings, self.base())
        if self.remote is not None and self.settings.decode.max_new_tokens is None:
            found.pop("max_new_tokens", None)
        return found

    def require_local_model(self) -> None:
        """Raise `NoModel` unless a model is resident or on its way, and `NeedsLocal` while a server answers."""
        self.require_local()
        self.require_engine()

    def require_engine(self) -> None:
        """Raise `NoModel` unless something answers, or will when it is loaded."""
        if self.remote is None and self.store.facts() is None and self.loading is None:
            raise NoModel("no model is loaded", "/model builtin")

    def close(self, seconds: float = 1.0) -> bool:
        """Close the archive and end the threads; False if one is still busy after `seconds`."""
        self.save_head()
        if self._archive is not None:
            self._archive.close()
        self.connect(None)
        idle = [worker.close(seconds) for worker in (self._errands, self._network, self.worker)]
        return all(idle)
