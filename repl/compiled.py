"""Compiled steps: the pass that makes one token as a single function; which model has one, and how it is used.

Room for the text is laid out ahead, in sizes that double, so that a step writes its keys and values in place.
"""

import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from repl import library, model_config
from repl.native import Native

FORM = 1
"""Grows when what is compiled changes."""
LIBRARY, MARKS, REST = "step.so", "step.json", "rest.safetensors"
ROOM = 256  # tokens for which there is room at first
PROBE = 32  # tokens of the text, drawn once for all, on which a compiled step is checked
NEAR = 1e-4  # how far its logits may be from the plain ones in the mean, as a share of their spread
COARSE = 0.1  # the same where not all is float32: what is fused rounds less often


def unfit(model: Any) -> str:
    """Say why the steps of a model cannot be compiled; empty where they can."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    if os.name != "posix":
        return "it is made for Linux and macOS"
    if model.device.type != "cpu":
        return f"it is made for the CPU, this model is on {model.device}"
    if hasattr(model, "_hf_hook") or getattr(model, "hf_device_map", None):
        return "parts of this model are moved while it works"
    if model.is_remote_code() or model.config.is_encoder_decoder:
        return "this model makes its tokens in a way of its own"
    if {type(layer) for layer in DynamicCache(config=model.config).layers} != {DynamicLayer}:
        return "this model keeps something else than the keys and values of all tokens"
    if library.prepares_steps(type(model)):
        return "this model prepares each step in a way of its own"
    if moving(model.config.get_text_config(decoder=True)):
        return "the positions of this model change with the length of the text"
    return ""


def moving(config: Any) -> bool:
    """Tell whether rotary positions are scaled by how long the text is by then: a compiled step has them fixed."""
    found = model_config.read(config, "rope_parameters") or {}
    sets = [each for each in found.values() if isinstance(each, dict)] or [found]
    return any(each.get("rope_type", "default") in ("dynamic", "longrope") for each in sets)


# which step, and where it is kept


def tensors(model: Any) -> dict[str, Any]:
    """Return all weights and buffers of a model by their names, also those that have several."""
    found = dict(model.named_parameters(remove_duplicate=False))
    return {name: each.data for name, each in (found | dict(model.named_buffers(remove_duplicate=False))).items()}


def signature(model: Any) -> str:
    """Return a digest of what a step is made of, whatever the weights are."""
    shapes = [(name, list(each.shape), str(each.dtype)) for name, each in tensors(model).items()]
    config = {name: value for name, value in model.config.to_dict().items() if not name.startswith("_")}
    words = [type(model).__name__, str(model.dtype), model.config._attn_implementation, config, shapes, scales(model)]
    return hashlib.sha256(json.dumps(words, sort_keys=True, default=str).encode()).hexdigest()


def scales(model: Any) -> list[str]:
    """Return the numbers of a model's adapters, which a step has in it; shapes tell the rest."""
    found = [each.to_dict() for each in getattr(model, "peft_config", {}).values()]
    return [f"{name} {each[name]}" for each in found for name in sorted(each) if isinstance(each[name], int | float)]


def key(model: Any) -> str:
    """Return the name under which a compiled step is kept: that of the step, the libraries and the machine."""
    import torch
    import transformers

    words = [FORM, torch.__version__, transformers.__version__, sys.platform, machine(), signature(model)]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:32]


def machine() -> str:
    """Say what this processor can do: the library has instructions that another may not know."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()} {platform.processor()}"


def digest(file: Path) -> str:
    """Return the SHA-256 of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


# use


def opened(place: Path, model: Any) -> Native:
    """Load a compiled step and lend it the weights of a model."""
    from safetensors.torch import load_file

    for each in (place.parent, place, *place.iterdir()):
        found = each.stat()
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise OSError(f"{each.name} can be written by others")  # it is run as it is
    with suppress(OSError):
        os.utime(place)  # used now
    marks = json.loads((place / MARKS).read_text("utf-8"))
    if [digest(place / LIBRARY), digest(place / REST)] != marks["digests"]:
        raise OSError("the file is damaged")  # loading it could end the program
    known, rest = tensors(model), load_file(place / REST)
    native, stand = Native(place / LIBRARY), marks["names"]
    names = native.names()
    native.lend({name: rest[name] if name in rest else known[stand[origin]] for name, origin in names.items()})
    return native


