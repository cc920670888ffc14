"""A cache that grows in place: a step writes its keys and values behind the text, where the library copies it all."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ROOM = 64  # tokens for which there is room ahead; as many steps go by between two copies


@contextmanager
def growing(cache: Any) -> Iterator[None]:
    """Let the layers of a cache that keep the keys and values of all tokens grow in place; all else is as it was.

    What they hold at the end, whatever ends it, is what they would hold without this.
    """
    from transformers.cache_utils import DynamicLayer

    moved = getattr(cache, "offloading", False)  # between devices, between two passes
    layers = [layer for layer in cache.layers if type(layer) is DynamicLayer and layer.is_initialized and not moved]
    for layer in layers:
        layer.update = Slot(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.update


class Slot:
    """Stands for the `update` of one layer: tensors with room behind the text, of which the layer shows the text."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._keys: Any = None
        self._values: Any = None
        self._shown: Any = None

    def __call__(self, keys: Any, values: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Take what a pass made, shape (rows, heads, new tokens, width); returns all there is by now."""
        layer, before = self._layer, self._layer.keys.shape[-2]
        after = before + keys.shape[-2]
        if layer.keys is not self._shown or after > self._keys.shape[-2]:
            self._keys, self._values = roomy(layer.keys, after), roomy(layer.values, after)
        self._keys[:, :, before:after], self._values[:, :, before:after] = keys, values
        layer.keys, layer.values = self._keys[:, :, :after], self._values[:, :, :after]
        self._shown = layer.keys
        return layer.keys, layer.values


def roomy(held: Any, tokens: int) -> Any:
    """Copy what is held, shape (rows, heads, tokens, width), into the beginning of a tensor for more tokens."""
    rows, heads, before, width = held.shape
    found = held.new_empty(rows, heads, tokens + ROOM, width)
    found[:, :, :before] = held
    return found
