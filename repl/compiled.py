"""Compiled steps: the pass that makes one token as a single function, made by a process aside, used once it is there.

Room for the text is laid out ahead, in sizes that double, so that a step writes its keys and values in place.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Any

from repl import paths
from repl.native import Native
from repl.settings import Load

FORM = 1
"""Grows when what is compiled changes."""
LIBRARY, MARKS, REST = "step.so", "step.json", "rest.safetensors"
PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from repl.compiling import main; main()"
MOST = 24
"""So many steps are kept, of a few megabytes each."""
PART = "part-"
"""Begins the names of folders in which something is being made."""
ROOM = 256  # tokens for which there is room at first
PROBE = 32  # tokens of the text, drawn once for all, on which a compiled step is checked
NEAR = 1e-4  # how far its logits may be from the plain ones in the mean, as a share of their spread
COARSE = 0.1  # the same where not all is float32: what is fused rounds less often

Say = Callable[[str], None]


class Steps:
    """What became of compiling the steps of one model; lives as long as its model, on the model thread.

    `state` may be read on every thread.
    """

    def __init__(self) -> None:
        self._child: Popen[bytes] | None = None
        self._native: Native | None = None
        self._part = Path()  # where it writes
        self._began = 0.0
        self._refused = ""
        self.apart: float | None = None
        """How far the logits of a compiled step were from the plain ones."""

    @property
    def state(self) -> tuple[str, str]:
        """How things stand, in a word, with the reason why there is nothing."""
        if self._refused:
            return "rests", self._refused
        under_way = self._child is not None and self._native is None and self._child.poll() is None
        return "compiling" if under_way else "compiled" if self._native or self._child else "", ""

    def loan(self, model: Any, load: Load, say: Say) -> "Loan | None":
        """Return what lends compiled steps if there are any by now, else begin to make them; what happens is said."""
        if self._native is None and not self._refused:
            self._refused = unfit(model) or self._go_on(model, load, say)
            if self._refused:
                say(f"compile rests: {self._refused}")
        return Loan(self._native, model) if self._native else None

    def _go_on(self, model: Any, load: Load, say: Say) -> str:
        """Take the next step towards a compiled one; returns why there will be none."""
        root = paths.cache() / "compiled"
        place = root / key(model)
        if self._child is None and not place.is_dir():
            try:
                self._begin(root, model, load)
            except OSError as error:
                return f"it could not be compiled ({error.strerror or error})"
            say("compiling beside the replies, for a minute or two; kept for the next time")
        if self._child is not None:
            if (code := self._child.poll()) is None:
                return ""
            if code:
                return f"it could not be compiled ({self._last_words(code)})"
            self._settle(place)
        return self._open(place, model, say)

    def _begin(self, root: Path, model: Any, load: Load) -> None:
        root.mkdir(exist_ok=True)
        sweep(root)
        self._part = Path(tempfile.mkdtemp(prefix=PART, dir=root))
        order = {"load": asdict(load), "part": str(self._part), "signature": signature(model)}
        with (self._part / "err").open("wb") as said:
            self._child = Popen(
                [sys.executable, "-I", "-c", PROGRAM, *filter(None, sys.path)],
                stdin=PIPE,
                stdout=DEVNULL,
                stderr=said,
                env={name: word for name, word in os.environ.items() if name != "HF_TOKEN"},  # all it needs is here
                start_new_session=True,  # Ctrl-C at the terminal is not meant for it
            )
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(order).encode() + b"\n")  # stays open: when it closes the child ends
        self._child.stdin.flush()
        self._began = time.monotonic()

    def _settle(self, place: Path) -> None:
        """Put what was made in its place, where another program may have been quicker."""
        with suppress(OSError):
            self._part.rename(place)
        self._tidy()

    def _last_words(self, code: int) -> str:
        lines = (self._part / "err").read_text("utf-8", "replace").splitlines()
        self._tidy()
        return next((line.strip()[:200] for line in reversed(lines) if line.strip()), f"exit code {code}")

    def _tidy(self) -> None:
        assert self._child is not None
        assert self._child.stdin is not None
        self._child.stdin.close()
        shutil.rmtree(self._part, ignore_errors=True)

    def _open(self, place: Path, model: Any, say: Say) -> str:
        try:
            native = opened(place, model)
            apart, share, allowed = deviation(native, model)
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            shutil.rmtree(place, ignore_errors=True)
            return f"what was compiled cannot be used ({str(error).splitlines()[0]})"
        if not share <= allowed:
            shutil.rmtree(place, ignore_errors=True)
            return f"its logits were up to {apart:.2g} from the plain ones"
        self._native, self.apart = native, apart
        took = f" after {time.monotonic() - self._began:.0f} s" if self._began else ""
        say(f"steps are compiled{took}: logits within {apart:.1g} of the plain ones")
        return ""

    def close(self) -> None:
        """End the process that compiles; what it has begun is lost."""
        if self._child is not None and self._child.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)  # with the compilers it started
            self._child.wait()
            self._tidy()


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
    if moving(model.config.get_text_config(decoder=True)):
        return "the positions of this model change with the length of the text"
    return ""


def moving(config: Any) -> bool:
    """Tell whether rotary positions are scaled by how long the text is by then: a compiled step has them fixed."""
    found = getattr(config, "rope_parameters", None) or {}
    sets = [each for each in found.values() if isinstance(each, dict)] or [found]
    return any(each.get("rope_type", "default") in ("dynamic", "longrope") for each in sets)


# which step, and where it is kept


def sweep(root: Path) -> None:
    """Remove the steps that were used longest ago, and what programs that were killed left behind."""
    there = sorted(root.iterdir(), key=lambda folder: folder.stat().st_mtime, reverse=True)
    stale = [each for each in there if each.name.startswith(PART) and time.time() - each.stat().st_mtime > 86400]
    for each in stale + [each for each in there if not each.name.startswith(PART)][MOST:]:
        shutil.rmtree(each, ignore_errors=True)


def tensors(model: Any) -> dict[str, Any]:
    """Return all weights and buffers of a model by their names, also those that have several."""
    found = dict(model.named_parameters(remove_duplicate=False))
    return {name: each.data for name, each in (found | dict(model.named_buffers(remove_duplicate=False))).items()}


def signature(model: Any) -> str:
    """Return a digest of what a step is made of, whatever the weights are."""
    shapes = [(name, list(each.shape), str(each.dtype)) for name, each in tensors(model).items()]
    config = {name: value for name, value in model.config.to_dict().items() if not name.startswith("_")}
    words = [type(model).__name__, str(model.dtype), model.config._attn_implementation, config, shapes]
    return hashlib.sha256(json.dumps(words, sort_keys=True, default=str).encode()).hexdigest()


def key(model: Any) -> str:
    """Return the name under which a compiled step is kept: that of the step, the libraries and the machine."""
    import torch
    import transformers

    words = [FORM, torch.__version__, transformers.__version__, sys.platform, torch.backends.cpu.get_cpu_capability()]
    return hashlib.sha256(json.dumps([*words, signature(model)]).encode()).hexdigest()[:32]


def digest(file: Path) -> str:
    """Return the SHA-256 of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


