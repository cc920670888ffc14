"""The error for memory that ran out during a reply: needed and free memory, and remedies with their effects."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from repl.core.errors import Failed, NoMemory
from repl.core.format import amount
from repl.core.library_types import GenerationConfig
from repl.core.settings import Load
from repl.models.memory import available, estimate, fit
from repl.models.memory.available import UNITS, Room
from repl.models.memory.estimate import Needs
from repl.models.store import LoadedModel

DEAD = ("device-side assert", "illegal memory access", "unspecified launch failure")
"""Errors after which CUDA refuses further work in this process."""
ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+) (bytes|KiB|MiB|GiB|KB|MB|GB)")
"""The size in torch's messages for CPU, MPS and CUDA."""
WORTHWHILE = 200  # a remedy saves at least 1/200 of the total needed


def out_of_memory(resident: LoadedModel[Any], config: GenerationConfig, prompt: int, words: str) -> NoMemory:
    """Return the error for a reply that ran out of memory; `prompt` is its length in tokens."""
    made = config.max_new_tokens or max(0, (resident.facts.context or estimate.GLANCE_TOKENS) - prompt)
    needs = _needs(resident, resident.load, prompt, made, config.num_beams or 1)
    rooms = available.measure_rooms()
    free = ", ".join(f"{each.device} has {amount(each.free)} free" for each in rooms)
    changes = sorted(reply_remedies(resident, config, prompt, made, rooms), key=lambda each: each[1].total)
    choices = [
        (line, f"needs {amount(less.total)}, the weights {amount(less.weights)}, the KV cache {amount(less.cache)}")
        for line, less in changes
        if (needs.total - less.total) * WORTHWHILE > needs.total
    ]
    if "cpu" not in resident.facts.device_map.values():
        choices.append(("/device cpu", "slower, in main memory"))
    asked = amount_asked(words)
    said = f"memory ran out: {asked}; needed for {prompt + made} tokens: {fit.format_needs(needs)}; {free}"
    return NoMemory(said, choices=tuple(choices))


def amount_asked(words: str) -> str:
    """Return the size of the failed allocation where a library's message has it, else the message."""
    found = ASKED.search(words)
    return f"{amount(int(float(found[1]) * UNITS.get(found[2], 1)))} more requested" if found else words


def _needs(resident: LoadedModel[Any], load: Load, prompt: int, made: int, beams: int) -> Needs:
    found = estimate.estimate_needs(resident.base.weights, resident.model.config, load, prompt + made, prompt, beams)
    if (load.dtype, load.quantize) != (resident.load.dtype, resident.load.quantize):
        return found
    return replace(found, weights=resident.facts.bytes, loading=0)  # the actual size; packed already


def reply_remedies(
    resident: LoadedModel[Any], config: GenerationConfig, prompt: int, made: int, rooms: list[Room]
) -> Iterator[tuple[str, Needs]]:
    """Yield lines that reduce memory, about the load or the reply, each with the needs after it."""
    load, beams = resident.load, config.num_beams or 1
    for change in fit.load_changes(resident.base.weights, load, rooms):
        name, value = [*change.items()][-1]  # quantization keeps the loaded dtype
        yield f"/{name} {value or 'default'}", _needs(resident, replace(load, **{name: value}), prompt, made, beams)
    if load.attention == "eager":
        yield "/attention auto", _needs(resident, replace(load, attention="auto"), prompt, made, beams)
    if beams > 1:
        yield "/beams 1", _needs(resident, load, prompt, made, 1)
    half = max(1, made // 2)
    yield f"/max_new_tokens {half}", _needs(resident, load, prompt, half, beams)


def dead(words: str) -> Failed | None:
    """Return the error for a GPU that refuses further work in this process; None for any other failure."""
    if not any(sign in words for sign in DEAD):
        return None
    said = "the GPU failed and cannot be used again by this process; the session is saved"
    return Failed(said, "/quit", "hub-repl --resume")
