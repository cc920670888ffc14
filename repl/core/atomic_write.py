"""Write files completely or not at all, and never over another one unless asked to."""

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from repl.core.errors import ReplError, UsageError


def write(file: str, content: bytes, force: bool, way_out: str) -> Path:
    """Write a file; `force` replaces an existing one. Raises `ReplError`; `way_out` is the hint if the file exists."""
    try:
        path = Path(file).expanduser()
        (replace if force else create)(path, content)
    except FileExistsError as error:
        raise UsageError(f"{file!r} exists", way_out) from error
    except (OSError, ValueError, RuntimeError) as error:  # in this order: the disk, a NUL, the home of nobody
        raise ReplError(f"cannot write {file!r}: {getattr(error, 'strerror', None) or error}") from error
    return path


def create(path: Path, content: bytes) -> None:
    """Write a new file; raises `FileExistsError` and other `OSError`."""
    beside = _beside(path, content)
    try:
        try:
            os.link(beside, path)  # unlike a rename it never replaces a file
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            if os.path.lexists(path):
                raise FileExistsError from None
            os.rename(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def replace(path: Path, content: bytes, mode: int | None = None) -> None:
    """Replace a file, keeping its permissions; a symbolic link itself is replaced. Raises `OSError`."""
    beside = _beside(path, content)
    try:
        with suppress(FileNotFoundError):
            found = path.lstat().st_mode
            mode = stat.S_IMODE(found) if mode is None and stat.S_ISREG(found) else mode
        if mode is not None:
            beside.chmod(mode)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def append(path: Path, text: str) -> None:
    """Append to a file, created if missing, also through a symbolic link; raises `ReplError`."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        if path.exists() and not path.is_file():
            raise OSError(0, "it is not a file")
        with open(os.open(path, flags, 0o666), "ab") as file:
            file.write(text.encode())
    except OSError as error:
        raise ReplError(f"cannot write {path}: {error.strerror}") from error


def _beside(path: Path, content: bytes) -> Path:
    """Write a temporary file in the same folder and flush it to disk."""
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
