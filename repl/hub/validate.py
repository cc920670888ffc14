"""What a model folder holds, checked from its configs and headers before anything heavy reads it."""

import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from repl.core.errors import BadModel
from repl.hub.cache import LocalModel
from repl.hub.weight_headers import (
    BITS,
    Tensor,
    Weights,
    bad,
    begin,
    check_ends,
    check_link,
    counted,
    listed,
    locate,
    pickled,
    read_gguf,
    read_header,
    read_json,
    read_tensors,
    short,
)

SAFE = ("model.safetensors", "model.safetensors.index.json")  # in the order in which transformers looks for them
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
OTHERS = (".safetensors", ".gguf", ".bin", ".h5", ".msgpack", ".pth", ".pt")
LARGEST_CONFIG = 20_000_000  # bytes
PARSED = 2_000_000  # bytes of JSON that may be parsed here: a larger tokenizer would hold up the keyboard
CONVERTED = ("F16", "BF16", "F32", "F64")  # what another dtype changes; narrower floats are quantized weights
FLOATS = (*CONVERTED, "F8_E4M3", "F8_E5M2")
OTHER_HEADS = ("Classification", "QuestionAnswering", "MultipleChoice", "NextSentencePrediction", "MaskedLM")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
WIDTHS = ("hidden_size", "n_embd", "d_model")
EMBEDDING = re.compile(r"(^|\.)(wte|tokens_embed|embed_tokens|embed_in|w|(\w+_)?embeddings?)\.weight$")
NUMBERED = re.compile(r"(.*?)\.(\d{1,9})\.")
TOKENIZER = re.compile(
    r"(tokenizer|tokenization|vocab|special_tokens_map|tekken|rwkv_vocab).*|.*\.(model|tiktoken|bpe)"
)


class NeedsCode(BadModel):
    """A model that comes with its own Python code, which runs only where the user allows it; `files` names the code."""

    def __init__(self, files: tuple[str, ...], sentence: str = "", config: str = "config.json") -> None:
        named = f" ({', '.join(files)})" if files else ""
        asks = f"{config} asks for the model's own Python code{named}, which hub-repl does not run unless told"
        super().__init__(sentence or asks, "/trust")
        self.files = files
        self.found: LocalModel | None = None  # where it lies, once that is known


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
    check_links(folder)
    config = read_config(folder)
    native = check_type(config, trust_remote_code)
    kind, files = weight_files(folder, config, allow_pickle)
    if kind == "pickle":
        weights = pickled(folder, config, files)
    else:
        tensors = read_tensors(folder, files)
        weights = replace(counted(tuple(files), tensors.values(), kind), matrices=packable(tensors))
        if native:
            check_sizes(config, tensors)
    check_tokenizer(folder)
    return weights


def check_links(folder: Path) -> None:
    """Raise `BadModel` for a link to somewhere else: whatever a library reads must lie in the folder."""
    for path in (*folder.iterdir(), *folder.glob("additional_chat_templates/*")):
        if path.is_symlink() and path.exists():
            check_link(folder, path)


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


def packable(tensors: dict[str, Tensor]) -> int:
    """Count the parameters in matrices other than the embedding and the output head: what quantizing packs."""
    sizes = (math.prod(each.shape) for name, each in tensors.items() if is_matrix(name, each))
    return sum(sizes)


def is_matrix(name: str, tensor: Tensor) -> bool:
    """Tell whether a tensor is the weight of a linear layer inside the model."""
    if len(tensor.shape) != 2 or not name.endswith(".weight") or tensor.dtype not in CONVERTED:
        return False
    return not (name.endswith(("lm_head.weight", "embed_out.weight", "wpe.weight")) or EMBEDDING.search(name))


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


def read_config(folder: Path) -> dict[str, object]:
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


def check_type(config: dict[str, object], trust_remote_code: bool) -> bool:
    """Tell whether transformers' own classes will load it; raise `BadModel` if nothing would as a causal LM."""
    declared = config.get("auto_map")
    code: dict[str, Any] = declared if isinstance(declared, dict) else {}
    if trust_remote_code and "AutoModelForCausalLM" in code:
        return False
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES as known
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as causal
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as seeing

    causal = {**seeing, **causal}
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


def code_files(code: dict[str, object]) -> tuple[str, ...]:
    """List the files that `auto_map` names: `modeling_x.py`, or `owner/name: modeling_x.py` from elsewhere."""
    classes = [each for value in code.values() for each in (value if isinstance(value, list) else [value])]
    paths = [each.rpartition(".")[0] or each for each in classes if isinstance(each, str)]
    return tuple(sorted({short(path.replace("--", ": ")) + ".py" for path in paths}))


def check_head(config: dict[str, object]) -> None:
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


def check_sizes(config: dict[str, object], tensors: dict[str, Tensor]) -> None:
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


def check_size(config: dict[str, object], names: Iterable[str], found: str, most: int) -> None:
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
        if name.endswith(".json") and (folder / name).stat().st_size > PARSED:
            check_ends(folder, name)
        elif name.endswith(".json"):
            content = read_json(folder, name)
            if name == "tokenizer.json" and not isinstance(content.get("model"), dict):
                raise bad(name, "has no model in it: it is no tokenizer")
        else:
            begin(folder, name, "file itself")


def pieces_file(folder: Path) -> str:
    """Name the SentencePiece file that is all there is of a tokenizer; '' where there is more, or another kind."""
    names = sorted(path.name for path in folder.glob("*.model") if path.is_file())
    if (folder / "tokenizer.json").is_file() or not names:
        return ""
    return names[0] if begin(folder, names[0], "file itself")[0][:1] == b"\n" else ""  # others are lines of base64


def weight_files(folder: Path, config: dict[str, object], allow_pickle: bool) -> tuple[str, dict[str, set[str]]]:
    """Find the format and the files that transformers will read, each with the tensors an index promises there."""
    explicit = config.get("transformers_weights")
    wanted: tuple[str, ...] = SAFE
    pickles: tuple[str, ...] = PICKLES
    if isinstance(explicit, str) and explicit:
        wanted, pickles = (explicit,), ()
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
