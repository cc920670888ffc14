"""Plan a load: a table over dtypes, quantizations and lengths of text, and a device map."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from repl import models
from repl.core import library
from repl.core.library_types import PreTrainedConfig
from repl.core.settings import Load
from repl.hub.weight_headers import Weights
from repl.models import model_config
from repl.models.memory import estimate, fit
from repl.models.memory.available import Room, capped
from repl.models.memory.estimate import ModelSizes, Needs
from repl.models.memory.fit import FITS, OFFLOAD, TOO_LARGE
from repl.models.memory.survey import Survey

TEXT_LENGTHS = (2048, 8192)
FORMS = {"float32": ("float32", 0), "bfloat16": ("bfloat16", 0), "8-bit": ("bfloat16", 8), "4-bit": ("bfloat16", 4)}
"""The forms in the table: a dtype, and the bits that matrices are quantized to (0: not quantized)."""
TOGETHER = "all GPUs"


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One form at one length of text: the needs in bytes, a verdict for each device, and the line that loads it."""

    form: str
    tokens: int
    weights: int
    cache: int
    working: int
    needs: int
    verdicts: dict[str, str]
    line: str


def rows(found: Survey, load: Load, rooms: Sequence[Room]) -> list[PlanRow]:
    """Estimate a model in every form, for a short text, a long one, and its whole context."""
    forms = {"as stored": {"dtype": "auto", "quantize": "none"}}
    if model_config.get(found.config, "quantization_config") is None:
        best = {bits: models.quantization.best_form(bits, load) or f"{bits}bit" for bits in (8, 4)}
        forms = {form: {"dtype": dtype, "quantize": best.get(bits, "none")} for form, (dtype, bits) in FORMS.items()}
    context = ModelSizes(found.config).context
    lengths = {min(length, context or length) for length in (*TEXT_LENGTHS, context or TEXT_LENGTHS[-1])}
    return [
        plan_row(found, load, form, changed, tokens, rooms)
        for form, changed in forms.items()
        for tokens in sorted(lengths)
    ]


def plan_row(
    found: Survey, load: Load, form: str, change: dict[str, str], tokens: int, rooms: Sequence[Room]
) -> PlanRow:
    """Estimate one form at one length of text."""
    changed = replace(load, dtype=change["dtype"], quantize=change["quantize"])
    needs = estimate.estimate_needs(found.weights, found.config, changed, tokens)
    judged = dict(verdicts(needs, changed, capped(rooms, load.max_memory)))
    shown = {name: word for name, word in change.items() if word != "none"}
    loads = fit.load_line(replace(load, quantize="none"), shown)
    return PlanRow(form, tokens, needs.weights, needs.cache, needs.working, needs.total, judged, loads)


def verdicts(needs: Needs, load: Load, rooms: Sequence[Room]) -> Iterator[tuple[str, str]]:
    """Yield for each device whether the model fits, fits with offload to main memory, or does not fit."""
    cards = [room for room in rooms if room.device != "cpu"]
    otherwise = OFFLOAD if fit.spreads(needs, load, rooms) else TOO_LARGE
    for room in cards:
        yield room.device, FITS if needs.total <= room.free else otherwise
    if len(cards) > 1:
        yield TOGETHER, FITS if needs.total <= sum(room.free for room in cards) else otherwise
    for room in rooms:
        if room.device == "cpu":
            yield room.device, FITS if needs.total <= room.free else TOO_LARGE if cards else otherwise


def best(table: Sequence[PlanRow], weights: Weights) -> int:
    """Return the number (from 1) of the recommended row: as stored if it fits, with the longest text; 0 for none."""
    stored = estimate.compute_dtype(weights, Load())
    order = [stored, *FORMS]
    for verdict in (FITS, OFFLOAD):
        for form in dict.fromkeys([*order, "as stored"]):
            found = [number for number, row in enumerate(table, 1) if row.form == form and verdict in first(row)]
            if found:
                return found[-1]
    return 0


def first(row: PlanRow) -> list[str]:
    """Return the verdicts of the accelerators, or of main memory where there are none."""
    return [word for device, word in row.verdicts.items() if device != "cpu"] or list(row.verdicts.values())


def plan_device_map(config: PreTrainedConfig, load: Load, rooms: Sequence[Room]) -> dict[str, str]:
    """Return the device map that accelerate would make for a load; nothing is allocated.

    Raises what transformers raises for a config that it cannot build.
    """
    import accelerate

    width = getattr(__import__("torch"), "float32" if load.dtype == "auto" else load.dtype)
    with accelerate.init_empty_weights():
        model = models.from_files.auto_class(config).from_config(config, trust_remote_code=False, dtype=width)
    model.tie_weights()
    whole = library.undivided(model)
    memory: dict[Any, int] = {
        int(room.device[5:]) if room.device.startswith("cuda:") else room.device: room.free
        for room in capped(rooms, load.max_memory)
    }
    if load.device != "sequential":
        memory = accelerate.utils.get_balanced_memory(model, memory, whole, dtype=width)
    places = accelerate.infer_auto_device_map(model, memory, whole, dtype=width)
    return {part: f"cuda:{place}" if isinstance(place, int) else str(place) for part, place in places.items()}
