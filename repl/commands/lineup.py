"""The table of a sweep, in the columns that there are."""

from collections.abc import Iterator

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text

from repl.analysis.sweep import Line, Sweep
from repl.core import settings
from repl.core.format import counted, joined, rate
from repl.core.sanitize import clean_line

OPENING = 16  # least columns worth giving to the beginning of a text beside the figures


class Drawing:
    """A line for each row; where the window is narrow, the beginning of its text stands below its figures."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        found = self._sweep
        heads = ["", *map(short, found.names), "seed", "tokens", "end", "distinct-2", "logprob", "parts at"]
        rows = [self._cells(line) for line in found.lines if line.same_as is None]
        first = ["", *[""] * len(found.names), *self._figures(found.greedy)]
        widths = [max(map(cell_len, column)) for column in zip(heads, first, *rows, strict=True)]
        room = options.max_width - sum(widths) - 2 * len(widths)
        yield Text(_aligned(heads, widths), "quiet")
        if found.greedy.same_as is None and found.greedy.length:
            first[1 if found.names else 0] = ""
            yield from self._drawn(_aligned(first, widths), found.greedy, room, "quiet", "greedy: ")
        yield from self._body(widths, room)
        yield Text(_said(found), "quiet")
        if found.lines:
            yield Text.assemble(
                ("/sweep show N", "accent"), (" shows a row, ", "quiet"), ("/pick N", "accent"), (" takes it", "quiet")
            )

    def _body(self, widths: list[int], room: int) -> Iterator[Text]:
        same: list[Line] = []
        for line in self._sweep.lines:
            if line.same_as is not None:
                same.append(line)
                continue
            yield from _folded(same, widths[0])
            same = []
            yield from self._drawn(_aligned(self._cells(line), widths), line, room, "")
        yield from _folded(same, widths[0])

    def _cells(self, line: Line) -> list[str]:
        values = [settings.show(name, line.settings[name]) for name in self._sweep.names]
        return [str(line.number), *values, *self._figures(line)]

    def _figures(self, line: Line) -> list[str]:
        return [
            "" if line.seed is None else str(line.seed),
            str(line.length),
            "stopped" if line.finish == "cancelled" else line.finish.replace("_", " "),
            "" if line.distinct_2 is None else f"{line.distinct_2:.2f}",
            "" if line.logprob is None else f"{line.logprob:.2f}",
            ""
            if line.number in (0, self._sweep.greedy.same_as)
            else "never"
            if line.parts is None
            else str(line.parts),
        ]

    def _drawn(self, figures: str, line: Line, room: int, style: str, lead: str = "") -> Iterator[Text]:
        if room >= OPENING:
            yield Text.assemble((figures + "  ", "quiet"), _opening(lead + line.text, room, style))
            return
        yield Text(figures, "quiet")
        yield Text("   ") + _opening(lead + line.text, max(20, room + cell_len(figures) - 3), style)


def _opening(text: str, most: int, style: str) -> Text:
    """Return the beginning of a text in so many columns."""
    drawn = Text(clean_line(" ".join(text[: 2 * most].split())), style, no_wrap=True)
    drawn.truncate(most, overflow="ellipsis")
    return drawn


def short(name: str) -> str:
    """Return a setting's name as a heading."""
    return {"temperature": "temp", "repetition_penalty": "rep. penalty"}.get(name, name)


def _aligned(cells: list[str], widths: list[int]) -> str:
    return "  ".join(" " * (width - cell_len(cell)) + cell for cell, width in zip(cells, widths, strict=True))


def _folded(same: list[Line], width: int) -> Iterator[Text]:
    """Draw rows that are copies of others in one line."""
    if same:
        numbers = str(same[0].number) if len(same) == 1 else f"{same[0].number}-{same[-1].number}"
        rows = ", ".join(str(number) for number in dict.fromkeys(line.same_as for line in same))
        yield Text(f"{numbers:>{width}}  as row {rows}: settings that come to the same", "quiet")


def _said(found: Sweep) -> str:
    made = sum(line.length for line in found.lines if line.same_as is None)
    made += found.greedy.length if found.greedy.same_as is None else 0
    alone = f"one by one: {found.alone}"
    how = "all together" if not found.alone else f"{found.together} together, the others {alone}"
    how = how if found.together else alone
    return joined(
        f"{found.made} rows made {how}",
        f"{counted(made, 'token')} in {found.seconds:.1f} s, {rate(made / found.seconds)}" if found.seconds else "",
        f"stopped by you{f', {found.left_out} rows not begun' if found.left_out else ''}" if not found.whole else "",
    )
