"""The engine protocol: a request goes in, events and a reply come out, from a model in this process or a server.

Here are the request, the local engine, and the state that generation keeps beside each loaded model. No torch.
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
    """The state that generation keeps beside a loaded model; only the model thread touches it."""

    kv_cache: "decode.kv_cache.PrefixCache" = field(default_factory=lambda: decode.kv_cache.PrefixCache())
    last_logits: dict[tuple[int, ...], Any] = field(default_factory=dict)
    """The float32 logits of the next token, shape (vocab,), of the last text that was looked at, by its ids."""
    format_tokenizers: dict[tuple[int, ...], Any] = field(default_factory=dict)
    """The tokenizer in the form that llguidance needs, by end token ids."""
    notices_shown: set[str] = field(default_factory=set)
    """Notices about this model that were shown already."""

    def forget(self) -> None:
        """Drop the KV cache and the logits."""
        self.kv_cache.drop()
        self.last_logits.clear()

    def mention(self, said: str, emit: JobContext) -> None:
        """Emit a notice about the model, the first time only."""
        if said and said not in self.notices_shown:
            self.notices_shown.add(said)
            emit(Notice(said))


Model: TypeAlias = LoadedModel[Runtime]
Models: TypeAlias = Store[Runtime]


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt with its settings: the messages of a chat, a text to continue, or token ids to continue."""

    settings: Settings
    messages: tuple[AnyMessage, ...] = ()
    turns: tuple[int, ...] = ()
    """The numbers of the turns that the messages are, 0 for the system text."""
    text: str = ""
    ids: tuple[int, ...] = ()
    prefill: str = ""
    """The text that a chat reply is made to begin with."""
    begun: Begun | None = None
    """The unfinished chat reply at the end of `ids`."""
    made: int = 0
    """How many of the last `ids` belong to the completion that is continued."""

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
        """Return the beginning of the reply: a text that it was given, and ids that were generated."""
        if self.begun:
            return self.begun.prefill, self.begun.ids
        return self.prefill, self.ids[len(self.ids) - self.made :]

    @property
    def seeded(self) -> bool:
        """Tell whether the reply's text goes on from the prompt's, as a continuation does."""
        return not self.messages or bool(self.prefill)


class Engine(Protocol):
    """Turns a request into events and a reply; its properties may be read on every thread."""

    @property
    def name(self) -> str:
        """The model's name on the screen."""

    @property
    def traits(self) -> tuple[str, ...]:
        """Precision and device, shown beside the name."""

    @property
    def context(self) -> int:
        """Maximum tokens of prompt and reply together; 0 if there is no limit or none is known."""

    @property
    def chats(self) -> bool:
        """Whether messages go through a chat template."""

    @property
    def base(self) -> ModelDefaults:
        """The model's own generation defaults."""

    def made(self, record: Reply) -> bool:
        """Tell whether this engine made a reply and can continue from its token ids."""

    def reply(self, request: Request, emit: JobContext) -> Reply:
        """Answer a request; a cancelled reply is returned as far as it came, a failed one is in `ReplError.partial`."""


class Local:
    """The engine of the model in this process: the one that is current when asked. Replies on the model thread only."""

    def __init__(self, store: Models) -> None:
        self._store = store

    @property
    def facts(self) -> ModelInfo:
        """Return the facts of the loaded model; raises `NoModel`."""
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
