"""Tables that have more columns in a wide window than in a narrow one."""

from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement

ANY = 10_000  # columns: wider than whatever is drawn


class First:
    """The first of several drawings of one thing that the window is wide enough for; else the last of them."""

    def __init__(self, *drawings: RenderableType) -> None:
        self._drawings = drawings

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        room = options.update(max_width=ANY)
        widths = ((Measurement.get(console, room, each).maximum, each) for each in self._drawings)
        yield next((each for width, each in widths if width <= options.max_width), self._drawings[-1])
