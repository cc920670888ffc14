"""Headers of weight files and JSON files of a model folder, read without their contents and without trust."""

import json
import math
import os
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PureWindowsPath
from typing import Any, BinaryIO, NamedTuple

from repl.core.errors import BadModel

POINTER = b"version https://git-lfs"
LARGEST_FILE = 300_000_000  # bytes
LARGEST_HEADER = 100_000_000  # bytes, the library's own bound
BITS = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8}
BITS |= {"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32}
BITS |= {"F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64}
SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes, by type in a GGUF header


@dataclass(frozen=True, slots=True)
class Weights:
    """What the headers of the weights say; for pickles, which have none, estimated from size and config.

    `dtypes` counts parameters by stored dtype, `bytes` is what the tensors take as stored, `format` is safetensors,
    gguf or pickle; `matrices` counts the parameters that quantizing would pack.
    """

    files: tuple[str, ...]
    parameters: int
    bytes: int
    dtypes: dict[str, int]
    format: str
    matrices: int = field(default=0, compare=False)


class Tensor(NamedTuple):
    """One entry of a header; `start` and `stop` are bytes from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def bad(name: str, cause: str, *hints: str) -> BadModel:
    """Build the error for one file; a foreign name may be of any length."""
    return BadModel(f"{short(name)} {cause}", *hints)


def short(name: str) -> str:
    """Cut a foreign name to a length that a sentence bears."""
    return name if len(name) <= 100 else f"{name[:100]}…"


def listed(names: list[str]) -> str:
    """Join names for a sentence, three at most."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(short, names[:3])) + more


def locate(folder: Path, name: str) -> Path:
    """Find a file of the folder; raise `BadModel` for a missing one, and for a name or a link that leads out."""
    words = PureWindowsPath(name)  # knows drives and both separators, on every system
    if words.anchor or ".." in words.parts or "\0" in name:
        raise bad(name, "is a path that leads out of the folder")
    path = folder / name
    try:
        check_link(folder, path)
        there = path.is_file()
    except RuntimeError as error:
        raise bad(name, "is a link to itself") from error
    except (OSError, ValueError) as error:  # too long, not to be encoded
        raise bad(name, "is no name for a file here") from error
    if not there:
        cause = "is a broken link" if path.is_symlink() else "is not a file" if path.exists() else "is missing"
        raise bad(name, cause)
    return path


def check_link(folder: Path, path: Path) -> None:
    """Raise `BadModel` for a path below a folder that a link leads out of it."""
    real = path.resolve()
    if not any(real.is_relative_to(home) for home in homes(folder)):
        raise bad(path.relative_to(folder).as_posix(), f"is a link that leads out of the folder, to {real}")


def homes(folder: Path) -> list[Path]:
    """List the folders in which its files may lie: itself, and for a snapshot in the Hub's cache the blobs there."""
    home = folder.resolve()
    if home.parent.name != "snapshots":
        return [home]
    repository = home.parent.parent
    return [home, (repository / "blobs").resolve(), (repository.parent / "blobs").resolve()]  # its own, the shared


def begin(folder: Path, name: str, contents: str = "weights") -> tuple[bytes, int]:
    """Read the first bytes of a file, and its size; raise `BadModel` if they show that it holds nothing."""
    path = locate(folder, name)
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(len(POINTER))
    if not size:
        raise bad(name, "is empty")
    if first == POINTER:
        raise bad(name, f"is a Git LFS pointer, not the {contents}: fetch it with git lfs pull")
    return first, size


def read_json(folder: Path, name: str, largest: int = LARGEST_FILE) -> dict[str, object]:
    """Read a JSON object; raise `BadModel` if the file holds none."""
    _, size = begin(folder, name, "file itself")
    if size > largest:
        raise bad(name, f"is {size:,} bytes long, more than such a file can need")
    return parse(name, (folder / name).read_bytes())


def check_ends(folder: Path, name: str) -> None:
    """Check that a large JSON file begins and ends as an object; raise `BadModel` if it was cut off."""
    start, size = begin(folder, name, "file itself")
    with (folder / name).open("rb") as file:
        file.seek(max(0, size - 64))
        end = file.read()
    if not (start.lstrip().startswith(b"{") and end.rstrip().endswith(b"}")):
        raise bad(name, "is not JSON from one end to the other: it was cut off")


def parse(name: str, text: bytes, part: str = "") -> dict[str, Any]:
    """Parse a JSON object that stands in a file, or in a part of one."""
    has = f"has a {part} that is" if part else "is"
    try:
        value = json.loads(text.decode())
    except json.JSONDecodeError as error:
        raise bad(name, f"{has} not JSON (line {error.lineno}, column {error.colno})") from error
    except (ValueError, RecursionError) as error:
        raise bad(name, f"{has} not JSON") from error
    if not isinstance(value, dict):
        raise bad(name, f"{has} not a JSON object")
    return value


def read_tensors(folder: Path, files: dict[str, set[str]]) -> dict[str, Tensor]:
    """Read the headers of safetensors files; raise `BadModel` if a tensor is not where the index says."""
    tensors: dict[str, Tensor] = {}
    for file, promised in files.items():
        there = read_header(folder, file)
        if missing := sorted(promised - there.keys()):
            raise bad(file, f"does not hold {listed(missing)}, as the index says it does")
        tensors |= there
    if not tensors:
        raise bad(next(iter(files)), "holds no tensors")
    return tensors


def read_header(folder: Path, name: str) -> dict[str, Tensor]:
    """Read and check the header of one safetensors file: its tensors by name."""
    _, size = begin(folder, name)
    with (folder / name).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LARGEST_HEADER:
            raise bad(name, f"is not a safetensors file: its header would be {length:,} bytes long")
        if size < 8 + length:
            raise bad(name, f"is cut short: it has {size:,} bytes, and its header alone needs {8 + length:,}")
        content = parse(name, file.read(length), "header")
    notes = content.pop("__metadata__", None) or {}
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise bad(name, "has a __metadata__ in its header that is more than text by name")
    tensors = {key: entry(name, key, value) for key, value in content.items()}
    check_layout(name, tensors, size - 8 - length)
    return tensors


def entry(file: str, name: str, value: object) -> Tensor:
    """Check one tensor of a header by itself."""
    match value:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(stop)]} if (
            0 <= start <= stop < 2**63
        ):
            pass
        case _:
            raise bad(file, f"has no usable dtype, shape and data_offsets for {short(name)}")
    if dtype not in BITS:
        raise bad(file, f"has {short(name)} in an unknown dtype, {short(dtype)!r}")
    if len(shape) > 32 or not all(isinstance(side, int) and 0 <= side < 2**63 for side in shape):
        raise bad(file, f"has {short(name)} in an impossible shape, {short(str(shape))}")
    need, room = math.prod(shape) * BITS[dtype], 8 * (stop - start)
    if need != room:
        size = f"{short(f'{need // 8:,}')} bytes by shape {short(str(shape))} and dtype {dtype}"
        raise bad(file, f"has {short(name)} of {size}, but {room // 8:,} by data_offsets")
    return Tensor(dtype, tuple(shape), start, stop)


