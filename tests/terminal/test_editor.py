"""The line editor: keys into it, its screen through a terminal emulator, what it hands over."""

import io
import multiprocessing
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pexpect
import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.data_structures import Size
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output.vt100 import Vt100_Output
from terminal import Terminal, surroundings
from typed_lines import add_line, kept_lines

from repl import commands
from repl.commands import registry
from repl.core import children, streams
from repl.core.jobs import Worker
from repl.core.settings import Settings
from repl.generation.interface import Runtime
from repl.models.store import Store
from repl.session.session import Session
from repl.terminal.editor.paste import FIRST, MAX_LINES, Folds
from repl.terminal.editor.prompt import Editor, TerminalOutput, terminal_input
from repl.terminal.editor.settings_panel import Panel

assert commands
ENTER, ESCAPE, CLEAR, LEAVE, TAB, BACK = "\r", "\x1b", "\x03", "\x04", "\t", "\x7f"
UP, DOWN, RIGHT, LEFT, F2 = "\x1b[A", "\x1b[B", "\x1b[C", "\x1b[D", "\x1bOQ"
BLOCK = "\n".join(f"row {number}" for number in range(200))
Step = str | Callable[[], bool]


class Glass(io.StringIO):
    """A terminal in memory."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.Stream(self.screen)

    def write(self, text: str) -> int:
        """Draw."""
        self._stream.feed(text)
        return len(text)


class Desk:
    """A user who types, looks at the screen and types on."""

    def __init__(self, folder: Path, session: Session, size: tuple[int, int] = (24, 90)) -> None:
        self.past = folder / "history"
        self.session = session
        self.glass = Glass(*size)
        self._size = Size(*size)
        self._steps: deque[Step] = deque()
        self._press: Callable[[str], None] = lambda keys: None

    def run(self, *steps: Step) -> list[str]:
        """Type texts, wait where a step is a condition; leave at the end. Returns the lines that were sent."""
        self._steps = deque([*steps, LEAVE])
        with create_pipe_input() as pipe:
            self._press = pipe.send_text
            guard = threading.Timer(30, pipe.close)  # a test must fail, not hang
            guard.start()
            output = TerminalOutput(self.glass, lambda: self._size, term="xterm-256color", enable_cpr=False)
            editor = Editor(self.past, self, source=pipe, target=output)
            lines = list(self._lines(editor))
            assert guard.is_alive(), f"hung at {self._steps} before\n" + "\n".join(self.rows())
            guard.cancel()
        return lines

    def _lines(self, editor: Editor) -> Iterator[str]:
        while True:
            try:
                yield editor.read()
            except EOFError:
                return

    def toolbar(self, width: int) -> str:
        """Stand for what the program says."""
        return " the toolbar"

    def watch(self, wake: Callable[[], object]) -> None:
        """Nothing loads."""

    def stop_load(self) -> bool:
        """Nothing loads."""
        return False

    def settings(self) -> Settings:
        """Return the current settings."""
        return self.session.settings

    def complete(self, line: str) -> list[tuple[str, str]]:
        return registry.complete_line(line, self.session)

    def panel(self, changed: Callable[[], object]) -> Panel:
        """Return the settings view."""
        return Panel(self.session, changed)

    def poll_load(self) -> None:
        """Take the next step: the editor asks often whether there is something to do."""
        while self._steps and (isinstance(self._steps[0], str) or self._steps[0]()):
            step = self._steps.popleft()
            if isinstance(step, str):
                self._press(step)
                return

    def rows(self) -> list[str]:
        """Return what stands on the screen."""
        return [row.rstrip() for row in self.glass.screen.display]

    def shows(self, *texts: str) -> Step:
        """Wait until all of these are on the screen."""
        return lambda: all(any(text in row for row in self.rows()) for text in texts)

    def lacks(self, text: str) -> Step:
        """Wait until this is no more on the screen."""
        return lambda: not any(text in row for row in self.rows())

    def cursor(self, text: str) -> Step:
        """Wait until the row of the cursor is this, and ends at the cursor."""
        screen = self.glass.screen
        return lambda: self.rows()[screen.cursor.y] == text.rstrip() and screen.cursor.x == len(text)


@pytest.fixture
def session() -> Iterator[Session]:
    """A session without a model."""
    session = Session(Settings(), Store(Runtime), Worker())
    yield session
    session.close()


@pytest.fixture
def desk(tmp_path: Path, session: Session) -> Desk:
    """A user before an empty prompt."""
    return Desk(tmp_path, session)


def pasted(text: str) -> str:
    """Return what a terminal sends for a paste."""
    return f"\x1b[200~{text}\x1b[201~"


def keep(desk: Desk, *texts: str) -> None:
    """Put lines into the history."""
    for text in texts:
        add_line(desk.past, text)


# what was typed before


@pytest.mark.slow
def test_up_and_down_walk_what_begins_as_typed(desk: Desk) -> None:
    keep(desk, "alpha one", "beta", "alpha two", "beta two")
    assert desk.run("al", UP, desk.cursor("❯ alpha two"), UP, ENTER) == ["alpha one"]
    assert desk.run("al", UP, UP, DOWN, ENTER) == ["alpha one"]
    assert desk.run("al", UP, DOWN, desk.cursor("❯ al"), "so", ENTER) == ["also"]
    assert desk.run(UP, ENTER) == ["also"]


@pytest.mark.slow
def test_commands_complete_while_they_are_typed_all_the_same(desk: Desk) -> None:
    """And Up walks the menu where one is open, the past where none is."""
    keep(desk, "/version one", "hello", "/dtype")
    desk.run("/vers", desk.shows("/version ", registry.COMMANDS["version"].help[:20]), CLEAR)
    assert desk.run("/v", desk.shows("/version "), ESCAPE, desk.lacks("/version  "), UP, ENTER) == ["/version one"]


def test_a_walk_to_a_command_opens_no_menu(desk: Desk) -> None:
    keep(desk, "hello", "/vers")
    assert desk.run(UP, desk.cursor("❯ /vers"), UP, desk.cursor("❯ hello"), ENTER) == ["hello"]


def test_entries_of_several_lines_come_back_whole(desk: Desk) -> None:
    keep(desk, BLOCK, "one\ntwo")
    assert desk.run(UP, ENTER) == ["one\ntwo"]
    assert desk.run("row 0", UP, ENTER) == [BLOCK]


def test_ctrl_r_finds_in_any_case(desk: Desk) -> None:
    keep(desk, "The Quick Fox", "the slow dog")
    assert desk.run("\x12qUICK", ENTER, ENTER) == ["The Quick Fox"]


def test_the_newest_entry_is_suggested_up_to_the_end_of_its_line(desk: Desk) -> None:
    keep(desk, "tell me of rivers", "tell me of stars\nand planets")
    assert desk.run("tell", desk.shows("tell me of stars"), RIGHT, ENTER) == ["tell me of stars"]
    assert desk.run("nothing like it", RIGHT, ENTER) == ["nothing like it"]


def test_what_another_program_adds_is_there_at_the_next_prompt(desk: Desk) -> None:
    def add() -> bool:
        keep(desk, "from elsewhere")
        return True

    assert desk.run("mine", ENTER, desk.cursor("❯ "), add, "x", ENTER, desk.cursor("❯ "), UP, UP, ENTER) == [
        "mine",
        "x",
        "from elsewhere",
    ]


def test_the_same_line_twice_is_kept_once(desk: Desk) -> None:
    desk.run("same", ENTER, desk.cursor("❯ "), "same", ENTER)
    assert kept_lines(desk.past) == ["same"]


# long pastes


def test_a_long_paste_is_one_line_on_the_screen_and_whole_when_sent(desk: Desk) -> None:
    look = desk.cursor("❯ see [pasted 200 lines] please")
    assert desk.run(f"see {pasted(BLOCK)} please", look, ENTER) == [f"see {BLOCK} please"]
    assert kept_lines(desk.past) == [f"see {BLOCK} please"]
    assert not any("row 7" in row for row in desk.rows())


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("\n".join("x" * MAX_LINES), False),
        ("\n".join("x" * MAX_LINES) + "\n", False),
        ("\n".join("x" * MAX_LINES) + "\ny", True),
        ("word " * 1000, False),
        ("word " * 3000, True),
    ],
    ids=["20 lines", "20 ended lines", "21 lines", "a row", "a very long row"],
)
def test_only_what_is_long_is_folded(text: str, folded: bool) -> None:
    folds = Folds()
    assert (folds.fold(text) != text) is folded
    assert folds.whole(folds.fold(text)) == text


def test_a_folded_paste_is_one_letter_to_every_key(desk: Desk) -> None:
    block = pasted(BLOCK)
    assert desk.run(f"a{block}{BACK}b", desk.cursor("❯ ab"), ENTER) == ["ab"]
    assert desk.run(f"a{block}{LEFT}b", desk.shows("❯ ab[pasted 200 lines]"), ENTER) == [f"ab{BLOCK}"]
    assert desk.run(f"{block}\x01\x0b{CLEAR}\x19\x19", ENTER) == [BLOCK * 2]  # cut, and put in twice


def test_a_folded_paste_comes_back_folded_and_whole(desk: Desk) -> None:
    look = desk.cursor("❯ see [pasted 200 lines]")
    assert desk.run(f"see {pasted(BLOCK)}", ENTER, desk.cursor("❯ "), "se", UP, look, ENTER) == [f"see {BLOCK}"] * 2


def test_a_huge_entry_comes_back_with_its_first_line_open(desk: Desk) -> None:
    """Drawing all of it would take seconds."""
    entry = "about this:\n" + "word " * 200_000
    keep(desk, entry)
    assert desk.run("about", UP, desk.shows("❯ about this:", "[pasted 1000000 characters]"), ENTER) == [entry]


texts = st.text(st.sampled_from(["a", "\n", chr(FIRST), chr(FIRST + 1), chr(FIRST + 2)]), max_size=60)


@given(st.lists(texts, min_size=1, max_size=5))
def test_what_was_pasted_is_what_is_sent(blocks: list[str]) -> None:
    """Even where a text has the letters in it that stand for others."""
    folds = Folds()
    sent = "".join(folds.fold(block) for block in [BLOCK, *blocks])
    assert folds.whole(sent) == BLOCK + "".join(blocks)
    assert folds.whole(folds.entry(folds.whole(sent))) == folds.whole(sent)


def test_a_draft_that_comes_back_is_folded_again(desk: Desk) -> None:
    folds = Folds()
    sent = f"see {folds.fold(BLOCK)}"
    assert folds.entry(folds.whole(sent)) == sent


# the editor of one's own


@pytest.fixture
def pencil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program for `$EDITOR` that keeps what it was given, and writes `edited` behind it."""
    script, seen = tmp_path / "pencil.py", tmp_path / "seen"
    script.write_text(
        "import pathlib, sys\n"
        "path = pathlib.Path(sys.argv[1])\n"
        f"pathlib.Path({str(seen)!r}).write_text(path.read_text())\n"
        "path.write_text(path.read_text() + ' edited\\n')\n"
    )
    monkeypatch.setenv("VISUAL", f"{sys.executable} {script}")
    return seen


