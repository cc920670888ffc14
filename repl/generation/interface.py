"""What answers requests: the model in this process, or one behind a server; the same border for both."""

from typing import Protocol

from repl import generation
from repl.core.decoding import ModelDefaults
from repl.core.errors import NoModel
from repl.core.jobs import JobContext
from repl.core.reply import Reply
from repl.generation.request import Request
from repl.generation.runtime import Models
from repl.models.store import ModelInfo


class Engine(Protocol):
    """Turns a request into events and a record. What is known of it may be read on every thread."""

    @property
    def name(self) -> str:
        """Its model, as it is called on the screen."""

    @property
    def traits(self) -> tuple[str, ...]:
        """What to say of it beside the name: precision and place."""

    @property
    def context(self) -> int:
        """Most tokens that prompt and reply may have together; 0 where there is no limit, or none known."""

    @property
    def chats(self) -> bool:
        """Whether messages go through a chat template."""

    @property
    def base(self) -> ModelDefaults:
        """What it brings to decoding."""

    def made(self, record: Reply) -> bool:
        """Tell whether it made a reply and can go on from its very ids."""

    def reply(self, request: Request, emit: JobContext) -> Reply:
        """Answer a request; a cancelled reply is returned with what there is of it, a failed one is in the error."""


class Local:
    """The resident model, whichever it is by then. Only the model thread may ask it for a reply."""

    def __init__(self, store: Models) -> None:
        self._store = store

    @property
    def facts(self) -> ModelInfo:
        """Return what is loaded; raises `NoModel`."""
        if (facts := self._store.facts()) is None:
            raise NoModel("no model is loaded", "/model builtin")
        return facts

    @property
    def name(self) -> str:
        """Return the id, without the path where it is a folder."""
        return self.facts.name

    @property
    def traits(self) -> tuple[str, ...]:
        """Return precision and devices."""
        return (self.facts.form, ", ".join(dict.fromkeys(self.facts.device_map.values())))

    @property
    def context(self) -> int:
        """Return the context in tokens."""
        return self.facts.context

    @property
    def chats(self) -> bool:
        """Tell whether the model has a chat template."""
        return self.facts.chats

    @property
    def base(self) -> ModelDefaults:
        """Return the model's own generation config."""
        return self.facts.base

    def made(self, record: Reply) -> bool:
        """Tell whether this very model made a reply."""
        return record.made_by(self.facts.id, self.facts.commit)

    def reply(self, request: Request, emit: JobContext) -> Reply:
        """Answer on the model thread."""
        return generation.engine.generate_reply(self._store.current(), request, emit, self._store.get)
