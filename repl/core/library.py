"""Undocumented interfaces of the libraries: each use is one small function here, and nowhere else.

Seen names the versions that have it; Gone says what happens without it.
"""

import inspect
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from functools import cache

from repl.core.library_types import Cache, ModelOutput, PreTrainedConfig, PreTrainedModel, Tensor

# Python


def interrupt(thread: int, error: type[BaseException]) -> None:
    """Raise an error on another thread as soon as it runs Python code again.

    Seen: CPython 3.11 to 3.14, `PyThreadState_SetAsyncExc` of its C API. Gone: a cancel takes effect where the
    work checks for it, or when its result is abandoned.
    """
    import ctypes

    if (interface := getattr(ctypes, "pythonapi", None)) is not None:
        interface.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))


# huggingface_hub


def abort_downloads() -> None:
    """Stop downloads that continue in Rust after they were cancelled.

    Seen: huggingface_hub 2.4, `utils._xet.abort_xet_session`. Gone: they continue to their end.
    """
    try:
        from huggingface_hub.utils._xet import abort_xet_session
    except ImportError:
        return
    abort_xet_session()  # type: ignore[no-untyped-call]  # it declares no result


# transformers

CACHE_NAMES = ("cache", "past_key_values", "cache_params")
"""Names of the KV cache argument by version; `cache_params` was mamba's until 5.24."""
OWN_STEPS = ("prepare_inputs_for_generation", "_update_model_kwargs_for_generation")
OWN_LOOP = ("generate", "_sample", "_prefill", "_update_model_kwargs_for_generation")


@cache
def cache_name() -> str:
    """Return the name of the KV cache in `generate`, `forward` and model outputs.

    Seen: `cache` in transformers 5.24, `past_key_values` in 5.23. Gone: an error here; nothing runs without it.
    """
    from transformers.modeling_outputs import CausalLMOutputWithPast

    names = {field.name for field in fields(CausalLMOutputWithPast)}
    return next(name for name in ("cache", "past_key_values") if name in names)


def takes_cache(model: PreTrainedModel) -> bool:
    """Tell whether a model's `forward` takes its cache under the usual name.

    Seen: transformers 5.23 and 5.24; rwkv, xlnet and reformer keep lists of tensors under names of their own,
    openai-gpt keeps nothing, mamba says `cache_params` in 5.23. Gone: the model's cache is not reused.
    """
    return cache_name() in inspect.signature(model.forward).parameters


def makes_dynamic_cache(model: PreTrainedModel) -> bool:
    """Tell whether `generate` makes a `DynamicCache` for a model by default.

    Seen: transformers 5.23 and 5.24, `_supports_default_dynamic_cache`. Gone: it does for every model.
    """
    return bool(getattr(model, "_supports_default_dynamic_cache", lambda: True)())


def cache_of(output: ModelOutput) -> Cache:
    """Return the cache in a model output, None where there is none; rwkv calls it `state`, xlnet `mems`.

    In 5.24 the old names are properties that warn: only the names of the installed version are read.
    """
    names = (cache_name(), *(() if cache_name() == "cache" else ("cache_params",)), "state", "mems")
    return next((found for name in names if (found := dict.get(output, name)) is not None), None)


def prepares_steps(kind: object) -> bool:
    """Tell whether a model class overrides how inputs of a step are prepared (5.23, 5.24); see `decodes_itself`."""
    return _overrides(kind, OWN_STEPS)


def decodes_itself(kind: object) -> bool:
    """Tell whether a model class overrides parts of `generate` that our decode loop does not call.

    Seen: transformers 5.23 and 5.24, the methods in `OWN_LOOP`. Gone: a method that was removed is not overridden.
    """
    return _overrides(kind, OWN_LOOP)


def _overrides(kind: object, names: tuple[str, ...]) -> bool:
    from transformers import GenerationMixin

    return any(getattr(kind, name, None) is not getattr(GenerationMixin, name, None) for name in names)


def speakers(model: PreTrainedModel) -> list[PreTrainedModel]:
    """Return the modules whose logits `generate` may use: the model, and a text model it may delegate to.

    Seen: transformers 5.23 and 5.24, `text_model` of kosmos-2. Gone: the model alone, as for all others.
    """
    from transformers import GenerationMixin

    part = getattr(model, "text_model", None)
    return [model, part] if isinstance(part, GenerationMixin) else [model]


def decoding(model: PreTrainedModel) -> AbstractContextManager[object]:
    """Return the context in which `generate` decodes: on a GPU it selects another kernel for experts.

    Seen: transformers 5.23 and 5.24, `_optimize_model_for_decode`. Gone: no difference.
    """
    return getattr(model, "_optimize_model_for_decode", nullcontext)()


def attention(config: PreTrainedConfig) -> str:
    """Return the attention implementation of a loaded model, '' where it is not known.

    Seen: transformers 5.23 and 5.24, `_attn_implementation`. Gone: it is not shown.
    """
    return str(getattr(config, "_attn_implementation", "") or "")


def forget_attention(config: PreTrainedConfig) -> None:
    """Drop the attention implementation from a config and its parts: it could name code on the Hub.

    Seen: transformers 5.23 and 5.24, `_attn_implementation`. Gone: the argument of `from_pretrained` still decides.
    """
    config._attn_implementation = None
    for part in list(vars(config).values()):
        if hasattr(part, "_attn_implementation"):  # a sub-config that is not declared as one
            forget_attention(part)


def generation_defaults() -> dict[str, object]:
    """Return the defaults of `generate` for fields that neither the model nor the user sets.

    Seen: transformers 5.23 and 5.24, `GenerationConfig._get_default_generation_params`. Gone: no defaults are known;
    such fields are shown as unset.
    """
    from transformers import GenerationConfig

    return dict(getattr(GenerationConfig, "_get_default_generation_params", dict)())


def undivided(model: PreTrainedModel) -> list[str]:
    """Return the module classes that a device map must not split.

    Seen: transformers 5.23 and 5.24, `_no_split_modules`, as accelerate's guide uses it. Gone: a plan may split a
    layer that a load would not.
    """
    return list(getattr(model, "_no_split_modules", None) or ())


# accelerate


def offloaded(model: PreTrainedModel) -> bool:
    """Tell whether accelerate moves parts of a model between devices as it runs.

    Seen: accelerate 1.10 to 1.15, `_hf_hook`. Gone: no model counts as offloaded.
    """
    return any(hasattr(module, "_hf_hook") for module in model.modules())


# torch


def int4_weights(steps: Tensor) -> Tensor:
    """Pack 4-bit values, int32 of shape (rows, columns), into the kernel's layout.

    Seen: torch 2.10 to 2.13, CPU kernels. Gone: `packed_linear.require_kernel` refuses the format.
    """
    import torch

    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(steps, 1)


def int4_product(rows: Tensor, weights: Tensor, group: int, scales: Tensor) -> Tensor:
    """Multiply rows by packed 4-bit weights; scales and zeros have shape (groups, outputs, 2).

    Seen: torch 2.10 to 2.13, CPU kernels. Gone: as above.
    """
    import torch

    return torch.ops.aten._weight_int4pack_mm_for_cpu(rows, weights, group, scales)


def int8_product(rows: Tensor, weights: Tensor, scales: Tensor) -> Tensor:
    """Multiply rows by 8-bit weights of shape (outputs, inputs), with one scale for each output.

    Seen: torch 2.10 to 2.13, CPU kernels. Gone: as above.
    """
    import torch

    return torch.ops.aten._weight_int8pack_mm(rows, weights, scales)
