"""Drawings that depend on the width of the window."""

from collections.abc import Callable, Iterator

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement

UNLIMITED_COLUMNS = 10_000  # columns: wider than whatever is drawn


class First:
    """The first of several drawings of one thing that fits the window, else the last; in a pipe the first."""

    def __init__(self, *drawings: RenderableType) -> None:
        self._drawings = drawings

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        room = options.update(max_width=UNLIMITED_COLUMNS)
        widths = ((Measurement.get(console, room, each).maximum, each) for each in self._drawings)
        fits = (each for width, each in widths if options.no_wrap or width <= options.max_width)
        yield next(fits, self._drawings[-1])


class Responsive:
    """What `draw` makes of the columns of the window, and of whether it shows ASCII only."""

    def __init__(self, draw: Callable[[int, bool], Iterator[RenderableType]]) -> None:
        self._draw = draw

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield from self._draw(options.max_width, options.ascii_only)
