"""What no documentation of the libraries promises, in one place: each with the versions it was seen in."""

import inspect
from dataclasses import fields
from functools import cache
from typing import Any


@cache
def cache_name() -> str:
    """Return what `generate`, every `forward` and every output call the KV cache.

    `cache` since transformers 5.24, `past_key_values` in 5.23 and before. A third name would be neither: an error here.
    """
    from transformers.modeling_outputs import CausalLMOutputWithPast

    names = {field.name for field in fields(CausalLMOutputWithPast)}
    return next(name for name in ("cache", "past_key_values") if name in names)


def takes_cache(model: Any) -> bool:
    """Tell whether a model's `forward` takes its cache under the usual name.

    Seen in 5.23 and 5.24: rwkv, xlnet and reformer keep lists of tensors under names of their own, openai-gpt keeps
    nothing; in 5.23 mamba says `cache_params`.
    """
    return cache_name() in inspect.signature(model.forward).parameters


def cache_of(output: Any) -> Any:
    """Return what an output holds of the text, None where it holds nothing; rwkv calls it `state`, xlnet `mems`.

    The old names are properties in 5.24 that warn: only the names of the installed version are asked for.
    """
    names = (cache_name(), *(() if cache_name() == "cache" else ("cache_params",)), "state", "mems")
    return next((found for name in names if (found := dict.get(output, name)) is not None), None)
