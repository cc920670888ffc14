"""The lines typed before, on disk: one JSON string a line, each appended whole under a lock."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MOST = 2000  # entries offered at the prompt


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


def append(path: Path, text: str) -> None:
    """Add an entry; several programs may do so at once, and a kill leaves at most one torn line."""
    line = (json.dumps(text) + "\n").encode("ascii")
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        with _locked(descriptor):
            while line:
                line = line[os.write(descriptor, line) :]
    finally:
        os.close(descriptor)


def entries(path: Path) -> list[str]:
    """Return the newest entries, oldest first; lines that were torn by a kill are left out."""
    found: list[str] = []
    with suppress(OSError):
        for line in path.read_bytes().splitlines()[-MOST:]:
            with suppress(ValueError):
                entry = json.loads(line)
                found += [entry] if isinstance(entry, str) else []
    return found
