"""Sessions on disk: exact, found again, shared by several programs, and never in the way of the conversation."""

import json
import math
import random
import sqlite3
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
from archive_writer import text_of
from campaign_archive import killed, missing, saved, writer
from driving import opened, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from records import RECORD

from repl.commands.registry import complete_line
from repl.commands.sessions import moment, resume, sessions, title
from repl.core.conversation import Conversation, Turn
from repl.core.errors import NotFound, ReplError, UsageError
from repl.core.parts import Parts
from repl.core.reply import ModelRecord, Reply, Sequence, ServedModel, Timing, Usage, decode_record, encode_record
from repl.core.settings import Settings
from repl.generation.interface import Runtime
from repl.models.store import Store
from repl.session.archive import MIGRATIONS, Archive, Database, Summary, open_database
from repl.session.session import Session
from repl.terminal.screen import render, reply_figures

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="modes and signals are POSIX")
anything = st.text(st.characters(codec=None, exclude_categories=()), max_size=40)
number = st.floats(allow_nan=False)
free: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | number | anything,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(anything, inner, max_size=3),
    max_leaves=6,
)
table = st.dictionaries(anything, free, max_size=3)
ids = st.lists(st.integers(0, 2**40), max_size=5).map(tuple)
maybe = st.none() | number
models = st.builds(ModelRecord, id=anything, adapter=anything, context=st.integers(0)) | st.builds(
    ServedModel, id=anything, server=anything, sent=table
)
records = st.builds(
    Reply,
    text=anything,
    prompt_ids=ids,
    token_ids=ids,
    finish=st.sampled_from(["stop", "length", "stop_string", "cancelled"]),
    model=models,
    load=table,
    decode=table,
    seed=st.none() | st.integers(0, 2**63 - 1),
    usage=st.builds(Usage, st.integers(0), st.integers(0), st.integers(0)),
    timing=st.builds(Timing, maybe, maybe, maybe, number),
    sequences=st.lists(st.builds(Sequence, anything, ids, maybe), max_size=2).map(tuple),
    versions=st.dictionaries(anything, anything, max_size=2),
)


@st.composite
def trees(draw: st.DrawFn) -> Conversation:
    """Conversations of every shape: branches, several beginnings, every role and state but open."""
    talk = Conversation(draw(anything))
    for _ in range(draw(st.integers(1, 6))):
        parent = draw(st.sampled_from([None, *talk.turns]))
        turn = talk.add(draw(st.sampled_from(["user", "assistant", "prompt", "completion"])), draw(anything), parent)
        state = draw(st.sampled_from(["complete", "cancelled", "failed"]))
        talk.close(turn, turn.text, state, draw(st.none() | records))
    talk.head = draw(st.sampled_from([None, *talk.turns]))
    return talk


def fresh(path: Path, **options: bool) -> Archive:
    """Open an archive that is as it should be."""
    archive, sentence = Archive.open(path, **options)
    assert sentence == ""
    return archive


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "archive.db"


@pytest.fixture
def archive(path: Path) -> Iterator[Archive]:
    archive = fresh(path)
    yield archive
    archive.close()


def said(archive: Archive, *texts: str, model: str = "") -> str:
    """Save a session of its own with some messages, and return its id."""
    archive.begin()
    talk = Conversation(keep=archive.save)
    for text in texts:
        talk.head = talk.add("user", text, talk.head).id
    archive.mark(talk.head, "")
    return archive.id


# exactness


@pytest.mark.slow
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(trees())
def test_a_conversation_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, talk: Conversation) -> None:
    """Any tree of any text, with numbers, states, head, system and records: a later program reads what this one had."""
    path = tmp_path_factory.mktemp("archive") / "archive.db"
    archive = fresh(path)
    for turn in talk.turns.values():
        archive.save(turn)
    archive.mark(talk.head, talk.system)
    archive.close()
    other = fresh(path)
    found = other.load()
    assert (found.system, found.turns, found.head) == (talk.system, talk.turns, talk.head)
    other.close()


@settings(max_examples=60, deadline=None)
@given(records)
def test_a_record_comes_back_from_its_json(record: Reply) -> None:
    """What is typed as a tuple is one, free-form parts hold what JSON holds."""
    assert decode_record(Reply, encode_record(record)) == record


