"""Read text from files that the user names, and from standard input.

Only regular files are read (a script may be a pipe with a writer), up to a limit of bytes; a byte order
mark is dropped.
"""

import codecs
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from repl.core.errors import ReplError

MAX_TEXT_BYTES = 4_000_000  # bytes, more than a message can have
KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def read_text(file: str, largest: int = MAX_TEXT_BYTES, piped: bool = False) -> str:
    """Return a file's text; raises `ReplError`."""
    with _refused(file):
        return decode_text(_content(Path(file).expanduser(), largest, piped), repr(file), largest)


def open_file(file: str) -> BinaryIO:
    """Open a regular file for reading; raises `ReplError`."""
    with _refused(file):
        path = Path(file).expanduser()
        _require_regular(path.stat())
        return path.open("rb")


@contextmanager
def _refused(file: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:  # in this order: the disk, a NUL, the home of nobody
        raise ReplError(f"cannot read {file!r}: {getattr(error, 'strerror', None) or error}") from error


def _content(path: Path, largest: int, piped: bool) -> bytes:
    found = path.stat()
    if os.path.samestat(found, os.stat(os.devnull)):
        return b""
    if stat.S_ISFIFO(found.st_mode) and piped:
        return _piped(path, largest)
    _require_regular(found)
    if found.st_size > largest:
        return bytes(largest + 1)
    with path.open("rb") as file:
        return file.read(largest + 1)  # files of /proc have no size


def _require_regular(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise OSError(0, f"it is {KINDS.get(stat.S_IFMT(found.st_mode), 'a device')}, not a file")


def _piped(path: Path, largest: int) -> bytes:
    """Read a pipe to its end; raises `OSError` for one without a writer, instead of waiting for ever."""
    pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(pipe, True)
    with open(pipe, "rb") as file:
        if not (content := file.read(largest + 1)):
            raise OSError(0, "it is a pipe that nobody writes to")
    return content


def decode_text(content: bytes, name: str, largest: int = MAX_TEXT_BYTES) -> str:
    """Decode UTF-8 (or marked UTF-16); raises `ReplError` for more than `largest` bytes and for invalid text."""
    if len(content) > largest:
        raise ReplError(f"{name} is larger than {largest / 1e6:.0f} MB, the limit")
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ReplError(f"{name} is not UTF-8 text") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_stdin() -> str:
    """Read standard input to its end; raises `ReplError`."""
    if sys.stdin is None:  # closed
        return ""
    try:
        return decode_text(sys.stdin.buffer.read(MAX_TEXT_BYTES + 1), "standard input")
    except OSError as error:
        raise ReplError(f"cannot read standard input: {error.strerror}") from error