def deviation(native: Native, model: Any) -> tuple[float, float, float]:
    """Return how far the logits of a compiled step are from the plain ones: at most, and in the mean (root of squares).

    The mean is a share of the spread of the logits; behind it stands how large it may be.
    """
    import torch
    from transformers import DynamicCache

    config = model.config.get_text_config(decoder=True)
    length = min(PROBE, model_config.count(config, "max_position_embeddings") or PROBE)
    ids = torch.randint(0, config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(ids[:, :-2], **{library.cache_name(): cache}, use_cache=True)
        with Slots(native, model, cache).taken() as step:
            ours = torch.stack([step(None, token).logits[0, -1] for token in ids[:, -2:].T])
        theirs = model(ids, use_cache=False).logits[0, -2:].float()
    exact = {each.dtype for each in tensors(model).values()} <= {torch.float32, torch.bool, torch.int64}
    share = float((ours - theirs).square().mean().sqrt() / theirs.std().clamp_min(1e-3))
    return float((ours - theirs).abs().max()), share, NEAR if exact else COARSE


class Loan:
    """Lends compiled steps to one reply; `used` tells whether they were taken."""

    def __init__(self, native: Native, model: Any) -> None:
        self._native, self._model, self.used = native, model, False

    def __call__(self, cache: Any) -> AbstractContextManager[Callable[[Any, Any], Any]]:
        """Return a context with the function that makes a step behind what is in a cache."""
        self.used = True
        return Slots(self._native, self._model, cache).taken()


class Slots:
    """The keys and values of one reply, laid out with room for more."""

    def __init__(self, native: Native, model: Any, cache: Any) -> None:
        self._native, self._model, self._cache = native, model, cache
        self.length = int(cache.get_seq_length())
        self._keys: list[Any] = [layer.keys for layer in cache.layers]
        self._values: list[Any] = [layer.values for layer in cache.layers]
        self._room = 0

    @contextmanager
    def taken(self) -> Iterator[Callable[[Any, Any], Any]]:
        """Yield the function that makes a step; the cache gets back what was made of it, whatever ends the reply."""
        try:
            yield lambda _, tokens: self._step(tokens.view(1, 1))
        finally:
            for place, layer in enumerate(self._cache.layers):
                self._show(place, layer)

    def _step(self, ids: Any) -> Any:
        """Make one step behind the text, `ids` of shape (1, 1); the model's hooks see it as they see any other."""
        import torch
        from transformers.modeling_outputs import CausalLMOutputWithPast

        for hook in list(self._model._forward_pre_hooks.values()):
            hook(self._model, (ids,))
        if self.length >= self._room:
            self._lay_out()
        (logits,) = self._native([ids, torch.tensor([self.length]), *self._keys, *self._values])
        self.length += 1
        output = CausalLMOutputWithPast(logits=logits[:, None])
        for hook in list(self._model._forward_hooks.values()):
            hook(self._model, (ids,), output)
        return output

    def _lay_out(self) -> None:
        self._room = max(ROOM, 1 << (self.length + ROOM // 8).bit_length())
        for place, layer in enumerate(self._cache.layers):  # one after the other: what it was is let go of at once
            self._keys[place], self._values[place] = self._roomy(self._keys[place]), self._roomy(self._values[place])
            self._show(place, layer)

    def _show(self, place: int, layer: Any) -> None:
        """Give a layer of the cache what is there of the text by now."""
        layer.keys, layer.values = self._keys[place][:, :, : self.length], self._values[place][:, :, : self.length]

    def _roomy(self, held: Any) -> Any:
        """Copy what is held, shape (1, heads, tokens, width), into the beginning of a tensor with more tokens."""
        roomy = held.new_zeros(1, held.shape[1], self._room, held.shape[3])  # what is masked is multiplied by 0
        roomy[:, :, : self.length] = held[:, :, : self.length]
        return roomy
