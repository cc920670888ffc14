"""Probabilities as shades and bars: told apart by colour-blind people, and without any colour."""

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.text import Text

from repl.core.sanitize import Cleaner, ascii_only

CLASSES = ((0.5, "", "50 % or more"), (0.1, "shade1", "10 to 50"), (0.01, "shade2", "1 to 10"), (0.0, "shade3", "less"))
"""From which probability on a token is drawn how: plain, underlined, bold and underlined, reversed."""
EIGHTHS = " ▏▎▍▌▋▊▉"


def style(probability: float) -> str:
    """Return the style that a token of this probability is drawn in; a name of the screen's themes, or empty."""
    return next(name for least, name, _ in CLASSES if probability >= least or not least)


def legend() -> Text:
    """Say what the shades mean, each drawn in itself."""
    parts = [part for _, name, words in CLASSES for part in (("  ", "quiet"), (words, name or "none"))]
    return Text.assemble(("probability", "quiet"), *parts)


def bar(share: float, width: int) -> str:
    """Return a bar for a share from 0 to 1 of `width` columns; whatever is above 0 is seen."""
    if not share > 0:
        return ""
    steps = 1 if ascii_only() else 8
    whole, rest = divmod(max(1, round(min(share, 1.0) * width * steps)), steps)
    return ("#" if steps == 1 else "█") * whole + EIGHTHS[rest].strip()


def percent(probability: float) -> str:
    """Return a probability in percent; what is not 0 never reads as 0."""
    return "<0.01 %" if 0 < probability < 0.00005 else f"{100 * probability:.2f} %"


def written(parts: Iterable[tuple[str, str]]) -> Text:
    """Join pieces of text, each in its style, into one that may be drawn."""
    drawn, cleaner = Text(), Cleaner()
    for text, name in parts:
        drawn.append(cleaner.feed(text), name or None)
    return drawn.append(cleaner.end())


class OnTerminal:
    """Draws one thing where styles are seen, and another where they are not: in a pipe or a file."""

    def __init__(self, shown: RenderableType, otherwise: RenderableType) -> None:
        self._shown, self._otherwise = shown, otherwise

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._shown if console.is_terminal and not console.is_dumb_terminal else self._otherwise
