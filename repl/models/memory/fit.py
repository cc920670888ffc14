"""Whether a model fits into free memory, and the smallest change that makes it fit."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from repl import models
from repl.core import paths
from repl.core.errors import NoMemory
from repl.core.format import amount
from repl.core.library_types import PreTrainedConfig
from repl.core.settings import Load, short_id
from repl.hub.weight_headers import Weights
from repl.models.memory import estimate
from repl.models.memory.available import SPREAD, Room, capped, targets
from repl.models.memory.estimate import Needs

FITS, OFFLOAD, TOO_LARGE = "fits", "fits with offload", "does not fit"
KEPT = ("dtype", "quantize", "device", "max_memory", "attention", "offload_folder")
"""Settings that a line typed to load again repeats where they are not the default."""


def verdict(needs: Needs, load: Load, rooms: Sequence[Room]) -> str:
    """Return whether a load fits on its device, fits with parts offloaded to slower memory, or does not fit."""
    rooms = capped(rooms, load.max_memory)
    if needs.total <= sum(room.free for room in targets(load.device, rooms)):
        return FITS
    return OFFLOAD if spreads(needs, load, rooms) else TOO_LARGE


def spreads(needs: Needs, load: Load, rooms: Iterable[Room]) -> bool:
    """Tell whether a load that its device cannot hold may be offloaded to main memory or disk."""
    if load.device not in SPREAD or load.quantize != "none" or load.gguf_file:
        return False
    to_disk = bool(load.offload_folder or load.max_memory)
    return to_disk or needs.total <= sum(room.free for room in rooms)


def check_fits(weights: Weights, config: PreTrainedConfig, load: Load, rooms: Sequence[Room]) -> None:
    """Raise `NoMemory` for a load that does not fit, with loads that would."""
    needs = estimate.estimate_needs(weights, config, load)
    if verdict(needs, load, rooms) != TOO_LARGE or not targets(load.device, rooms):
        return  # a device that does not exist is reported by `device_map`
    free = ", ".join(format_room(room) for room in targets(load.device, capped(rooms, load.max_memory)))
    found = remedies(weights, config, load, rooms)
    choices = [choice for changed, less, choice in found if verdict(less, changed, rooms) != TOO_LARGE]
    said = f"{short_id(load.model)} does not fit: it needs {format_needs(needs)}, and {free}"
    override = (f"/model! {typed_name(load)}", "load anyway")
    raise NoMemory(said, choices=(*(choices or on_disk(needs, load, rooms)), override))


def remedies(
    weights: Weights, config: PreTrainedConfig, load: Load, rooms: Sequence[Room]
) -> Iterator[tuple[Load, Needs, tuple[str, str]]]:
    """Yield loads that need less or have more memory, smallest change first: each with its needs, line and effect."""
    for change in load_changes(weights, load, rooms):
        changed = replace(load, **change)
        needs = estimate.estimate_needs(weights, config, changed)
        effect = f"needs {amount(needs.total)}, the weights {amount(needs.weights)}"
        yield changed, needs, (load_line(load, change), effect)


def load_changes(weights: Weights, load: Load, rooms: Sequence[Room]) -> Iterator[dict[str, Any]]:
    """Yield the settings that make a load need less memory, or give it more."""
    if load.quantize == "none" and estimate.compute_dtype(weights, load) == "float32":
        yield {"dtype": "bfloat16"}
    if load.device != "auto" and len(rooms) > 1:
        yield {"device": "auto"}
    if load.quantize == "none" and weights.matrices:
        forms = (models.quantization.best_form(bits, load) for bits in (8, 4))
        yield from ({"dtype": "bfloat16", "quantize": form} for form in forms if form)
    if load.max_memory:
        yield {"max_memory": ""}


def on_disk(needs: Needs, load: Load, rooms: Sequence[Room]) -> list[tuple[str, str]]:
    """Return a line that offloads to disk what memory cannot hold, and its effect; empty where that is not possible."""
    text = needs.cache + needs.working  # may be on any device: each one keeps room for it
    held = {room.device.removeprefix("cuda:"): max(0, room.free - text) >> 20 for room in rooms}
    if load.quantize != "none" or load.gguf_file or load.max_memory or not any(held.values()):
        return []
    most = ",".join(f"{name}={size}MiB" for name, size in held.items())
    left = amount(max(0, needs.weights - (sum(held.values()) << 20)))
    change = {"device": "auto", "max_memory": most, "offload_folder": str(paths.cache_folder() / "offload")}
    return [(load_line(load, change), f"{left} of the weights stay on disk and are read again for every token: slow")]


def typed_name(load: Load) -> str:
    """Return the model of a load as it is typed: id@revision or id:file.gguf, quoted where it has spaces."""
    revision = "" if load.revision == "main" else f"@{load.revision}"
    words = load.model + revision + (f":{load.gguf_file}" if load.gguf_file else "")
    return f'"{words}"' if " " in words else words


def load_line(load: Load, change: dict[str, str]) -> str:
    """Return the `/model` line that repeats a load with a change."""
    bare = Load()
    kept = {key: getattr(load, key) for key in KEPT if getattr(load, key) != getattr(bare, key)} | change
    words = (f"{key}={value or 'default'}" for key, value in kept.items())
    return " ".join([f"/model {typed_name(load)}", *(f'"{word}"' if " " in word else word for word in words)])


def format_needs(needs: Needs) -> str:
    """Return the total, and the sizes it consists of."""
    parts = {"weights": needs.weights, "KV cache": needs.cache, "working memory": needs.working}
    if needs.loading == needs.total:
        parts = {"all weights before quantization": needs.loading}
    return f"{amount(needs.total)} ({', '.join(f'{word} {amount(size)}' for word, size in parts.items())})"


def format_room(room: Room) -> str:
    """Return a device's free memory, and what limits it."""
    if room.limit == "max_memory":
        return f"{room.device} may hold {amount(room.free)} (max_memory)"
    limit = f" (the {room.limit} allows {amount(room.total)})" if room.limit else ""
    return f"{room.device} has {amount(room.free)} free{limit}"
