"""Check a model folder by its configs and weight headers, before transformers reads it.

In comes a folder; out comes `Weights`, or a `BadModel` that names the file and the cause. Nothing here
runs the model's code, unpickles, or reads the weights themselves.
"""

import os
import re
from collections import defaultdict
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from repl.core.errors import BadModel
from repl.hub.cache import LocalModel
from repl.hub.model_files import (
    PICKLES,
    SAFE,
    TOKENIZER,
    bad_file,
    check_link,
    code_files,
    cut_name,
    find_file,
    list_names,
    list_shards,
    read_json,
    read_start,
)
from repl.hub.weight_headers import (
    CONVERTED,
    EMBEDDING,
    Tensor,
    Weights,
    count_weights,
    estimate_pickles,
    read_gguf,
    read_tensors,
)

WEIGHT_ENDINGS = (".safetensors", ".gguf", ".bin", ".h5", ".msgpack", ".pth", ".pt")
OTHER_HEADS = ("Classification", "QuestionAnswering", "MultipleChoice", "NextSentencePrediction", "MaskedLM")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
WIDTH_FIELDS = ("hidden_size", "n_embd", "d_model")
NUMBERED = re.compile(r"(.*?)\.(\d{1,9})\.")


class NeedsCode(BadModel):
    """The model needs its own Python code, which runs only with the user's consent; `files` are the code."""

    def __init__(self, files: tuple[str, ...], sentence: str = "", config: str = "config.json") -> None:
        named = f" ({', '.join(files)})" if files else ""
        asks = f"{config} asks for the model's own Python code{named}, which hub-repl runs only with your consent"
        super().__init__(sentence or asks, "/trust")
        self.files = files
        self.found: LocalModel | None = None  # set once the folder is known


def examine(
    folder: Path, gguf_file: str = "", *, allow_pickle: bool = False, trust_remote_code: bool = False
) -> Weights:
    """Check the config, weight headers and tokenizer files of a folder; raises `BadModel`."""
    if not folder.is_dir():
        raise BadModel(f"{folder} is not a folder" if folder.exists() else f"no folder {folder}")
    try:
        return read_gguf(folder, gguf_file) if gguf_file else _examine(folder, allow_pickle, trust_remote_code)
    except OSError as error:
        raise BadModel(f"{error.filename or folder} cannot be read: {error.strerror or error}") from error


def _examine(folder: Path, allow_pickle: bool, trust_remote_code: bool) -> Weights:
    for path in (*folder.iterdir(), *folder.glob("additional_chat_templates/*")):
        if path.is_symlink() and path.exists():
            check_link(folder, path)  # all files that a library reads must be in the folder
    config = read_model_config(folder)
    native = check_type(config, trust_remote_code)
    kind, files = weight_files(folder, config, allow_pickle)
    if kind == "pickle":
        weights = estimate_pickles(folder, config, files)
    else:
        tensors = read_tensors(folder, files)
        weights = count_weights(files, tensors, kind)
        if native:
            check_sizes(config, tensors)
    check_tokenizer(folder)
    return weights


# the config


def read_model_config(folder: Path) -> dict[str, Any]:
    """Read `config.json`; raises `BadModel` that says what the folder holds instead."""
    if os.path.lexists(folder / "config.json"):
        return read_json(folder, "config.json")
    raise _not_a_model(folder, f"no config.json in {folder}")


def _not_a_model(folder: Path, lacks: str) -> BadModel:
    """Return the error for a folder without config or weights, with what it holds instead."""
    if (folder / "adapter_config.json").is_file():
        base = read_json(folder, "adapter_config.json").get("base_model_name_or_path")
        named = base if isinstance(base, str) else ""
        whose = f" for {cut_name(named)}" if named else ""
        hints = [f"/model {named}"] if named else []
        sentence = f"{folder} holds an adapter{whose} (adapter_config.json), not a whole model"
        return BadModel(sentence, *hints, f"/adapter {folder}")
    others = sorted(path.name for path in folder.iterdir() if path.suffix in WEIGHT_ENDINGS)
    packed = [f"/model {folder / name}" for name in others if name.endswith(".gguf")]
    return BadModel(lacks + (f", only {list_names(others)}" if others else ": not a transformers model"), *packed[:3])


def check_type(config: Mapping[str, object], trust_remote_code: bool) -> bool:
    """Tell whether transformers' own classes load the model; raises `BadModel` if nothing loads it as a causal LM."""
    declared = config.get("auto_map")
    code: dict[str, Any] = declared if isinstance(declared, dict) else {}
    if trust_remote_code and "AutoModelForCausalLM" in code:
        return False
    from transformers import __version__
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES as known
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as causal
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as seeing

    kind = config.get("model_type")
    kind = kind if isinstance(kind, str) else ""
    if kind in causal or kind in seeing:
        check_head(config)
        return True
    if kind in known and "AutoModelForCausalLM" not in code:
        raise bad_file("config.json", f"has model_type {kind}, which is not a causal language model")
    if code and not trust_remote_code:
        raise NeedsCode(code_files(code))
    if not code and not kind:
        raise bad_file("config.json", "has no model_type: it does not say what kind of model this is")
    if not code:
        cause = f"has model_type {cut_name(kind)}, which transformers {__version__} does not know"
        raise bad_file("config.json", cause, "pip install --upgrade transformers")
    return False


