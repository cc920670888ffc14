"""Tables of the views, without frames; drawings that depend on the window; tables as lines for screen readers."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from repl.core.format import join_facts
from repl.core.sanitize import clean_line

UNLIMITED_COLUMNS = 10_000  # columns: wider than whatever is drawn
DRAWN = re.compile("[\u2500-\u259f]+")  # lines and blocks


class First:
    """The first of several drawings that fits the window, else the last; in a pipe the first that is not cut.

    For screen readers it has to fit as well, since lines are not wrapped there either.
    """

    def __init__(self, *drawings: RenderableType) -> None:
        self._drawings = drawings

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        room = options.update(max_width=UNLIMITED_COLUMNS)
        widths = ((Measurement.get(console, room, each).maximum, each) for each in self._drawings)
        piped = options.no_wrap and not isinstance(console, LineConsole)
        uncut = piped and not any(isinstance(each, Table) for each in self._drawings)
        fits = (each for width, each in widths if uncut or width <= options.max_width)
        yield next(fits, self._drawings[0 if piped else -1])


class Responsive:
    """Draws with `draw(columns, ascii_only)`, by the width and the encoding of the window."""

    def __init__(self, draw: Callable[[int, bool], Iterator[RenderableType]]) -> None:
        self._draw = draw

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield from self._draw(options.max_width, options.ascii_only)


class FactLine:
    """Facts separated by middle dots; a line too long for the window is broken at the dots."""

    def __init__(self, text: Text) -> None:
        self._text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        cuts, begin, whole = list[int](), 0, self._text.plain
        dots = [] if options.no_wrap else [found.start() for found in re.finditer(" · ", whole)]
        for dot, following in pairwise([*dots, len(whole)]):
            if cell_len(whole[begin:following]) > options.max_width:
                cuts, begin = [*cuts, dot, dot + 3], dot + 3
        yield from self._text.divide(cuts)[::2]

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, self._text)


def fact_line(*facts: str) -> FactLine:
    """Return a dim line of facts."""
    return FactLine(Text(join_facts(*facts), "quiet"))


def grid(sides: str, rows: Iterable[Sequence[str | Text]], heads: Sequence[str] = (), gap: int = 2) -> Table:
    """Return a table; `sides` has a letter for each column: `l` for text, which is wrapped, `r` for numbers."""
    table = Table.grid(padding=(0, gap))
    for side in sides:
        table.add_column(justify="right" if side == "r" else "left", no_wrap=side == "r", overflow="fold")
    for cells in [[Text(head, "quiet") for head in heads], *rows] if heads else rows:
        table.add_row(*cells)
    return table


def facts(rows: Iterable[tuple[str, str]], style: str = "quiet") -> Table:
    """Return a table of names and values; foreign text is cleaned line by line."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style=style, no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(clean_line(name)), Text("\n".join(map(clean_line, value.split("\n")))))
    return table


class OutputConsole(Console):
    """Passes a broken pipe on to the program, which exits with 141; rich would exit with 1."""

    def on_broken_pipe(self) -> None:
        """Raise the `BrokenPipeError` that is being handled."""
        raise


class LineConsole(OutputConsole):
    """Writes each row of a table as a line, for screen readers."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render tables and trees as lines: `name: value` for cells with a head, else for the first two cells."""
        if isinstance(renderable, Tree):
            return super().render(Group(*map(Text, self._branches(renderable))), options)
        if not isinstance(renderable, Table):
            return super().render(renderable, options)
        rows = [*zip(*(column.cells for column in renderable.columns), strict=True)]
        heads = [column.header for column in renderable.columns]
        if rows and not any(heads) and all(isinstance(cell, Text) and cell.style == "quiet" for cell in rows[0]):
            heads = [*rows.pop(0)]
        names = [self._spoken(head) for head in heads]
        lines = [_joined([self._spoken(cell) for cell in row], names) for row in rows]
        return super().render(Group(*map(Text, lines)), options)

    def _branches(self, root: Tree) -> Iterator[str]:
        """Yield a line for each branch of a tree, with its depth."""
        waiting = [(0, root)]
        while waiting:
            depth, tree = waiting.pop()
            if not (tree is root and root.hide_root):
                yield f"depth {depth}: {self._spoken(tree.label)}"
            waiting += [(depth + 1, child) for child in reversed(tree.children)]

    def _spoken(self, cell: RenderableType) -> str:
        """Return the text of a cell without drawing characters: bars, rules, branches."""
        wide = self.options.update(width=UNLIMITED_COLUMNS)
        text = cell if isinstance(cell, str) else "".join(segment.text for segment in self.render(cell, wide))
        return " ".join(DRAWN.sub(" ", text).replace("❯", "You:").split())


def _joined(cells: list[str], names: list[str]) -> str:
    if any(names):
        said = [f"{name}: {cell}" if name else cell for name, cell in zip(names, cells, strict=True) if cell]
        return ", ".join(said)
    first, *rest = [cell for cell in cells if cell] or [""]
    return f"{first}: {', '.join(rest)}" if rest else first
