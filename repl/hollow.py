"""What a load computes on the meta device: tensors without numbers, of which only shape and format matter.

torch has them computed by Python that mirrors its kernels, which fills a model of 1B parameters with nothing for as
long as reading its weights takes, and imports sympy to do so.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

FILLS = frozenset(
    [
        "normal_",
        "uniform_",
        "trunc_normal_",
        "kaiming_normal_",
        "kaiming_uniform_",
        "xavier_normal_",
        "xavier_uniform_",
        "constant_",
        "zeros_",
        "ones_",
        "zero_",
        "fill_",
    ]
)
SCALES = (
    "__mul__",
    "__rmul__",
    "__truediv__",
    "__rtruediv__",
    "__pow__",
    "__rpow__",
    "mul",
    "div",
    "pow",
    "reciprocal",
)


@contextmanager
def made() -> Iterator[None]:
    """Answer for torch, on this thread, what the numbers of a tensor without numbers cannot change."""
    with _mode()():
        yield


@cache
def _mode() -> Any:
    import torch
    from torch.overrides import TorchFunctionMode

    scales = {getattr(torch.Tensor, name) for name in SCALES}

    class Hollow(TorchFunctionMode):  # type: ignore[misc]  # torch is not typed here
        def __torch_function__(
            self, function: Any, _: Any, arguments: tuple[Any, ...] = (), options: Any = None
        ) -> Any:
            options = options or {}
            if function is torch.arange:
                return _counted(function, arguments, options)
            first = arguments[0] if arguments else options.get("tensor")
            if isinstance(first, torch.Tensor) and first.is_meta:
                if getattr(function, "__name__", "") in FILLS:
                    return first
                if function is torch.empty_like and len(arguments) == 1 and first.is_contiguous():
                    return torch.empty(first.shape, **{"dtype": first.dtype, "device": "meta", **options})
                if function in scales and not options and _plain(first, arguments[1:]):
                    return torch.empty(first.shape, dtype=first.dtype, device="meta")
            return function(*arguments, **options)

    return Hollow


def _counted(arange: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Count on the processor, where only the shape is wanted."""
    import torch

    if torch.device(options.get("device") or "cpu").type != "meta":
        return arange(*arguments, **options)
    counted = arange(*arguments, **{**options, "device": "cpu"})
    return torch.empty(counted.shape, dtype=counted.dtype, device="meta")


def _plain(tensor: Any, others: tuple[Any, ...]) -> bool:
    """Tell whether these numbers leave the form of a tensor as it is."""
    floats = tensor.is_floating_point() and tensor.is_contiguous() and not tensor.requires_grad
    return floats and all(type(other) in (int, float) for other in others)
