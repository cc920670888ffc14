"""Probabilities as colours and bars, told apart by colour-blind people and without any colour.

In: probabilities, entropies, a reply's trace. Out: names of the screen's styles, and text drawn in them.
"""

import math
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.text import Text

from repl.core.sanitize import Cleaner, ascii_only
from repl.generation.measure.token_trace import Seen, Trace

CLASSES = ((0.5, "", "50 % or more"), (0.1, "shade1", "10 to 50"), (0.01, "shade2", "1 to 10"), (0.0, "shade3", "less"))
"""From which probability on a token is drawn how: plain, underlined, bold and underlined, in italics."""
FORM = {"given": ("quiet", "given by the form"), "overruled": ("overruled", "the likeliest overruled")}
"""How a token is drawn at which a form left no other, or took the likeliest away, and what that means."""
SHADES = (*(name for _, name, _ in CLASSES if name), "overruled")
"""The styles that a token may have, beside that of what is dim."""
BAR_WIDTHS = (48, 32, 20, 12, 0)  # the first that there is room for
EIGHTHS = " ▏▎▍▌▋▊▉"


def style(probability: float) -> str:
    """Return the style that a token of this probability is drawn in; a name of the screen's themes, or empty."""
    return next(name for least, name, _ in CLASSES if probability >= least or not least)


def bar(share: float, width: int) -> str:
    """Return a bar for a share from 0 to 1 of `width` columns; whatever is above 0 is seen where there is room."""
    if not share > 0 or not width:
        return ""
    steps = 1 if ascii_only() else 8
    whole, rest = divmod(max(1, round(min(share, 1.0) * width * steps)), steps)
    return ("#" if steps == 1 else "█") * whole + EIGHTHS[rest].strip()


def percent(probability: float) -> str:
    """Return a probability in percent; what is not 0 never reads as 0."""
    return "<0.01 %" if 0 < probability < 0.00005 else f"{100 * probability:.2f} %"


def heat(probability: float) -> str:
    """Return a character as dense as a token is probable, by the classes of the colours."""
    place = next(place for place, (least, _, _) in enumerate(CLASSES) if probability >= least)
    return ("#+-." if ascii_only() else "█▓▒░")[place]


def styled_text(parts: Iterable[tuple[str, str]]) -> Text:
    """Join pieces of text, each in its style, into one that may be drawn."""
    drawn, cleaner = Text(), Cleaner()
    for text, name in parts:
        drawn.append(cleaner.feed(text), name or None)
    return drawn


def certainty(logprob: float, entropy: float | None, by: str) -> float:
    """Return what a token is coloured by, from 0 to 1: its probability, or for `entropy` how sure the model was there.

    Where the entropy is not known it is the probability.

    The exponential of the negative entropy (nats) is the probability of each of so many tokens between which the
    model would be just as unsure: both go by one scale.
    """
    return math.exp(min(logprob, 0.0) if entropy is None or by != "entropy" else -max(entropy, 0.0))


def shade(token: Seen, by: str) -> str:
    """Return the style of a token."""
    if token.form:
        return FORM[token.form][0]
    return style(certainty(token.logprob, token.entropy, by))


def caption(by: str = "on", tokens: Iterable[Seen] = ()) -> Text:
    """Say what the colours mean, each drawn in itself; those of a form where one of the tokens has them."""
    names, words = [name for _, name, _ in CLASSES], [said for _, _, said in CLASSES]
    if by == "entropy":
        limits = [-math.log(least) for least, _, _ in CLASSES if least]
        words = [f"{limits[0]:.1f} or less", *(f"to {limit:.1f}" for limit in limits[1:]), "more"]
    drawn = Text().append("entropy (nats)" if by == "entropy" else "probability", "quiet")
    there = {token.form for token in tokens}
    marks = [mark for form, mark in FORM.items() if form in there]
    for name, word in [*zip(names, words, strict=True), *marks]:
        drawn.append("  ", "quiet").append(word, name or "none")
    return drawn


def colour_trace(found: Trace, by: str) -> Text:
    """Return the text of a reply in its colours, made harmless; what it was given to begin with is dim."""
    return styled_text([(found.lead, "quiet"), *((token.text, shade(token, by)) for token in found.tokens)])


class OnTerminal:
    """Draws one thing where styles are seen, and another where they are not: in a pipe or a file."""

    def __init__(self, shown: RenderableType, otherwise: RenderableType) -> None:
        self._shown, self._otherwise = shown, otherwise

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._shown if console.is_terminal and not console.is_dumb_terminal else self._otherwise
