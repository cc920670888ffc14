"""Sessions on disk: every turn is durable when `save` returns, every session can be found and gone on with."""

import secrets
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from repl.core.conversation import Conversation, Turn
from repl.core.errors import NotFound, ReplError, UsageError
from repl.core.format import counted
from repl.core.reply import Reply
from repl.core.values import did_you_mean
from repl.session import database
from repl.session.database import Database
from repl.session.record_json import decode_record, encode_record

TITLE_CHARS = 48  # characters of a title made from a first message
SNIPPET_CHARS = 30  # characters before and after a word that was found
Saved = str | bytes


@dataclass(frozen=True, slots=True)
class Summary:
    """A saved session; `when` is its last change in seconds since 1970, `snippet` the place where a word was found."""

    id: str
    title: str
    when: float
    turns: int
    model: str
    snippet: str = ""


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
        found = database.open_database(path)
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
        self.title = self.title or _title(turn.text)
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
                self._part()
                self._commit()
        except (sqlite3.Error, OverflowError) as error:
            self._failed(error)
        else:
            self._recovered()

    def _commit(self) -> None:
        assert self._connection is not None
        with database.transaction(self._connection):
            name = self.id or self._create()
            self._update(name)
            for number in sorted(self._owed):
                self._put(name, self._turns[number])
        self.id = name
        self._stored |= self._owed
        self._owed.clear()

    def _part(self) -> None:
        """Go on as a session of our own."""
        if self.id:
            self.warn("this session is open in another program: what follows is saved as a session of its own")
        self.id = ""
        self._stored.clear()
        self._owed = set(self._turns)

    def _failed(self, error: Exception) -> None:
        if not self._failing:
            self._failing = True
            self._run("pragma busy_timeout = 100")  # it was waited for once
            self.warn(
                f"the archive cannot be written: {database.reason(error)}; the conversation is no longer being saved"
            )

    def _recovered(self) -> None:
        if self._failing:
            self._failing = False
            self._run(f"pragma busy_timeout = {database.BUSY_TIMEOUT_S * 1000:.0f}")
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
        name = self._named(id)
        title, system, head, marked = self._read(
            "select title, system, head, marked from sessions where id = ?", (name,)
        )[0]
        rows = self._read(
            "select number, parent, role, text, state, record from turns where session = ? order by number", (name,)
        )
        self.begin()
        self.id, self.title, self._system = name, _unpack(title), _unpack(system)
        self._turns = self._rooted({turn.id: turn for turn in map(_turn, rows)})
        self._stored = set(self._turns)
        self._head = _head(self._turns, head, marked)
        self._marked = marked
        return Conversation(self._system, dict(self._turns), self._head, self.save)

    def _rooted(self, turns: dict[int, Turn]) -> dict[int, Turn]:
        """Let a turn begin a conversation where it does not stand below an earlier one, as all that is written does."""
        below = (turn for turn in turns.values() if turn.parent is not None)
        lost = [turn for turn in below if turn.parent not in turns or turn.parent >= turn.id]
        if lost:
            self.warn(f"the turns before {counted(len(lost), 'message')} are lost: a conversation starts there")
        return turns | {turn.id: replace(turn, parent=None) for turn in lost}

    def _named(self, id: str) -> str:
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
            raise ReplError(f"the archive cannot be read: {database.reason(error)}") from error


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


def _title(text: str) -> str:
    """Return the first words of a text."""
    line = " ".join(text[: 4 * TITLE_CHARS].split())
    return line if len(line) <= TITLE_CHARS else line[: TITLE_CHARS - 1].rsplit(" ", 1)[0] + "…"


def _around(text: str, at: int, length: int) -> str:
    start, end = max(0, at - SNIPPET_CHARS), at + length + SNIPPET_CHARS
    return "…" * (start > 0) + text[start:end] + "…" * (end < len(text))
