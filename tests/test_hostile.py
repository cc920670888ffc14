"""Hostile text and hostile ends: whatever is said, the terminal obeys only us; whatever kills us, it is given back."""

import io
import json
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import models
import pytest
from payloads import PAYLOADS, foreign, text, words
from rich.console import Console
from terminal import LOADED, Terminal, surroundings

from repl.core.conversation import Conversation
from repl.core.events import Token
from repl.core.parts import PartsReader
from repl.core.sanitize import Cleaner
from repl.core.settings import View
from repl.session.archive import Archive
from repl.terminal.markdown import Markdown
from repl.terminal.redraw import Stream
from repl.terminal.reply import LiveReply
from repl.terminal.screen import THEME, Screen
from repl.terminal.tables import facts, grid

STOP, LEAVE = "\x03", "\x04"
PACKED = 200  # bytes of payloads in one reply: a turn costs more than its tokens
NORMAL = {7 << 5, 25 << 5}  # what pyte calls a terminal that wraps lines and shows its cursor
WITHIN = 3.0  # seconds to leave in, and more than a slow machine needs
OSC = "\x1b]0;owned\x07\x1b[2J\x9b5m\u202eevil"
FAILING = """{%- if messages[0]['role'] == 'system' -%}
{{ raise_exception(messages[0]['content']) }}
{%- endif -%}
"""


def packs(payloads: list[bytes], most: int = PACKED) -> list[bytes]:
    """Join payloads, each a paragraph, until they are so long."""
    found: list[bytes] = []
    for payload in payloads:
        joined = found[-1] + b"\n\n" + payload if found else payload
        found[-1:] = [joined] if found and len(joined) <= most else [*found[-1:], payload]
    return found


def flat(payload: bytes) -> str:
    """Return a payload as a part of one line of a script, or of a file name."""
    return " ".join(text(payload).replace("\0", "").replace("/", "|").splitlines())


ALL = packs(list(PAYLOADS.values()))
SOME = packs(list(PAYLOADS.values())[::6])
DRAFT = [
    PAYLOADS[name] for name in ("CSI clear and home", "OSC 0 title", "C1 code points CSI", "BS over", "report state")
]
LINES = [flat(pack) for pack in packs(list(PAYLOADS.values()), 180)]


# in the program's own pieces


def console() -> Console:
    return Console(
        file=io.StringIO(),
        force_terminal=True,
        width=80,
        height=24,
        color_system="256",
        legacy_windows=False,
        theme=THEME,
    )


def streamed(pieces: list[str]) -> str:
    """Draw pieces of a text as Markdown, each as soon as it comes."""
    target, cleaner = console(), Cleaner()
    stream = Stream(target, Markdown(target), pause=0.0)
    for piece in map(cleaner.feed, pieces):
        stream.feed(piece)
        stream.draw()
    stream.end()
    return target.file.getvalue()


def replied(pieces: list[str], markdown: bool, thinking: str) -> str:
    """Draw pieces of a text as a reply, half of it thought aloud."""
    screen = Screen(interactive=True)
    screen.out = console()
    reply, reader = LiveReply(screen, View(markdown=markdown, thinking=thinking)), PartsReader()
    for piece in ["<think>", *pieces, "</think>", *pieces]:
        reply.feed(Token(piece, pieces=reader.feed(piece)))
    reply.feed(Token("", pieces=reader.end()))
    reply.end()
    return screen.out.file.getvalue()


@pytest.mark.parametrize("name", PAYLOADS)
def test_no_cut_lets_a_payload_through(name: str) -> None:
    """Cut into two chunks anywhere, nothing of a payload is a control sequence when it is drawn."""
    said = text(PAYLOADS[name])
    for cut in range(len(said) + 1):
        pieces = [said[:cut], said[cut:]]
        cleaner = Cleaner()
        assert foreign("".join(map(cleaner.feed, pieces)).encode()) == []
        drawn = streamed(pieces)
        assert foreign(drawn.encode()) == []
        assert all(word in plain(drawn) for word in words(PAYLOADS[name]))


@pytest.mark.slow
@pytest.mark.parametrize("markdown", [True, False], ids=["Markdown", "raw"])
@pytest.mark.parametrize("thinking", ["show", "fold", "hide"])
def test_no_thought_lets_a_payload_through(markdown: bool, thinking: str) -> None:
    for payload in PAYLOADS.values():
        assert foreign(replied(list(text(payload)), markdown, thinking).encode()) == []


