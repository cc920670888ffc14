"""Sessions on disk: every turn is durable when `save` returns, every session can be found and gone on with.

One SQLite file for all sessions, opened whatever state it is in: an old one is brought up to date, a damaged one is
set aside.
"""

import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from sqlite3 import Connection
from typing import Any

from filelock import FileLock, Timeout

from repl.core.conversation import Conversation, Turn
from repl.core.errors import NotFound, ReplError, UsageError
from repl.core.format import counted
from repl.core.reply import Reply, decode_record, encode_record
from repl.core.values import did_you_mean

TITLE_CHARS = 48  # characters of a title made from a first message
SNIPPET_CHARS = 30  # characters before and after a word that was found
Saved = str | bytes
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


@dataclass(frozen=True, slots=True)
class Summary:
    """A saved session; `when` is its last change in seconds since 1970, `snippet` the place where a word was found."""

    id: str
    title: str
    when: float
    turns: int
    model: str
    snippet: str = ""


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


class Archive:
    """The saved sessions, one of which is being written. For one thread.

    What cannot be written is said once through `warn`, kept, and written together with the next turn that can be.
    """

    def __init__(self, found: Database, saving: bool = True) -> None:
        self.warn: Callable[[str], None] = lambda sentence: None
        self._connection = found.connection
        self._saving = saving and found.writable and found.connection is not None
        self._failing = not found.writable  # then it has been said already
        self.begin()

    @classmethod
    def open(cls, path: Path, saving: bool = True) -> tuple["Archive", str]:
        """Open the archive in a file; returns it with a sentence where something is not as usual.

        Without `saving` sessions can be read, but nothing is written or created.
        """
        if not saving and not path.is_file():
            return cls(Database(None, False), saving), ""
        found = open_database(path)
        return cls(found, saving), found.sentence if saving else ""

    def close(self) -> None:
        """Let go of the file."""
        if self._connection is not None:
            self._connection.close()
        self._connection, self._saving = None, False

    # write

    def begin(self) -> None:
        """Begin a session; it is written with its first turn."""
        self.id = self.title = self._system = ""
        self._head: int | None = None
        self._marked = 0  # the newest turn when the head was last written down
        self._turns: dict[int, Turn] = {}
        self._stored: set[int] = set()
        self._owed: set[int] = set()

    def save(self, turn: Turn) -> None:
        """Write a new turn, or the new state of one; it outlives a kill and a power cut when this returns."""
        self._turns[turn.id] = turn
        self._owed.add(turn.id)
        self.title = self.title or _make_title(turn.text)
        self._write()

    def mark(self, head: int | None, system: str) -> None:
        """Write where the session stands, if that has changed; call it before each prompt."""
        newest = max(self._turns, default=0)
        if (head, system, newest) != (self._head, self._system, self._marked):
            self._head, self._system, self._marked = head, system, newest
            self._write()

    def rename(self, title: str) -> None:
        """Give the session a title."""
        self.title = title
        self._write()

    def _write(self) -> None:
        if not self._saving or not self._turns:
            return
        try:
            try:
                self._commit()
            except sqlite3.IntegrityError:  # these numbers are taken: the session goes on in another program too
                self._split_off()
                self._commit()
        except (sqlite3.Error, OverflowError) as error:
            self._report_failure(error)
        else:
            self._report_recovery()

    def _commit(self) -> None:
        assert self._connection is not None
        with transaction(self._connection):
            name = self.id or self._create()
            self._update(name)
            for number in sorted(self._owed):
                self._put(name, self._turns[number])
        self.id = name
        self._stored |= self._owed
        self._owed.clear()

    def _split_off(self) -> None:
        """Go on as a session of our own."""
        if self.id:
            self.warn("this session is open in another program: what follows is saved as a session of its own")
        self.id = ""
        self._stored.clear()
        self._owed = set(self._turns)

    def _report_failure(self, error: Exception) -> None:
        if not self._failing:
            self._failing = True
            self._run("pragma busy_timeout = 100")  # it was waited for once
            self.warn(f"the archive cannot be written: {_reason(error)}; the conversation is no longer being saved")

    def _report_recovery(self) -> None:
        if self._failing:
            self._failing = False
            self._run(f"pragma busy_timeout = {BUSY_TIMEOUT_S * 1000:.0f}")
            self.warn("the conversation is being saved again; nothing is missing")

    def _create(self) -> str:
        name, now = secrets.token_hex(4), time.time()
        self._run(
            "insert into sessions (id, title, system, marked, model, started, changed) values (?, '', '', 0, '', ?, ?)",
            (name, now, now),
        )
        return name

    def _update(self, name: str) -> None:
        values = (_pack(self.title), _pack(self._system), self._head, self._marked, time.time(), name)
        self._run("update sessions set title = ?, system = ?, head = ?, marked = ?, changed = ? where id = ?", values)

    def _put(self, name: str, turn: Turn) -> None:
        record = _pack(encode_record(turn.record)) if turn.record else None
        values = (turn.parent, turn.role, _pack(turn.text), turn.state, record, time.time(), name, turn.id)
        self._run(
            "update turns set parent = ?, role = ?, text = ?, state = ?, record = ?, changed = ?"
            " where session = ? and number = ?"
            if turn.id in self._stored
            else "insert into turns (parent, role, text, state, record, changed, session, number)"
            " values (?, ?, ?, ?, ?, ?, ?, ?)",
            values,
        )
        if turn.record:
            self._run("update sessions set model = ? where id = ?", (_pack(turn.record.model.id), name))

    def _run(self, statement: str, values: tuple[object, ...] = ()) -> list[Any]:
        assert self._connection is not None
        return self._connection.execute(statement, values).fetchall()

    # read

    def sessions(self, words: str = "") -> list[Summary]:
        """Return the sessions that hold every one of some words, newest first; raises `ReplError`."""
        rows = self._read(
            "select id, title, changed, (select count(*) from turns where session = id), model"
            " from sessions order by changed desc, row desc"
        )
        found = [Summary(row[0], _unpack(row[1]), row[2], row[3], _unpack(row[4])) for row in rows]
        for word in reversed(words.casefold().split()):  # the place of the first one is shown
            places = self._search(word)
            found = [replace(it, snippet=places[it.id]) for it in found if it.id in places]
        return found

    def _search(self, word: str) -> dict[str, str]:
        """Return the sessions whose texts hold a word, each with the first place."""
        rows = self._read("select session, text from turns union all select id, title from sessions")
        texts = ((row[0], _unpack(row[1])) for row in reversed(rows))
        return {name: _around(text, at, len(word)) for name, text in texts if (at := text.casefold().find(word)) >= 0}

    def load(self, id: str = "") -> Conversation:
        """Return a session, by the beginning of its id or the last one, and go on writing it; raises `ReplError`."""
        name = self._find_id(id)
        title, system, head, marked = self._read(
            "select title, system, head, marked from sessions where id = ?", (name,)
        )[0]
        rows = self._read(
            "select number, parent, role, text, state, record from turns where session = ? order by number", (name,)
        )
        self.begin()
        self.id, self.title, self._system = name, _unpack(title), _unpack(system)
        self._turns = self._root_orphans({turn.id: turn for turn in map(_turn, rows)})
        self._stored = set(self._turns)
        self._head = _head(self._turns, head, marked)
        self._marked = marked
        return Conversation(self._system, dict(self._turns), self._head, self.save)

    def _root_orphans(self, turns: dict[int, Turn]) -> dict[int, Turn]:
        """Let a turn begin a conversation where it does not stand below an earlier one, as all that is written does."""
        below = (turn for turn in turns.values() if turn.parent is not None)
        lost = [turn for turn in below if turn.parent not in turns or turn.parent >= turn.id]
        if lost:
            self.warn(f"the turns before {counted(len(lost), 'message')} are lost: a conversation starts there")
        return turns | {turn.id: replace(turn, parent=None) for turn in lost}

    def _find_id(self, id: str) -> str:
        known = [row[0] for row in self._read("select id from sessions order by changed desc, row desc")]
        others = [name for name in known if name != self.id]
        found = [name for name in known if name.startswith(id.lower())] if id else others[:1]
        if len(found) > 1 and id.lower() not in found:
            raise UsageError(f"{id!r} may be {', '.join(found[:5])}", "/sessions")
        if found:
            return id.lower() if id.lower() in found else found[0]
        if not id:
            raise NotFound("no other saved session" if known else "no saved sessions yet")
        raise NotFound(f"no session {id!r}{did_you_mean(id, known)}", "/sessions")

    def _read(self, statement: str, values: tuple[object, ...] = ()) -> list[Any]:
        try:
            return self._run(statement, values) if self._connection is not None else []
        except sqlite3.Error as error:
            raise ReplError(f"the archive cannot be read: {_reason(error)}") from error


