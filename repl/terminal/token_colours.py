"""Probabilities as colours and bars, distinct for colour-blind people and without colour.

In: probabilities, entropies, a reply's trace. Out: names of the screen's styles, and text drawn in them.
"""

import math
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.text import Text

from repl.core.sanitize import Cleaner, ascii_only
from repl.generation.measure.token_trace import Seen, Trace

CLASSES = ((0.5, "", "50 % or more"), (0.1, "shade1", "10 to 50"), (0.01, "shade2", "1 to 10"), (0.0, "shade3", "less"))
"""Classes of probability: lower bound, style, label; plain, underlined, bold underlined, italic underlined."""
FORM = {"given": ("quiet", "given by the form"), "overruled": ("overruled", "model overruled")}
"""Style and label of tokens that the format gave, or whose most likely alternative it excluded."""
SHADES = (*(name for _, name, _ in CLASSES if name), "overruled")
"""The styles that a token may have, beside that of what is dim."""
BAR_WIDTHS = (48, 32, 20, 12, 0)  # the first that there is room for
EIGHTHS = " ▏▎▍▌▋▊▉"


def style(probability: float) -> str:
    """Return the style for a probability: a name of the screen's themes, or ''."""
    return next(name for least, name, _ in CLASSES if probability >= least or not least)


def bar(share: float, width: int) -> str:
    """Return a bar for a share from 0 to 1 of `width` columns; whatever is above 0 is seen where there is room."""
    if not share > 0 or not width:
        return ""
    steps = 1 if ascii_only() else 8
    whole, rest = divmod(max(1, round(min(share, 1.0) * width * steps)), steps)
    return ("#" if steps == 1 else "█") * whole + EIGHTHS[rest].strip()


def percent(probability: float) -> str:
    """Return a probability in percent; one above 0 never reads as 0."""
    return "<0.01 %" if 0 < probability < 0.00005 else f"{100 * probability:.2f} %"


def heat(probability: float) -> str:
    """Return a block character for a probability, denser for higher classes."""
    place = next(place for place, (least, _, _) in enumerate(CLASSES) if probability >= least)
    return ("#+-." if ascii_only() else "█▓▒░")[place]


def styled_text(parts: Iterable[tuple[str, str]]) -> Text:
    """Join pieces of text, each with its style, into one cleaned text."""
    drawn, cleaner = Text(), Cleaner()
    for text, name in parts:
        drawn.append(cleaner.feed(text), name or None)
    return drawn


def certainty(logprob: float, entropy: float | None, by: str) -> float:
    """Return the value a token is coloured by, 0 to 1: its probability, or by `entropy` the exponential of -entropy.

    exp(-entropy) (nats) is the probability of each token in a uniform distribution of that entropy, so both use one
    scale. Where the entropy is not known, it is the probability.
    """
    return math.exp(min(logprob, 0.0) if entropy is None or by != "entropy" else -max(entropy, 0.0))


def shade(token: Seen, by: str) -> str:
    """Return the style of a token."""
    if token.form:
        return FORM[token.form][0]
    return style(certainty(token.logprob, token.entropy, by))


def caption(by: str = "on", tokens: Iterable[Seen] = ()) -> Text:
    """Return the legend of the colours, each in its style; the marks of a format only if a token has one."""
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
    """Return the text of a reply in token colours, cleaned; its prefill is dim."""
    return styled_text([(found.lead, "quiet"), *((token.text, shade(token, by)) for token in found.tokens)])


class OnTerminal:
    """Draws one thing on a terminal with styles, and another in a pipe, a file or a dumb terminal."""

    def __init__(self, shown: RenderableType, otherwise: RenderableType) -> None:
        self._shown, self._otherwise = shown, otherwise

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._shown if console.is_terminal and not console.is_dumb_terminal else self._otherwise
