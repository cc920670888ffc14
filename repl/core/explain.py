"""What an error of a library says, in one sentence."""

from repl.core import log

OUT_OF_MEMORY = ("can't allocate memory", "cannot allocate memory", "out of memory")
"""What the allocator, the system and the library of an accelerator say when memory ran out."""


def is_memory(error: BaseException) -> bool:
    """Tell whether an error of torch says that memory ran out; on CPU and MPS it is a plain RuntimeError."""
    words = str(error).lower()
    return isinstance(error, MemoryError) or any(sign in words for sign in OUT_OF_MEMORY)


def sentence(error: BaseException, most: int = 200) -> str:
    """Return what an error says on one line without a full stop, cut to a readable length."""
    words = " ".join((log.hide_tokens(str(error)) or type(error).__name__).split())
    first = words.split(". ")[0] if len(words) > most else words
    return (first if len(first) <= most else first[: most - 1] + "…").rstrip(".")
