"""Read values of a model's config; a value that differs between layers counts as absent.

For such a value (Gemma 4) `getattr` raises a `RuntimeError`, even with a default.
"""

from collections.abc import Sequence
from typing import Any

from repl.core.library_types import PreTrainedConfig


def get(config: PreTrainedConfig, *names: str) -> Any:
    """Return the first of these values that is set; None where none is, or where it differs between layers."""
    return next((value for name in names if (value := _value(config, name)) is not None), None)


def get_count(config: PreTrainedConfig, *names: str) -> int:
    """Return the first of these values that is a positive number, else 0; some configs say -1 for "no limit"."""
    values = (_value(config, name) for name in names)
    return next((int(value) for value in values if isinstance(value, int | float) and value > 0), 0)


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config of the language model inside a multimodal model, else the config itself."""
    find = getattr(config, "get_text_config", None)
    return find(decoder=True) if callable(find) else config


def layer_configs(config: PreTrainedConfig) -> Sequence[PreTrainedConfig]:
    """Return one config for each layer where values differ between layers; empty where they do not."""
    varied = getattr(config, "is_heterogeneous", False)
    layers = getattr(config, "per_layer_config", None) if varied is True else None
    return [layers[number] for number in range(len(layers))] if layers is not None else []


def _value(config: PreTrainedConfig, name: str) -> object:
    try:
        return getattr(config, name, None)
    except RuntimeError:  # AmbiguousGlobalPerLayerAttributeError, since transformers 5.24
        return None
