"""Markdown tables as they grow: columns as wide as their cells, no borders but a thin line under the head."""

import copy
import re
from functools import lru_cache

from repl.prose import PLAIN, QUIET, STRONG, Line, cells, inline, wrap

SAMPLE = 20
"""Rows that decide how wide the columns are; after them each row is finished as it comes."""

_GAP, _LEAST, _LATER = "  ", 3, 12
_CELL = re.compile(r"(?<!\\)\|")
_RULE = re.compile(r"\|\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*")


def split(row: str) -> list[str]:
    """Return the cells of a row that begins with a bar."""
    parts = [part.strip().replace("\\|", "|") for part in _CELL.split(row.strip()[1:])]
    return parts[:-1] if len(parts) > 1 and not parts[-1] else parts


def begins(head: str, rule: str) -> bool:
    """Tell whether two lines are the head of a table."""
    return _RULE.fullmatch(rule) is not None and len(split(head)) == len(split(rule))


class Row:
    """The cells of a row, and how they were drawn last."""

    def __init__(self, cells: list[Line]) -> None:
        self.cells = cells
        self._drawn: list[Line] = []
        self._drawn_for: object = None

    def lines(self, widths: tuple[int, ...], sides: list[int], width: int) -> list[Line]:
        """Return the row as lines."""
        if self._drawn_for != (widths, width):
            self._drawn = _aligned_row(self.cells, widths, sides) if widths else _flowing(self.cells, width)
            self._drawn_for = widths, width
        return self._drawn


class Table:
    """A table as it grows."""

    def __init__(self, head: str, rule: str, line: str = "─") -> None:
        self._sides = [(part[0] == ":") + 2 * (part[-1] == ":") for part in split(rule)]  # 2 right, 3 centred
        self._line = line
        self._natural = (0,) * len(self._sides)
        self._rows: list[Row] = []
        self._count = -1  # rows so far, without the head
        self._headed = False  # the head is finished
        self.add(head)

    def copy(self) -> "Table":
        """Return one that can grow without this one."""
        other = copy.copy(self)
        other._rows = list(self._rows)
        return other

    def add(self, row: str) -> None:
        """Add a row."""
        style = STRONG if self._count < 0 else PLAIN
        found = [inline(cell, style)[0] for cell in split(row)[: len(self._sides)]]
        self._rows.append(Row(found + [[]] * (len(self._sides) - len(found))))
        self._count += 1
        if self._count <= SAMPLE:
            sizes = [sum(cells(text) for text, _ in cell) for cell in self._rows[-1].cells]
            self._natural = tuple(map(max, self._natural, sizes))
        if self._count == SAMPLE:  # longer cells may follow
            self._natural = tuple(max(_LATER, size) for size in self._natural)

    def take(self, width: int) -> list[Line]:
        """Return the lines that are finished, once."""
        if self._count < SAMPLE:
            return []
        lines = self.rest(width)
        self._rows, self._headed = [], True
        return lines

    def rest(self, width: int) -> list[Line]:
        """Return the lines that may still change."""
        widths = _fit(self._natural, width)
        lines = [line for row in self._rows for line in row.lines(widths, self._sides, width)]
        if widths and not self._headed:
            rule = _GAP.join(self._line * column for column in widths)
            lines.insert(len(self._rows[0].lines(widths, self._sides, width)), [(rule, QUIET)])
        return lines


def _aligned_row(row: list[Line], widths: tuple[int, ...], sides: list[int]) -> list[Line]:
    wrapped = [wrap(cell, width) for cell, width in zip(row, widths, strict=True)]
    lines: list[Line] = []
    for number in range(max(map(len, wrapped))):
        line: Line = []
        for cell, width, side in zip(wrapped, widths, sides, strict=True):
            line += [*_aligned(cell[number] if number < len(cell) else [], width, side), (_GAP, PLAIN)]
        lines.append(line)
    return lines


def _aligned(cell: Line, width: int, side: int) -> Line:
    text = "".join(part for part, _ in cell)
    hang = len(text) - len(text.rstrip())
    space = max(0, width - cells(text) + hang)
    left = {2: space, 3: space // 2}.get(side, 0)
    body = [*cell[:-1], (cell[-1][0].rstrip(), cell[-1][1])] if cell and hang else cell
    return [(" " * left, PLAIN), *body, (" " * (space - left), PLAIN)]


def _flowing(row: list[Line], width: int) -> list[Line]:
    """Draw a row of a table that has too many columns for the window."""
    line: Line = []
    for cell in row:
        line += [*([(" | ", QUIET)] if line else []), *cell]
    return wrap(line, width)


@lru_cache
def _fit(natural: tuple[int, ...], width: int) -> tuple[int, ...]:
    """Return column widths that fit, the widest columns giving way; nothing where they cannot."""
    room = width - len(_GAP) * (len(natural) - 1)
    widths = [max(1, size) for size in natural]
    if sum(min(size, _LEAST) for size in widths) > room:
        return ()
    most = max(widths)
    while sum(min(size, most) for size in widths) > room:
        most -= 1
    return tuple(min(size, most) for size in widths)
