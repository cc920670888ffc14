"""Whether and how a model fits: a table over number formats and lengths, and where its parts would go."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from repl.core import library
from repl.core.library_types import PreTrainedConfig
from repl.core.settings import Load
from repl.hub.weight_headers import Weights
from repl.models import from_files, model_config, quantization
from repl.models.memory import estimate, fit
from repl.models.memory.available import Room, capped
from repl.models.memory.estimate import Needs, Sizes
from repl.models.memory.fit import FITS, OFFLOAD, TOO_LARGE
from repl.models.memory.survey import Survey

LENGTHS = (2048, 8192)
FORMS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32", "quantize": "none"},
    "bfloat16": {"dtype": "bfloat16", "quantize": "none"},
    "8-bit": {"dtype": "bfloat16", "quantize": 8},
    "4-bit": {"dtype": "bfloat16", "quantize": 4},
}
TOGETHER = "all GPUs"


@dataclass(frozen=True, slots=True)
class Row:
    """One way to use a model: what it needs in bytes, a verdict for each device, and the line that loads it so."""

    form: str
    tokens: int
    weights: int
    cache: int
    working: int
    needs: int
    verdicts: dict[str, str]
    line: str


def rows(found: Survey, load: Load, rooms: Sequence[Room]) -> list[Row]:
    """Weigh a model in every number format, for a short talk, a long one, and all of its context."""
    config = found.config
    packed = model_config.get(config, "quantization_config") is not None
    forms = {"as stored": {"dtype": "auto", "quantize": "none"}} if packed else FORMS
    return [
        row(found.weights, config, replace(load, **spelled(change, load)), form, tokens, rooms)
        for form, change in forms.items()
        for tokens in lengths(config)
    ]


def spelled(change: Mapping[str, Any], load: Load) -> dict[str, Any]:
    """Return a change with the word for so many bits that works here, and the library's where none does."""
    bits = change["quantize"]
    return {**change, "quantize": bits if bits == "none" else quantization.best_form(bits, load) or f"{bits}bit"}


def row(weights: Weights, config: PreTrainedConfig, load: Load, form: str, tokens: int, rooms: Sequence[Room]) -> Row:
    """Weigh one number format at one length."""
    needs = estimate.needs(weights, config, load, tokens)
    change = {"dtype": load.dtype, "quantize": load.quantize}
    if load.quantize == "none":
        del change["quantize"]
    return Row(
        form,
        tokens,
        needs.weights,
        needs.cache,
        needs.working,
        needs.total,
        dict(verdicts(needs, load, capped(rooms, load.max_memory))),
        fit.line(replace(load, quantize="none"), change),
    )


def lengths(config: PreTrainedConfig) -> list[int]:
    """Return the lengths of text to weigh: as far as the context reaches."""
    context = Sizes(config).context
    return sorted({min(length, context) for length in (*LENGTHS, context)}) if context else list(LENGTHS)


def verdicts(needs: Needs, load: Load, rooms: Sequence[Room]) -> Iterator[tuple[str, str]]:
    """Say for each device whether it holds all of it, or can with the help of the machine's own memory."""
    cards = [room for room in rooms if room.device != "cpu"]
    otherwise = OFFLOAD if fit.spreads(needs, load, rooms) else TOO_LARGE
    for room in cards:
        yield room.device, FITS if needs.total <= room.free else otherwise
    if len(cards) > 1:
        yield TOGETHER, FITS if needs.total <= sum(room.free for room in cards) else otherwise
    for room in rooms:
        if room.device == "cpu":
            yield room.device, FITS if needs.total <= room.free else TOO_LARGE if cards else otherwise


def best(table: Sequence[Row], weights: Weights) -> int:
    """Return the number of the row to take: as stored where that fits, with as much context as fits; 0 for none."""
    stored = estimate.computed(weights, Load())
    order = [stored, *FORMS]
    for verdict in (FITS, OFFLOAD):
        for form in dict.fromkeys([*order, "as stored"]):
            found = [number for number, row in enumerate(table, 1) if row.form == form and verdict in first(row)]
            if found:
                return found[-1]
    return 0


def first(row: Row) -> list[str]:
    """Return the verdicts of the devices that a model would be on: accelerators, or the machine where there is none."""
    return [word for device, word in row.verdicts.items() if device != "cpu"] or list(row.verdicts.values())


def placed(config: PreTrainedConfig, load: Load, rooms: Sequence[Room]) -> dict[str, str]:
    """Return where the parts of a model would go, by the rules that loading follows; nothing is allocated.

    Raises whatever the libraries raise about a config that they cannot build.
    """
    from accelerate import infer_auto_device_map, init_empty_weights
    from accelerate.utils import get_balanced_memory

    width = getattr(__import__("torch"), "float32" if load.dtype == "auto" else load.dtype)
    with init_empty_weights():
        model = from_files.auto_class(config).from_config(config, trust_remote_code=False, dtype=width)
    model.tie_weights()
    whole = library.undivided(model)
    memory = {keyed(room.device): room.free for room in capped(rooms, load.max_memory)}
    if load.device != "sequential":
        memory = get_balanced_memory(model, memory, whole, dtype=width)
    places = infer_auto_device_map(model, memory, whole, dtype=width)
    return {part: f"cuda:{place}" if isinstance(place, int) else str(place) for part, place in places.items()}


def keyed(device: str) -> int | str:
    """Return a device's name as accelerate says it."""
    return int(device.partition(":")[2]) if device.startswith("cuda:") else device


def folded(places: Mapping[str, str]) -> list[str]:
    """Say where the parts are, neighbours together: `cuda:0 embed_tokens, layers 0-17`."""
    lines = []
    for device, group in groupby(places.items(), lambda item: item[1]):
        parts = [part for part, _ in group]
        lines.append(f"{device}  {', '.join(spans(parts))}")
    return lines


def spans(parts: Sequence[str]) -> Iterator[str]:
    """Shorten the names of parts, and runs of numbered ones to their ends."""
    numbered = re.compile(r"(?:.*\.)?([^.]+)\.(\d+)$")
    for name, group in groupby(parts, lambda part: match[1] if (match := numbered.match(part)) else ""):
        found = list(group)
        if not name:
            yield from (part.rpartition(".")[2] or "everything" for part in found)
            continue
        ends = [found[0].rpartition(".")[2], found[-1].rpartition(".")[2]]
        yield f"{name} {ends[0]}" if ends[0] == ends[1] else f"{name} {ends[0]}-{ends[1]}"
