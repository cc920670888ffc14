"""From a prompt to tokens: the one decode loop, its proposals, the KV cache and beams; and from tokens to text."""

from typing import TYPE_CHECKING

from repl.core.late import import_late

__all__ = ["batch", "drafters", "format_mask", "kv_cache", "loop", "phrase_ban", "thought"]

if TYPE_CHECKING:
    from repl.generation.decode import batch, drafters, format_mask, kv_cache, loop, phrase_ban, thought
else:
    __getattr__ = import_late(__name__, __all__)