# use


def opened(place: Path, model: Any) -> Native:
    """Load a compiled step and lend it the weights of a model."""
    from safetensors.torch import load_file

    os.utime(place)  # used now
    known, rest = tensors(model), load_file(place / REST)
    marks = json.loads((place / MARKS).read_text("utf-8"))
    if digest(place / LIBRARY) != marks["library"]:
        raise OSError("the file is damaged")  # loading it could end the program
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

    words = model.config.get_text_config(decoder=True).vocab_size
    ids = torch.randint(0, words, (1, PROBE), generator=torch.Generator().manual_seed(0))
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(ids[:, :-2], past_key_values=cache, use_cache=True)
        with Slots(native, model, cache).taken() as step:
            ours = torch.stack([step(None, token).logits[0, -1] for token in ids[:, -2:].T])
        theirs = model(ids, use_cache=False).logits[0, -2:].float()
    exact = {each.dtype for each in tensors(model).values()} == {torch.float32}
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
            for layer, keys, values in zip(self._cache.layers, self._keys, self._values, strict=True):
                layer.keys, layer.values = keys[:, :, : self.length], values[:, :, : self.length]

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
        self._keys = [self._roomy(keys) for keys in self._keys]
        self._values = [self._roomy(values) for values in self._values]

    def _roomy(self, held: Any) -> Any:
        """Copy what is held, shape (1, heads, tokens, width), into the beginning of a tensor with more tokens."""
        roomy = held.new_zeros(1, held.shape[1], self._room, held.shape[3])  # what is masked is multiplied by 0
        roomy[:, :, : self.length] = held[:, :, : self.length]
        return roomy