def check_layout(file: str, tensors: dict[str, Tensor], room: int) -> None:
    """Raise `BadModel` unless the tensors fill the `room` bytes after the header, one after the other."""
    end = max((each.stop for each in tensors.values()), default=0)
    if end > room:
        raise bad(file, f"is cut short: its tensors need {end:,} bytes, and {room:,} are there")
    if end < room:
        raise bad(file, f"is {room - end:,} bytes longer than its header says")
    end = 0
    for name, each in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if each.start < end:
            raise bad(file, f"has {short(name)} overlapping the tensor before it")
        if each.start > end:
            raise bad(file, f"has a hole of {each.start - end:,} bytes before {short(name)}")
        end = each.stop


def counted(files: Iterable[str], tensors: Iterable[Tensor], kind: str) -> Weights:
    """Add up what the headers say."""
    dtypes: Counter[str] = Counter()
    size = 0
    for each in tensors:
        dtypes[each.dtype] += math.prod(each.shape)
        size += each.stop - each.start
    return Weights(tuple(files), dtypes.total(), size, dict(dtypes), kind)


def pickled(folder: Path, config: dict[str, object], files: Iterable[str]) -> Weights:
    """Look at pickles from outside: whole or not, and what they may hold by size and the config's dtype."""
    size = 0
    for file in files:
        first, length = begin(folder, file)
        if not first.startswith((b"PK", b"\x80")):  # zip archives, and plain pickles of old
            raise bad(file, "is not a PyTorch file")
        if first.startswith(b"PK") and not zipfile.is_zipfile(folder / file):
            raise bad(file, "is cut short: the directory at its end is missing")
        size += length
    declared = str(config.get("dtype") or config.get("torch_dtype"))
    stored = {"float16": "F16", "bfloat16": "BF16"}.get(declared, "F32")
    parameters = size * 8 // BITS[stored]
    return Weights(tuple(files), parameters, size, {stored: parameters}, "pickle")


