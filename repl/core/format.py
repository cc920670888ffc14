"""Format numbers and facts: sizes, ages, devices."""

import re
import time
from collections import Counter
from collections.abc import Mapping
from itertools import groupby

from repl.core.sanitize import clean_line

LAYER = re.compile(r"(?P<front>.*?\.)(?P<number>\d+)(?P<rest>\..*)?$")
AGES = ((86400 * 365, "year"), (86400 * 30, "month"), (86400, "day"), (3600, "hour"), (60, "minute"))


def join_facts(*parts: str) -> str:
    """Join the non-empty facts with middle dots."""
    return " · ".join(part for part in parts if part)


def device(places: Mapping[str, str]) -> str:
    """Return the device of a model, or how its parts are spread over several."""
    tally = Counter(places.values())
    if len(tally) == 1:
        return next(iter(tally))
    return ", ".join(f"{counted(number, 'part')} on {place}" for place, number in tally.items())


def format_map(places: Mapping[str, str]) -> list[str]:
    """Write a device map with one entry for neighbouring layers: `model.layers.0-11: cuda:0`."""
    parts: list[tuple[str, str, str, int]] = []  # before and behind the number, place, number
    for part, place in places.items():
        match = LAYER.match(part)
        front, rest, number = (match["front"], match["rest"] or "", int(match["number"])) if match else (part, "", -1)
        parts.append((front, rest, place, number))
    rows: list[str] = []
    # of neighbours in one list number and place in the map differ by the same
    for (front, rest, place, _), run in groupby(enumerate(parts), lambda each: (*each[1][:3], each[1][3] - each[0])):
        numbers = [each[1][3] for each in run]
        span = f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else "" if numbers[0] < 0 else f"{numbers[0]}"
        rows.append(f"{front + span + rest or 'all'}: {place}")
    return rows


def tally_layers(places: Mapping[str, str]) -> dict[str, int]:
    """Count the layers on each device; empty for a model on one device."""
    matches = [(place, LAYER.match(part)) for part, place in places.items()]
    layers = dict.fromkeys((place, match["front"] + match["number"]) for place, match in matches if match)
    return Counter(place for place, _ in layers)


def count(number: int) -> str:
    """Return a number of parameters with a unit: 135M, 1.1B."""
    for size, sign in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            value = number / size
            return f"{value:.0f}{sign}" if value >= 10 else f"{value:.1f}{sign}"
    return str(number)


def counted(number: int, noun: str) -> str:
    """Return a number with a noun that agrees: 1 token, 2,000 tokens."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def rate(per_second: float) -> str:
    """Return a speed: 12 tokens/s, 1 token/s, 0.4 tokens/s."""
    said = f"{per_second:.0f}" if per_second >= 0.95 else f"{per_second:.2g}"
    return f"{said} token{'' if said == '1' else 's'}/s"


def ago(moment: float) -> str:
    """Return how long ago a Unix time was: 2 hours ago."""
    seconds = time.time() - moment
    for size, name in AGES:
        if seconds >= size:
            return f"{counted(int(seconds // size), name)} ago"
    return "just now"


def shortened(text: str, most: int) -> str:
    """Return a text on one line, cut after `most` characters."""
    line = clean_line(" ".join(text.split()))
    return line if len(line) <= most else line[: most - 1] + "…"


def amount(size: int) -> str:
    """Return a size in KiB, MiB, or GiB with two places."""
    if size < 2**20:
        return f"{max(1, round(size / 2**10)) if size else 0} KiB"
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