def test_what_json_cannot_hold_does_not_stop_a_record() -> None:
    """A value of a library's own becomes its text; NaN stays a number."""
    record = replace(RECORD, decode={"path": Path("a"), "temperature": math.nan})
    found = decode_record(Reply, encode_record(record))
    assert found.decode["path"] == "a"
    assert math.isnan(found.decode["temperature"])


def test_what_looks_like_a_tag_does_not_cost_a_record() -> None:
    """An argument of a tool may have the name of a tag; earlier versions tagged keys that were tuples, too."""
    record = replace(RECORD, tool_calls=({"name": "f", "arguments": {"{}": 1}}, {"name": "g", "arguments": {"()": 2}}))
    assert decode_record(Reply, encode_record(record)) == record
    text = json.dumps(json.loads(encode_record(RECORD)) | {"given": {"a": {"{}": [[{"()": [1, 2]}, 2.0]]}}})
    assert decode_record(Reply, text).text == RECORD.text


LOCAL = {
    "model": {
        **{"id": "acme/tiny", "revision": "main", "commit": "abc", "dtype": "float32", "device_map": {"": "cpu"}},
        **{"quantization": "none", "adapter": "none", "parameters": 9, "context": 64, "bytes": 36},
    },
    "load": {"model": "acme/tiny", "max_memory": ""},
    "environment": {"attention": "sdpa", "threads": 2, "devices": {"cpu": "AVX2"}},
}
SERVED = {
    "model": {
        **{"id": "served", "revision": "", "commit": "", "dtype": "", "device_map": {}, "quantization": ""},
        **{"parameters": 0, "context": 64, "bytes": 0, "server": "127.0.0.1:8000", "kind": "vLLM", "served": "served"},
        **{"asked": "", "fingerprint": "fp", "sent": {"stop": ["a"], "seed": 1}, "ended": "stop"},
        **{"counted": "by the server", "logprobs": ""},
    },
    "load": {},
    "environment": {},
}


@pytest.mark.parametrize("saved", [LOCAL, SERVED], ids=["local", "served"])
def test_a_record_of_before_is_read_and_written_as_it_was(saved: dict[str, object]) -> None:
    """The forms of model and environment that earlier versions saved, key by key."""
    text = json.dumps(json.loads(encode_record(RECORD)) | saved)
    found = decode_record(Reply, text)
    assert isinstance(found.model, ServedModel) == (saved is SERVED)
    assert json.loads(encode_record(found)) == json.loads(text)


@dataclass(frozen=True, slots=True)
class Older:
    text: str


@dataclass(frozen=True, slots=True)
class Later:
    text: str
    colours: tuple[int, ...] = (1,)


def test_records_outlive_changes_of_their_fields() -> None:
    """A field that came later takes its default, one that went is left out."""
    assert decode_record(Later, encode_record(Older("a"))) == Later("a")
    assert decode_record(Older, encode_record(Later("a", (2,)))) == Older("a")


@pytest.mark.parametrize("text", ["", "[", "[]", "3", "{}", '{"text": 1}', '{"usage": 3}', '"a"'])
def test_json_that_holds_no_record_is_an_error_of_its_own(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        decode_record(Reply, text)


def test_a_record_that_cannot_be_read_costs_itself_alone(archive: Archive, path: Path) -> None:
    """The text of the turn stays."""
    archive.save(Turn(1, None, "assistant", "hello", "complete", RECORD))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("update turns set record = '{'")
    assert archive.load(archive.id).turns[1] == Turn(1, None, "assistant", "hello")


# sessions


def test_a_session_that_says_nothing_leaves_nothing(archive: Archive) -> None:
    archive.mark(None, "be brief")
    archive.rename("empty")
    assert archive.sessions() == []


def test_what_was_marked_before_the_first_turn_is_saved_with_it(archive: Archive) -> None:
    archive.mark(None, "be brief")
    archive.save(Turn(1, None, "user", "hi"))
    assert archive.load(archive.id).system == "be brief"


def test_sessions_are_listed_newest_first(archive: Archive) -> None:
    """By the last change, with what tells them apart."""
    first, second = said(archive, "one", "two"), said(archive, "three")
    archive.load(first)
    archive.save(Turn(3, 2, "assistant", "hello", "complete", RECORD))
    listed = archive.sessions()
    assert [(found.id, found.title, found.turns, found.model) for found in listed] == [
        (first, "one", 3, "acme/tiny"),
        (second, "three", 1, ""),
    ]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("hello", "hello"),
        ("  two\n lines\t", "two lines"),
        ("word " * 30, "word word word word word word word word word…"),
        ("x" * 60, "x" * 47 + "…"),
    ],
)
def test_a_title_is_the_first_words(archive: Archive, text: str, wanted: str) -> None:
    said(archive, text, "later")
    assert archive.title == archive.sessions()[0].title == wanted


