"""A live Markdown stream: what is finished goes into the scrollback for good, only the open end is drawn again."""

import os
from collections.abc import Callable
from functools import lru_cache
from time import perf_counter
from typing import Protocol

from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style

from repl.blocks import Document
from repl.flow import Flow
from repl.prose import ACCENT, PLAIN, Line, cells
from repl.screen import SYSTEMS

SHARE = 10
"""Drawing waits this many times as long as it took, so it never takes more than a part of the time."""


class Reader(Protocol):
    """Makes lines out of a text: Markdown, or a text as it comes."""

    width: int

    def feed(self, text: str) -> list[Line]:
        """Read on, and return the lines that are finished."""

    def rest(self) -> list[Line]:
        """Return the lines that are open, as they look now."""

    def end(self) -> list[Line]:
        """Return the lines that were open, now that nothing follows."""


class Stream:
    """Draws one text as it is made; begins and ends on a fresh line.

    `text` must be clean already (`repl.clean.Cleaner`). Where the console cannot move its cursor the text is written as
    it comes.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = perf_counter) -> None:
        self._console = console
        self._clock = clock
        self._live = console.is_terminal and not console.is_dumb_terminal and not console.legacy_windows
        self._document = self._reader()
        self._region = Region(console)
        self._finished: list[Line] = []  # not drawn yet
        self._due = 0.0
        self._waiting = False
        self._last = "\n"  # the last character, where text is written as it comes

    def feed(self, text: str) -> None:
        """Add text; it is drawn now, or a few times the cost of drawing later with what follows."""
        if not text:
            return
        if not self._live:
            self._console.file.write(text)
            self._last = text[-1]
            return
        self._finished += self._document.feed(text)
        self._waiting = True
        if self._clock() >= self._due:
            self.draw()

    def draw(self) -> None:
        """Draw what has come."""
        if not self._waiting:
            return
        began = self._clock()
        self._fit()
        self._paint(self._document.rest())
        ended = self._clock()
        self._due = ended + SHARE * (ended - began)

    def end(self) -> None:
        """Draw the end of the text, and leave the cursor on a fresh line; afterwards another text may begin."""
        if not self._live:
            self._console.file.write("" if self._last == "\n" else "\n")
            self._console.file.flush()
            self._last = "\n"
            return
        self._fit()
        self._finished += self._document.end()
        self._paint([])
        self._document = self._reader()

    close = end  # a cancelled reply ends as any other: what there is stays

    def _reader(self) -> Reader:
        return Document(self._console.width, self._console.options.ascii_only)

    def _paint(self, open_lines: list[Line]) -> None:
        self._region.draw(self._finished, open_lines)
        self._finished, self._waiting = [], False

    def _fit(self) -> None:
        width, height = self._console.size
        self._document.width = width
        self._region.resize(width, height)


class Words(Stream):
    """Draws a text as it comes, in styles that are given with it."""

    def write(self, text: str, style: Style = PLAIN) -> None:
        """Add text in a style."""
        self._flow.style = style
        self.feed(text)

    def _reader(self) -> Reader:
        self._flow = Flow(self._console.width)
        return self._flow


class Region:
    """The last lines on the screen, which can be drawn again; the cursor stands at their end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._width, self._height = console.size
        self._shown: list[Line] = []
        system = None if console.color_system is None else SYSTEMS[console.color_system]
        self._look = (system, console.no_color)
        self._accent = console.get_style("accent", default=ACCENT)

    def resize(self, width: int, height: int) -> None:
        """Take note of the size of the window; lines that do not fit any more are broken by the terminal."""
        if width < self._width and not _reflows():
            self._shown = [[("", Style.null())] for _ in self._shown]  # rows are cut off, not broken
        self._width, self._height = width, height

    def draw(self, finished: list[Line], open_lines: list[Line]) -> None:
        """Replace the open lines; finished lines come before them and are never touched again."""
        visible = self._visible(open_lines)
        wanted = finished + visible
        # where lines are taken away the last one is written again, as the cursor stands behind it
        most = len(self._shown) if len(self._shown) <= len(wanted) else len(wanted) - 1
        same = 0
        while same < most and wanted[same] == self._shown[same]:
            same += 1
        written = self._moves(same, wanted) + ("\n" if finished and not visible else "")
        if written:
            self._console.file.write(written)
            self._console.file.flush()
        self._shown = visible

    def _moves(self, same: int, wanted: list[Line]) -> str:
        """Return what turns the shown lines into the wanted ones, the first of which are the same."""
        old = self._shown[same:]
        if not old:
            return ("\n" if same and wanted[same:] else "") + self._text(wanted[same:])
        if len(old) == 1 and wanted[same:] and (added := _added(old[0], wanted[same])) is not None:
            return self._text([added, *wanted[same + 1 :]])
        rows = sum(self._rows(line) for line in old) - 1
        up = f"\x1b[{min(rows, self._height - 1)}A" if rows else ""
        return f"\r{up}\x1b[J{self._text(wanted[same:])}"

    def _visible(self, lines: list[Line]) -> list[Line]:
        """Return the last lines that fit the screen, one at least."""
        room = self._height - 1
        for start in range(len(lines) - 1, -1, -1):
            room -= self._rows(lines[start])
            if room < 0:
                return lines[min(start + 1, len(lines) - 1) :]
        return lines

    def _rows(self, line: Line) -> int:
        return max(1, -(-sum(cells(text) for text, _ in line) // self._width))

    def _text(self, lines: list[Line]) -> str:
        return "\n".join("".join(self._run(text, style) for text, style in line) for line in lines)

    def _run(self, text: str, style: Style) -> str:
        themed = style + self._accent if style.color == ACCENT.color else style
        return _drawn(text, themed, *self._look)


def _added(old: Line, new: Line) -> Line | None:
    """Return what stands in the new line behind the old one, None where it does not begin with that."""
    if not old:
        return new
    at = len(old) - 1
    (text, style), (longer, its_style) = old[at], new[at] if at < len(new) else ("", None)
    if old[:at] != new[:at] or style != its_style or not longer.startswith(text):
        return None
    return [(longer[len(text) :], style), *new[at + 1 :]]


def _drawn(text: str, style: Style, system: ColorSystem | None, no_color: bool) -> str:
    before, after = _codes(style, system, no_color)
    return before + text + after if text else ""


@lru_cache
def _codes(style: Style, system: ColorSystem | None, no_color: bool) -> tuple[str, str]:
    before, _, after = (style.without_color if no_color else style).render("\0", color_system=system).partition("\0")
    return before, after


def _reflows() -> bool:
    """Tell whether a narrower window breaks long lines anew; a few terminals cut them off."""
    return "XTERM_VERSION" not in os.environ and not os.environ.get("TERM", "").startswith(("linux", "screen."))
