"""The errors that a user can cause or fix: one sentence, and what to type next. Everything else is a bug of ours.

ReplError               the message is one line, the hints are lines to type
    UsageError          a word that cannot be read
        Overflow        a prompt longer than the context
        NeedsLocal      needs a model in this process, while a server answers
    NotFound            no such model, revision or file
    Unreachable         the Hub or the package index does not answer
    BadModel            a folder that holds no model that loads
        NeedsCode       a model with Python code of its own (hub/validate.py)
    NoModel             nothing is loaded
    NoMemory            memory ran out, or would
    MissingExtra        an optional package is not installed
    Failed              a library gave up in the middle of a reply

Cancelled, Quit         no errors: they pass by everything that catches `Exception`
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from repl.core import log

OUT_OF_MEMORY = ("can't allocate memory", "cannot allocate memory", "out of memory")
"""Words of the allocator, the system and the accelerator's library when memory ran out."""
REMEDIES = {"beam search with a cache": ("/set use_cache false", "/beams 1")}
"""Lines to type, by words of a library's error."""


class ReplError(Exception):
    """Something a user can act on: `message` says what happened, `hints` are lines to type next."""

    kind = "error"
    partial: Any = None
    """The failed reply as far as it came: a `Reply`, or None."""

    def __init_subclass__(cls, kind: str = "") -> None:
        cls.kind = kind or cls.kind

    def __init__(
        self, message: str, *hints: str, choices: tuple[tuple[str, str], ...] = (), again: bool = True
    ) -> None:
        super().__init__(message)
        self.message = message
        self.again = again
        """Repeat the line that failed after one of the choices; without, the choice is all."""
        self.choices = choices
        """Lines that mend it, each with its effect: typing the number runs the line and repeats what failed."""
        self.hints = hints or tuple(line for line, _ in choices)


class UsageError(ReplError, kind="usage"):
    """A word that cannot be read: an unknown name, a value out of range, a missing argument."""


class Overflow(UsageError, kind="context_full"):
    """A prompt that is longer than the model's context."""


class NeedsLocal(UsageError, kind="needs_local"):
    """Only a model in this process can do this, and a server answers."""

    def __init__(self, what: str, *hints: str, back: str = "the local model") -> None:
        super().__init__(f"{what} needs a local model", f"/disconnect goes back to {back}", *hints)


class NotFound(ReplError, kind="not_found"):
    """A model, revision or file that is not there, or not for this account."""


class Unreachable(ReplError, kind="unreachable"):
    """The Hub or the package index cannot be reached."""


class BadModel(ReplError, kind="bad_model"):
    """A folder that is there but does not hold a model that loads."""


class NoModel(ReplError, kind="no_model"):
    """Nothing is loaded, and the line needs a model."""


class NoMemory(ReplError, kind="no_memory"):
    """Memory ran out, or would."""


class MissingExtra(ReplError, kind="missing_extra"):
    """An optional package that this line needs is not installed."""


class Failed(ReplError, kind="failed"):
    """A library gave up in the middle of a reply; the message is its own, on one line."""


class Cancelled(BaseException):
    """The user stopped the job. Not an error: nothing that catches `Exception` may swallow it."""


class Quit(BaseException):
    """The user is done with the session."""


# errors of libraries


def is_memory(error: BaseException) -> bool:
    """Tell whether an error of torch says that memory ran out; on CPU and MPS it is a plain RuntimeError."""
    words = str(error).lower()
    return isinstance(error, MemoryError) or any(sign in words for sign in OUT_OF_MEMORY)


def root_cause(error: BaseException) -> BaseException:
    """Return the first of a chain of errors, each of which caused the next."""
    return error if error.__cause__ is None else root_cause(error.__cause__)


def sentence(error: BaseException, most: int = 200) -> str:
    """Return the message of an error on one line without a full stop, of at most `most` characters."""
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