def _turn(row: tuple[Any, ...]) -> Turn:
    """Return a turn as it was saved; one that a kill left open was cancelled by it."""
    number, parent, role, text, state, record = row
    try:
        done = decode_record(Reply, _unpack(record)) if record else None
    except ValueError:
        done = None
    return Turn(number, parent, role, _unpack(text), "cancelled" if state == "open" else state, done)


def _head(turns: dict[int, Turn], head: int | None, marked: int) -> int | None:
    """Return where a session stands: at what was marked, or at a later reply that a kill kept from being marked."""
    later = [turn.id for turn in turns.values() if turn.id > marked and turn.role == "assistant" and turn.text]
    return max(later, default=head if head in turns else None)


def _pack(text: str) -> Saved:
    """Return a text as SQLite holds it exactly: as text, or as bytes where lone surrogates are in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def _unpack(saved: Saved) -> str:
    return saved if isinstance(saved, str) else saved.decode("utf-8", "surrogatepass")


def _make_title(text: str) -> str:
    """Return the first words of a text."""
    line = " ".join(text[: 4 * TITLE_CHARS].split())
    return line if len(line) <= TITLE_CHARS else line[: TITLE_CHARS - 1].rsplit(" ", 1)[0] + "…"


def _around(text: str, at: int, length: int) -> str:
    start, end = max(0, at - SNIPPET_CHARS), at + length + SNIPPET_CHARS
    return "…" * (start > 0) + text[start:end] + "…" * (end < len(text))


# the file


def open_database(path: Path, steps: Migrations = MIGRATIONS) -> Database:
    """Open or create the database; never raises for the state that the file or the disk is in."""
    try:
        return Database(_connect(path, steps))
    except Newer:
        return Database(None, False, "the archive was written by a newer hub-repl; this session is not saved")
    except (Damaged, sqlite3.Error, OSError) as error:
        return _replace(path, steps) if _is_damaged(path, error) else _open_readonly(path, _reason(error))


def _is_damaged(path: Path, error: Exception) -> bool:
    """Tell whether nothing can be done with the file, as opposed to a disk or another program in the way."""
    if isinstance(error, OSError):
        return os.path.exists(path) and (not path.is_file() or not os.access(path, os.R_OK))
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return isinstance(error, Damaged) or code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _reason(error: Exception) -> str:
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


def _migrate(connection: Connection, steps: Migrations) -> None:
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
    _restrict(path)
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
            _migrate(connection, steps)
    except BaseException:
        connection.close()
        raise
    return connection


def _restrict(path: Path) -> None:
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


def _replace(path: Path, steps: Migrations) -> Database:
    """Set a damaged file aside and begin a new one, unless another program has just done so."""
    lock = FileLock(f"{path}.lock", timeout=BUSY_TIMEOUT_S)
    try:
        with lock:
            try:
                return Database(_connect(path, steps))
            except (Damaged, sqlite3.Error, OSError) as error:
                if not _is_damaged(path, error):
                    raise
            name = _set_aside(path)
            return Database(
                _connect(path, steps), True, f"the archive was damaged and is kept as {name}; a new one was started"
            )
    except (Damaged, Newer, Timeout, sqlite3.Error, OSError) as error:
        return Database(None, False, f"the archive is damaged ({_reason(error)}); this session is not saved")


def _set_aside(path: Path) -> str:
    name = f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    for side in SIDE_FILES:
        with suppress(FileNotFoundError):
            os.rename(f"{path}{side}", path.with_name(f"{name}{side}"))
    os.rename(path, path.with_name(name))
    return name


def _open_readonly(path: Path, why: str) -> Database:
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
