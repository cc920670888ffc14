"""What a model folder holds, checked from its configs and headers before anything heavy reads it."""

import json
import math
import os
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, BinaryIO, NamedTuple

from repl.errors import BadModel

SAFE = ("model.safetensors", "model.safetensors.index.json")  # in the order in which transformers looks for them
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
OTHERS = (".safetensors", ".gguf", ".bin", ".h5", ".msgpack", ".pth", ".pt")
POINTER = b"version https://git-lfs"
LARGEST_CONFIG, LARGEST_FILE = 20_000_000, 300_000_000  # bytes
LARGEST_HEADER = 100_000_000  # bytes, the library's own bound
BITS = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8}
BITS |= {"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32}
BITS |= {"F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64}
CONVERTED = ("F16", "BF16", "F32", "F64")  # what another dtype changes; narrower floats are quantized weights
FLOATS = (*CONVERTED, "F8_E4M3", "F8_E5M2")
OTHER_HEADS = ("Classification", "QuestionAnswering", "MultipleChoice", "NextSentencePrediction", "MaskedLM")
SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes, by type in a GGUF header
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
WIDTHS = ("hidden_size", "n_embd", "d_model")
EMBEDDING = re.compile(r"(^|\.)(wte|tokens_embed|embed_tokens|embed_in|w|(\w+_)?embeddings?)\.weight$")
NUMBERED = re.compile(r"(.*?)\.(\d{1,9})\.")
TOKENIZER = re.compile(
    r"(tokenizer|tokenization|vocab|special_tokens_map|tekken|rwkv_vocab).*|.*\.(model|tiktoken|bpe)"
)


@dataclass(frozen=True, slots=True)
class Weights:
    """What the headers of the weights say; for pickles, which have none, estimated from size and config.

    `dtypes` counts parameters by stored dtype, `bytes` is what the tensors take as stored, `format` is safetensors,
    gguf or pickle.
    """

    files: tuple[str, ...]
    parameters: int
    bytes: int
    dtypes: dict[str, int]
    format: str


class NeedsCode(BadModel):
    """A model that comes with its own Python code, which runs only where the user allows it; `files` names the code."""

    def __init__(self, files: tuple[str, ...]) -> None:
        named = f" ({', '.join(files)})" if files else ""
        sentence = f"config.json asks for the model's own Python code{named}, which hub-repl does not run unless told"
        super().__init__(sentence, "/trust_remote_code true")
        self.files = files


class Tensor(NamedTuple):
    """One entry of a header; `start` and `stop` are bytes from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def examine(
    folder: Path, gguf_file: str = "", *, allow_pickle: bool = False, trust_remote_code: bool = False
) -> Weights:
    """Check config, weight headers and tokenizer files of a folder; raise `BadModel` naming file and cause."""
    if not folder.is_dir():
        raise BadModel(f"{folder} is not a folder" if folder.exists() else f"no folder {folder}")
    try:
        if gguf_file:
            return read_gguf(folder, gguf_file)
        return examined(folder, allow_pickle, trust_remote_code)
    except OSError as error:
        raise BadModel(f"{error.filename or folder} cannot be read: {error.strerror or error}") from error


def examined(folder: Path, allow_pickle: bool, trust_remote_code: bool) -> Weights:
    """Check a folder of transformers files."""
    config = read_config(folder)
    native = check_type(config, trust_remote_code)
    kind, files = weight_files(folder, config, allow_pickle)
    if kind == "pickle":
        weights = pickled(folder, config, files)
    else:
        tensors = read_tensors(folder, files)
        weights = counted(tuple(files), tensors.values(), kind)
        if native:
            check_sizes(config, tensors)
    check_tokenizer(folder)
    return weights


def size_in(weights: Weights, dtype: str) -> int:
    """Bytes of the weights in memory, loaded as `auto` (as stored), `float32`, `bfloat16` or `float16`."""
    width = {"auto": 4, "float32": 4, "bfloat16": 2, "float16": 2}[dtype]
    if weights.format == "gguf":  # dequantized while loading
        return weights.parameters * width
    if dtype == "auto":
        return weights.bytes
    changed = sum(weights.dtypes.get(stored, 0) for stored in CONVERTED)
    before = sum(weights.dtypes.get(stored, 0) * BITS[stored] // 8 for stored in CONVERTED)
    return weights.bytes - before + changed * width


def nonfinite(folder: Path, limit: int = 3) -> list[str]:
    """Name up to `limit` tensors that hold NaN or infinity, as "tensor in file"; reads the weights one at a time."""
    from safetensors import safe_open

    kind, files = weight_files(folder, read_config(folder), allow_pickle=True)
    found: list[str] = []
    for file in files if kind == "safetensors" else ():
        floats = [name for name, each in read_header(folder, file).items() if each.dtype in FLOATS]
        with safe_open(folder / file, framework="pt") as content:
            for name in floats:
                if not content.get_tensor(name).float().isfinite().all():
                    found.append(f"{name} in {file}")
                if len(found) == limit:
                    return found
    return found


def read_config(folder: Path) -> dict[str, Any]:
    """Read `config.json`; raise `BadModel` that says what the folder is instead, where that can be seen."""
    if os.path.lexists(folder / "config.json"):
        return read_json(folder, "config.json", LARGEST_CONFIG)
    if (folder / "adapter_config.json").is_file():
        raise adapter(folder)
    if packed := sorted(path.name for path in folder.glob("*.gguf")):
        raise BadModel(f"no config.json in {folder}, only {listed(packed)}", f"/model {folder / packed[0]}")
    raise BadModel(f"no config.json in {folder}: not a transformers model")


def adapter(folder: Path) -> BadModel:
    """Build the error for a folder that holds an adapter alone."""
    base = read_json(folder, "adapter_config.json", LARGEST_CONFIG).get("base_model_name_or_path")
    load = [f"/model {base}"] if base and isinstance(base, str) else []
    whose = f" for {short(base)}" if base and isinstance(base, str) else ""
    sentence = f"{folder} holds an adapter{whose} (adapter_config.json), not a whole model"
    return BadModel(sentence, *load, f"/adapter {folder}")


def check_type(config: dict[str, Any], trust_remote_code: bool) -> bool:
    """Tell whether transformers' own classes will load it; raise `BadModel` if nothing would as a causal LM."""
    declared = config.get("auto_map")
    code: dict[str, Any] = declared if isinstance(declared, dict) else {}
    if trust_remote_code and "AutoModelForCausalLM" in code:
        return False
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES as known
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as causal

    kind = config.get("model_type")
    kind = kind if isinstance(kind, str) else ""
    if kind in known and kind not in causal and "AutoModelForCausalLM" not in code:
        raise bad("config.json", f"has model_type {kind}, which is not a causal language model")
    if kind not in causal and code:
        if trust_remote_code:
            return False
        raise NeedsCode(code_files(code))
    if kind not in causal:
        raise unknown(kind)
    check_head(config)
    return True


def unknown(kind: str) -> BadModel:
    """Build the error for a model type that is not there, or that transformers does not have."""
    from transformers import __version__

    if not kind:
        return bad("config.json", "has no model_type: it does not say what kind of model this is")
    cause = f"has model_type {short(kind)}, which transformers {__version__} does not know"
    return bad("config.json", cause, "pip install --upgrade transformers")


def code_files(code: dict[str, Any]) -> tuple[str, ...]:
    """List the files that `auto_map` names: `modeling_x.py`, or `owner/name: modeling_x.py` from elsewhere."""
    classes = [each for value in code.values() for each in (value if isinstance(value, list) else [value])]
    paths = [each.rpartition(".")[0] or each for each in classes if isinstance(each, str)]
    return tuple(sorted({short(path.replace("--", ": ")) + ".py" for path in paths}))


def check_head(config: dict[str, Any]) -> None:
    """Raise `BadModel` where the type could be a causal LM, and these weights are something else."""
    declared = config.get("architectures")
    classes = [each for each in declared if isinstance(each, str)] if isinstance(declared, list) else []
    if config.get("is_decoder") is True or any("CausalLM" in each for each in classes):
        return
    if classes and all(each.endswith(OTHER_HEADS) for each in classes):
        raise bad("config.json", f"says {short(classes[0])}, which is not a causal language model")
    if config.get("is_encoder_decoder") is True:
        name = short(classes[0]) if classes else config["model_type"]
        raise bad("config.json", f"says {name}, an encoder with a decoder, which is not a causal language model")


def check_sizes(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Raise `BadModel` if the config describes a model of quite another size than the weights.

    Only what is absurd: layers may share weights, and embeddings may be narrower than the model.
    """
    layers = stacked(tensors)
    rows, columns = embedded(tensors)
    for part in (config, config.get("text_config")):
        if isinstance(part, dict):
            for names, found, most in (
                (LAYERS, f"{layers} layers", 10 * layers),
                (("vocab_size",), f"an embedding of {rows} rows", 2 * rows + 1024 if rows else 0),
                (WIDTHS, f"an embedding of {columns} columns", 16 * columns),
            ):
                check_size(part, names, found, most)


def check_size(config: dict[str, Any], names: Iterable[str], found: str, most: int) -> None:
    """Raise `BadModel` if one of these values is no number, or far above what was found."""
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        if type(value) is not int or value < 0:
            raise bad("config.json", f"has {name} {short(json.dumps(value))}, which is not a count")
        if value > most > 0:
            raise bad("config.json", f"has {name} {short(str(value))}, but the weights have {found}")


def stacked(tensors: dict[str, Tensor]) -> int:
    """Count the layers: the distinct numbers in the longest numbered list, or else the tensors."""
    lists: defaultdict[str, set[str]] = defaultdict(set)
    for name in tensors:
        if match := NUMBERED.match(name):
            lists[match[1]].add(match[2])
    return max(map(len, lists.values()), default=len(tensors))


def embedded(tensors: dict[str, Tensor]) -> tuple[int, int]:
    """Find the shape of the token embedding, (0, 0) if none can be told."""
    shapes = [each.shape for name, each in tensors.items() if EMBEDDING.search(name) and each.dtype in CONVERTED]
    rows, columns = max((shape for shape in shapes if len(shape) == 2), default=(0, 0))
    return rows, columns


def check_tokenizer(folder: Path) -> None:
    """Raise `BadModel` if there is no tokenizer, or one that cannot be read."""
    names = sorted(path.name for path in folder.iterdir() if TOKENIZER.fullmatch(path.name) and not path.is_dir())
    if not names:
        raise BadModel(f"no tokenizer in {folder}: no tokenizer.json, no tokenizer.model and no vocab.json")
    whole = "tokenizer.json" in names  # then the others are leftovers, except the options
    for name in [name for name in names if not whole or name in ("tokenizer.json", "tokenizer_config.json")]:
        if name.endswith(".json"):
            content = read_json(folder, name)
            if name == "tokenizer.json" and not isinstance(content.get("model"), dict):
                raise bad(name, "has no model in it: it is no tokenizer")
        else:
            begin(folder, name, "file itself")


def weight_files(folder: Path, config: dict[str, Any], allow_pickle: bool) -> tuple[str, dict[str, set[str]]]:
    """Find the format and the files that transformers will read, each with the tensors an index promises there."""
    explicit = config.get("transformers_weights")
    named = isinstance(explicit, str) and bool(explicit)
    wanted, pickles = ((explicit,), ()) if named else (SAFE, PICKLES)
    for kind, names, ending in (("safetensors", wanted, ".safetensors"), ("pickle", pickles, ".bin")):
        name = next((name for name in names if os.path.lexists(folder / name)), "")
        if kind == "pickle" and name and not allow_pickle:
            cause = "is a pickle, which can run code when it is read, and there are no safetensors"
            raise bad(name, cause, "/allow_pickle true")
        if name:
            files = shards(folder, name) if name.endswith(".index.json") else {name: set()}
            if strange := [file for file in files if not file.endswith(ending)]:  # transformers would unpickle it
                raise bad(name, f"names {short(strange[0])} as weights, which is not a {ending} file")
            return kind, files
    raise weightless(folder, wanted)


def weightless(folder: Path, wanted: Iterable[str]) -> BadModel:
    """Build the error for a folder without weights, which says what else is there."""
    if (folder / "adapter_config.json").is_file():
        return adapter(folder)
    others = sorted(path.name for path in folder.iterdir() if path.suffix in OTHERS)
    packed = [f"/model {folder / name}" for name in others if name.endswith(".gguf")]
    rest = f", only {listed(others)}" if others else ""
    return BadModel(f"no weights in {folder}: no {' and no '.join(wanted)}{rest}", *packed[:3])


def shards(folder: Path, index: str) -> dict[str, set[str]]:
    """Read an index: the files it names, each with the tensors it promises; raise `BadModel` if one is not there."""
    content = read_json(folder, index)
    placed = content.get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(isinstance(file, str) for file in placed.values()):
        raise bad(index, "has no weight_map from tensors to files")
    if not isinstance(content.get("metadata"), dict):
        raise bad(index, "has no metadata, without which transformers does not read it")
    files: dict[str, set[str]] = {}
    for tensor, file in placed.items():
        files.setdefault(file, set()).add(tensor)
    for file in files:
        try:
            locate(folder, file)
        except BadModel as error:
            raise bad(index, f"cannot be followed: {error.message}") from error
    return files


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
        real, there = path.resolve(), path.is_file()
    except RuntimeError as error:
        raise bad(name, "is a link to itself") from error
    except (OSError, ValueError) as error:  # too long, not to be encoded
        raise bad(name, "is no name for a file here") from error
    if not any(real.is_relative_to(home) for home in homes(folder)):
        raise bad(name, f"is a link that leads out of the folder, to {real}")
    if not there:
        cause = "is a broken link" if path.is_symlink() else "is not a file" if path.exists() else "is missing"
        raise bad(name, cause)
    return path


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


def read_json(folder: Path, name: str, largest: int = LARGEST_FILE) -> dict[str, Any]:
    """Read a JSON object; raise `BadModel` if the file holds none."""
    _, size = begin(folder, name, "file itself")
    if size > largest:
        raise bad(name, f"is {size:,} bytes long, more than such a file can need")
    return parse(name, (folder / name).read_bytes())


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


def entry(file: str, name: str, value: Any) -> Tensor:
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


def pickled(folder: Path, config: dict[str, Any], files: Iterable[str]) -> Weights:
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
    need = start + max((each.stop for each in tensors), default=0)
    if need > size:
        raise bad(name, f"is cut short: it has {size:,} bytes, and its tensors need {need:,}")
    if not tensors:
        raise bad(name, "holds no tensors")
    return counted((name,), tensors, "gguf")


def gguf_tensors(name: str, cursor: Cursor) -> tuple[list[Tensor], int]:
    """Read the tensors of a GGUF header, and the byte where their data begins."""
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


def gguf_tensor(file: str, cursor: Cursor) -> Tensor:
    """Read one entry of a GGUF header."""
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
    return Tensor(stored.name, shape, start, start + math.prod(shape) // block * width)
