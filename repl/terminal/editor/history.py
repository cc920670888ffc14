"""The lines typed before, on disk: one JSON string a line, each appended whole under a lock."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MAX_ENTRIES = 2000  # entries offered at the prompt
MAX_READ_BYTES = 32 * 2**20  # bytes from the end of the file that are looked through for them
BINARY = getattr(os, "O_BINARY", 0)  # Windows would write two bytes for a line feed


@contextmanager
def _locked(descriptor: int) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows: an append of one write is whole there
        yield
        return
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def append_entry(path: Path, text: str) -> None:
    """Add an entry; several programs may do so at once, and a kill leaves at most one torn line."""
    line = (json.dumps(text) + "\n").encode("ascii")
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | BINARY, 0o600)
    try:
        with _locked(descriptor):
            line = b"\n" * _torn(descriptor) + line
            while line:
                line = line[os.write(descriptor, line) :]
    finally:
        os.close(descriptor)


def _torn(descriptor: int) -> bool:
    """Tell whether a kill has left the last line without its end: the next one must not be glued to it."""
    if os.lseek(descriptor, 0, os.SEEK_END) == 0:
        return False
    os.lseek(descriptor, -1, os.SEEK_END)
    return os.read(descriptor, 1) != b"\n"


def _read(lines: Iterable[bytes]) -> list[str]:
    found: list[str] = []
    for line in lines:
        with suppress(ValueError):
            entry = json.loads(line)
            found += [entry] if isinstance(entry, str) else []
    return found


class HistoryReader:
    """Reads on where it stopped: what this program and others have added since."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = -1

    def fresh(self) -> list[str]:
        """Return the entries that were not returned yet, oldest first; costs one look at the file's size if none."""
        with suppress(OSError):
            size = self._path.stat().st_size
            if self._at < 0 or size < self._at:  # the first time, or another file stands there
                self._at = max(0, size - MAX_READ_BYTES)
            if size > self._at:
                return self._since()
        return []

    def _since(self) -> list[str]:
        with self._path.open("rb") as file:
            file.seek(self._at)
            whole, end, _ = file.read().rpartition(b"\n")  # behind it stands what another program is writing
        self._at += len(whole + end)
        return _read(whole.splitlines()[-MAX_ENTRIES:])
