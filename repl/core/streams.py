"""The standard streams: closed ones are seen to, and what cannot be written any more ends the program with a code."""

import errno
import os
import sys
from contextlib import redirect_stderr, suppress
from typing import Any, TextIO, cast

LOST = (errno.EPIPE, errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EBADF, errno.ENXIO)
TERMINAL = "hub-repl"  # how what a terminal cannot show is written; a stream keeps that when its window is gone


class Beside:
    """Standard error: what cannot be said there is not worth an answer."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text if that can be done."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Let it appear if that can be done."""
        with suppress(OSError):
            self._stream.flush()


def set_up() -> bool:
    """Set how text is written, and let no file take the number of a stream that is closed.

    Standard error is `Beside` from now on. Tells whether there is a standard output.
    """
    for _ in (stream for stream in (sys.stdin, sys.stdout, sys.stderr) if stream is None):
        os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):
            handler = TERMINAL if stream.isatty() else "backslashreplace"  # text in a pipe stays what it is
            stream.reconfigure(errors=handler)  # type: ignore[union-attr]  # a text stream here
    said = sys.stderr if sys.stderr is not None else os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")
    redirect_stderr(cast(TextIO, Beside(said))).__enter__()
    return sys.stdout is not None


def is_lost(error: OSError) -> bool:
    """Tell whether an error says that standard output takes nothing more; those of files name their file."""
    return error.filename is None and error.errno in LOST


def explain_end(error: OSError) -> int:
    """Say why nothing more is written, where somebody may hear it; returns the exit code."""
    if error.errno == errno.EIO and sys.stdout.errors == TERMINAL:
        return 129  # the terminal is gone, and the signal that says so comes too late
    if error.errno != errno.EPIPE:
        sys.stderr.write(f"hub-repl: cannot write standard output: {error.strerror}\n")
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141 if error.errno == errno.EPIPE else 1


def bind_tab(readline: Any) -> str:
    """Have Tab complete in the module `readline`; returns its library: `editline` has a syntax of its own (macOS)."""
    known = "editline" if "libedit" in (readline.__doc__ or "") else "readline"
    backend = str(getattr(readline, "backend", known))  # from Python 3.13 on
    readline.parse_and_bind("bind ^I rl_complete" if backend == "editline" else "tab: complete")
    return backend
