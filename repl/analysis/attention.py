"""A model's attention, position encoding and KV cache, read from its config and its modules."""

from collections import Counter
from dataclasses import dataclass

from repl.core.library_types import PreTrainedConfig, PreTrainedModel
from repl.models import model_config
from repl.models.memory.estimate import LayerCache, ModelSizes, cache_bytes


@dataclass(frozen=True, slots=True)
class Traits:
    """A model's attention, position encoding and KV cache."""

    attention: str
    heads: int
    kv_heads: int
    head_width: int
    positions: str
    layers: int
    windows: dict[int, int]
    """The number of layers with each sliding window, by its tokens."""
    kv_bytes_per_token: int
    fixed_bytes: int
    context: int
    context_bytes: int
    """The size of the KV cache at the full context, with sliding windows."""


def read_traits(model: PreTrainedModel, context: int) -> Traits:
    """Return a model's attention, position encoding and the size of its KV cache."""
    config, sizes = model_config.text_config(model.config), ModelSizes(model.config)
    kept, width = list(sizes.kept()), model.dtype.itemsize
    keyed = [layer for layer in kept if layer.width]
    return Traits(
        attention=_kind(sizes, keyed, kept),
        heads=sizes.heads if keyed else 0,
        kv_heads=sizes.kv_heads if keyed else 0,
        head_width=sizes.key_width if keyed else 0,
        positions=describe_positions(model, config),
        layers=sizes.layers,
        windows=dict(Counter(layer.window for layer in kept if layer.window)),
        kv_bytes_per_token=width * sum(layer.width for layer in kept),
        fixed_bytes=width * sum(layer.state for layer in kept),
        context=context,
        context_bytes=cache_bytes(model.config, context, width, remembers=False),
    )


def _kind(sizes: ModelSizes, keyed: list[LayerCache], kept: list[LayerCache]) -> str:
    """Name the kind of attention, and how many layers have none."""
    if not keyed:
        return "none: recurrent" if kept else "unknown"
    if sizes.one("kv_lora_rank"):
        name = "multi-head latent"
    elif sizes.kv_heads == sizes.heads:
        name = "multi-head"
    else:
        name = "multi-query" if sizes.kv_heads == 1 else "grouped-query"
    others = len(kept) - len(keyed)
    return f"{name} in {len(keyed)} of {len(kept)} layers, the others are recurrent" if others else name


def describe_positions(model: PreTrainedModel, config: PreTrainedConfig) -> str:
    """Describe a model's position encoding, from its modules if they show it, else from its config."""
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
    """Return the number of positions in a learned position embedding; 0 if there is none."""
    words = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if hasattr(module, "num_embeddings") and id(module) not in words and ("pos" in last or last == "wpe"):
            return int(module.num_embeddings) - int(getattr(module, "offset", 0))
    return 0


def describe_rotary(config: PreTrainedConfig) -> str:
    """Describe the rotary embedding in a config, or each one if kinds of layers differ."""
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