def test_a_title_can_be_given(archive: Archive, path: Path) -> None:
    name = said(archive, "hello")
    archive.rename("Beaches \ud800 of\0Italy")
    other = fresh(path)
    other.load(name)
    assert other.title == "Beaches \ud800 of\0Italy"
    assert [found.id for found in other.sessions("italy")] == [name]
    other.close()


def test_the_last_session_is_the_one_before_this_one(archive: Archive) -> None:
    first, second = said(archive, "one"), said(archive, "two")
    archive.load()
    assert archive.id == first
    archive.load()
    assert archive.id == second


def test_an_id_can_be_shortened_as_far_as_it_is_clear(archive: Archive) -> None:
    names = [said(archive, "one") for _ in range(20)]
    starts = [name[0] for name in names]
    double = next(start for start in starts if starts.count(start) > 1)
    archive.load(names[0][:7].upper())
    assert archive.id == names[0]
    with pytest.raises(UsageError, match=f"'{double}' may be {double}"):
        archive.load(double)


def test_an_unknown_id_names_the_nearest(archive: Archive) -> None:
    """And changes nothing."""
    with pytest.raises(NotFound, match="no saved sessions yet"):
        archive.load()
    name = said(archive, "one")
    with pytest.raises(NotFound, match="no other saved session"):
        archive.load()
    typo = name[:-1] + ("0" if name[-1] != "0" else "1")
    with pytest.raises(NotFound, match=f"no session '{typo}', did you mean {name}"):
        archive.load(typo)
    with pytest.raises(NotFound) as refused:
        archive.load("%")
    assert refused.value.hints == ("/sessions",)
    assert (archive.id, archive.title) == (name, "one")


def test_a_resumed_session_goes_on_in_its_place(archive: Archive, path: Path) -> None:
    name = said(archive, "one")
    archive.close()
    other = fresh(path)
    talk = other.load()
    talk.close(talk.add("assistant", "", 1, "open"), "two", "complete")
    other.close()
    third = fresh(path)
    assert [turn.text for turn in third.load(name).turns.values()] == ["one", "two"]
    assert len(third.sessions()) == 1
    third.close()


# a kill


def test_a_reply_that_a_kill_left_open_is_a_cancelled_one(archive: Archive) -> None:
    """With the text that had arrived, and the conversation stands behind it."""
    archive.save(Turn(1, None, "user", "one"))
    archive.save(Turn(2, 1, "assistant", "hal", "open"))
    talk = archive.load(archive.id)
    assert talk.turns[2] == Turn(2, 1, "assistant", "hal", "cancelled")
    assert talk.head == 2


def test_a_reply_that_never_began_leaves_the_conversation_where_it_was(archive: Archive) -> None:
    name = said(archive, "one")
    archive.save(Turn(2, 1, "user", "two"))
    archive.save(Turn(3, 2, "assistant", "", "open"))
    talk = archive.load(name)
    assert (talk.head, talk.turns[3].state) == (1, "cancelled")


def test_a_reply_whose_place_was_not_marked_any_more_is_where_the_conversation_stands(archive: Archive) -> None:
    name = said(archive, "one")
    archive.save(Turn(2, 1, "assistant", "two"))
    assert archive.load(name).head == 2


def test_what_was_taken_back_stays_taken_back(archive: Archive) -> None:
    """Only replies after the last mark move the head."""
    said(archive, "one")
    archive.save(Turn(2, 1, "assistant", "two"))
    archive.mark(2, "")
    archive.mark(None, "")
    assert archive.load(archive.id).head is None


@pytest.mark.slow
@POSIX
def test_twenty_kills_lose_no_turn_that_was_saved(path: Path) -> None:
    """The campaign does two hundred."""
    chance, told = random.Random(7), []
    for _ in range(20):
        told += killed(path, chance, 25)
    assert len(told) > 100
    assert missing(path, told) == []


