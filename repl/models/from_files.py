"""Read the config, tokenizer and weights of a folder with transformers; refuse incomplete or unusable models."""

import inspect
import os
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationMixin,
    GgufConfig,
)
from transformers.models.auto import modeling_auto

from repl.core import library, log
from repl.core.errors import BadModel, Cancelled, MissingExtra, ReplError, is_memory, sentence
from repl.core.events import Progress
from repl.core.jobs import JobContext
from repl.core.library_types import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from repl.core.settings import Load
from repl.hub import locate, validate
from repl.hub.model_files import asked_for, bad_file, code_files, read_json
from repl.hub.validate import NeedsCode
from repl.models import device_map, imports, model_config, quantization, reference

MAX_SEQUENCES = 1000  # beams, or returned sequences
DECODER_LAYERS = ("decoder_layers", "num_decoder_layers")
"""Layer counts in the config of an encoder-decoder model whose decoder is used alone."""


def load_config(found: locate.LocalModel, load: Load) -> PreTrainedConfig:
    """Read the config; its attention implementation is dropped, since it could name code on the Hub."""
    extra = {"gguf_file": found.gguf_file} if found.gguf_file else {}
    config = AutoConfig.from_pretrained(
        str(found.folder), trust_remote_code=load.trust_remote_code, local_files_only=True, **extra
    )
    library.forget_attention(config)
    return config


def _options(load: Load, found: locate.LocalModel, form: str) -> dict[str, Any]:
    options: dict[str, Any] = {
        "dtype": quantization.load_dtype(load),
        **device_map.placement_options(load),
        "attn_implementation": None if load.attention == "auto" else load.attention,  # None: each part chooses its own
        "trust_remote_code": load.trust_remote_code,
        "local_files_only": True,
        "ignore_mismatched_sizes": True,  # they are reported instead, and refused by name
        "use_safetensors": form != "pickle",
        "adapter_kwargs": {"subfolder": os.devnull},  # else an adapter beside the weights would be applied
    }
    if (quantized := quantization.quantization_config(load)) is not None:
        options["quantization_config"] = quantized
    if found.gguf_file:
        options["quantization_config"] = GgufConfig(dequantize=True)
        options["gguf_file"] = found.gguf_file
        del options["use_safetensors"]
        options["dtype"] = "float32" if options["dtype"] == "auto" else options["dtype"]
    return options


def auto_class(config: PreTrainedConfig) -> Any:
    """Return the auto class for a config: `AutoModelForCausalLM`, else `AutoModelForImageTextToText`."""
    remote, (causal, seeing) = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}), _classes(config)
    return AutoModelForImageTextToText if seeing and not (causal or remote) else AutoModelForCausalLM


def _classes(config: PreTrainedConfig) -> tuple[Any, Any]:
    """Return transformers' causal-LM and image-text-to-text classes for a config; None where there is none."""
    mappings = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING, modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    found = (mapping.get(type(config), None) for mapping in mappings)
    causal, seeing = (kind[0] if isinstance(kind, tuple | list) else kind for kind in found)
    return causal, seeing


def auto_name(place: Path) -> str:
    """Return the name of the auto class for a folder, by the `model_type` in its config.json."""
    try:
        kind = validate.read_model_config(place).get("model_type")
    except BadModel:
        kind = ""
    causal = kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    seeing = kind in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and not causal
    return "AutoModelForImageTextToText" if seeing else "AutoModelForCausalLM"


def require_text_model(config: PreTrainedConfig) -> None:
    """Raise `BadModel` for a model that does not generate text token by token from text alone."""
    causal, seeing = _classes(config)
    if (kind := causal or seeing) is None:
        return
    name = kind.__name__
    if "default_language" in vars(config) and config.default_language is None:
        known = ", ".join(map(str, config.languages))
        raise BadModel(f"config.json has no default_language, which {name} needs: one of {known}")
    if auto_class(config).__name__ == "AutoModelForImageTextToText" and config.is_encoder_decoder:
        raise BadModel(f"{name} is an encoder-decoder model, not a causal language model")
    if not issubclass(kind, GenerationMixin):
        raise BadModel(f"{name} does not generate text token by token")
    given = inspect.signature(kind.generate).parameters.values()
    if any(each.name.startswith("pixel") and each.default is each.empty for each in given):
        raise BadModel(f"{name} needs an image with every message; conversations here are text only")


