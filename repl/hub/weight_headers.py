"""Headers of untrusted weight files: dtypes and shapes, without reading the tensors.

In come a folder and the names of its files; out comes `Weights`, or a `BadModel` that names the file and the cause.
safetensors checks its headers itself; GGUF headers are read here, since `GGUFReader` takes 22 s for 150,000 tokens.
"""

import math
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from repl.core.errors import NoMemory
from repl.core.format import amount
from repl.hub.model_files import bad_file, cut_name, find_file, read_start

STORED = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
CONVERTED = tuple(STORED)  # converted by the setting dtype; narrower floats are quantized weights
EMBEDDING = re.compile(r"(^|\.)(wte|tokens_embed|embed_tokens|embed_in|w|(\w+_)?embeddings?)\.weight$")
NOT_PACKED = ("lm_head.weight", "embed_out.weight", "wpe.weight")
MAX_HEADER_TEXT_BYTES = 100_000_000  # of one text in a GGUF header
SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # by type in a GGUF header


class Tensor(NamedTuple):
    """A tensor in a header; the dtype is named as in the file."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True, slots=True)
class Weights:
    """Sizes of the weights from their headers; for pickles, which have none, estimated from file size and config.

    `dtypes` counts parameters by stored dtype, `bytes` is what the tensors take as stored, `format` is safetensors,
    gguf or pickle; `matrices` counts the parameters that quantizing would pack.
    """

    files: tuple[str, ...]
    parameters: int
    bytes: int
    dtypes: dict[str, int]
    format: str
    matrices: int = field(default=0, compare=False)

    def size_in(self, dtype: str) -> int:
        """Bytes of the weights in memory, loaded as `auto` (as stored), `float32`, `bfloat16` or `float16`."""
        width = {"auto": 4, "float32": 4, "bfloat16": 2, "float16": 2}[dtype]
        if self.format == "gguf":  # dequantized while loading
            return self.parameters * width
        if dtype == "auto":
            return self.bytes
        return self.bytes + sum(self.dtypes.get(name, 0) * (width - bits(name) // 8) for name in CONVERTED)


def bits(dtype: str) -> int:
    """Return the bits of a safetensors dtype, from its name: F8_E4M3, BF16; BOOL takes 8."""
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8


def count_weights(files: Iterable[str], tensors: dict[str, Tensor], format: str) -> Weights:
    """Add up the tensors of headers."""
    dtypes: Counter[str] = Counter()
    for each in tensors.values():
        dtypes[each.dtype] += math.prod(each.shape)
    packed = (each for name, each in tensors.items() if len(each.shape) == 2 and is_linear(name, each.dtype, format))
    matrices = sum(math.prod(each.shape) for each in packed)
    size = sum(each.bytes for each in tensors.values())
    return Weights(tuple(files), dtypes.total(), size, dict(dtypes), format, matrices)


def is_linear(name: str, dtype: str, format: str) -> bool:
    """Tell whether a matrix is the weight of a linear layer that quantization packs: no embedding, no output head."""
    if format == "gguf":
        return name.startswith("blk.")
    other = name.endswith(NOT_PACKED) or EMBEDDING.search(name)
    return name.endswith(".weight") and dtype in CONVERTED and not other


# safetensors


def read_tensors(folder: Path, files: Iterable[str]) -> dict[str, Tensor]:
    """Read the headers of safetensors files: their tensors by name."""
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= read_header(folder, file)
    return tensors


def read_header(folder: Path, name: str) -> dict[str, Tensor]:
    """Read and check the header of a safetensors file; raises `BadModel` for a false or empty one."""
    from safetensors import SafetensorError, safe_open

    read_start(folder, name, "weights")
    try:
        with safe_open(folder / name, framework="np") as content:
            slices = {key: content.get_slice(key) for key in content.keys()}  # noqa: SIM118  # no mapping
    except MemoryError as error:
        size = amount((folder / name).stat().st_size)
        said = f"{name} needs {size} of address space, more than the system allows (ulimit -v)"
        raise NoMemory(said) from error
    except SafetensorError as error:
        cause = str(error).removeprefix("Error while deserializing header: ")
        raise bad_file(name, f"is not a complete safetensors file: {cut_name(cause)}") from error
    if not slices:
        raise bad_file(name, "contains no tensors")
    return {key: as_tensor(each.get_dtype(), each.get_shape()) for key, each in slices.items()}


def as_tensor(dtype: str, shape: Iterable[int]) -> Tensor:
    """Describe a tensor of a safetensors file."""
    sides = tuple(shape)
    return Tensor(dtype, sides, math.prod(sides) * bits(dtype) // 8)


# pickles


def estimate_pickles(folder: Path, config: dict[str, object], files: Iterable[str]) -> Weights:
    """Check that pickles are complete, without unpickling, and estimate their parameters from size and dtype."""
    size = 0
    for file in files:
        first = read_start(folder, file, "weights")
        if not first.startswith((b"PK", b"\x80")):  # zip archives, and the older plain pickles
            raise bad_file(file, "is not a PyTorch file")
        if first.startswith(b"PK") and not zipfile.is_zipfile(folder / file):
            raise bad_file(file, "is truncated: the directory at its end is missing")
        size += (folder / file).stat().st_size
    declared = str(config.get("dtype") or config.get("torch_dtype"))
    stored = {"float16": "F16", "bfloat16": "BF16"}.get(declared, "F32")
    parameters = size * 8 // bits(stored)
    return Weights(tuple(files), parameters, size, {stored: parameters}, "pickle")


# GGUF


def read_gguf(folder: Path, name: str) -> Weights:
    """Read and check the header of a GGUF file."""
    if not read_start(folder, name, "weights").startswith(b"GGUF"):
        raise bad_file(name, "is not a GGUF file")
    path = find_file(folder, name)
    with path.open("rb") as file:
        header = GgufHeader(file, path.stat().st_size)
        try:
            tensors, end = header.read()
        except EOFError as error:
            raise bad_file(name, "is truncated: it ends within its header") from error
        except (KeyError, RecursionError) as error:
            cause = "has a header that cannot be read: a value of unknown type, or nested too deeply"
            raise bad_file(name, cause) from error
        except ValueError as error:
            raise bad_file(name, f"has a header that cannot be read: {cut_name(str(error))}") from error
    if end > header.size:
        raise bad_file(name, f"is truncated: it has {header.size:,} bytes, and its tensors need {end:,}")
    if not tensors:
        raise bad_file(name, "contains no tensors")
    return count_weights((name,), tensors, "gguf")


class GgufHeader:
    """Reads the header of a GGUF file forward; raises `EOFError` where it ends too soon, else `ValueError`."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size

    def read(self) -> tuple[dict[str, Tensor], int]:
        """Return the tensors by name, and the byte where the last of them ends."""
        self.skip(4)
        if (version := self.number(4)) not in (2, 3):
            raise ValueError(f"GGUF version {version}, not 2 or 3")
        count, values, alignment = self.number(8), self.number(8), 32
        for _ in range(values):
            key, kind = self.text(), self.number(4)
            if key == "general.alignment" and kind == 4:
                alignment = self.number(4) or 32
            else:
                self.skip_value(kind)
        tensors: dict[str, Tensor] = {}
        end = 0
        for _ in range(count):
            name, start, tensor = self.tensor()
            tensors[name] = tensor
            end = max(end, start + tensor.bytes)
        return tensors, -(-self.file.tell() // alignment) * alignment + end

    def tensor(self) -> tuple[str, int, Tensor]:
        """Read an entry: name, offset in the data, tensor."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        name, sides = self.text(), self.number(4)
        if sides > 8:
            raise ValueError(f"a tensor of {sides:,} dimensions")
        shape = tuple(self.number(8) for _ in range(sides))
        stored, start = GGMLQuantizationType(self.number(4)), self.number(8)
        block, width = GGML_QUANT_SIZES[stored]
        return name, start, Tensor(stored.name, shape, math.prod(shape) // block * width)

    def number(self, width: int) -> int:
        """Read an unsigned number of `width` bytes."""
        data = self.file.read(width)
        if len(data) < width:
            raise EOFError
        return int.from_bytes(data, "little")

    def skip(self, width: int) -> None:
        """Skip bytes."""
        if width > self.size:
            raise EOFError
        self.file.seek(width, os.SEEK_CUR)

    def text(self) -> str:
        """Read a string."""
        width = self.number(8)
        if width > min(self.size, MAX_HEADER_TEXT_BYTES):
            raise EOFError
        return self.file.read(width).decode(errors="replace")

    def skip_value(self, kind: int) -> None:
        """Skip a value of a GGUF type; raises `KeyError` for an unknown type."""
        if kind == 8:
            self.skip(self.number(8))
        elif kind == 9:
            inner, count = self.number(4), self.number(8)
            if inner in SCALAR_BYTES:
                self.skip(count * SCALAR_BYTES[inner])
            else:
                for _ in range(min(count, self.size)):
                    self.skip_value(inner)
        else:
            self.skip(SCALAR_BYTES[kind])
