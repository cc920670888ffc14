"""From a `Load` to a model in memory; runs on the model thread."""

import importlib
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from repl import anatomy, builtin, fit, folder, hub, libraries, paths, quiet, sandbox, weigh
from repl.decoding import Base
from repl.errors import BadModel, Cancelled, MissingExtra, ReplError, Unreachable
from repl.events import Progress
from repl.folder import NeedsCode
from repl.headers import Weights
from repl.mishaps import sentence, translated, weighed
from repl.reuse import Kept
from repl.room import Room
from repl.settings import Load
from repl.trust import Consents
from repl.worker import Emit

MOST = 1000  # beams, or answers to one prompt
NOISE = ("transformers_version", "_from_model_config", "use_cache", "output_attentions", "output_hidden_states")
"""Fields of a generation config that say nothing about the text."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a loaded model is, without any tensor: safe to read on every thread."""

    id: str
    commit: str
    folder: str
    architecture: str
    parameters: int
    bytes: int
    dtype: str
    stored: dict[str, int]
    """Parameters by the number format they are stored in."""
    device_map: dict[str, str]
    attention: str
    context: int
    """Most tokens the model was made for; 0 where it has no such limit."""
    layers: int
    vocabulary: int
    chats: bool
    base: Base
    seconds: float
    unexpected: tuple[str, ...] = ()
    """Tensors in the files that the model has no place for."""

    @property
    def name(self) -> str:
        """The id, without the path where it is a folder."""
        return Path(self.id).name if Path(self.id).is_absolute() else self.id


@dataclass(frozen=True, slots=True, eq=False)
class Resident:
    """A model in memory with its tokenizer and the cache of the last text; only the model thread touches those."""

    load: Load
    facts: Facts
    model: Any
    tokenizer: Any
    kept: Kept = field(default_factory=Kept)
    told: set[str] = field(default_factory=set)
    """What was said of this model and need not be said again."""
    modules: tuple[str, ...] = ()
    """The paths of its modules, for completion."""


MakeRoom = Callable[[int, Callable[[list[Room]], None]], None]


def bring(load: Load, emit: Emit, offline: bool, make_room: MakeRoom, consents: Consents | None = None) -> Resident:
    """Load a model; before memory is taken `make_room` gets the bytes and a check that refuses what does not fit.

    Raises a `ReplError` that names what is wrong, or `Cancelled`; then nothing of it stays in memory.
    """
    began = time.monotonic()
    sandbox.prepare()
    libraries.bring(emit)
    found = _find(load, emit, offline)
    weights = _examined(load, found, consents or Consents())
    with translated(load):
        config = _config(found, load)
    needed = weigh.needs(weights, config, load).weights
    make_room(needed, lambda rooms: fit.check(weights, config, load, rooms))
    with translated(load), weighed(weights, config, load):
        options = _options(load, found, config, weights.format)
        tokenizer = _tokenizer(found, load, emit)
        model, report = _read(found, config, options, emit)
        _complete(found, report)
        _modest(model.generation_config)
    facts = _facts(load, found, weights, model, tokenizer, began)
    unexpected = tuple(sorted(report.get("unexpected_keys") or ()))
    return Resident(load, replace(facts, unexpected=unexpected), model.eval(), tokenizer, modules=anatomy.paths(model))


def _examined(load: Load, found: hub.Found, consents: Consents) -> Weights:
    """Check the folder, and that code which it may run is what was allowed."""
    try:
        if load.trust_remote_code:
            consents.check(load, found)
        return folder.examine(
            found.folder, found.gguf_file, allow_pickle=load.allow_pickle, trust_remote_code=load.trust_remote_code
        )
    except NeedsCode as error:
        error.found = found
        raise


def tokenizer(load: Load, emit: Emit) -> tuple[Any, Path]:
    """Load the tokenizer alone of a model that is on this machine, and tell its folder; raises a `ReplError`."""
    libraries.bring(emit)
    found = _find(load, emit, offline=True)
    return _tokenizer(found, load, emit), found.folder


def _find(load: Load, emit: Emit, offline: bool) -> hub.Found:
    if load.model == builtin.ID:
        return hub.Found(builtin.ID, _builtin(emit, offline), "", "")
    return hub.locate(
        load.model,
        load.revision,
        load.gguf_file,
        emit,
        offline=offline,
        pickle=load.allow_pickle,
        code=load.trust_remote_code,
    )


def _builtin(emit: Emit, offline: bool) -> Path:
    if not offline:
        return builtin.folder(paths.cache(), emit)
    if (made := builtin.ready(paths.cache())) is None:
        raise Unreachable("the built-in model is not made yet, and this session is offline", "/model FOLDER")
    return made


def _config(found: hub.Found, load: Load) -> Any:
    """Read the config; what it says about attention code is dropped, it could name code on the Hub."""
    from transformers import AutoConfig

    extra = {"gguf_file": found.gguf_file} if found.gguf_file else {}
    config = AutoConfig.from_pretrained(
        str(found.folder), trust_remote_code=load.trust_remote_code, local_files_only=True, **extra
    )
    config._attn_implementation = None
    return config


def _options(load: Load, found: hub.Found, config: Any, form: str) -> dict[str, Any]:
    options: dict[str, Any] = {
        "dtype": load.dtype,
        "device_map": device_map(load.device),
        "attn_implementation": _attention(load, config),
        "trust_remote_code": load.trust_remote_code,
        "local_files_only": True,
        "ignore_mismatched_sizes": True,  # then they are reported, and refused with their names
        "use_safetensors": form != "pickle",
    }
    if load.max_memory:
        options["max_memory"] = max_memory(load.max_memory)
    if load.offload_folder:
        options["offload_folder"] = str(Path(load.offload_folder).expanduser())
    if load.quantize != "none":
        options["quantization_config"] = _quantization(load.quantize)
    if found.gguf_file:
        from transformers import GgufConfig

        options["quantization_config"] = GgufConfig(dequantize=True)
        options["gguf_file"] = found.gguf_file
        del options["use_safetensors"]
        options["dtype"] = "float32" if load.dtype == "auto" else load.dtype
    return options


