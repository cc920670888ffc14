"""A terminal of a certain size with a stream in it, read cell by cell."""

import io
import re
from collections.abc import Callable
from typing import Any

import pyte
from rich.console import Console

from repl.terminal.markdown import Markdown
from repl.terminal.redraw import LineReader, Stream


class Window:
    """A terminal of a certain size with a stream in it."""

    def __init__(
        self,
        width: int = 60,
        height: int = 24,
        make: Callable[[Console], LineReader] = Markdown,
        pause: float = 0.0,
        **looks: Any,
    ) -> None:
        self.file = io.StringIO()
        looks = {"color_system": "standard", **looks}
        self.console = Console(file=self.file, force_terminal=True, width=width, height=height, _environ={}, **looks)
        self.screen = pyte.HistoryScreen(width, height, history=5000, ratio=1)
        self.emulator = pyte.Stream(self.screen)
        self.now = 0.0
        self.stream = Stream(self.console, make(self.console), lambda: self.now, pause)
        self.raw = ""

    def show(self) -> None:
        """Let the terminal read what was written."""
        written = self.file.getvalue()
        self.file.seek(0)
        self.file.truncate()
        self.raw += written
        # the emulator stops reading at a joiner or selector
        self.emulator.feed(re.sub("[\u200d\ufe0f]", "", written).replace("\n", "\r\n"))

    def resize(self, width: int, height: int) -> None:
        """Give the window another size, and break its rows anew as terminals do."""
        self.show()
        rows = self.rows()[: len(self.screen.history.top) + self.screen.cursor.y + 1]
        self.console.size = (width, height)  # type: ignore[assignment]
        self.screen = pyte.HistoryScreen(width, height, history=5000, ratio=1)
        self.emulator = pyte.Stream(self.screen)
        self.emulator.feed("\r\n".join(rows))

    def rows(self) -> list[str]:
        return ["".join(cell.data for cell in row).rstrip() for row in self.looks()]

    def looks(self) -> list[list[Any]]:
        """Return every row so far, cell by cell with its colours."""
        rows = [*self.screen.history.top, *(self.screen.buffer[y] for y in range(self.screen.lines))]
        return [[row[x] for x in range(self.screen.columns)] for row in rows]

    def drawn(self) -> list[list[Any]]:
        """Return every row down to the cursor; below it must be nothing.

        How many empty rows there are below depends on the pieces: a table that was taller on its way has made the
        terminal scroll, and no terminal scrolls back.
        """
        last = len(self.screen.history.top) + self.screen.cursor.y
        assert not any(self.rows()[last + 1 :])
        return self.looks()[: last + 1]

    def say(self, *parts: str) -> "Window":
        """Stream some pieces to the end."""
        for part in parts:
            self.stream.feed(part)
        self.stream.end()
        self.show()
        return self
