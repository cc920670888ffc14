"""Tables as every view has them: no frame, quiet heads, two spaces between columns."""

from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from repl.core.sanitize import clean_line


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
        table.add_row(name, Text("\n".join(map(clean_line, value.split("\n")))))
    return table