def check_head(config: Mapping[str, object]) -> None:
    """Raise `BadModel` for weights of another kind (classification, encoder-decoder) of a type that has a causal LM."""
    declared = config.get("architectures")
    classes = [each for each in declared if isinstance(each, str)] if isinstance(declared, list) else []
    if config.get("is_decoder") is True or any("CausalLM" in each for each in classes):
        return
    name = cut_name(classes[0]) if classes else config["model_type"]
    if classes and all(each.endswith(OTHER_HEADS) for each in classes):
        raise bad_file("config.json", f"says {name}, which is not a causal language model")
    if config.get("is_encoder_decoder") is True:
        cause = f"says {name}, an encoder-decoder model, not a causal language model"
        raise bad_file("config.json", cause)


def check_sizes(config: Mapping[str, object], tensors: dict[str, Tensor]) -> None:
    """Raise `BadModel` if the sizes in the config are absurd for the weights: memory would run out.

    Bounds are loose, since layers may share weights, and embeddings may be narrower than the model.
    """
    layers = count_listed_layers(tensors)
    found = [each.shape for name, each in tensors.items() if EMBEDDING.search(name) and each.dtype in CONVERTED]
    rows, columns = max((shape for shape in found if len(shape) == 2), default=(0, 0))
    limits = dict.fromkeys(LAYERS, (10 * layers, f"{layers} layers"))
    if rows:
        limits["vocab_size"] = 2 * rows + 1024, f"an embedding of {rows} rows"
        limits |= dict.fromkeys(WIDTH_FIELDS, (16 * columns, f"an embedding of {columns} columns"))
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, dict) else {}):
        for name, (most, there) in limits.items():
            value = part.get(name)
            if isinstance(value, int) and not 0 <= value <= most:
                raise bad_file("config.json", f"has {name} {cut_name(str(value))}, but the weights have {there}")


def count_listed_layers(tensors: dict[str, Tensor]) -> int:
    """Count the layers in tensor names: the distinct numbers of the longest list, or else the tensors."""
    lists: defaultdict[str, set[str]] = defaultdict(set)
    for name in tensors:
        if match := NUMBERED.match(name):
            lists[match[1]].add(match[2])
    return max(map(len, lists.values()), default=len(tensors))


# the tokenizer


def check_tokenizer(folder: Path) -> None:
    """Raise `BadModel` for a folder without a tokenizer, or with an empty or broken one."""
    there = sorted(path.name for path in folder.iterdir() if not path.is_dir())
    names = [name for name in there if any(fnmatchcase(name, pattern) for pattern in TOKENIZER)]
    if not names:
        raise BadModel(f"no tokenizer in {folder}: no tokenizer.json, no tokenizer.model and no vocab.json")
    whole = "tokenizer.json" in names  # then the others are not used, except the options
    for name in [name for name in names if not whole or name in ("tokenizer.json", "tokenizer_config.json")]:
        read_start(folder, name)


def pieces_file(folder: Path) -> str:
    """Return the SentencePiece file of a tokenizer that has only that; '' for any other."""
    names = sorted(path.name for path in folder.glob("*.model") if path.is_file())
    if (folder / "tokenizer.json").is_file() or not names:
        return ""
    return names[0] if read_start(folder, names[0]).startswith(b"\n") else ""  # tiktoken files are lines of base64


# the weights


def weight_files(folder: Path, config: Mapping[str, object], allow_pickle: bool) -> tuple[str, list[str]]:
    """Return the format (safetensors or pickle) and the files of the weights that transformers would load."""
    explicit = config.get("transformers_weights")
    named = (explicit,) if isinstance(explicit, str) and explicit else ()
    for kind, names, ending in (("safetensors", named or SAFE, ".safetensors"), ("pickle", PICKLES, ".bin")):
        name = next((name for name in names if os.path.lexists(folder / name)), "")
        if not name or (named and kind == "pickle"):
            continue
        if kind == "pickle" and not allow_pickle:
            cause = "is a pickle, which can run code when loaded, and there are no safetensors"
            raise bad_file(name, cause, "/allow_pickle true")
        files = list_shards(folder, name)
        for file in files if name not in files else ():
            try:
                find_file(folder, file)
            except BadModel as error:
                raise bad_file(name, f"names a file that cannot be read: {error.message}") from error
        if strange := [file for file in files if not file.endswith(ending)]:  # transformers would unpickle it
            raise bad_file(name, f"names {cut_name(strange[0])} as weights, which is not a {ending} file")
        return kind, files
    raise _not_a_model(folder, f"no weights in {folder}: no {' and no '.join(named or SAFE)}")
