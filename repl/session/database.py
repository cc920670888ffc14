"""The archive's file: open it whatever state it is in, bring an old one up to date, set a damaged one aside."""

import os
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Connection

from filelock import FileLock, Timeout

BUSY_TIMEOUT_S = 5.0  # seconds to wait for another program that is writing
FULL_CHECK_BYTES = 32_000_000  # up to here all of a file is checked at the start (0.1 s); others fail where read
SIDE_FILES = ("-wal", "-shm", "-journal")  # what SQLite keeps beside a database, belonging to that file and to no other

Migrations = tuple[tuple[str, ...], ...]
MIGRATIONS: Migrations = (
    (
        """create table sessions (
            row integer primary key, id text not null unique, title text not null, system text not null, head integer,
            marked integer not null, model text not null, started real not null, changed real not null)""",
        """create table turns (
            row integer primary key, session text not null references sessions (id), number integer not null,
            parent integer, role text not null, text text not null, state text not null, record text,
            changed real not null, unique (session, number))""",
        "create index newest on sessions (changed)",
    ),
)
"""The statements that lead from each schema version to the next; what has been released is never edited."""


class Newer(Exception):
    """The file was written by a later version of this program."""


class Damaged(Exception):
    """The file does not hold what it should."""


@dataclass(frozen=True, slots=True)
class Database:
    """A connection, if there is one, whether it may write, and a sentence about what is not as usual."""

    connection: Connection | None
    writable: bool = True
    sentence: str = ""


def open_database(path: Path, steps: Migrations = MIGRATIONS) -> Database:
    """Open or create the database; never raises for the state that the file or the disk is in."""
    try:
        return Database(_connect(path, steps))
    except Newer:
        return Database(None, False, "the archive was written by a newer hub-repl; this session is not saved")
    except (Damaged, sqlite3.Error, OSError) as error:
        return _replaced(path, steps) if damaged(path, error) else _readable(path, reason(error))


def damaged(path: Path, error: Exception) -> bool:
    """Tell whether nothing can be done with the file, as opposed to a disk or another program in the way."""
    if isinstance(error, OSError):
        return os.path.exists(path) and (not path.is_file() or not os.access(path, os.R_OK))
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return isinstance(error, Damaged) or code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def reason(error: Exception) -> str:
    """Say in a few words why the database cannot be written."""
    known = {
        sqlite3.SQLITE_FULL: "the disk is full",
        sqlite3.SQLITE_READONLY: "it is read-only",
        sqlite3.SQLITE_CANTOPEN: "its folder cannot be written",
        sqlite3.SQLITE_BUSY: "another program has locked it",
        sqlite3.SQLITE_CORRUPT: "it is damaged",
        sqlite3.SQLITE_NOTADB: "it is damaged",
    }
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return known.get(code) or getattr(error, "strerror", None) or " ".join(str(error).split())


@contextmanager
def transaction(connection: Connection) -> Iterator[None]:
    """Do everything or nothing; what was done is on the disk at the end."""
    connection.execute("begin immediate")
    try:
        yield
        connection.execute("commit")
    finally:
        if connection.in_transaction:
            with suppress(sqlite3.Error):  # a full disk rolls back by itself
                connection.execute("rollback")


def migrate(connection: Connection, steps: Migrations = MIGRATIONS) -> None:
    """Bring the schema up to date in one transaction; raises `Newer`, or `Damaged` for somebody else's tables."""
    with transaction(connection):  # the version is read inside: another program may be doing the same
        version = _version(connection)
        if version > len(steps):
            raise Newer
        try:
            for statement in (statement for step in steps[version:] for statement in step):
                connection.execute(statement)
        except sqlite3.OperationalError as error:
            if version == 0 and error.sqlite_errorcode == sqlite3.SQLITE_ERROR:
                raise Damaged(str(error)) from error  # it has tables, and they are not ours
            raise
        connection.execute(f"pragma user_version = {len(steps)}")


def _version(connection: Connection) -> int:
    return int(connection.execute("pragma user_version").fetchone()[0])


def _connect(path: Path, steps: Migrations) -> Connection:
    _private(path)
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    try:
        if _version(connection) > len(steps):
            raise Newer  # before anything is written
        _check(connection, path)
        connection.execute("pragma journal_mode = wal")
        # a commit waits for the disk: NORMAL would outlive kill -9 too, but not a power cut
        connection.execute("pragma synchronous = full")
        connection.execute("pragma fullfsync = on")  # macOS: through the disk's own cache; nothing elsewhere
        if _version(connection) < len(steps):
            migrate(connection, steps)
    except BaseException:
        connection.close()
        raise
    return connection


def _private(path: Path) -> None:
    """Create the file for its owner alone, or take others' rights away; raises `OSError` if it cannot be written."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    mode = path.stat().st_mode
    if mode & 0o077:
        with suppress(OSError):
            path.chmod(mode & 0o700)


def _check(connection: Connection, path: Path) -> None:
    if path.stat().st_size <= FULL_CHECK_BYTES:
        found = connection.execute("pragma quick_check(1)").fetchone()[0]
        if found != "ok":
            raise Damaged(found)


def _replaced(path: Path, steps: Migrations) -> Database:
    """Set a damaged file aside and begin a new one, unless another program has just done so."""
    lock = FileLock(f"{path}.lock", timeout=BUSY_TIMEOUT_S)
    try:
        with lock:
            try:
                return Database(_connect(path, steps))
            except (Damaged, sqlite3.Error, OSError) as error:
                if not damaged(path, error):
                    raise
            name = _set_aside(path)
            return Database(
                _connect(path, steps), True, f"the archive was damaged and is kept as {name}; a new one was started"
            )
    except (Damaged, Newer, Timeout, sqlite3.Error, OSError) as error:
        return Database(None, False, f"the archive is damaged ({reason(error)}); this session is not saved")


def _set_aside(path: Path) -> str:
    name = f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    for side in SIDE_FILES:
        with suppress(FileNotFoundError):
            os.rename(f"{path}{side}", path.with_name(f"{name}{side}"))
    os.rename(path, path.with_name(name))
    return name


def _readable(path: Path, why: str) -> Database:
    """Open what cannot be written for reading at least."""
    sentence = f"the archive cannot be written: {why}; this session is not saved"
    for how in ("mode=ro", "immutable=1"):  # the second one where SQLite cannot keep its files beside the database
        with suppress(sqlite3.Error, ValueError):
            connection = sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, isolation_level=None)
            with suppress(sqlite3.Error):
                connection.execute("select * from sessions join turns limit 1").fetchone()
                return Database(connection, False, sentence)
            connection.close()
    return Database(None, False, sentence)
