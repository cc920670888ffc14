"""The real program in a pseudo-terminal, read through a terminal emulator: the screen counts, not the bytes."""

import os
import re
import signal
import sys
import termios
import time
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import pexpect
import pyte
from wcwidth import wcwidth

PATIENCE = 90.0  # seconds after which a program that shows nothing new has hung; a loaded machine needs many
LOADED = r"ready\s+in\s+\d"


class Display(pyte.HistoryScreen):
    """A screen that loses nothing behind a selector of variants: pyte leaves out what follows one in the same piece."""

    def draw(self, data: str) -> None:
        super().draw("".join(each for each in data if wcwidth(each) or unicodedata.combining(each)))


class Terminal:
    """`hub-repl` with keys going in and a screen coming out; use it as a context."""

    def __init__(
        self,
        *words: str,
        home: Path,
        size: tuple[int, int] = (30, 100),
        environment: Mapping[str, str] | None = None,
        mark: str = "❯",
        answers: bool = False,
    ) -> None:
        self.mark = mark
        self.home = home
        self.raw = b""
        self.gone = False  # the window is closed
        rows, columns = size
        self.screen = Display(columns, rows, history=5000, ratio=1)
        self.screen.write_process_input = self.keys if answers else lambda _: None  # where the cursor is, when asked
        self._feed = pyte.ByteStream(self.screen)
        self.child = pexpect.spawn(
            sys.executable,
            ["-m", "repl", *words],
            dimensions=size,
            env=surroundings(home) | ({"PROMPT_TOOLKIT_NO_CPR": ""} if answers else {}) | dict(environment or {}),
            timeout=None,
        )
        self.child.delaybeforesend = None

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.child.isalive():
            self.child.kill(signal.SIGKILL)
        if not self.gone:
            self.hang_up()
        while self.child.isalive():  # a busy machine takes a while to free a model
            time.sleep(0.01)

    # keys in

    def keys(self, text: str) -> None:
        """Press keys; the program may do with them what it wants."""
        self.child.send(text.encode())

    def line(self, text: str) -> None:
        """Type a line at the prompt and send it."""
        self.wait(self.ready)
        self.keys(text)
        self.wait(lambda: typed(text) in typed(self.draft()))
        self.keys("\r")

    def ask(self, text: str) -> list[str]:
        """Send a line and return the rows that appear below it before the next prompt, without blank ones."""
        self.line(text)
        self.wait(lambda: self.ready() and self.below(text) is not None)
        return self.below(text) or []

    def paste(self, text: str) -> None:
        """Paste as a terminal does that knows bracketed paste."""
        self.keys(f"\x1b[200~{text}\x1b[201~")

    def resize(self, rows: int, columns: int) -> None:
        """Give the window another size, which the kernel tells the program."""
        self.screen.resize(rows, columns)
        self.child.setwinsize(rows, columns)

    def hang_up(self) -> None:
        """Close the window: the program loses its terminal, and the kernel tells it so."""
        self.child.ptyproc.fileobj.close()
        self.child.closed = self.child.ptyproc.closed = self.gone = True  # else the number is closed once more later

    # screen out

    def read(self, seconds: float = 0.0) -> bool:
        """Feed what arrives within `seconds` to the screen; False once the program has closed its side."""
        if self.gone:
            time.sleep(seconds)
            return False
        try:
            piece = self.child.read_nonblocking(65536, timeout=seconds)
        except pexpect.TIMEOUT:
            return True
        except (pexpect.EOF, OSError):
            return False
        self.raw += piece
        self._feed.feed(piece)
        return True

    def rows(self) -> list[str]:
        """Return the rows of the screen without the space behind them."""
        return [row.rstrip() for row in self.screen.display]

    def past(self) -> list[str]:
        """Return the rows that have scrolled away and those on the screen."""
        width = self.screen.columns
        gone = ["".join(row[column].data for column in range(width)).rstrip() for row in self.screen.history.top]
        return gone + self.rows()

    def text(self) -> str:
        """Return all of that as one text."""
        return "\n".join(self.past())

    def prompt(self) -> int:
        """Return the number of the row that the prompt stands in, -1 where there is none."""
        rows = self.rows()
        return next((at for at in range(len(rows) - 1, -1, -1) if rows[at].startswith(self.mark)), -1)

    def ready(self) -> bool:
        """Tell whether the prompt waits, with nothing typed, and the cursor stands in it."""
        at = self.prompt()
        return at >= 0 and self.rows()[at] == self.mark and self.screen.cursor.y == at

    def draft(self) -> str:
        """Return what stands at the prompt, from the mark on."""
        at = self.prompt()
        return "" if at < 0 else "\n".join(self.rows()[at : self.screen.cursor.y + 1])

    def bar(self) -> str:
        """Return the toolbar: the last row that is not empty."""
        return next((row for row in reversed(self.rows()) if row), "")

    def tail(self) -> str:
        """Return what stands below the last row that the mark begins."""
        rows = self.past()
        last = max((at for at, row in enumerate(rows) if row.startswith(self.mark)), default=-1)
        return "\n".join(rows[last + 1 :]).strip()

    def clear(self) -> None:
        """Take away what stands at the prompt."""
        self.keys("\x03")
        self.wait(self.ready)

    def modes(self) -> list[Any]:
        """Return the settings of the terminal itself: echo, line mode, signals."""
        return termios.tcgetattr(self.child.child_fd)[:4]

    def below(self, text: str) -> list[str] | None:
        """Return the rows between the last prompt that holds `text` and the waiting one; None where there is none."""
        rows = self.past()
        marks = [at for at, row in enumerate(rows) if row.startswith(self.mark)]
        sent = [
            at
            for at in marks[:-1]
            if typed(text).startswith(typed(rows[at][len(self.mark) :])) and rows[at] != self.mark
        ]
        return [row for row in rows[sent[-1] + 1 : marks[-1]] if row] if sent and sent[-1] == marks[-2] else None

    def wait(self, condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
        """Read until the condition holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            if not self.read(0.05) and not condition():
                raise AssertionError(f"the program ended\n{self.text()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {seconds} s in vain; the screen is\n" + self.picture())

    def see(self, pattern: str, seconds: float = PATIENCE) -> None:
        """Wait until a pattern stands on the screen."""
        self.wait(lambda: re.search(pattern, self.text()) is not None, seconds)

    def settle(self, seconds: float = 0.3) -> None:
        """Read until the screen has stood still for a while."""
        deadline = time.monotonic() + 20
        still, before = 0.0, self.screen.display
        while still < seconds and time.monotonic() < deadline:
            began = time.monotonic()
            self.read(0.05)
            still = still + time.monotonic() - began if self.screen.display == before else 0.0
            before = self.screen.display

    def picture(self) -> str:
        """Draw the screen with its edges, for messages of failed tests."""
        return "\n".join(f"|{row:<{self.screen.columns}}|" for row in self.screen.display)

    # the end

    def end(self, seconds: float = PATIENCE) -> int:
        """Wait for the program to end, and return its exit code as a shell sees it."""
        deadline = time.monotonic() + seconds
        while self.child.isalive() and time.monotonic() < deadline:
            self.read(0.05)
        while self.read():  # what it wrote at the very end
            continue
        assert not self.child.isalive(), f"still running after {seconds} s\n{self.picture()}"
        return self.child.exitstatus if self.child.exitstatus is not None else 128 + (self.child.signalstatus or 0)


def typed(text: str) -> str:
    """Return what was typed without any space: where rows wrap, the editor decides."""
    return "".join(text.split())


def surroundings(home: Path) -> dict[str, str]:
    """Return the environment of a program under test: its own home, no colour to reckon with."""
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    return kept | {
        "HUB_REPL_HOME": str(home),
        "PROMPT_TOOLKIT_NO_CPR": "1",
        "TERM": "xterm-256color",
        "LC_ALL": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
    }
