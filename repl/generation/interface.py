"""What answers requests: the model in this process, or one behind a server; the same border for both.

Here are what is asked of a model, what generation keeps beside a loaded one, and what both kinds of engine can do.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from repl import generation
from repl.core.decoding import ModelDefaults
from repl.core.errors import NoModel
from repl.core.events import Notice
from repl.core.jobs import JobContext
from repl.core.reply import Reply
from repl.core.settings import Settings
from repl.generation import decode
from repl.generation.decode.detokenizer import AnyMessage, Begun
from repl.models.store import LoadedModel, ModelInfo, Store


@dataclass(frozen=True, slots=True, eq=False)
class Runtime:
    """The KV cache of the text that was worked on last, and the notices so far."""

    kv_cache: "decode.kv_cache.PrefixCache" = field(default_factory=lambda: decode.kv_cache.PrefixCache())
    last_logits: dict[tuple[int, ...], Any] = field(default_factory=dict)
    """The logits behind the text that was looked at last, by its ids."""
    format_tokenizers: dict[tuple[int, ...], Any] = field(default_factory=dict)
    """The tokenizer as llguidance has it, by the end tokens."""
    notices_shown: set[str] = field(default_factory=set)
    """What was said of this model and need not be said again."""

    def forget(self) -> None:
        """Keep nothing that was computed."""
        self.kv_cache.drop()
        self.last_logits.clear()

    def mention(self, said: str, emit: JobContext) -> None:
        """Say something about the model once."""
        if said and said not in self.notices_shown:
            self.notices_shown.add(said)
            emit(Notice(said))


Model: TypeAlias = LoadedModel[Runtime]
Models: TypeAlias = Store[Runtime]


@dataclass(frozen=True, slots=True)
class Request:
    """What to answer: the messages of a chat, a text to continue, or the very ids to go on from."""

    settings: Settings
    messages: tuple[AnyMessage, ...] = ()
    turns: tuple[int, ...] = ()
    """The numbers of the turns that the messages are, 0 for the system text."""
    text: str = ""
    ids: tuple[int, ...] = ()
    prefill: str = ""
    """What the reply begins with, in a chat."""
    begun: Begun | None = None
    """The reply of a chat that `ids` end with."""
    made: int = 0
    """How many of `ids`, the last ones, are of the completion that is gone on with."""

    @property
    def chats(self) -> bool:
        """Tell whether the template is used."""
        return bool(self.messages)

    @property
    def system(self) -> str:
        """The instruction in front of the chat, empty where there is none."""
        first = self.messages[0] if self.messages else {}
        return first["content"] if first.get("role") == "system" else ""

    @property
    def begins_with(self) -> tuple[str, tuple[int, ...]]:
        """Return what the reply has already: a text that it was given, and the ids that were made."""
        if self.begun:
            return self.begun.prefill, self.begun.ids
        return self.prefill, self.ids[len(self.ids) - self.made :]

    @property
    def seeded(self) -> bool:
        """Tell whether the reply's text goes on from the prompt's, as a continuation does."""
        return not self.messages or bool(self.prefill)


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