# search


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(anything)
def test_any_words_are_a_legal_search(archive: Archive, words: str) -> None:
    """And what they find holds them."""
    if not archive.sessions():
        said(archive, 'a "quoted" word, AND NEAR(this OR that) * - ^ : col:umn', "日本語のテキスト", "\ud800 \0 ()")
    assert all(isinstance(found, Summary) for found in archive.sessions(words))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(anything.filter(str.strip))
def test_what_was_said_is_found(archive: Archive, text: str) -> None:
    """Each word of a message finds its session."""
    name = said(archive, "first", text)
    assert name in [found.id for found in archive.sessions(text)]


def test_every_word_must_be_there_but_not_in_one_turn(archive: Archive) -> None:
    name = said(archive, "Foxes live in the woods", "and Whales in the Sea")
    said(archive, "foxes only")
    assert [found.id for found in archive.sessions("whale fox")] == [name]
    assert archive.sessions("whales desert") == []


def test_a_search_shows_the_place(archive: Archive) -> None:
    said(archive, "title", "much " * 40 + "needle " + "hay " * 40)
    snippet = archive.sessions("NEEDLE")[0].snippet
    assert "much needle hay" in snippet
    assert snippet.startswith("…")
    assert snippet.endswith("…")
    assert len(snippet) < 100


def test_a_piece_of_a_text_without_spaces_is_found(archive: Archive) -> None:
    name = said(archive, "東京の天気はどうですか")
    assert [found.id for found in archive.sessions("天気")] == [name]


def test_the_last_text_of_a_turn_is_the_one_that_is_found(archive: Archive) -> None:
    said(archive, "hello")
    archive.save(Turn(2, 1, "assistant", "walrus", "open"))
    archive.save(Turn(2, 1, "assistant", "penguin"))
    assert archive.sessions("walrus") == []
    assert len(archive.sessions("penguin")) == 1


# several programs


def ran(path: Path, *words: object, programs: int = 1) -> list[str]:
    """Run writers side by side to their end, and return what they heard from the archive."""
    started = [writer(path, *words) for _ in range(programs)]
    lines = [program.communicate(timeout=120)[0].decode().splitlines() for program in started]
    assert [program.returncode for program in started] == [0] * programs
    return [line for found in lines for line in found]


def heard(lines: list[str]) -> list[str]:
    """Select what writers heard from the archive."""
    return [line[2:] for line in lines if line.startswith("!")]


@pytest.mark.slow
def test_several_programs_open_one_new_archive_and_write_at_once(path: Path) -> None:
    """Six begin with no file at all; every turn of each is there."""
    assert heard(ran(path, 20, programs=6)) == []
    archive = fresh(path)
    assert [found.turns for found in archive.sessions()] == [20] * 6
    for found in archive.sessions():
        assert all(turn.text == text_of(turn.id) for turn in archive.load(found.id).turns.values())
    archive.close()


def test_one_session_in_two_programs_becomes_two(archive: Archive, path: Path) -> None:
    """Neither overwrites what the other said; the second one is told."""
    name = said(archive, "one")
    other, heard = fresh(path), []
    other.warn = heard.append
    talk = other.load()
    archive.save(Turn(2, 1, "assistant", "mine"))
    talk.add("assistant", "theirs", 1)
    talk.add("user", "more", 2)
    assert len(heard) == 1
    assert "another program" in heard[0]
    assert [turn.text for turn in archive.load(other.id).turns.values()] == ["one", "theirs", "more"]
    assert [turn.text for turn in archive.load(name).turns.values()] == ["one", "mine"]
    other.close()


# faults


@POSIX
def test_only_the_user_may_read_it(archive: Archive, path: Path) -> None:
    """Neither the file nor what SQLite keeps beside it, also where it was more open before."""
    said(archive, "secret")
    modes = {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == {0o600}
    archive.close()
    path.chmod(0o644)
    fresh(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def _garbage(path: Path) -> None:
    path.write_bytes(random.Random(3).randbytes(5000))


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 100])


def _overwritten(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) // 2] = b"\xff" * (len(content) // 2 - len(content) // 3)
    path.write_bytes(content)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "precious").write_text("kept")


