"""A row of the table, and the little arithmetic behind it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median


@dataclass(frozen=True, slots=True)
class Ground:
    """Where and how often to measure."""

    rounds: int
    home: Path
    """The `HUB_REPL_HOME` of every program measured; the built-in model is in its cache."""
    model: Path
    """The folder of the built-in model."""
    scratch: Path
    wheel: Path | None


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: `good` tells whether the bound holds; None where there is none."""

    what: str
    ours: str
    theirs: str
    ratio: str
    bound: str
    spread: str
    good: bool | None


def against(
    what: str, ours: Sequence[float], theirs: Sequence[float], bound: float | None, unit: str = "s", least: bool = False
) -> Row:
    """Compare two measures taken in turn: the ratio is that of the medians, the spread that of the single rounds.

    `bound` is the largest ratio allowed, or with `least` the smallest.
    """
    ratio = median(ours) / median(theirs)
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    sign = "≥" if least else "≤"
    return Row(
        what,
        f"{shown(median(ours))} {unit}",
        f"{shown(median(theirs))} {unit}",
        f"{ratio:.3f}",
        "" if bound is None else f"{sign} {bound:g}",
        f"{min(ratios):.3f} – {max(ratios):.3f}",
        None if bound is None else ratio >= bound if least else ratio <= bound,
    )


def within(what: str, value: float, bound: float, unit: str, spread: Sequence[float]) -> Row:
    """Hold one figure against an absolute bound."""
    between = f"{shown(min(spread))} – {shown(max(spread))}" if spread else ""
    return Row(what, f"{shown(value)} {unit}", "", "", f"≤ {bound:g} {unit}", between, value <= bound)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that `share` (0 to 1) of the values do not exceed."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


def shown(value: float) -> str:
    """Return three significant digits."""
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
