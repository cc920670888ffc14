"""A decode step recorded once and played back: the very operations that the model runs, without Python between them.

Much of a step's time is Python finding out which operation comes next, and for one more token that is always the same.
A recording is used only where nothing in it can depend on the length of the text, and after it gave, bit for bit, what
the model itself gives. It changes with the model: other weights, layers or hooks, and it is made anew or left alone.
"""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

START = 16  # steps of a reply before its model is recorded, which takes as long as some 20 of them
PROOFS = 2  # steps, each a token longer, on which recording and model must agree
CONSTANT = ("sdpa_attention.py", "masking_utils.py", "functional.py")
"""Files that look at sizes which are the same at every step: of one token, without a mask, and of weights."""
SOURCES = ("torch.", "transformers.", "repl.")
"""Where modules come from whose work is known to follow from their tensors alone; not so adapters, which can be off."""
HARMLESS = "repl.probe"
"""Where hooks come from that only look on."""

_known: "WeakKeyDictionary[Any, Recording]" = WeakKeyDictionary()


class Steps:
    """Runs the steps of one reply: by the model, until a recording of it is proven."""

    def __init__(self, model: Any, past: Any) -> None:
        self._model = model
        self._recording = recording(model) if suits(model, past) else None
        self._count = 0

    def __call__(self, inputs: dict[str, Any]) -> Any:
        """Run the model with the arguments of one step."""
        found = self._recording
        self._count += 1
        if found is None or not found.good or (not found.made and self._count < START):
            return self._model(**inputs, return_dict=True)
        if found.proven:
            return found.play(self._model, inputs)
        if not found.made:
            found.make(self._model, inputs)
        return found.prove(self._model, inputs)


def recording(model: Any) -> "Recording":
    """Return the recording of a model, a new one where the model is not what it was."""
    found, now = _known.get(model), parts(model)
    if found is None or found.parts != now:
        found = _known[model] = Recording(now)
    return found


def parts(model: Any) -> tuple[Any, ...]:
    """Return what a recording stands for: these modules and tensors, and this attention."""
    pieces = (*model.modules(), *model.parameters(), *model.buffers())
    return (model.config._attn_implementation, *map(id, pieces))


def suits(model: Any, past: Any) -> bool:
    """Tell whether a model can be recorded as it is now: a cache that only grows, on the CPU, no hooks inside."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    if sys.version_info >= (3, 14) or model.device.type != "cpu" or model.training:  # torch no longer records there
        return False
    if type(past) is not DynamicCache or not all(type(layer) is DynamicLayer for layer in past.layers):
        return False
    if not all(type(module).__module__.startswith(SOURCES) for module in model.modules()):
        return False
    return not any(
        hasattr(module, "_hf_hook") or (module is not model and hooked(module)) for module in model.modules()
    )


def hooked(module: Any) -> bool:
    """Tell whether a hook may change what a module does."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return hasattr(module, "_hf_hook") or any(getattr(hook, "__module__", "") != HARMLESS for hook in hooks)


