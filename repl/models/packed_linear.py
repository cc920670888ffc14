"""Linear layers with int8 or int4 weights, on torch's packed CPU kernels."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from transformers.pytorch_utils import Conv1D

from repl.core import library
from repl.core.errors import MissingExtra
from repl.core.events import Progress
from repl.core.jobs import JobContext
from repl.core.library_types import Linear, Module, PreTrainedModel, Tensor

GROUP_WEIGHTS = 32  # int4 weights that share a scale and a zero
TILE_ROWS = 16  # rows that the int4 kernel computes together: the last ones are padded
CHUNK_ROWS = 1024  # rows quantized at a time: a whole output head would need eight times its size

DENSE_ROWS, MAX_DENSE_WEIGHTS = 96, 1 << 25  # bounds within which int8 computes in float32


@dataclass(frozen=True, slots=True)
class Packing:
    """How many linear layers of a model were packed."""

    linears: int
    left: int
    """Linear layers whose shape the kernel does not take; they are unchanged."""


def pack(model: PreTrainedModel, quantize: str, emit: JobContext) -> Packing:
    """Replace every linear layer of a model by a packed one; each original is freed at once.

    Raises `MissingExtra` where this build of torch has no correct kernel.
    """
    require_kernel(quantize)
    found = list(find_linears(model))
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    took = 0
    for place, (parent, name, linear) in enumerate(found):
        emit(Progress("quantizing", place, len(found), "layers"))
        rows, columns = upright_weight(linear).shape
        if rows and columns and not columns % GROUP_WEIGHTS:
            setattr(parent, name, pack_linear(linear, quantize, twice=linear is head))
            took += 1
    detach(model)
    return Packing(took, len(found) - took)


def find_linears(model: PreTrainedModel) -> Iterator[tuple[Module, str, Linear]]:
    """Yield parent, name and layer of each linear layer, GPT-2's `Conv1D` included; an adapter's own are left out."""
    for path, module in list(model.named_modules()):
        for name, child in list(module.named_children()):
            if type(child) in (torch.nn.Linear, Conv1D) and "lora_" not in path:
                yield module, name, child


def upright_weight(linear: Linear) -> Tensor:
    """Return the weight of a linear layer, shape (outputs, inputs)."""
    return linear.weight if hasattr(linear, "in_features") else linear.weight.t()


def detach(model: PreTrainedModel) -> None:
    """Copy the remaining weights: as views of the mapped file they would keep all of it in memory."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.data = weight.data.clone()


@cache
def require_kernel(quantize: str) -> None:
    """Raise `MissingExtra` unless torch's kernel agrees with a plain matrix product."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        linear = torch.nn.Linear(64, 48)
        words = torch.randn(3, 64, dtype=torch.bfloat16)
        try:
            packed = pack_linear(linear, quantize)
            right = torch.nn.functional.linear(words.float(), packed.weight.float(), linear.bias)
            good = torch.allclose(packed(words).float(), right, atol=0.05, rtol=0.02)
        except (RuntimeError, AttributeError, NotImplementedError):  # not built, or not for this CPU
            good = False
    if not good:
        raise MissingExtra(f"this build of torch has no {quantize} kernel for this CPU", "/quantize 8bit")


def pack_linear(linear: Linear, quantize: str, twice: bool = False) -> Module:
    """Return the packed layer for a linear one; `twice` gives int4 eight bits, which an output head needs."""
    with torch.no_grad():
        weight = upright_weight(linear).detach()
        quantized = quantize_int8(weight) if quantize == "int8" else quantize_int4(weight, twice)
        return PackedLinear(quantize, tuple(weight.shape), *quantized, linear.bias)


def cut_rows(weight: Tensor) -> Iterator[Tensor]:
    """Cut a weight into blocks of rows, in float32."""
    for start in range(0, weight.shape[0], CHUNK_ROWS):
        yield weight[start : start + CHUNK_ROWS].float()


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize to int8 with one bfloat16 scale a row: values (rows, columns), scales (rows)."""
    values, scales = [], []
    for block in cut_rows(weight):
        scale = (block.abs().amax(1, keepdim=True) / 127).clamp_(min=1e-30).bfloat16()
        values.append((block / scale.float()).round_().clamp_(-127, 127).to(torch.int8))
        scales.append(scale.flatten())
    return torch.cat(values).contiguous(), torch.cat(scales)


