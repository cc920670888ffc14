"""The modules of a model, identical ones folded, with their parameters and memory; for the model thread."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import prod

from repl.core.errors import UsageError
from repl.core.library_types import Module, PreTrainedModel, Tensor
from repl.core.values import closest_match


@dataclass(frozen=True, slots=True)
class Part:
    """A module or a parameter; if `count` of them are folded, the numbers are those of one."""

    path: str
    """The path of the module; of folded ones that of the first."""
    name: str
    kind: str
    count: int
    shape: str
    parameters: int
    """Shared weights count where they come first."""
    bytes: int
    """Of parameters and buffers."""
    dtype: str
    device: str
    tied: str
    """The parameter whose weights it uses."""
    parts: tuple["Part", ...] = ()
    inside: int = 0
    """The number of parts that are cut off here."""


def fold_modules(model: PreTrainedModel, path: str = "") -> Part:
    """Return the module at a path with its submodules, identical ones folded; raises `UsageError` for a wrong path."""
    return ModuleReader(model, path).part(path, path or type(model).__name__)


def cut_tree(part: Part, depth: int) -> Part:
    """Return a part with `depth` levels below it."""
    if not depth and part.parts:
        return replace(part, parts=(), inside=len(part.parts))
    return replace(part, parts=tuple(cut_tree(one, depth - 1) for one in part.parts))


def block_level(part: Part) -> int:
    """Return the level at which the most modules are folded; 0 if none are."""
    found = [(one.count, -level) for level, one in levels(part) if one.count > 1]
    return -max(found)[1] if found else 0


def levels(part: Part, level: int = 0) -> Iterator[tuple[int, Part]]:
    """Yield a part and everything in it, each with its level."""
    yield level, part
    for one in part.parts:
        yield from levels(one, level + 1)


class ModuleReader:
    """Reads the modules of one model below a path."""

    def __init__(self, model: PreTrainedModel, path: str) -> None:
        self._modules = dict(model.named_modules(remove_duplicate=False))
        if path not in self._modules:
            close = closest_match(path, list(self._modules))
            raise UsageError(f"no module {path!r}" + (f", did you mean {close}?" if close else ""), "/arch")
        self._root = path
        self._places = getattr(model, "hf_device_map", None) or {}
        self._first: dict[int, str] = {}
        for name, weight in self._modules[path].named_parameters(path, remove_duplicate=False):
            self._first.setdefault(id(weight), name)
        for name, weight in model.named_parameters(remove_duplicate=False):
            self._first.setdefault(id(weight), name)

    def part(self, path: str, name: str) -> Part:
        """Return the module at a path."""
        module = self._modules[path]
        below = [(f"{path}.{child}".lstrip("."), child) for child, _ in module.named_children()]
        parts = self._folded([self.part(*one) for one in below])
        own = [
            self.weight(f"{path}.{key}".lstrip("."), key, weight)
            for key, weight in module.named_parameters(recurse=False, remove_duplicate=False)
        ]
        ties = [one.tied for one in own if one.tied]
        if len(parts) == 1 and not own and parts[0].count > 1 and parts[0].count == len(below):
            return replace(parts[0], path=path, name=name)
        buffers = sum(buffer.nbytes for _, buffer in module.named_buffers(recurse=False, remove_duplicate=False))
        return Part(
            path,
            name,
            type(module).__name__,
            1,
            _shape(module),
            sum(one.parameters * one.count for one in (*own, *parts)),
            sum(one.bytes * one.count for one in (*own, *parts)) + buffers,
            _listed(one.dtype for one in (*own, *parts)),
            _listed(one.device for one in (*own, *parts)),
            ties[0] if len(ties) == len(own) == 1 else "",
            (*([] if own and not parts and path != self._root else own), *parts),
        )

    def weight(self, path: str, name: str, weight: Tensor) -> Part:
        """Return a parameter; shared weights count where they come first."""
        tied = self._first[id(weight)] if self._first[id(weight)] != path else ""
        packed = getattr(weight, "quant_state", None)  # 4 bit weights are stored two in a byte
        shape = tuple(packed.shape if packed is not None else weight.shape)
        dtype = packed.quant_type if packed is not None else str(weight.dtype).removeprefix("torch.")
        own, taken = (0, 0) if tied else (prod(shape), int(weight.nbytes))
        return Part(path, name, "parameter", 1, _sizes(shape), own, taken, dtype, self._device(path, weight), tied)

    def _device(self, path: str, weight: Tensor) -> str:
        if weight.device.type != "meta":
            return str(weight.device)
        above = [place for place in self._places if path == place or path.startswith(f"{place}.") or not place]
        return str(self._places[max(above, key=len)]) if above else "meta"

    def _folded(self, parts: list[Part]) -> list[Part]:
        """Fold identical numbered modules, also where two kinds alternate."""
        if not all(part.name.isdigit() for part in parts):
            return parts
        groups: dict[Part, list[Part]] = {}
        for part in parts:
            groups.setdefault(strip_place(part), []).append(part)
        return [
            replace(group[0], count=len(group), name=_ranges([int(one.name) for one in group]))
            for group in groups.values()
        ]


def strip_place(part: Part) -> Part:
    """Return a part without its place, so that identical modules compare equal."""
    return replace(
        part, path="", name="" if part.name.isdigit() else part.name, parts=tuple(map(strip_place, part.parts))
    )


def _ranges(numbers: list[int]) -> str:
    """Write `0-2, 5` for 0, 1, 2, 5."""
    numbered = groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])  # the same within a run
    runs = [[number for _, number in run] for _, run in numbered]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _listed(words: Iterable[str]) -> str:
    found = [word for listed in words for word in listed.split(", ") if word]
    return ", ".join(dict.fromkeys(found))


def _sizes(shape: Sequence[int]) -> str:
    return " x ".join(f"{size:,}" for size in shape)


def _shape(module: Module) -> str:
    """Return the sizes of a linear map or an embedding, else the shape of the module's weight."""
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        bias = getattr(module, "bias", None) is not None
        return f"{module.in_features:,} to {module.out_features:,}" + (" + bias" if bias else "")
    if hasattr(module, "num_embeddings") and hasattr(module, "embedding_dim"):
        return f"{module.num_embeddings:,} x {module.embedding_dim:,}"
    if type(module).__name__ == "Conv1D":  # GPT-2's linear map, with its weight the other way round
        return f"{module.weight.shape[0]:,} to {module.weight.shape[1]:,} + bias"
    weight = getattr(module, "weight", None)
    return _sizes(weight.shape) if weight is not None and hasattr(weight, "shape") else ""