def plain(drawn: str) -> str:
    """Return what is drawn without our own colours and line ends."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\s", "", drawn)


def test_the_oracle_sees_every_payload() -> None:
    """A payload that reached the terminal as it is would be found, the merely printable ones apart."""
    unseen = {name for name, payload in PAYLOADS.items() if foreign(text(payload).encode()) == []}
    printable = {name for name, payload in PAYLOADS.items() if text(payload).isprintable()}
    moves = {"CR over", "BS over", "underlined as a manual"}  # the editor moves so too: what stays to be read tells
    ours = {
        "paste mode",
        "cursor hidden",
        "wrap off",
        "CSI move up and erase",
    }  # and these modes: their end state tells
    assert unseen - printable <= moves | ours | {"selectors", "a pile of marks", "noncharacters"}
    assert len(PAYLOADS) >= 60


@pytest.mark.parametrize("accessible", [False, True])
def test_names_and_cells_in_brackets_are_no_markup(accessible: bool) -> None:
    screen = Screen(interactive=True)
    screen.adapt(accessible)
    screen.out.file = paper = io.StringIO()
    said = "[link=http://evil.example][red]x[/red]"
    for table in (facts([(said, said)]), grid("ll", [(said, said)])):
        screen.out.print(table)
    assert paper.getvalue().count(said) == 4


# said by a model, through the whole program


@pytest.fixture(scope="module")
def villain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says every payload, and some of them again."""
    return models.scripted(tmp_path_factory.mktemp("models") / "villain", *ALL, *SOME)


@pytest.mark.slow
def test_nothing_a_model_says_acts_on_the_terminal(villain: Path, tmp_path: Path) -> None:
    """With Markdown and without: nothing foreign, every word, title and modes as before, the next command intact."""
    script = tmp_path / "turns.txt"
    turns = [f"turn {number}" for number in range(len(ALL) + len(SOME))]
    script.write_text("\n".join([*turns[: len(ALL)], "/markdown off", *turns[len(ALL) :]]))
    with Terminal(str(villain), "--max-new-tokens", "300", home=tmp_path / "home", size=(30, 120)) as screen:
        screen.screen.write_process_input = screen.keys  # a terminal that answers whoever asks
        screen.see(LOADED)
        screen.line(f"/script {script}")
        screen.wait(lambda: screen.ready() and screen.text().count("first after") == len(turns))
        assert screen.ask("/version")[0].startswith("hub-repl")
        shown = screen.text()
        for word in {word for pack in ALL for word in words(pack)}:
            assert word in shown
        leave(screen)
        for payload in PAYLOADS.values():
            assert payload not in screen.raw or text(payload).isprintable()


def leave(screen: Terminal, code: int = 0) -> None:
    """End the program, and find the terminal as it was and nothing foreign in what it got."""
    screen.wait(screen.ready)
    screen.keys(LEAVE)
    assert screen.end() == code
    assert_untouched(screen)


def assert_untouched(screen: Terminal) -> None:
    assert foreign(screen.raw) == []
    assert screen.screen.title == screen.screen.icon_name == ""
    assert screen.screen.mode == NORMAL
    assert screen.screen.margins is None
    assert "Traceback" not in screen.text()


# said by files, names and libraries