def quantize_int4(weight: Tensor, twice: bool = False) -> tuple[Tensor, Tensor]:
    """Quantize to int4 with a bfloat16 scale and zero for each group, in the kernel's own order.

    A weight is `(value - 8) * scale + zero`; scale and zero have shape (groups, rows, 2). With `twice` the remainder is
    quantized too and stands behind the weight, (rows, 2 * columns), to be multiplied by the input repeated twice.
    """
    values, scales = [], []
    for block in cut_rows(weight):
        block = torch.nn.functional.pad(block, (0, 0, 0, -block.shape[0] % TILE_ROWS))
        if twice:
            steps, scale, zero = round_groups(block)
            rest = block - ((steps - 8) * scale.unsqueeze(-1) + zero.unsqueeze(-1)).view(block.shape)
            block = torch.cat([block, rest], 1)
        steps, scale, zero = round_groups(block)
        whole = steps.to(torch.int32).view(block.shape)
        values.append(library.int4_weights(whole))
        scales.append(torch.stack([scale, zero], -1).transpose(0, 1).bfloat16())
    return torch.cat(values), torch.cat(scales, 1).contiguous()


def round_groups(block: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Round groups to 16 steps: values (rows, groups, GROUP), scale and zero (rows, groups), all in float32."""
    groups = block.view(block.shape[0], -1, GROUP_WEIGHTS)
    least, most = groups.aminmax(dim=-1)
    scale = ((most - least) / 15).clamp_(min=1e-30).bfloat16().float()
    zero = (least + 8 * scale).bfloat16().float()
    return groups.sub(zero.unsqueeze(-1)).div_(scale.unsqueeze(-1)).add_(8).round_().clamp_(0, 15), scale, zero


class PackedLinear(torch.nn.Linear):  # type: ignore[misc]  # mypy does not follow the library
    """A linear layer with packed weights: it computes in bfloat16 and returns the dtype of its input."""

    def __init__(self, quantize: str, size: tuple[int, int], values: Tensor, scales: Tensor, bias: Tensor) -> None:
        torch.nn.Module.__init__(self)
        self.quantize, (self.out_features, self.in_features) = quantize, size
        self.twice = quantize == "int4" and len(scales) * GROUP_WEIGHTS == 2 * self.in_features
        self.kept = torch.bfloat16  # the kernels are 5 to 25 times slower with other activations
        self.register_buffer("values", values)
        self.register_buffer("scales", scales)
        self.register_parameter("bias", None if bias is None else torch.nn.Parameter(bias.detach().clone(), False))

    @property
    def weight(self) -> Tensor:
        """The weight as the kernel sees it, in bfloat16: for code that goes past `forward`."""
        return self.product(torch.eye(self.in_features, dtype=self.kept)).t().contiguous()

    def product(self, rows: Tensor) -> Tensor:
        """Multiply rows of bfloat16 by the weight: (count, inputs) to (count, outputs)."""
        if self.quantize == "int4":
            rows = rows.repeat(1, 2) if self.twice else rows
            return library.int4_product(rows, self.values, GROUP_WEIGHTS, self.scales)[:, : self.out_features]
        if len(rows) < DENSE_ROWS or self.values.numel() > MAX_DENSE_WEIGHTS:
            return library.int8_product(rows, self.values, self.scales)
        out = torch.nn.functional.linear(rows.float(), self.values.float())  # the kernel is made for few rows
        return out.mul_(self.scales.float()).to(rows.dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer: (..., inputs) to (..., outputs)."""
        out = self.product(input.reshape(-1, self.in_features).to(self.kept).contiguous()).to(input.dtype)
        if (bias := self.bias) is not None:
            out = out + bias
        return out.view(*input.shape[:-1], self.out_features)