def load_tokenizer(found: locate.LocalModel, load: Load, emit: JobContext) -> PreTrainedTokenizerBase:
    """Read the tokenizer; raises `BadModel`."""
    emit(Progress("loading the tokenizer"))
    extra = {"gguf_file": found.gguf_file} if found.gguf_file else {}
    try:
        with emit.uninterruptible():
            return AutoTokenizer.from_pretrained(
                str(found.folder), trust_remote_code=load.trust_remote_code, local_files_only=True, **extra
            )
    except (ReplError, Cancelled):
        raise
    except BaseException as error:  # Rust panics are BaseExceptions
        raise _unread(found, load, error) from error


def _unread(found: locate.LocalModel, load: Load, error: BaseException) -> ReplError:
    """Return the error for a tokenizer that does not load, with a remedy."""
    asked = {name: value for name, value in asked_for(found.folder).items() if name.endswith("AutoTokenizer")}
    if not load.trust_remote_code and (own := code_files(asked)):
        needs = NeedsCode(own, config="tokenizer_config.json")
        needs.found = found
        return needs
    needed = ("sentencepiece", "google.protobuf")
    if (name := validate.pieces_file(found.folder)) and not all(map(imports.is_installed, needed)):
        said = f"the tokenizer in {found.folder} is {name} only, which needs the sentencepiece package"
        return MissingExtra(said, "pip install sentencepiece protobuf")
    fast = not found.gguf_file and (found.folder / "tokenizer.json").is_file()
    if fast and not isinstance(read_json(found.folder, "tokenizer.json").get("model"), dict):
        return bad_file("tokenizer.json", "contains no tokenizer model")
    return BadModel(f"the tokenizer in {found.folder} does not load: {sentence(error)}")


def load_weights(
    found: locate.LocalModel, load: Load, config: PreTrainedConfig, form: str, emit: JobContext
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load the model; returns it with the loading info of `from_pretrained` (missing, unexpected, mismatched keys)."""
    with emit.uninterruptible():
        causal, seeing = _classes(config)  # imports the model's own code
    emit(Progress("loading weights"))
    with log.follow_bars(lambda _, done, total: emit(Progress("loading weights", done, total, "tensors"))):
        options = {"config": config, "output_loading_info": True, **_options(load, found, form)}
        read, report = auto_class(config).from_pretrained(str(found.folder), **options)
        if report["missing_keys"] and causal and seeing not in (None, causal):
            # emu3: the causal-LM class does not find its tensors
            read, report = AutoModelForImageTextToText.from_pretrained(str(found.folder), **options)
    emit(Progress("placing weights"))
    return read, report


def check_loaded(found: locate.LocalModel, model: PreTrainedModel, report: dict[str, Any]) -> None:
    """Raise `BadModel` for weights that are not whole, a model that does not answer, or one that searches without end.

    The library would fill missing tensors with random numbers and say so in a table.
    """
    for name, stored, wanted in sorted(report.get("mismatched_keys") or ())[:1]:
        shapes = f"{list(stored)}, but config.json requires {list(wanted)}"
        raise BadModel(f"the weights in {found.folder} have the tensor {name} with shape {shapes}")
    if missing := sorted(report.get("missing_keys") or ()):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise BadModel(f"the weights in {found.folder} lack the tensor {missing[0]}{more}: renamed or incomplete")
    for name in ("num_beams", "num_return_sequences"):
        if isinstance(value := getattr(model.generation_config, name, None), int) and value > MAX_SEQUENCES:
            raise BadModel(f"generation_config.json asks for {name} {value}, more than the limit of {MAX_SEQUENCES}")
    _check_answers(model)


def _check_answers(model: PreTrainedModel) -> None:
    """Raise `BadModel` for a model whose `generate` fails on three ids; ordinary causal LMs are not tried."""
    kind = type(model)
    special = auto_class(model.config).__name__ != "AutoModelForCausalLM" or "Assistant" in kind.__name__
    config = model_config.text_config(model.config)
    odd = not model_config.get_count(config, "num_hidden_layers") or model_config.get_count(config, *DECODER_LAYERS)
    if model.device.type == "meta" or not (special or odd or library.prepares_steps(kind)):
        return
    try:
        reference.generate_plainly(model, torch.tensor([[1, 2, 3]], device=model.device), tokens=2)
    except Exception as error:
        if is_memory(error):
            raise
        log.log.warning("%s does not answer", kind.__name__, exc_info=error)
        if "Assistant" in kind.__name__:
            said = "is an assistant for speculative decoding and cannot be used on its own"
        else:
            seeing = auto_class(model.config).__name__ == "AutoModelForImageTextToText"
            said = "cannot answer text alone" if seeing else "cannot be used"
            said += ": the library's own generate() fails with it"
        raise BadModel(f"{kind.__name__} {said}") from error