@pytest.fixture(scope="module")
def accuser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in a folder with a hostile name, whose template fails with the system text in its error."""
    folder = models.scripted(tmp_path_factory.mktemp("models") / f"m{OSC}", b"Hello there.", b"word " * 300)
    template = folder / "chat_template.jinja"
    template.write_text(FAILING + template.read_text())
    return folder


def lines(folder: Path) -> Iterator[str]:
    """Yield lines that give every payload to every command that shows what it was given."""
    for number, said in enumerate(LINES):
        yield from [f"/system {said}", "/system", "hi", f"/title {said}", f"/stop {json.dumps(said)}", "/stop"]
        yield from [f"/{said}", f"/set {said}", f"/dtype {said}", f"/preset {said}", f"/help {said}"]
        yield from [f"/prefill {said}", f"/resume {said}", f"/sessions {said}", f"/export {said}.exe"]
        yield f"/read {folder / str(number) / named(said)}"
        yield f"/read {folder / 'missing' / said}"
        yield f"/export {folder / str(number) / named(said)}.md"
    yield from [
        "/stop default",
        "/system none",
        "hi",
        "/history",
        "/tree",
        "/sessions",
        "/settings",
        "/preset",
        "/help",
    ]
    yield from ["/config", "/info", "/template", "/template check", "/evil", "/help evil", "/model"]
    for said in LINES[:3]:
        yield from [f"/model {folder}/{said.replace(' ', '_')}", "hi"]
    yield from ["/version", "/clear", f"say {flat(b' '.join(DRAFT))}", "/edit"]


def named(said: str) -> str:
    """Return a line as a file system takes it for a name."""
    return said.encode("utf-8", "replace")[:200].decode(errors="ignore")


@pytest.mark.slow
def test_nothing_a_file_or_a_name_says_acts_on_the_terminal(accuser: Path, tmp_path: Path) -> None:
    """Ids, titles, system texts, template errors, file names, config values: shown, never obeyed."""
    for number, said in enumerate(LINES):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / named(said)).write_bytes(b"\n".join(PAYLOADS.values()))
    (tmp_path / "popup").mkdir()
    for name in ("photo\u202egnp.exe", "other\x1b]0;title\x07\x9b"):
        (tmp_path / "popup" / name).touch()
    (tmp_path / "home" / "config").mkdir(parents=True)
    (tmp_path / "home" / "config" / "config.toml").write_text(config())
    script = tmp_path / "lines.txt"
    script.write_text("\n".join(lines(tmp_path)))
    with Terminal(str(accuser), "--script", str(script), home=tmp_path / "home", size=(40, 400)) as screen:
        screen.screen.write_process_input = screen.keys
        screen.wait(lambda: "hub-repl 0" in screen.text() and screen.draft().startswith("❯ say"))
        screen.clear()
        screen.keys(f"/read {tmp_path / 'popup'}/")
        screen.see("photo.*gnp")
        screen.see("other.*tit")
        screen.clear()
        assert screen.ask("//my next command")[0].startswith("Hello there.")
        leave(screen)
        shown = screen.raw.decode()
        assert "a bug in hub-repl" not in shown
        for word in {word for payload in PAYLOADS.values() for word in words(payload)}:
            assert word in shown


def config() -> str:
    """Return a config file whose keys and values are payloads."""
    quoted = [toml(line) for line in LINES]
    rows = [f"{said} = {said}" for said in quoted]
    presets = [f"[presets.{said}]\nassistant = {said}\nstop = [{said}]\n{said} = 1" for said in quoted]
    return "\n".join(
        [*rows, f"dtype = {quoted[0]}", *presets, "[aliases]", f"evil = {toml('/title ' + LINES[0])}", *rows]
    )


def toml(line: str) -> str:
    """Quote a text as TOML does, every character by its number."""
    return '"' + "".join(f"\\U{ord(character):08x}" for character in line) + '"'


@pytest.mark.slow
@pytest.mark.parametrize("words", [[f"--{OSC}"], ["m", "--dtype", OSC], ["m", "--script", OSC]], ids=repr)
def test_nothing_on_the_command_line_acts_on_the_terminal(words: list[str], tmp_path: Path) -> None:
    line = [sys.executable, "-m", "repl", *words, "--offline"]
    found = subprocess.run(line, capture_output=True, env=surroundings(tmp_path), stdin=subprocess.DEVNULL, check=False)
    assert found.returncode in (1, 2)
    assert b"evil" in found.stderr
    assert foreign(found.stdout + found.stderr) == []


# the end


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that talks for long."""
    return models.scripted(tmp_path_factory.mktemp("models") / "talker", b"word " * 300)


def streaming(screen: Terminal) -> None:
    """Be in the middle of a reply."""
    screen.see(LOADED)
    screen.line("my message")
    screen.wait(lambda: "word word" in screen.tail())


def loading(screen: Terminal) -> None:
    """Be in the middle of a load, with a message waiting for it."""
    screen.wait(lambda: "importing torch" in screen.bar())
    screen.line("my message")


def idle(screen: Terminal) -> None:
    """Be at the prompt, with half a line typed, in a conversation that went back a turn."""
    screen.wait(lambda: "not found" in screen.text() or "no folder" in screen.text() or "nowhere" in screen.text())
    screen.ask("/undo")
    screen.keys("half a line")
    screen.wait(lambda: "half a line" in screen.draft())


