"""Text that is drawn while it is made: finished lines go into the scrollback for good, the open end is drawn again.

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
"""Seconds for which text that was taken back is seen."""
MIN_REDRAW_S = 0.04
"""Seconds between two drawings, at least."""
IDLE_SHARE = 10
"""Drawing waits this many times as long as it took, so it never takes more than a part of the time."""
_WORD = re.compile(r"\n|[^\S\n]+|\S+")


class WordWrap:
    """Reads text as it comes, each piece in a style of its own: only its lines are broken, between words."""

    def __init__(self, console: Console) -> None:
        self.width = console.width
        self.style = Style.null()  # of what is read next
        self._console = console
        self._open = Text()

    def feed(self, text: str) -> list[StyledLine]:
        """Read on word by word, and return the lines that are finished."""
        lines: list[StyledLine] = []
        for word in _WORD.findall(text.replace("\t", "    ")):
            self._open.append(word, self.style)
            if not word.isspace() or word == "\n":  # spaces at the end of a line need no room
                *finished, self._open = self._open.wrap(self._console, self.width, overflow="fold")
                lines += map(self._line, finished)
        return lines

    def rest(self) -> list[StyledLine]:
        """Return the line that is open, as it looks now."""
        return [self._line(self._open)] if self._open.plain else []

    def end(self) -> list[StyledLine]:
        """Return the line that was open."""
        lines, self._open = self.rest(), Text()
        return lines

    def _line(self, text: Text) -> StyledLine:
        return trimmed(text.render(self._console))


LineReader = Markdown | WordWrap
"""What makes lines of a text: finished ones as it is fed, the open ones as they look, and the last at its end."""


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
        """Add text; it is drawn now, or with what follows where something was drawn just now."""
        if not text:
            return
        if isinstance(self.reader, WordWrap):
            self.reader.style = style or Style.null()
        self._finished += self.reader.feed(text)
        self._waiting = True
        self.draw()

    def draw(self) -> None:
        """Draw what has come, unless something was drawn just now."""
        began = self._clock()
        if not self._waiting or began < self._due:
            return
        self._fit()
        self._paint(self.reader.rest())
        ended = self._clock()
        self._due = ended + max(self._pause, IDLE_SHARE * (ended - began))

    def strike(self, text: str) -> None:
        """Show text struck through behind the rest for a moment."""
        self._fit()
        *lines, last = self.reader.rest() or [[]]
        self._paint([*lines, [*last, Segment(text, STRUCK)]])
        self._due, self._waiting = self._clock() + STRUCK_S, True

    def end(self) -> None:
        """Draw the end of the text, and leave the cursor on a fresh line; afterwards another text may begin."""
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
    """The last lines on the screen, which can be drawn again; the cursor stands at their end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._width, self._height = console.size
        self._shown: list[StyledLine] = []

    def resize(self, width: int, height: int) -> None:
        """Take note of the size of the window; lines that do not fit any more are broken by the terminal."""
        cuts = "XTERM_VERSION" in os.environ or os.environ.get("TERM", "").startswith(("linux", "screen."))
        if width < self._width and cuts:  # long lines are cut off there, not broken anew
            self._shown = [[Segment("")] for _ in self._shown]
        self._width, self._height = width, height

    def draw(self, finished: list[StyledLine], open_lines: list[StyledLine]) -> None:
        """Replace the open lines; finished lines come before them and are never touched again."""
        visible = self._visible(open_lines)
        wanted = finished + visible
        # where lines are taken away the last one is written again, as the cursor stands behind it
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
        """Return how the cursor moves, and the lines that are written then; the first lines are the same as before."""
        old = self._shown[same:]
        if not old:
            return "\n" if same and wanted[same:] else "", wanted[same:]
        if len(old) == 1 and wanted[same:] and (added := _added(old[0], wanted[same])) is not None:
            return "", [added, *wanted[same + 1 :]]
        rows = sum(self._rows(line) for line in old) - 1
        up = f"\x1b[{min(rows, self._height - 1)}A" if rows else ""
        return f"\r{up}\x1b[J", wanted[same:]

    def _visible(self, lines: list[StyledLine]) -> list[StyledLine]:
        """Return the last lines that fit the screen, one at least."""
        room = self._height - 1
        for start in range(len(lines) - 1, -1, -1):
            room -= self._rows(lines[start])
            if room < 0:
                return lines[min(start + 1, len(lines) - 1) :]
        return lines

    def _rows(self, line: StyledLine) -> int:
        return max(1, -(-Segment.get_line_length(line) // self._width))


def write_segments(console: Console, parts: Sequence[Segment]) -> None:
    """Write text as it is, in its styles."""
    if parts:
        console.print(Segments(parts), end="", crop=False)
    console.file.flush()


def _added(old: StyledLine, new: StyledLine) -> StyledLine | None:
    """Return what stands in the new line behind the old one, None where it does not begin with that."""
    if not old:
        return new
    at = len(old) - 1
    (text, style, _), (longer, its_style, _) = old[at], new[at] if at < len(new) else Segment("")
    if old[:at] != new[:at] or style != its_style or not longer.startswith(text):
        return None
    return [Segment(longer[len(text) :], style), *new[at + 1 :]]
