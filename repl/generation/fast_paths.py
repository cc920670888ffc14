"""Which ways of being faster than the library's own apply to the model in use; runs on the model thread.

In come the model and the settings of the next reply, out comes on or off for each way, with the reason. Nothing is
turned on or off here: whoever decodes decides by the same functions.
"""

from collections.abc import Callable
from dataclasses import dataclass

from repl.core.errors import MissingExtra
from repl.core.settings import Settings
from repl.generation import arguments
from repl.generation.decode import drafters, kv_cache, loop
from repl.generation.runtime import Model
from repl.models import packed_linear


@dataclass(frozen=True, slots=True)
class FastPath:
    """One way of being faster; `why` says what keeps it from applying, or what turns it on."""

    name: str
    on: bool
    why: str


def examine(resident: Model, chosen: Settings) -> tuple[FastPath, ...]:
    """Return every way, whether or not it applies."""
    found = {name: reason(resident, chosen) for name, reason in REASONS.items()}
    return tuple(FastPath(name, not why, why) for name, why in found.items())


def _decode_loop(resident: Model, chosen: Settings) -> str:
    return loop.why_not(resident.model, arguments.of_settings(resident, chosen).config)


def _reuse(resident: Model, chosen: Settings) -> str:
    if not chosen.decode.reuse:
        return "turned off: /reuse on"
    return "" if _fits(resident, chosen) else "this model or a setting needs a new KV cache for each reply"


def _prompt_lookup(resident: Model, chosen: Settings) -> str:
    if reason := _ahead(resident, chosen):
        return reason
    return "" if drafters.wanted(chosen) == "prompt_lookup" else "not chosen: /fast prompt_lookup"


def _assistant(resident: Model, chosen: Settings) -> str:
    if reason := _ahead(resident, chosen):
        return reason
    return "" if drafters.wanted(chosen) == "assistant" else "not chosen: /assistant ID"


def _ahead(resident: Model, chosen: Settings) -> str:
    return drafters.refusal(resident.model, arguments.of_settings(resident, chosen).config, 1)


def _rows(resident: Model, chosen: Settings) -> str:
    if not kv_cache.is_plain_kv(resident.model):
        return "this model's KV cache cannot be copied for each row"
    return _decode_loop(resident, chosen) or (
        "" if _fits(resident, chosen) else "a setting needs a KV cache for each row"
    )


def _fits(resident: Model, chosen: Settings) -> bool:
    return kv_cache.fits(resident.model, arguments.of_settings(resident, chosen).config, 1)


def _packed(resident: Model, _: Settings) -> str:
    if resident.facts.packed:
        return ""
    try:
        packed_linear.check("int4")
    except MissingExtra as error:
        return error.message
    return "not chosen: /quantize int4"


REASONS: dict[str, Callable[[Model, Settings], str]] = {
    "decode loop": _decode_loop,
    "KV reuse": _reuse,
    "prompt_lookup": _prompt_lookup,
    "assistant": _assistant,
    "batched rows": _rows,
    "packed kernels": _packed,
}
"""For each way the function that says what keeps it from applying; empty where nothing does."""