def device_map(device: str) -> Any:
    """Return what `from_pretrained` takes for a device; raises `BadModel` where the machine has none such."""
    import torch

    name, _, number = device.partition(":")
    if name == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= count:
            here = f"this machine has {count}" if count else "this machine or this build of torch has none"
            raise BadModel(f"no CUDA device {number or 0}: {here}", "/device auto", "/device cpu")
        return {"": int(number or 0)}
    if name == "mps" and not torch.backends.mps.is_available():
        raise BadModel("no MPS device: this machine or this build of torch has none", "/device auto", "/device cpu")
    return {"": name} if name in ("cpu", "mps") else name


def max_memory(words: str) -> dict[int | str, str]:
    """Return `0=20GiB,cpu=48GiB` as the dictionary that accelerate takes."""
    pairs = dict(pair.split("=") for pair in words.split(","))
    return {int(device) if device.isdigit() else device: size for device, size in pairs.items()}


def _attention(load: Load, config: Any) -> str:
    """Return the attention to ask for: what you say, else what the library itself would take."""
    if load.attention != "auto":
        return load.attention
    kind = _class(config)
    return "sdpa" if kind is None or getattr(kind, "_supports_sdpa", False) else "eager"


def _class(config: Any) -> Any:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return kind[0] if isinstance(kind, tuple | list) else kind


def _quantization(bits: str) -> Any:
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtra("quantizing needs the bitsandbytes package", "pip install 'hub-repl[quant]'")
    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="bfloat16")


def _tokenizer(found: hub.Found, load: Load, emit: Emit) -> Any:
    from transformers import AutoTokenizer

    emit(Progress("read the tokenizer"))
    extra = {"gguf_file": found.gguf_file} if found.gguf_file else {}
    try:
        with emit.shield():
            return AutoTokenizer.from_pretrained(
                str(found.folder), trust_remote_code=load.trust_remote_code, local_files_only=True, **extra
            )
    except (ReplError, Cancelled):
        raise
    except BaseException as error:  # the Rust side panics with a BaseException
        raise BadModel(f"the tokenizer in {found.folder} does not load: {sentence(error)}") from error


def _read(found: hub.Found, config: Any, options: dict[str, Any], emit: Emit) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoModelForCausalLM

    with emit.shield():
        _class(config)  # imports the model's own code
    with quiet.bars(lambda _, done, total: emit(Progress("read weights", done, total, "tensors"))):
        model, report = AutoModelForCausalLM.from_pretrained(
            str(found.folder), config=config, output_loading_info=True, **options
        )
    emit(Progress("place"))
    return model, report


def _complete(found: hub.Found, report: dict[str, Any]) -> None:
    """Refuse weights that lack tensors: the library would fill them with random numbers and say so in a table."""
    for name, stored, wanted in sorted(report.get("mismatched_keys") or ())[:1]:
        shapes = f"{list(stored)}, but config.json makes it {list(wanted)}"
        raise BadModel(f"the weights in {found.folder} have the tensor {name} in the shape {shapes}")
    missing = sorted(report.get("missing_keys") or ())
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise BadModel(f"the weights in {found.folder} lack the tensor {missing[0]}{more}: renamed or incomplete")


def _modest(config: Any) -> None:
    """Refuse a model whose own decoding would search without end."""
    for name in ("num_beams", "num_return_sequences"):
        if isinstance(value := getattr(config, name, None), int) and value > MOST:
            raise BadModel(f"generation_config.json asks for {name} {value}, more than the {MOST} that make sense")


def _facts(load: Load, found: hub.Found, weights: Weights, model: Any, tokenizer: Any, began: float) -> Facts:
    config = model.config.get_text_config(decoder=True)
    return Facts(
        id=load.model,
        commit=found.commit,
        folder=str(found.folder),
        architecture=type(model).__name__,
        parameters=sum(weight.numel() for weight in model.parameters())
        if load.quantize == "none"
        else weights.parameters,
        bytes=model.get_memory_footprint(),
        dtype=str(model.dtype).removeprefix("torch."),
        stored=dict(weights.dtypes),
        device_map=_placed(model),
        attention=str(getattr(model.config, "_attn_implementation", "") or ""),
        context=int(getattr(config, "max_position_embeddings", 0) or 0),
        layers=int(getattr(config, "num_hidden_layers", 0) or 0),
        vocabulary=int(getattr(config, "vocab_size", 0) or 0),
        chats=bool(getattr(tokenizer, "chat_template", None)),
        base=_base(model),
        seconds=time.monotonic() - began,
    )


def _placed(model: Any) -> dict[str, str]:
    places = getattr(model, "hf_device_map", None) or {"": model.device}
    return {part: f"cuda:{place}" if isinstance(place, int) else str(place) for part, place in places.items()}


def _base(model: Any) -> Base:
    from transformers import GenerationConfig

    theirs = model.generation_config.to_diff_dict().items()
    own = {name: value for name, value in theirs if value is not None and name not in NOISE}
    blank = GenerationConfig()
    library = blank._get_default_generation_params() if hasattr(blank, "_get_default_generation_params") else {}
    return Base(own, library, frozenset(vars(blank)))