class Cursor:
    """Reads the header of a GGUF file forward; raises `EOFError` where it ends too soon."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size

    def number(self, width: int) -> int:
        """Read an unsigned number of `width` bytes."""
        data = self.file.read(width)
        if len(data) < width:
            raise EOFError
        return int.from_bytes(data, "little")

    def skip(self, width: int) -> None:
        """Pass over bytes."""
        if width > self.size:
            raise EOFError
        self.file.seek(width, os.SEEK_CUR)

    def text(self) -> str:
        """Read a string."""
        width = self.number(8)
        if width > min(self.size, LARGEST_HEADER):
            raise EOFError
        return self.file.read(width).decode(errors="replace")

    def skip_value(self, kind: int) -> None:
        """Pass over a value of one of the format's types; raises `KeyError` for one it does not have."""
        if kind == 8:
            self.skip(self.number(8))
        elif kind == 9:
            inner, count = self.number(4), self.number(8)
            if inner in SCALARS:
                self.skip(count * SCALARS[inner])
            else:
                for _ in range(min(count, self.size)):
                    self.skip_value(inner)
        else:
            self.skip(SCALARS[kind])


def read_gguf(folder: Path, name: str) -> Weights:
    """Read and check the header of a GGUF file."""
    first, size = begin(folder, name)
    if first[:4] != b"GGUF":
        raise bad(name, "is not a GGUF file")
    with (folder / name).open("rb") as file:
        try:
            tensors, start = gguf_tensors(name, Cursor(file, size))
        except EOFError as error:
            raise bad(name, "is cut short: it ends within its header") from error
        except (KeyError, RecursionError) as error:
            raise bad(name, "has a broken header") from error
    need = start + max((each.stop for _, each in tensors), default=0)
    if need > size:
        raise bad(name, f"is cut short: it has {size:,} bytes, and its tensors need {need:,}")
    if not tensors:
        raise bad(name, "holds no tensors")
    inner = (math.prod(each.shape) for name, each in tensors if name.startswith("blk.") and len(each.shape) == 2)
    return replace(counted((name,), [each for _, each in tensors], "gguf"), matrices=sum(inner))


def gguf_tensors(name: str, cursor: Cursor) -> tuple[list[tuple[str, Tensor]], int]:
    """Read the named tensors of a GGUF header, and the byte where their data begins."""
    cursor.skip(4)
    version = cursor.number(4)
    if version not in (2, 3):
        raise bad(name, f"has GGUF version {version}, not 2 or 3")
    count, values, alignment = cursor.number(8), cursor.number(8), 32
    for _ in range(values):
        key, kind = cursor.text(), cursor.number(4)
        if key == "general.alignment" and kind == 4:
            alignment = cursor.number(4) or 32
        else:
            cursor.skip_value(kind)
    tensors = [gguf_tensor(name, cursor) for _ in range(count)]
    return tensors, -(-cursor.file.tell() // alignment) * alignment


def gguf_tensor(file: str, cursor: Cursor) -> tuple[str, Tensor]:
    """Read one entry of a GGUF header with its name."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    name, sides = cursor.text(), cursor.number(4)
    if sides > 8:
        raise bad(file, f"has {short(name)} with {sides:,} dimensions")
    shape = tuple(cursor.number(8) for _ in range(sides))
    kind, start = cursor.number(4), cursor.number(8)
    try:
        stored = GGMLQuantizationType(kind)
        block, width = GGML_QUANT_SIZES[stored]
    except (ValueError, KeyError) as error:
        raise bad(file, f"has {short(name)} in an unknown dtype, number {kind}") from error
    return name, Tensor(stored.name, shape, start, start + math.prod(shape) // block * width)
