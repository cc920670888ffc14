"""What an error of a library says, in one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

from repl.core import log
from repl.core.errors import Cancelled, Failed, ReplError

OUT_OF_MEMORY = ("can't allocate memory", "cannot allocate memory", "out of memory")
"""What the allocator, the system and the library of an accelerator say when memory ran out."""
REMEDIES = {"beam search with a cache": ("/set use_cache false", "/beams 1")}
"""What to type where a library says this."""


def is_memory(error: BaseException) -> bool:
    """Tell whether an error of torch says that memory ran out; on CPU and MPS it is a plain RuntimeError."""
    words = str(error).lower()
    return isinstance(error, MemoryError) or any(sign in words for sign in OUT_OF_MEMORY)


def sentence(error: BaseException, most: int = 200) -> str:
    """Return what an error says on one line without a full stop, cut to a readable length."""
    words = " ".join((log.hide_tokens(str(error)) or type(error).__name__).split())
    first = words.split(". ")[0] if len(words) > most else words
    return (first if len(first) <= most else first[: most - 1] + "…").rstrip(".")


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Turn whatever a library raises into one `Failed`; errors of ours and a cancel pass."""
    try:
        yield
    except (Cancelled, ReplError, GeneratorExit):
        raise
    except BaseException as error:  # the tokenizer's Rust side panics with a BaseException
        words = sentence(error)
        hints = next((lines for sign, lines in REMEDIES.items() if sign in words), ())
        raise Failed(f"{what}: {words}", *hints) from error
