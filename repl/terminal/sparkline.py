"""A line of bars, one column high: numbers over the length of a text, as wide as there is room."""

from collections.abc import Sequence
from itertools import pairwise

BARS = "▁▂▃▄▅▆▇█"
ASCII_BARS = "_.:-=+*#"
"""The same heights for a terminal without blocks."""


def bin_peaks(values: Sequence[float], width: int) -> list[float]:
    """Return at most `width` numbers: the largest of each stretch, so that no peak is lost."""
    count = min(len(values), max(1, width))
    edges = [len(values) * place // count for place in range(count + 1)] if count else []
    return [max(values[begin:end]) for begin, end in pairwise(edges)]


def column(place: int, count: int, width: int) -> int:
    """Return the column in which a value stands, of `count` that are drawn in at most `width` columns."""
    shown = min(count, max(1, width))
    return next(at for at in range(shown) if place < count * (at + 1) // shown)


def spark(values: Sequence[float], width: int, plain: bool = False) -> str:
    """Draw numbers from 0 to their largest as bars; what is 0, or next to it, is the lowest."""
    found, signs = bin_peaks(values, width), ASCII_BARS if plain else BARS
    most = max(found, default=0.0)
    return "".join(signs[round((len(signs) - 1) * value / most) if most > 0 else 0] for value in found)