def test_ctrl_o_opens_an_editor(desk: Desk, pencil: Path) -> None:
    assert desk.run("draft\x0f", desk.cursor("❯ draft edited"), "!", ENTER) == ["draft edited!"]
    assert pencil.read_text() == "draft"


def test_ctrl_o_opens_what_is_folded(desk: Desk, pencil: Path) -> None:
    look = desk.cursor("❯ see [pasted 200 lines] edited")
    assert desk.run(f"see {pasted(BLOCK)}\x0f", look, ENTER) == [f"see {BLOCK} edited"]
    assert pencil.read_text() == f"see {BLOCK}"


def test_an_editor_gets_no_token_of_the_hub(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its plugins keep their own keys; a helper that needs none gets none."""
    script = tmp_path / "nosy.py"
    names = "[name for name in ('HF_TOKEN', 'OPENAI_API_KEY') if name in os.environ]"
    script.write_text(f"import os, sys\nopen(sys.argv[1], 'w').write(str({names}))\n")
    monkeypatch.setenv("VISUAL", f"{sys.executable} {script}")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "secret")
    assert desk.run("draft\x0f", desk.cursor("❯ ['OPENAI_API_KEY']"), ENTER) == ["['OPENAI_API_KEY']"]
    assert "secret" not in children.environment().values()
    assert children.environment()["VISUAL"]


def test_an_editor_that_fails_leaves_the_draft(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, ran = tmp_path / "broken.py", tmp_path / "ran"
    script.write_text(f"open({str(ran)!r}, 'w').close()\nraise SystemExit(1)\n")
    monkeypatch.setenv("VISUAL", f"{sys.executable} {script}")
    assert desk.run("draft\x0f", ran.exists, desk.cursor("❯ draft"), "!", ENTER) == ["draft!"]


# the settings beside the prompt


def go(session: Session, name: str) -> str:
    """Return the keys that choose a setting."""
    panel = Panel(session)
    panel.open()
    return DOWN * [row.name for row in panel.rows].index(name)


@pytest.mark.slow
def test_f2_shows_the_settings_and_loses_nothing_of_the_draft(desk: Desk) -> None:
    opened = desk.shows("❯ half a", " > max_new_tokens", "maximum length of a reply", "the toolbar")
    steps = "half a", F2, opened, F2, desk.lacks("max_new_tokens"), " message", ENTER
    assert desk.run(*steps) == ["half a message"]
    assert desk.run("half a", F2, opened, ESCAPE, desk.lacks("max_new_tokens"), " word", ENTER) == ["half a word"]


@pytest.mark.slow
def test_f2_turns_flags_and_choices_over(desk: Desk, session: Session) -> None:
    markdown, mode = go(session, "markdown"), go(session, "mode")
    desk.run(F2, markdown, desk.shows(" > markdown"), ENTER, desk.shows("markdown off"), F2, desk.lacks(" > "))
    assert not session.settings.view.markdown
    desk.run(F2, mode, RIGHT, desk.shows("mode chat"), RIGHT, RIGHT, RIGHT, LEFT, desk.shows("mode auto"), F2)
    assert session.settings.view.mode == "auto"
    desk.run(F2, go(session, "do_sample"), ENTER, desk.shows("do_sample on"), F2)
    assert session.settings.decode.do_sample is True


@pytest.mark.slow
@pytest.mark.parametrize("rows", [8, 10, 14])
def test_f2_is_of_use_in_a_low_window(rows: int, tmp_path: Path, session: Session) -> None:
    """The chosen setting, its neighbours and what it does are on the screen."""
    desk = Desk(tmp_path, session, (rows, 60))
    chosen = desk.shows(" > min_new_tokens", "minimum length", "   max_length", " the toolbar")
    assert desk.run("half", F2, go(session, "min_new_tokens"), chosen, F2, " a line", ENTER) == ["half a line"]


@pytest.mark.slow
def test_f2_takes_numbers_and_says_what_is_wrong(desk: Desk, session: Session) -> None:
    desk.run(F2, "40", desk.shows(" 40_"), BACK, "2", ENTER, desk.shows("max_new_tokens 42"), F2)
    assert session.settings.decode.max_new_tokens == 42
    desk.run(F2, "many", ENTER, desk.shows("'many' is not a whole number of tokens from 1"), F2)
    assert session.settings.decode.max_new_tokens == 42
    desk.run(F2, BACK, desk.shows("(default)"), F2)
    assert session.settings.decode.max_new_tokens is None
    desk.run(F2, go(session, "temperature"), "0.7", ENTER, desk.shows("so it is not used yet"), F2)
    assert session.settings.decode.temperature == 0.7


def test_no_key_reaches_the_line_while_f2_is_open(desk: Desk) -> None:
    keys = f"/x{TAB}\x0f\n\x12{pasted('y')}"
    assert desk.run("draft", F2, desk.shows(" > max_new"), keys, CLEAR, desk.lacks(" > "), "!", ENTER) == ["draft!"]


@pytest.mark.slow
@pytest.mark.parametrize("size", [(16, 60), (24, 80)])
def test_the_chosen_row_is_always_in_sight(tmp_path: Path, session: Session, size: tuple[int, int]) -> None:
    desk = Desk(tmp_path, session, size)
    names = [row.name for row in _opened(session).rows]
    desk.run(
        F2, *(step for name in names for step in (desk.shows(f" > {name}"), DOWN)), desk.shows("> " + names[0]), F2
    )


def test_no_range_in_tokens_is_cut_in_60_columns(session: Session) -> None:
    """What is cut, such as a long form, says so."""
    panel = _opened(session)
    lines = [line for _, line in panel.lines(60)]
    assert all(len(line) < 60 for line in lines)
    assert any(line.endswith("tokens from 1 up") for line in lines)
    assert any(line.endswith("sequences from 1 to 1000") for line in lines)
    assert not any(" of tokens" in line for line in lines)


@pytest.mark.slow
def test_the_menu_says_which_of_how_many_are_in_sight(tmp_path: Path, session: Session) -> None:
    """At the bottom of the screen too it takes twelve rows."""
    desk = Desk(tmp_path, session, (24, 80))
    desk.glass.write("\r\n" * 22)
    desk.run("/", desk.shows(" 1-12 of "), DOWN, desk.shows(" 1 of "), CLEAR)


def _opened(session: Session) -> Panel:
    panel = Panel(session)
    panel.open()
    return panel


# whose keys


@pytest.mark.slow
def test_vi_and_emacs_change_places_live(desk: Desk, session: Session) -> None:
    """By command from the next prompt on, by F2 at once."""
    registry.parse_line("/set editing_mode vi").run(session)
    assert desk.run(desk.shows(" insert · "), "hello\x1b", desk.shows(" normal · "), "0iX", ENTER) == ["Xhello"]
    assert desk.run("one\x1b\rtwo", ENTER) == ["one\ntwo"]
    mode = go(session, "editing_mode")
    assert desk.run("draft", F2, mode, ENTER, desk.shows("editing_mode emacs"), F2, "\x01X", ENTER) == ["Xdraft"]
    assert desk.run("hello\x01X", ENTER) == ["Xhello"]


# the real program


class Shelled(Terminal):
    """The program as a job of a shell."""

    def __init__(self, home: Path) -> None:
        self.mark, self.home, self.raw, self.gone = "❯", home, b"", False
        self.screen = pyte.HistoryScreen(100, 30, history=5000, ratio=1)
        self.screen.write_process_input = lambda _: None
        self._feed = pyte.ByteStream(self.screen)
        environment = surroundings(home) | {"PS1": "shell: "}
        words = ["--norc", "--noprofile", "-i"]
        self.child = pexpect.spawn("bash", words, dimensions=(30, 100), env=environment, timeout=None)
        self.child.delaybeforesend = None


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGTSTP") or not shutil.which("bash"), reason="needs jobs")
def test_ctrl_z_suspends_and_fg_comes_back_with_the_draft(tmp_path: Path) -> None:
    with Shelled(tmp_path) as screen:
        screen.see("shell:")
        screen.keys(f"{sys.executable} -m repl builtin\r")
        screen.wait(screen.ready)
        screen.keys("half a")
        screen.wait(lambda: screen.draft() == "❯ half a")
        before = screen.modes()
        screen.keys("\x1a")
        screen.see(r"Stopped")
        screen.keys("echo $((6 * 7))\r")
        screen.see(r"(?m)^42$")
        assert screen.modes() != before
        screen.keys("fg\r")
        screen.wait(lambda: screen.draft() == "❯ half a")
        assert screen.modes() == before
        screen.keys(CLEAR)
        screen.wait(screen.ready)
        screen.keys("/quit\r")
        screen.wait(lambda: screen.rows()[screen.screen.cursor.y] == "shell:")
        screen.keys("exit\r")


@pytest.mark.slow
def test_a_megabyte_arrives_whole_and_can_be_sent(tmp_path: Path) -> None:
    block = "".join(f"line {number:07} of many\n" for number in range(45_000))
    with Terminal("builtin", home=tmp_path) as screen:
        screen.wait(screen.ready)
        screen.keys("/version ")
        began = time.monotonic()
        give(screen, pasted(block).encode())
        screen.wait(lambda: screen.draft().endswith("[pasted 45000 lines]"))
        screen.keys(ENTER)
        screen.wait(screen.ready)
        took = time.monotonic() - began
        assert kept_lines(tmp_path / "data" / "history") == [f"/version {block}"]
        assert took < 60  # a hang guard; 4 s is asked for, and measured by hand on a machine at rest


def give(screen: Terminal, data: bytes) -> None:
    """Write as fast as the program reads, reading what it draws meanwhile."""
    while data:
        data = data[os.write(screen.child.child_fd, data[:4096]) :]
        screen.read()


# a long run


def _write(path: Path, name: int, sizes: list[int]) -> None:
    for number, size in enumerate(sizes):
        add_line(path, f"{name} {number} ".ljust(size, "x"))


@pytest.mark.campaign
def test_eight_programs_write_200_entries_each_and_all_are_whole(tmp_path: Path) -> None:
    """Entries of 10 bytes to 100 kB."""
    path = tmp_path / "history"
    chance = random.Random(3)
    sizes = [[int(10 ** chance.uniform(1, 5)) for _ in range(200)] for _ in range(8)]
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_write, args=(path, name, sizes[name])) for name in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    wanted = [f"{name} {number} ".ljust(size, "x") for name in range(8) for number, size in enumerate(sizes[name])]
    found = kept_lines(path)
    assert len(found) == 1600
    assert sorted(found) == sorted(wanted)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminal")
def test_enter_while_a_line_is_drawn_above_the_prompt_sends_the_draft(tmp_path, session):
    """A load that ends says so above the prompt; what is typed in that moment is typed at the prompt."""
    import pty
    import tty

    master, slave = pty.openpty()
    tty.setraw(slave)
    with open(slave, encoding="utf-8") as stdin:
        desk = Desk(tmp_path, session)
        editor = Editor(
            desk.past, desk, source=terminal_input(stdin), target=Vt100_Output(desk.glass, lambda: Size(24, 90))
        )
        told = iter([lambda: os.write(master, b"precious words\r") and time.sleep(0.2)])
        desk.poll_load = lambda: next(told, None)
        guard = threading.Timer(20, os.close, (master,))  # a test must fail, not hang
        guard.start()
        assert editor.read() == "precious words"
        guard.cancel()
        os.close(master)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminal")
def test_a_line_typed_before_the_prompt_is_drawn_is_sent(tmp_path: Path, session: Session) -> None:
    """The terminal has made a line feed of its Enter by then, which at the prompt begins a new line."""
    import pty

    master, slave = pty.openpty()
    os.write(master, b"precious words\rand mo")
    with open(slave, encoding="utf-8") as stdin:
        desk = Desk(tmp_path, session)
        editor = Editor(
            desk.past, desk, source=terminal_input(stdin), target=Vt100_Output(desk.glass, lambda: Size(24, 90))
        )
        guard = threading.Timer(20, os.close, (master,))  # a test must fail, not hang
        guard.start()
        with editor.own_terminal():
            assert editor.read() == "precious words"
            os.write(master, b"re\r")
            assert editor.read() == "and more"
        guard.cancel()
        os.close(master)


@pytest.mark.parametrize(
    ("known", "line"),
    [
        ({"__doc__": "uses GNU readline."}, "tab: complete"),
        ({"__doc__": "uses libedit readline."}, "bind ^I rl_complete"),
        ({"__doc__": "", "backend": "editline"}, "bind ^I rl_complete"),
        ({"__doc__": "", "backend": "readline"}, "tab: complete"),
    ],
)
def test_tab_completes_with_either_library_of_readline(known: dict[str, str], line: str) -> None:
    bound: list[str] = []
    streams.bind_tab(SimpleNamespace(**known, parse_and_bind=bound.append))
    assert bound == [line]
