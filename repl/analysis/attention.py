"""How a model attends, tells positions apart and remembers: seen from a short run and from its config."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from repl.analysis.modules import Traits
from repl.core import library
from repl.core.library_types import CacheLayerMixin, PreTrainedConfig, PreTrainedModel, Tensor
from repl.generation.measure.forward import cancellable_forward, input_device
from repl.models import model_config

FIRST, SECOND = 2, 3  # tokens of two runs whose caches are compared


@dataclass(frozen=True, slots=True)
class LayerCache:
    """What one layer keeps of the text: bytes for each token, up to a window (0: none), and bytes whatever its length.

    `heads` and `width` are those of the keys, 0 where it keeps none.
    """

    per_token: int
    fixed: int
    window: int
    heads: int
    width: int


def read_traits(model: PreTrainedModel, context: int, check: Callable[[], None]) -> Traits:
    """Look at a model; two tiny runs show what its cache holds."""
    config = model_config.text_config(model.config)
    kept, remark = measure_cache(model, check)
    keyed = [layer for layer in kept if layer.heads]
    heads = int(model_config.get(config, "num_attention_heads") or 0)
    windows: dict[int, int] = {}
    for layer in kept:
        if layer.window:
            windows[layer.window] = windows.get(layer.window, 0) + 1
    shared = keyed[0].heads if keyed else 0
    return Traits(
        attention=_kind(config, heads, shared, len(keyed), kept),
        heads=heads,
        kv_heads=shared,
        head_width=keyed[0].width if keyed else 0,
        positions=describe_positions(model, config),
        layers=int(model_config.get(config, "num_hidden_layers") or len(kept)),
        windows=windows,
        kv_bytes_per_token=sum(layer.per_token for layer in kept),
        fixed_bytes=sum(layer.fixed for layer in kept),
        context=context,
        context_bytes=sum(
            layer.fixed + layer.per_token * (min(context, layer.window) if layer.window else context) for layer in kept
        ),
        remark=remark,
    )


def measure_cache(model: PreTrainedModel, check: Callable[[], None]) -> tuple[list[LayerCache], str]:
    """Return what each layer's cache holds, measured; nothing and a remark where that cannot be done."""
    if any(str(place) in ("disk", "meta") for place in (getattr(model, "hf_device_map", None) or {}).values()):
        return [], "not measured: weights are on disk"
    try:
        first, second = (_cache(model, tokens, check) for tokens in (FIRST, SECOND))
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:  # a model that takes no bare ids
        return [], f"not measured: {' '.join(str(error).split())[:80]}"
    if not second:
        return [], "this model returns no cache"
    return [_memory(one, two) for one, two in zip(first, second, strict=True)], ""


def _cache(model: PreTrainedModel, tokens: int, check: Callable[[], None]) -> list[CacheLayerMixin]:
    """Run a few tokens and return what each layer keeps of them."""
    ids = torch.zeros((1, tokens), dtype=torch.long, device=input_device(model))
    with torch.no_grad(), cancellable_forward(model, check):
        output = model(input_ids=ids, use_cache=True)
    found: Any = library.cache_of(output) or []
    return list(getattr(found, "layers", found))


def _memory(one: CacheLayerMixin, two: CacheLayerMixin) -> LayerCache:
    before, after = (sum(tensor.nbytes for tensor in _tensors(layer)) for layer in (one, two))
    grown = (after - before) // (SECOND - FIRST)
    keys = getattr(two, "keys", None)
    shape = tuple(keys.shape) if keys is not None and hasattr(keys, "shape") and keys.dim() == 4 else (0, 0, 0, 0)
    window = int(getattr(two, "sliding_window", 0) or 0) if grown else 0
    return LayerCache(grown, after - grown * SECOND, window, shape[1], shape[3])


def _tensors(value: object) -> Iterator[Tensor]:
    """Yield the tensors of a layer's cache that hold more than a counter."""
    if isinstance(value, torch.Tensor):
        yield from [value] if value.dim() > 1 else []
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif hasattr(value, "__dict__"):
        yield from _tensors(vars(value))


def _kind(config: PreTrainedConfig, heads: int, shared: int, keyed: int, kept: list[LayerCache]) -> str:
    """Name the kind of attention, and how many layers have none."""
    if not keyed:
        return "none: recurrent" if kept and not any(layer.per_token for layer in kept) else "unknown"
    if model_config.get(config, "kv_lora_rank"):
        name = "multi-head latent"
    elif shared == heads:
        name = "multi-head"
    else:
        name = "multi-query" if shared == 1 else "grouped-query"
    others = len(kept) - keyed
    return f"{name} in {keyed} of {len(kept)} layers, the others are recurrent" if others else name


def describe_positions(model: PreTrainedModel, config: PreTrainedConfig) -> str:
    """Say how a model tells positions apart, from its modules where they show it, else from its config."""
    for module in model.modules():
        name = type(module).__name__
        if "RotaryEmbedding" in name or "RotaryPosition" in name:
            return describe_rotary(config)
    if learned := _learned(model):
        return f"learned, {learned:,}"
    if model_config.get(config, "rotary_dim", "rope_parameters"):
        return describe_rotary(config)
    if model_config.get(config, "alibi") or type(model).__name__.startswith("Bloom"):
        return "ALiBi: a slope on the distance"
    return "none of its own"


def _learned(model: PreTrainedModel) -> int:
    """Return how many positions an embedding table holds that is not the vocabulary's."""
    words = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if isinstance(module, torch.nn.Embedding) and id(module) not in words and ("pos" in last or last == "wpe"):
            return int(module.num_embeddings) - int(getattr(module, "offset", 0))
    return 0


def describe_rotary(config: PreTrainedConfig) -> str:
    """Say which rotary embedding a config describes, or which ones, where kinds of layers differ."""
    given = model_config.get(config, "rope_parameters") or {}
    kinds = [values for values in given.values() if isinstance(values, dict)] or [given]
    return "rotary" + "; or".join(dict.fromkeys(_theta(config, values) for values in kinds))


def _theta(config: PreTrainedConfig, values: dict[str, object]) -> str:
    theta = values.get("rope_theta") or model_config.get(config, "rope_theta", "rotary_emb_base")
    words = f", theta {theta:,.0f}" if theta else ""
    kind, factor = values.get("rope_type", "default"), values.get("factor")
    if kind != "default":
        words += f", {kind} scaling" + (f" x {factor:g}" if factor else "")
    part = values.get("partial_rotary_factor") or 1.0
    if part != 1.0:
        words += f", on {part:.0%} of each head"
    elif dimension := model_config.get(config, "rotary_dim"):
        words += f", on {dimension} values of each head"
    return words
