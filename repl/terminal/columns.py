"""Columns of text side by side, or below each other in a narrow window; live while they fill, and finished."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from repl.core.events import Beams, ColumnEvent, Event, Notice, Progress, PromptEcho, ReplyStarted, SideBySide, Token
from repl.core.parts import ANSWER, Piece
from repl.core.sanitize import Cleaner, clean, clean_line
from repl.terminal.reply import Fold

MIN_CELLS = 30  # minimum width of a column
GAP_CELLS = 3  # between columns
MAX_REDRAWS_PER_S = 12.0  # maximum rate of drawing


@dataclass(frozen=True, slots=True)
class Block:
    """One column: its title, its text, and the figures under it."""

    title: str
    text: Text
    foot: str = ""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Several columns as wide as the window allows, or one below the other."""

    blocks: Sequence[Block]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw them; a pipe gets them one below the other, its lines are not to be broken."""
        if options.no_wrap or each(options.max_width, len(self.blocks)) < MIN_CELLS:
            for place, block in enumerate(self.blocks):
                yield Text() if place else Text(end="")
                yield from (part for part in _parts(block) if part.plain)
            return
        table = Table.grid(padding=(0, GAP_CELLS, 0, 0), expand=True, pad_edge=False)
        for _ in self.blocks:
            table.add_column(ratio=1, overflow="fold")
        for row in zip(*map(_parts, self.blocks), strict=True):
            table.add_row(*row)
        yield table


def each(width: int, count: int) -> int:
    """Return the width of each of so many columns side by side, in cells."""
    return (width - GAP_CELLS * (count - 1)) // max(1, count)


def _parts(block: Block) -> tuple[Text, Text, Text]:
    return Text(clean_line(block.title), "accent"), block.text, Text(clean(block.foot), "quiet")


class Filling:
    """A column while it fills; thinking is shown, folded or hidden as in a reply."""

    def __init__(self, title: str, thinking: str = "show") -> None:
        self.title = title
        self.text = Text()
        self.state = ""  # progress, shown below the text
        self._searching = False  # the text is the best beam so far
        self._cleaner = Cleaner()
        self._fold = Fold(thinking)
        self._chats = False  # tokens come with their pieces

    def take(self, event: Event) -> None:
        """Take one event of the answer."""
        match event:
            case ReplyStarted():
                self._chats = True
            case PromptEcho(pieces=pieces) if self._chats:
                self._say(pieces, counts=False)
            case Token(text=text, pieces=pieces):
                self.text = Text() if self._searching else self.text
                self.state, self._searching = "", False
                self._say(pieces if self._chats else [Piece(ANSWER, text)])
            case Beams(common=common, branches=branches):
                self.text = Text(clean(common + (branches[0].text if branches else "")))
                self.state, self._searching = f"{len(branches)} beams", True
            case Progress(stage=stage, done=done, total=total):
                self.state = f"{clean_line(stage)} {100 * done / total:.0f} %" if total else clean_line(stage)
            case Notice(text=text):
                self.state = clean_line(text)

    def _say(self, pieces: Iterable[Piece], counts: bool = True) -> None:
        for shown in self._fold.feed(pieces, counts):
            match shown.kind:
                case "text":
                    self.text.append(self._cleaner.feed(shown.text))
                case "dim":
                    self.text.append(clean(shown.text), "quiet")
                case "status":
                    self.state = shown.text
                case "line":
                    self.text.append(shown.text + "\n\n", "quiet")
                case "gap":
                    self.text.append("\n" if self.text.plain.endswith("\n") else "\n\n")

    def block(self, console: Console, width: int, rows: int) -> Block:
        """Return its last lines, at most `rows`."""
        lines = self.text[-width * rows :].wrap(console, width, overflow="fold")[-rows:]
        return Block(self.title, Text("\n").join(lines), self.state)


class Board:
    """All columns while they fill, redrawn in place."""

    def __init__(self, console: Console, columns: SideBySide, thinking: str = "show") -> None:
        self._console = console
        self._columns = [Filling(f"{number} {title}", thinking) for number, title in enumerate(columns.titles, 1)]
        self._drawn_at = 0.0
        self._behind = True  # something is not drawn yet

    def take(self, event: ColumnEvent) -> None:
        """Take an event of one of the columns."""
        self._columns[event.column].take(event.event)
        self._behind = True

    def drawn(self) -> RenderableType | None:
        """Return the columns as they are; None if nothing is new, or the last drawing was too recent."""
        if not self._behind or time.monotonic() - self._drawn_at <= 1 / MAX_REDRAWS_PER_S:
            return None
        self._drawn_at, self._behind = time.monotonic(), False
        width, height = self._console.width, self._console.height
        room = each(width, len(self._columns))
        if room >= MIN_CELLS:
            return Blocks([one.block(self._console, room, max(1, height - 5)) for one in self._columns])
        rows = max(1, (height - 4) // len(self._columns) - 3)
        return Blocks([one.block(self._console, width, rows) for one in self._columns])
