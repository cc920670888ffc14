"""Tables as every view has them: no frame, quiet heads, two spaces between columns."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.containers import Lines
from rich.segment import Segment
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from repl.core.format import join_facts
from repl.core.sanitize import clean_line

DRAWN = re.compile("[\u2500-\u259f]+")  # lines and blocks


class FactLine(Text):
    """Facts with middle dots between them, in a quiet line that is broken at the dots where it has to be."""

    def __init__(self, *facts: str) -> None:
        super().__init__(join_facts(*facts), "quiet")

    def wrap(self, console: Console, width: int, **options: Any) -> Lines:
        """Break the line; a single fact that is too long is broken between words."""
        if options.get("no_wrap"):
            return super().wrap(console, width, **options)
        rows: list[str] = []
        for fact in self.plain.split(" · "):
            fits = rows and cell_len(rows[-1]) + 3 + cell_len(fact) <= width
            rows[len(rows) - bool(fits) :] = [join_facts(rows[-1], fact) if fits else fact]
        return Lines(line for row in rows for line in Text(row, self.style).wrap(console, width, **options))


def grid(sides: str, rows: Iterable[Sequence[str | Text]], heads: Sequence[str] = (), gap: int = 2) -> Table:
    """Draw rows in columns, of which `sides` has a letter each: `l` for words, which are folded, `r` for numbers."""
    table = Table.grid(padding=(0, gap))
    for side in sides:
        table.add_column(justify="right" if side == "r" else "left", no_wrap=side == "r", overflow="fold")
    for cells in [[Text(head, "quiet") for head in heads], *rows] if heads else rows:
        table.add_row(*cells)
    return table


def facts(rows: Iterable[tuple[str, str]], style: str = "quiet") -> Table:
    """Draw names, and beside them what there is to say of each; foreign text is made harmless, line by line."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style=style, no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(clean_line(name)), Text("\n".join(map(clean_line, value.split("\n")))))
    return table


class LineConsole(Console):
    """Writes each row of a table as a line, as a screen reader reads it."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Draw anything; of a table its rows: `name: value` of each cell below a head, else of the first two cells."""
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
        """Yield a line for each branch of a tree, with its depth as a number."""
        waiting = [(0, root)]
        while waiting:
            depth, tree = waiting.pop()
            if not (tree is root and root.hide_root):
                yield f"depth {depth}: {self._spoken(tree.label)}"
            waiting += [(depth + 1, child) for child in reversed(tree.children)]

    def _spoken(self, cell: RenderableType) -> str:
        """Return the words of a cell without what is drawn with characters: bars, rules, branches."""
        text = cell if isinstance(cell, str) else "".join(segment.text for segment in self.render(cell))
        return " ".join(DRAWN.sub(" ", text).replace("❯", "You:").split())


def _joined(cells: list[str], names: list[str]) -> str:
    if any(names):
        said = [f"{name}: {cell}" if name else cell for name, cell in zip(names, cells, strict=True) if cell]
        return ", ".join(said)
    first, *rest = [cell for cell in cells if cell] or [""]
    return f"{first}: {', '.join(rest)}" if rest else first