class Recording:
    """The step of a model for one row of text without padding."""

    def __init__(self, parts: tuple[Any, ...]) -> None:
        self.parts = parts
        self.good = True
        self._run: Any = None
        self._agreed = 0

    @property
    def made(self) -> bool:
        """Tell whether there is a recording."""
        return self._run is not None

    @property
    def proven(self) -> bool:
        """Tell whether it may stand in for the model."""
        return self._agreed >= PROOFS

    def make(self, model: Any, inputs: dict[str, Any]) -> None:
        """Record the step with these arguments; the cache among them stays as it is."""
        import torch

        past = inputs["past_key_values"]
        length, named = past.get_seq_length(), "position_ids" in inputs

        def step(token: Any, position: Any, keys: list[Any], values: list[Any]) -> Any:
            grown = _past()(keys, values, length if model.config._attn_implementation == "sdpa" else None)
            places = {"position_ids": position} if named else {}
            output = model.forward(input_ids=token, past_key_values=grown, use_cache=True, return_dict=True, **places)
            return output.logits, [one.keys for one in grown.layers], [one.values for one in grown.layers]

        try:
            with frozen(model), warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                run = torch.jit.trace(step, self._taken(inputs), check_trace=False, strict=False)
        except Exception:  # whatever a model does that cannot be recorded: it goes on by itself
            self.good = False
            return
        run._torchdynamo_inline = None  # it would keep the function, and with it the model, in memory
        told = [one.filename for one in said if issubclass(one.category, torch.jit.TracerWarning)]
        self.good = all(name.endswith(CONSTANT) for name in told)
        self._run = run

    def _taken(self, inputs: dict[str, Any]) -> tuple[Any, ...]:
        layers = inputs["past_key_values"].layers
        keys, values = [layer.keys for layer in layers], [layer.values for layer in layers]
        token = inputs["input_ids"]
        return token, inputs.get("position_ids", token), keys, values

    def _played(self, inputs: dict[str, Any]) -> Any:
        import torch

        with torch.jit.optimized_execution(False):  # the operations as they are, none merged into others
            return self._run(*self._taken(inputs))

    def prove(self, model: Any, inputs: dict[str, Any]) -> Any:
        """Run the model and the recording, and compare logits and cache; returns the model's output."""
        try:
            found = self._played(inputs) if self.good else None
        except RuntimeError:
            found = None
        output = model(**inputs, return_dict=True)
        _, __, keys, values = self._taken(inputs)
        self.good = found is not None and same(found, (output.logits, keys, values))
        self._agreed += self.good
        return output

    def play(self, model: Any, inputs: dict[str, Any]) -> Any:
        """Run the recording in the model's place: the hooks of the model as a whole are called as ever."""
        model.forward = self._forward
        try:
            return model(**inputs)
        finally:
            del model.forward

    def _forward(self, **inputs: Any) -> Any:
        from transformers.modeling_outputs import CausalLMOutputWithPast

        logits, keys, values = self._played(inputs)
        past = inputs["past_key_values"]
        for layer, key, value in zip(past.layers, keys, values, strict=True):
            layer.keys, layer.values = key, value
        return CausalLMOutputWithPast(logits=logits, past_key_values=past)


def same(one: Any, other: Any) -> bool:
    """Tell whether logits, keys and values are equal in every bit."""
    import torch

    flat = [(logits, *keys, *values) for logits, keys, values in (one, other)]
    return all(mine.dtype == theirs.dtype and torch.equal(mine, theirs) for mine, theirs in zip(*flat, strict=True))


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """Let no weight ask for gradients meanwhile: what does cannot be a constant of a recording."""
    asking = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in asking:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in asking:
            weight.requires_grad_(True)


@cache
def _past() -> Any:
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    class Layer(DynamicLayer):  # type: ignore[misc]  # the library has no types
        def __init__(self, keys: Any, values: Any) -> None:
            super().__init__()
            self.keys, self.values, self.dtype, self.device = keys, values, keys.dtype, keys.device
            self.is_initialized = True

        def get_seq_length(self) -> Any:
            return self.keys.shape[-2]

    class Past(DynamicCache):  # type: ignore[misc]
        """Tells masks a length that is a number: only then the library leaves them out, as it does outside of this."""

        def __init__(self, keys: list[Any], values: list[Any], length: int | None) -> None:
            super().__init__()
            self.layers = [Layer(*pair) for pair in zip(keys, values, strict=True)]
            self._length = length

        def get_query_offset(self, layer_idx: int = 0) -> Any:
            return super().get_query_offset(layer_idx) if self._length is None else self._length

        def get_mask_sizes(self, query_length: Any, layer_idx: int) -> Any:
            return super().get_mask_sizes(query_length, layer_idx) if self._length is None else (self._length + 1, 0)

    return Past