def _foreign(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("create table sessions (recipe text)")


@pytest.mark.parametrize("harm", [_garbage, _truncated, _overwritten, _folder, _foreign])
def test_a_damaged_archive_is_set_aside_and_a_new_one_begins(path: Path, harm: Callable[[Path], None]) -> None:
    """Nothing of it is deleted, and the next start has nothing to say."""
    archive = fresh(path)
    for _ in range(20):
        said(archive, "one " * 500)
    archive.close()
    harm(path)
    archive, sentence = Archive.open(path)
    kept = [file for file in path.parent.iterdir() if ".damaged-" in file.name]
    assert len(kept) == 1
    assert sentence == f"the archive was damaged and is kept as {kept[0].name}; a new one was started"
    said(archive, "hello")
    archive.close()
    archive = fresh(path)
    assert [found.title for found in archive.sessions()] == ["hello"]
    archive.close()


def test_a_log_without_its_file_does_not_get_into_the_new_one(path: Path) -> None:
    """What SQLite keeps beside a database goes aside with it."""
    live = path.with_name("live.db")
    said(archive := fresh(live), "of another file")
    path.with_name("archive.db-wal").write_bytes(live.with_name("live.db-wal").read_bytes())
    archive.close()
    path.mkdir()
    archive, sentence = Archive.open(path)
    assert "damaged" in sentence
    assert archive.sessions() == []
    archive.close()
    assert len([file for file in path.parent.iterdir() if ".damaged-" in file.name]) == 2


def test_several_programs_find_it_damaged_and_one_of_them_sets_it_aside(path: Path) -> None:
    _garbage(path)
    assert len(heard(ran(path, 2, programs=4))) == 1
    archive = fresh(path)
    assert [found.turns for found in archive.sessions()] == [2] * 4
    archive.close()


def test_the_archive_of_a_newer_program_is_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("create table sessions (id, wonder)")
        connection.execute("pragma user_version = 99")
    before = path.read_bytes()
    archive, sentence = Archive.open(path)
    assert sentence == "the archive was written by a newer hub-repl; this session is not saved"
    archive.warn = pytest.fail
    said(archive, "hello")
    archive.rename("title")
    archive.close()
    assert path.read_bytes() == before


def test_an_older_archive_is_brought_up_to_date(path: Path) -> None:
    """With all it holds; a later step that fails leaves it as it was."""
    said(archive := fresh(path), "hello")
    archive.close()
    later = (
        *MIGRATIONS,
        ("alter table sessions add column colour text not null default 'red'", "create table tags (name)"),
    )
    for _ in range(2):
        found = open_database(path, later)
        assert found.sentence == ""
        assert found.connection is not None
        assert found.connection.execute("select colour from sessions").fetchall() == [("red",)]
        assert found.connection.execute("pragma user_version").fetchone() == (len(later),)
        archive = Archive(found)
        assert archive.load().turns[1].text == "hello"
        said(archive, "again")
        archive.rename("x")
        archive.close()
        open_database(path, later).connection.execute("delete from sessions where title = 'x'").connection.close()
    broken = open_database(path, (*later, ("create table more (name)", "alter table nowhere add column x")))
    assert not broken.writable
    assert "nowhere" in broken.sentence
    assert broken.connection is not None
    broken.connection.close()
    found = open_database(path, later)
    assert found.sentence == ""
    assert found.connection is not None
    assert not found.connection.execute("select 1 from sqlite_master where name = 'more'").fetchall()
    found.connection.close()


def test_a_full_disk_is_told_once_and_catches_up(path: Path) -> None:
    """The conversation goes on; what was missing is written when there is room again."""
    archive, heard = fresh(path), []
    archive.warn = heard.append
    talk = Conversation(keep=archive.save)
    talk.add("user", "first", None)
    assert archive._connection is not None  # SQLite is told to be a full or a damaged disk
    archive._connection.execute(
        f"pragma max_page_count = {archive._connection.execute('pragma page_count').fetchone()[0]}"
    )
    for number in range(3):
        talk.add("user", f"{number} " + "x" * 20_000, number + 1)
    assert heard == ["the archive cannot be written: the disk is full; the conversation is no longer being saved"]
    archive._connection.execute("pragma max_page_count = 100000")
    talk.add("user", "last", 4)
    assert len(heard) == 2
    assert "saved again" in heard[1]
    archive.close()
    other = fresh(path)
    assert other.load().turns == talk.turns
    other.close()


@pytest.mark.slow
@POSIX
def test_a_disk_that_refuses_is_told_once(path: Path) -> None:
    """A real limit of the system: no file over 200 kB. What was acknowledged before is there."""
    lines = ran(path, 60, 400_000)
    assert len(heard(lines)) == 1
    assert "the conversation is no longer being saved" in heard(lines)[0]
    before = lines[: next(number for number, line in enumerate(lines) if line.startswith("!"))]
    assert len(before) > 3
    assert missing(path, saved(before)) == []


def test_an_archive_that_another_program_keeps_locked_is_told_once(
    archive: Archive, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is lost when it lets go."""
    heard: list[str] = []
    archive.warn = heard.append
    archive._run("pragma busy_timeout = 50")  # the wait for a lock, shortened
    lock = sqlite3.connect(path, isolation_level=None)
    lock.execute("begin immediate")
    talk = Conversation(keep=archive.save)
    talk.add("user", "one", None)
    talk.add("user", "two", 1)
    assert heard == [
        "the archive cannot be written: another program has locked it; the conversation is no longer being saved"
    ]
    lock.execute("rollback")
    lock.close()
    talk.add("user", "three", 2)
    assert archive.load(archive.id).turns == talk.turns


def _visit(path: Path) -> str:
    (line,) = ran(path, 0)
    return line


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A folder that other users can enter: as root the visitor is somebody else, and pytest closes its own to them."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name) / "archive.db"
        Path(name).chmod(0o755)


@POSIX
def test_a_read_only_archive_can_be_read(open_path: Path) -> None:
    """In a folder that can be written, and in one that cannot."""
    said(archive := fresh(open_path), "hello")
    archive.close()
    open_path.chmod(0o444)
    wanted = "! the archive cannot be written: Permission denied; this session is not saved|['hello']"
    assert _visit(open_path) == wanted
    open_path.parent.chmod(0o555)
    assert _visit(open_path) == wanted


@POSIX
def test_an_archive_that_may_not_be_read_is_set_aside_where_that_is_possible(open_path: Path) -> None:
    said(archive := fresh(open_path), "hello")
    archive.close()
    open_path.chmod(0)
    open_path.parent.chmod(0o555)
    assert _visit(open_path) == "! the archive is damaged (Permission denied); this session is not saved|[]"
    open_path.parent.chmod(0o777)
    assert "and is kept as archive.db.damaged-" in _visit(open_path)


@POSIX
def test_a_folder_that_cannot_be_written_is_said(open_path: Path) -> None:
    open_path.parent.chmod(0o555)
    assert _visit(open_path) == "! the archive cannot be written: Permission denied; this session is not saved|[]"


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    archive, sentence = Archive.open(tmp_path / "none" / "archive.db")
    assert sentence == "the archive cannot be written: No such file or directory; this session is not saved"
    said(archive, "hello")
    assert archive.sessions() == []


def test_without_saving_nothing_is_written_but_everything_can_be_read(path: Path) -> None:
    off = fresh(path, saving=False)
    said(off, "hello")
    assert not path.exists()
    said(archive := fresh(path), "one")
    archive.close()
    before = path.read_bytes()
    off = fresh(path, saving=False)
    talk = off.load()
    talk.add("user", "two", 1)
    off.rename("x")
    off.close()
    assert path.read_bytes() == before


def test_an_archive_that_breaks_while_it_is_read_is_one_sentence(archive: Archive, path: Path) -> None:
    said(archive, "hello")
    assert archive._connection is not None  # SQLite is told to be a full or a damaged disk
    archive._connection.execute("drop table turns")
    with pytest.raises(ReplError, match="the archive cannot be read: no such table: turns"):
        archive.sessions()


def test_a_closed_archive_is_an_empty_one(archive: Archive) -> None:
    said(archive, "hello")
    archive.close()
    archive.save(Turn(2, 1, "user", "more"))
    assert archive.sessions() == []


# commands


class Still:
    """A worker that is never asked."""


@pytest.fixture
def session(archive: Archive) -> Session:
    session = Session(Settings(), Store(Runtime), Still())  # type: ignore[arg-type]
    session._archive = archive  # an archive that is broken already
    return session


def drawn(result: Any, terminal: bool = False) -> str:
    """Return what a result looks like on 80 columns, in a file or on a terminal without colours."""
    import io

    from rich.console import Console

    from repl.terminal.screen import THEME

    file = io.StringIO()
    Console(file=file, width=80, theme=THEME, force_terminal=terminal, color_system=None).print(render(result))
    return file.getvalue()


def reply(session: Session, text: str, done: Reply | None = RECORD) -> Turn:
    talk = session.conversation
    asked = talk.add("user", f"say {text}", talk.head)
    talk.head = talk.close(talk.add("assistant", "", asked.id, "open"), text, "complete", done).id
    session.archive.mark(talk.head, talk.system)
    return talk.turns[talk.head]


def test_resume_goes_on_where_the_session_stood(session: Session) -> None:
    """Views and the toolbar speak of its last reply, and the next message is saved in it."""
    for text in ("one", "two", "three"):
        last = reply(session, text)
    name, talk = session.archive.id, session.conversation
    session.archive.begin()
    session.conversation, session.last = Conversation(), None
    result = resume(session, name[:5])
    assert (result.id, result.title, result.count, result.unanswered) == (name, "say one", 3, "")
    assert [(one.number, one.question, one.reply.answer) for one in result.exchanges] == [
        (2, "say two", "two"),
        (3, "say three", "three"),
    ]
    assert (session.conversation.turns, session.conversation.head) == (talk.turns, talk.head)
    assert (session.last, session.context_used) == (last, 3)
    reply(session, "four")
    assert [found.turns for found in session.archive.sessions()] == [8]


def test_resume_shows_replies_as_the_settings_have_them(session: Session) -> None:
    """Thoughts are folded, Markdown is drawn, figures stand below where they are on."""
    parts = {"raw": "<think>hm hm</think>\n\n**bold**", "thinking": "hm hm", "text": "**bold**"}
    reply(session, parts["raw"], replace(RECORD, **parts, begun=Parts()))
    result = resume(session, session.archive.id)
    shown = drawn(result, terminal=True)
    assert "2 words of thinking" in shown
    assert "\nbold\n" in shown
    assert shown.count("hm hm") == shown.count("**bold**") == 2  # of the title and the question alone
    assert reply_figures(RECORD) in shown


def test_resume_takes_the_model_of_the_conversation_before_any_load(session: Session) -> None:
    """Not where one was asked for by name, or is there already."""
    reply(session, "one", replace(RECORD, load={"model": "acme/tiny", "dtype": "bfloat16", "device": "cuda:3"}))
    session.change(session.settings.put("dtype", "float32", "you"))
    resume(session, session.archive.id)
    chosen = session.settings.load
    assert (chosen.model, chosen.dtype, chosen.device) == ("acme/tiny", "float32", "auto")
    session.change(session.settings.put("model", "other", "you"))
    resume(session, session.archive.id)
    assert session.settings.load.model == "other"


def test_resume_completes_ids_with_their_titles(session: Session) -> None:
    """A session is recognised by its title; an archive that cannot be read offers none."""
    reply(session, "one")
    assert complete_line("/resume ", session) == [(session.archive.id, "say one")]
    session.archive._run("alter table sessions rename to others")  # as another program could
    assert complete_line("/resume ", session) == []


def test_resume_tells_a_message_that_got_no_reply(session: Session) -> None:
    reply(session, "one")
    session.conversation.add("assistant", "", session.conversation.add("user", "and then?", 2).id, "open")
    result = resume(session, session.archive.id)
    assert result.unanswered == "and then?"
    assert "not answered yet: and then?" in drawn(result)
    assert result.draft == "and then?"  # so it stands at the prompt again


def test_resume_counts_messages_not_what_was_made_of_them(session: Session) -> None:
    asked = reply(session, "one").parent
    session.conversation.add("assistant", "longer", asked)
    assert resume(session, session.archive.id).count == 1


def test_resume_speaks_of_a_completion_where_there_was_no_talk(session: Session) -> None:
    talk = session.conversation
    turn = talk.close(
        talk.add("completion", "", talk.add("prompt", "once", None).id, "open"), "upon", "complete", RECORD
    )
    result = resume(session, session.archive.id)
    assert session.last == turn
    assert [(one.question, one.reply.answer, one.completes) for one in result.exchanges] == [("once", "upon", True)]


def test_sessions_are_drawn_harmless(session: Session) -> None:
    """Titles and models come from outside."""
    session.conversation.add("user", "\x1b]0;owned\x07 hello", None)
    session.archive.save(Turn(2, 1, "assistant", "wor\x9bld", "complete", replace(RECORD, model=ModelRecord("a\x1bb"))))
    for result in (sessions(session), sessions(session, "hello"), resume(session, session.archive.id)):
        assert not set(drawn(result)) & {"\x1b", "\x07", "\x9b"}
    assert f"{session.archive.id}  " in drawn(sessions(session))
    assert "2 messages · a␛b · this one" in drawn(sessions(session))


def test_the_built_in_model_is_listed_by_its_name(session: Session) -> None:
    session.conversation.add("user", "hello", None)
    session.archive.save(Turn(2, 1, "assistant", "hi", "complete", replace(RECORD, model=ModelRecord("builtin"))))
    assert "SmolLM2-135M-Instruct" in drawn(sessions(session))


def test_sessions_without_any_say_so(session: Session) -> None:
    assert drawn(sessions(session)) == "no saved sessions yet\n"
    assert drawn(sessions(session, "fox")) == "no session contains fox\n"


def test_many_sessions_are_cut_with_a_hint(session: Session) -> None:
    for number in range(23):
        said(session.archive, f"message {number}")
    lines = drawn(sessions(session)).splitlines()
    assert len(lines) == 21
    assert lines[-1].startswith("3 more: /sessions WORDS")


def test_a_title_is_shown_and_set(session: Session) -> None:
    assert title(session).text == "no title yet · /title TEXT sets one"
    reply(session, "one")
    assert title(session).text == "title: say one"
    assert title(session, " Two \n words ").text == "title: Two words"
    assert sessions(session).sessions[0].title == "Two words"


def test_a_time_is_as_short_as_it_is_clear() -> None:
    from datetime import UTC, datetime

    now = datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert moment(now.timestamp() - 3600, now) == "11:00"
    assert moment(now.timestamp() - 86400, now) == "2026-02-28"


def test_every_field_of_a_turn_is_saved() -> None:
    """A new field needs a column: this test is where it is noticed; the number of the exchange is counted."""
    assert [spot.name for spot in fields(Turn) if spot.compare] == ["id", "parent", "role", "text", "state", "record"]
    assert Database(None).writable


PARENTS: dict[str, tuple[dict[int, int], list[int]]] = {
    "its own parent": ({4: 4}, [4]),
    "two under each other": ({3: 4}, [3, 4]),
    "a longer circle": ({1: 4}, [1, 2, 3, 4]),
    "a later turn": ({2: 3, 3: 1}, [1, 3, 4]),
    "a turn that is not there": ({3: 77}, [3, 4]),
}


@pytest.mark.parametrize("name", PARENTS)
def test_a_turn_that_stands_nowhere_begins_a_conversation(name: str, tmp_path: Path) -> None:
    """Every turn can be reached, in an end, and what is wrong is told."""
    archive, _ = Archive.open(tmp_path / "archive.db")
    talk = Conversation(keep=archive.save)
    for role in ("user", "assistant", "user", "assistant"):
        talk.head = talk.add(role, role, talk.head).id
    archive.mark(talk.head, "")
    moved, path = PARENTS[name]
    with closing(sqlite3.connect(tmp_path / "archive.db")) as connection, connection:
        for number, parent in moved.items():
            connection.execute("update turns set parent = ? where number = ?", (parent, number))
    archive.close()
    archive, _ = Archive.open(tmp_path / "archive.db")
    said: list[str] = []
    archive.warn = said.append
    found = archive.load()
    assert [turn.id for turn in found.path()] == path
    assert len(found.turns) == 4
    assert "lost: a conversation starts there" in said[0]
    archive.close()


def test_a_session_that_stands_at_no_turn_opens(tmp_path: Path) -> None:
    archive, _ = Archive.open(tmp_path / "archive.db")
    talk = Conversation(keep=archive.save)
    talk.head = talk.add("user", "Hello", None).id
    archive.mark(talk.head, "")
    with closing(sqlite3.connect(tmp_path / "archive.db")) as connection, connection:
        connection.execute("update sessions set head = 99")
    assert archive.load(archive.id).path() == []
    archive.close()


def test_a_reply_whose_message_is_lost_is_said(llama_folder: Path) -> None:
    """What goes on from the message says so, and nothing is a bug."""
    with opened(llama_folder, max_new_tokens=4) as session:
        run(session, "Hello")
        talk = session.conversation
        answer = talk.turns[talk.head or 0]
        talk.turns = {answer.id: replace(answer, parent=None)}
        for line in ("/continue", "/retry", "/take 1 5", "/recipe"):
            with pytest.raises(UsageError, match="message of this reply is lost"):
                run(session, line)