def twice(screen: Terminal, number: int) -> None:
    """Send a signal again while the first is being obeyed."""
    screen.child.kill(number)
    time.sleep(0.05)
    screen.child.kill(number)


ENDS: dict[str, tuple[Callable[[Terminal], object], int]] = {
    "SIGTERM": (lambda screen: screen.child.kill(signal.SIGTERM), 143),
    "SIGHUP": (lambda screen: screen.child.kill(signal.SIGHUP), 129),
    "SIGTERM twice": (lambda screen: twice(screen, signal.SIGTERM), 143),
    "closed window": (lambda screen: screen.hang_up(), 129),
}


def rare(end: str) -> Any:
    """Leave a case that differs little from the others to the campaigns."""
    return pytest.param(end, marks=pytest.mark.campaign)


def ended(screen: Terminal, state: Callable[[Terminal], None], end: str) -> None:
    """Bring a program into a state, end it, and find its exit code and its terminal in order."""
    act, code = ENDS[end]
    before = screen.modes()
    screen.wait(screen.ready)
    state(screen)
    act(screen)
    assert screen.end(WITHIN) == code
    assert "terminate called" not in screen.text()
    assert "Traceback" not in screen.text()
    if not screen.gone:
        assert screen.modes() == before
        assert_untouched(screen)


def saved(home: Path) -> list[tuple]:
    """Return the turns of the archive: role, text and state."""
    with closing(sqlite3.connect(home / "data" / "archive.db")) as connection:
        return connection.execute("select role, text, state from turns order by number").fetchall()


@pytest.mark.slow
@pytest.mark.parametrize("end", ["SIGTERM twice", "closed window", rare("SIGHUP"), rare("SIGTERM")])
def test_a_kill_while_a_reply_streams_loses_no_message(talker: Path, tmp_path: Path, end: str) -> None:
    with Terminal(str(talker), home=tmp_path) as screen:
        ended(screen, streaming, end)
    message, reply = saved(tmp_path)
    assert message == ("user", "my message", "complete")
    assert (reply[0], reply[2]) == ("assistant", "cancelled")
    assert reply[1].strip(), "what there was of the reply is saved too"


@pytest.mark.slow
@pytest.mark.parametrize("end", ["SIGTERM twice", "SIGHUP", "closed window", rare("SIGTERM")])
def test_a_kill_while_a_model_loads_leaves_the_terminal_as_it_was(talker: Path, tmp_path: Path, end: str) -> None:
    with Terminal(str(talker), home=tmp_path) as screen:
        ended(screen, loading, end)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["SIGTERM twice", "SIGHUP", "closed window", rare("SIGTERM")])
def test_a_kill_at_the_prompt_keeps_the_conversation(tmp_path: Path, end: str) -> None:
    """Also where it stood: an undo is remembered."""
    (tmp_path / "data").mkdir()
    archive, _ = Archive.open(tmp_path / "data" / "archive.db")
    talk = Conversation(keep=archive.save)
    for number in range(2):
        talk.head = talk.add("user", f"question {number}", talk.head).id
        talk.head = talk.add("assistant", f"answer {number}", talk.head).id
    archive.mark(talk.head, "")
    archive.close()
    with Terminal(str(tmp_path / "nowhere"), "-c", "/resume", home=tmp_path) as screen:
        ended(screen, idle, end)
    assert len(saved(tmp_path)) == 4
    archive, said = Archive.open(tmp_path / "data" / "archive.db")
    assert (said, archive.load().head) == ("", 2)
    archive.close()


@pytest.mark.slow
def test_quitting_while_a_reply_streams_is_no_crash(talker: Path, tmp_path: Path) -> None:
    """Exit code 0, the message and what there was of its reply are saved."""
    with Terminal(str(talker), home=tmp_path) as screen:
        streaming(screen)
        screen.keys(STOP + LEAVE)
        assert screen.end(WITHIN) == 0
        assert_untouched(screen)
        assert "terminate called" not in screen.text()
    (_, asked, _), (_, answer, state) = saved(tmp_path)
    assert asked == "my message"
    assert (answer[:9], state) == ("word word", "cancelled")
