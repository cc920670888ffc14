"""What generation keeps beside a loaded model; made with it, and freed with it."""

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from repl.core.events import Notice
from repl.core.jobs import JobContext
from repl.generation import decode
from repl.models.store import LoadedModel, Store


@dataclass(frozen=True, slots=True, eq=False)
class Runtime:
    """The KV cache of the text that was worked on last, and the notices so far."""

    kv_cache: "decode.kv_cache.PrefixCache" = field(default_factory=lambda: decode.kv_cache.PrefixCache())
    last_logits: dict[tuple[int, ...], Any] = field(default_factory=dict)
    """The logits behind the text that was looked at last, by its ids."""
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
