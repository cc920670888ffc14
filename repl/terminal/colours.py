"""The colours of a reply: each token by how likely it was, or by how unsure the model was there."""

import math
from collections.abc import Sequence

from rich.text import Text

from repl.core.sanitize import Cleaner
from repl.generation.measure.token_trace import Seen, Trace
from repl.terminal.shades import CLASSES, legend, style


def certainty(logprob: float, entropy: float | None, by: str) -> float:
    """Return what a token is coloured by, from 0 to 1: its probability, or for `entropy` how sure the model was there.

    Where the entropy is not known it is the probability.

    The exponential of the negative entropy (nats) is the probability of each of so many tokens between which the
    model would be just as unsure: both go by one scale.
    """
    return math.exp(min(logprob, 0.0) if entropy is None or by != "entropy" else -max(entropy, 0.0))


def shade(token: Seen, by: str) -> str:
    """Return the style of a token."""
    return style(certainty(token.logprob, token.entropy, by))


def caption(by: str) -> Text:
    """Say what the colours mean."""
    if by != "entropy":
        return legend()
    limits = [-math.log(least) for least, _, _ in CLASSES if least]
    words = [f"{limits[0]:.1f} or less", *(f"to {limit:.1f}" for limit in limits[1:]), "more"]
    names = [name for _, name, _ in CLASSES]
    parts = [
        part for name, word in zip(names, words, strict=True) for part in (("  ", "quiet"), (word, name or "none"))
    ]
    return Text.assemble(("entropy (nats)", "quiet"), *parts)


def painted(found: Trace, by: str) -> Text:
    """Return the text of a reply in its colours, made harmless; what it was given to begin with is dim."""
    return _drawn(Text(), [(found.lead, "quiet"), *((token.text, shade(token, by)) for token in found.tokens)])


def _drawn(drawn: Text, parts: Sequence[tuple[str, str]]) -> Text:
    cleaner, last = Cleaner(), ""
    for text, words in parts:
        drawn.append(cleaner.feed(text), words)
        last = words
    return drawn.append(cleaner.end(), last)
