"""Draw text while it is generated: finished lines stay in the scrollback, open lines are redrawn.

In: cleaned text, in pieces. Out: bytes on a console, which begin and end on a fresh line. It knows no markup: a
`LineReader` makes lines of the text.
"""

import os
import re
from collections.abc import Callable, Sequence
from time import perf_counter

from rich.console import Console
from rich.segment import Segment, Segments
from rich.style import Style
from rich.text import Text

from repl.terminal.markdown import Markdown, StyledLine, trimmed

STRUCK = Style(strike=True, dim=True)
STRUCK_S = 0.25
"""Seconds for which text that was taken back is shown struck through."""
MIN_REDRAW_S = 0.04
"""Minimum seconds between two drawings."""
IDLE_SHARE = 10
"""After a drawing the next one waits this many times as long as it took, which bounds the share of time."""
_WORD = re.compile(r"\n|[^\S\n]+|\S+")


class WordWrap:
    """Reads streamed text without markup, each piece in its own style, and wraps it between words."""

    def __init__(self, console: Console) -> None:
        self.width = console.width
        self.style = Style.null()  # of the text read next
        self._console = console
        self._open = Text()

    def feed(self, text: str) -> list[StyledLine]:
        """Add text word by word and return the finished lines."""
        lines: list[StyledLine] = []
        for word in _WORD.findall(text.replace("\t", "    ")):
            self._open.append(word, self.style)
            if not word.isspace() or word == "\n":  # spaces at the end of a line need no room
                *finished, self._open = self._open.wrap(self._console, self.width, overflow="fold")
                lines += map(self._line, finished)
        return lines

    def rest(self) -> list[StyledLine]:
        """Return the open line."""
        return [self._line(self._open)] if self._open.plain else []

    def end(self) -> list[StyledLine]:
        """Finish the text and return its last line."""
        lines, self._open = self.rest(), Text()
        return lines

    def _line(self, text: Text) -> StyledLine:
        return trimmed(text.render(self._console))


LineReader = Markdown | WordWrap
"""Makes lines of streamed text: `feed` returns finished lines, `rest` the open ones, `end` the last ones."""


class Stream:
    """Draws one text as it is made.

    `text` must be clean already (`sanitize.Cleaner`), and the console able to move its cursor.
    """

    def __init__(
        self,
        console: Console,
        reader: LineReader,
        clock: Callable[[], float] = perf_counter,
        pause: float = MIN_REDRAW_S,
    ) -> None:
        self._console, self._clock, self._pause = console, clock, pause
        self.reader = reader
        self._region = Region(console)
        self._finished: list[StyledLine] = []  # not drawn yet
        self._due = 0.0  # when the next drawing may be
        self._waiting = False

    def feed(self, text: str, style: Style | None = None) -> None:
        """Add text; it is drawn now, or later if the last drawing was too recent."""
        if not text:
            return
        if isinstance(self.reader, WordWrap):
            self.reader.style = style or Style.null()
        self._finished += self.reader.feed(text)
        self._waiting = True
        self.draw()

    def draw(self) -> None:
        """Draw the text received, unless the last drawing was too recent."""
        began = self._clock()
        if not self._waiting or began < self._due:
            return
        self._fit()
        self._paint(self.reader.rest())
        ended = self._clock()
        self._due = ended + max(self._pause, IDLE_SHARE * (ended - began))

    def strike(self, text: str) -> None:
        """Show text struck through at the end for a moment."""
        self._fit()
        *lines, last = self.reader.rest() or [[]]
        self._paint([*lines, [*last, Segment(text, STRUCK)]])
        self._due, self._waiting = self._clock() + STRUCK_S, True

    def end(self) -> None:
        """Draw the rest and leave the cursor on a fresh line; another text may begin."""
        self._fit()
        self._finished += self.reader.end()
        self._paint([])
        self._due = 0.0

    def _paint(self, open_lines: list[StyledLine]) -> None:
        self._region.draw(self._finished, open_lines)
        self._finished, self._waiting = [], False

    def _fit(self) -> None:
        self.reader.width, height = self._console.size
        self._region.resize(self.reader.width, height)


class Region:
    """The last lines on the screen, which can be redrawn; the cursor is at their end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._width, self._height = console.size
        self._shown: list[StyledLine] = []

    def resize(self, width: int, height: int) -> None:
        """Note the size of the window; most terminals rewrap long lines themselves."""
        cuts = "XTERM_VERSION" in os.environ or os.environ.get("TERM", "").startswith(("linux", "screen."))
        if width < self._width and cuts:  # long lines are cut off there, not broken anew
            self._shown = [[Segment("")] for _ in self._shown]
        self._width, self._height = width, height

    def draw(self, finished: list[StyledLine], open_lines: list[StyledLine]) -> None:
        """Replace the open lines; finished lines are written above them and not touched again."""
        visible = self._visible(open_lines)
        wanted = finished + visible
        # if lines are removed, the last one is written again, since the cursor is at its end
        most = len(self._shown) if len(self._shown) <= len(wanted) else len(wanted) - 1
        same = 0
        while same < most and wanted[same] == self._shown[same]:
            same += 1
        move, lines = self._changes(same, wanted)
        self._console.file.write(move)
        between = [part for line in lines for part in (Segment.line(), *line)][1:]
        write_segments(self._console, [*between, *([Segment.line()] if finished and not visible else [])])
        self._shown = visible

    def _changes(self, same: int, wanted: list[StyledLine]) -> tuple[str, list[StyledLine]]:
        """Return the cursor movement and the lines to write; the first `same` lines are unchanged."""
        old = self._shown[same:]
        if not old:
            return "\n" if same and wanted[same:] else "", wanted[same:]
        if len(old) == 1 and wanted[same:] and (added := _added(old[0], wanted[same])) is not None:
            return "", [added, *wanted[same + 1 :]]
        rows = sum(self._rows(line) for line in old) - 1
        up = f"\x1b[{min(rows, self._height - 1)}A" if rows else ""
        return f"\r{up}\x1b[J", wanted[same:]

    def _visible(self, lines: list[StyledLine]) -> list[StyledLine]:
        """Return the last lines that fit the screen, at least one."""
        room = self._height - 1
        for start in range(len(lines) - 1, -1, -1):
            room -= self._rows(lines[start])
            if room < 0:
                return lines[min(start + 1, len(lines) - 1) :]
        return lines

    def _rows(self, line: StyledLine) -> int:
        return max(1, -(-Segment.get_line_length(line) // self._width))


def write_segments(console: Console, parts: Sequence[Segment]) -> None:
    """Write segments unchanged, in their styles."""
    if parts:
        console.print(Segments(parts), end="", crop=False)
    console.file.flush()


def _added(old: StyledLine, new: StyledLine) -> StyledLine | None:
    """Return what a new line adds to the old one, None where it does not begin with it."""
    if not old:
        return new
    at = len(old) - 1
    (text, style, _), (longer, its_style, _) = old[at], new[at] if at < len(new) else Segment("")
    if old[:at] != new[:at] or style != its_style or not longer.startswith(text):
        return None
    return [Segment(longer[len(text) :], style), *new[at + 1 :]]
