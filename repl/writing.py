"""Files that the user asks for: written whole or not at all, and never over another one unless told to."""

import os
import secrets
from contextlib import suppress
from pathlib import Path

from repl.errors import ReplError, UsageError


def write(file: str, content: bytes, force: bool, way_out: str) -> Path:
    """Write a file, with `force` in place of one that is there; raises `ReplError`, `way_out` is what to type then."""
    try:
        path = Path(file).expanduser()
        (replace if force else create)(path, content)
    except FileExistsError as error:
        raise UsageError(f"{file!r} exists", way_out) from error
    except (OSError, ValueError, RuntimeError) as error:  # in this order: the disk, a NUL, the home of nobody
        raise ReplError(f"cannot write {file!r}: {getattr(error, 'strerror', None) or error}") from error
    return path


def create(path: Path, content: bytes) -> None:
    """Write a new file, whole or not at all; raises `FileExistsError` and other `OSError`."""
    beside = _beside(path, content)
    try:
        try:
            os.link(beside, path)  # unlike a rename it never replaces a file
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            if path.exists():
                raise FileExistsError from None
            os.rename(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def replace(path: Path, content: bytes) -> None:
    """Write a file in place of another; raises `OSError`."""
    path = path.resolve()  # a link stays, what it points to is replaced
    beside = _beside(path, content)
    try:
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _beside(path: Path, content: bytes) -> Path:
    """Write a file next to the one that is meant, until it is whole."""
    beside = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with open(beside, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    return beside
