"""Which fast paths are on for the loaded model, and why others are off; runs on the model thread.

In come the model and the settings of the next reply, out comes on or off for each path, with the reason. Nothing is
turned on or off here: the decoder asks the same functions.
"""

from dataclasses import dataclass

from repl import models
from repl.core import decoding
from repl.core.errors import MissingExtra
from repl.core.settings import Settings
from repl.generation import decode
from repl.generation.interface import Model


@dataclass(frozen=True, slots=True)
class FastPath:
    """One optimisation; `why` says why it is off, or how to turn it on; empty if it is on."""

    name: str
    on: bool
    why: str


def list_paths(resident: Model, chosen: Settings) -> tuple[FastPath, ...]:
    """Return every fast path, on or off."""
    model, config = resident.model, decode.loop.Arguments.of_settings(resident, chosen).config
    own_loop, ahead = decode.loop.why_not(model, config), decode.drafters.refusal(model, config, 1)
    fits, wanted = decode.kv_cache.can_reuse(model, config, 1), decoding.draft_source(chosen)
    rows = "" if decode.kv_cache.is_plain_kv(model) else "this model's KV cache cannot be copied for each row"
    reasons = {
        "decode loop": own_loop,
        "KV reuse": "" if fits else f"{_culprit(resident)} needs a new KV cache for each reply",
        "prompt_lookup": ahead or ("" if wanted == "prompt_lookup" else "/fast prompt_lookup turns it on"),
        "assistant": ahead or ("" if wanted == "assistant" else "/assistant ID turns it on"),
        "batched rows": rows or own_loop or ("" if fits else f"{_culprit(resident)} needs a KV cache for each row"),
        "packed kernels": _packed(resident),
    }
    if decode.kv_cache.cache_traits(model).carries is False:
        reasons["KV reuse"] = "this model does not continue correctly from a kept KV cache"
    if not chosen.decode.reuse:
        reasons["KV reuse"] = "/reuse on turns it on"
    return tuple(FastPath(name, not why, why) for name, why in reasons.items())


def _culprit(resident: Model) -> str:
    bare = type(resident.model.generation_config)()
    return "a setting" if decode.kv_cache.can_reuse(resident.model, bare, 1) else "this model"


def _packed(resident: Model) -> str:
    if resident.facts.packed:
        return ""
    try:
        models.packed_linear.require_kernel("int4")
    except MissingExtra as error:
        return error.message
    return "/quantize int4 turns them on"
