"""PEFT adapters (LoRA and its relatives): find, check and attach one beside the weights of a model, or merge it."""

import copy
import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repl.core.errors import BadModel, MissingExtra, ReplError
from repl.core.events import Progress
from repl.core.jobs import JobContext
from repl.core.library_types import PreTrainedModel
from repl.hub import locate
from repl.hub.model_files import cut_name, read_json
from repl.hub.weight_headers import Tensor, read_header
from repl.models.imports import is_installed

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
NO_ADAPTER = "/adapter none"
ADAPTER_TYPES = ("LORA", "LOHA", "LOKR", "IA3", "OFT", "BOFT", "VERA")
"""PEFT types that change layers in place; prompt and prefix tuning are not supported."""
TENSOR_PREFIX = "base_model.model."
PATTERN = re.compile(r"[\w.\\^$*+-]{1,200}")
"""Patterns of module names that are accepted: without groups matching takes bounded time."""
MUTATING = ("pissa", "olora", "corda", "loftq")
"""Values of `init_lora_weights` that change the weights of the base model."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """The value of the setting `adapter`: an id with an optional @revision, or a folder, and whether to merge it."""

    name: str
    merge: bool

    @classmethod
    def of(cls, words: str) -> "Adapter":
        """Read `ID|PATH [merge]`; `none` has no name."""
        if words == "none":
            return cls("", False)
        name, _, last = words.rpartition(" ")
        return cls(name.strip(), True) if last == "merge" and name else cls(words, False)


@dataclass(eq=False)
class BaseModel:
    """A base model without an adapter, kept while a loaded model uses its weights; `served` is the last adapter."""

    model: Any
    tokenizer: Any
    found: Any
    weights: Any
    packing: Any
    served: str = ""
    bytes: int = 0
    """Size in memory without an adapter."""
    unexpected: tuple[str, ...] = ()
    touched: bool = False
    """Whether a user may have changed it in /python."""


def find_adapter(adapter: Adapter, emit: JobContext, offline: bool) -> Path:
    """Return the folder of an adapter, downloaded if it is not cached; raises as `hub.locate` does."""
    if not is_installed("peft"):
        raise MissingExtra("adapters need the peft package", "pip install 'hub-repl[peft]'", NO_ADAPTER)
    name, _, revision = adapter.name.partition("@")
    return locate.adapter(name, revision or "main", emit, offline).folder


def adapter_remarks(folder: Path, asked: Adapter) -> list[str]:
    """Return a notice where a model's folder holds an adapter, which transformers would apply silently."""
    there = (folder / CONFIG).is_file() and asked.name != str(folder)
    return [f"{CONFIG} in the folder of the model is ignored · /adapter {folder} applies it"] if there else []


def read_adapter(folder: Path) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Read and check the config and the header of an adapter; raises `BadModel`."""
    if not (folder / CONFIG).is_file():
        hint = [f"/model {folder}"] if (folder / "config.json").is_file() else []
        raise BadModel(f"no {CONFIG} in {folder}: it is not an adapter", *hint, NO_ADAPTER)
    if not (folder / WEIGHTS).is_file():
        pickle = f"{PICKLE} in {folder} is a pickle, which can run code when loaded: only {WEIGHTS} is loaded"
        lacking = f"no {WEIGHTS} in {folder}: the adapter has no weights"
        raise BadModel(pickle if (folder / PICKLE).is_file() else lacking, NO_ADAPTER)
    config = read_json(folder, CONFIG)
    check_adapter_config(config)
    return config, read_header(folder, WEIGHTS)


def check_adapter_config(config: dict[str, Any]) -> None:
    """Raise `BadModel` for an adapter config that asks for something unsupported."""
    kind = str(config.get("peft_type")).upper()
    if kind not in ADAPTER_TYPES:
        known = ", ".join(ADAPTER_TYPES)
        raise BadModel(f"{CONFIG} asks for a {cut_name(kind)} adapter; supported are {known}", NO_ADAPTER)
    begun = config.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(MUTATING):
        said = f"{CONFIG} has init_lora_weights {cut_name(begun)!r}, which changes the base model"
        raise BadModel(said, NO_ADAPTER)
    if config.get("layer_replication"):
        raise BadModel(f"{CONFIG} asks for layer_replication, which is not supported", NO_ADAPTER)
    patterns = [config.get(name) for name in ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern")]
    patterns += [list(config.get(name) or ()) for name in ("rank_pattern", "alpha_pattern")]
    words = itertools.chain.from_iterable(item if isinstance(item, list) else [item] for item in patterns if item)
    if strange := [word for word in words if not (isinstance(word, str) and PATTERN.fullmatch(word))]:
        raise BadModel(
            f"{CONFIG} names modules by the pattern {cut_name(str(strange[0]))!r}, which is not supported", NO_ADAPTER
        )


def check_adapter_fits(model: PreTrainedModel, config: dict[str, object], tensors: dict[str, Tensor]) -> None:
    """Raise `BadModel` where a tensor of an adapter matches no module of the model, or one of another size."""
    modules = dict(model.named_modules())
    made_for = config.get("base_model_name_or_path")
    whose = f" (made for {cut_name(made_for)})" if isinstance(made_for, str) and made_for else ""
    for name, tensor in tensors.items():
        path, sign, _ = name.removeprefix(TENSOR_PREFIX).partition(".lora_")
        if not sign:
            continue
        module = modules.get(path)
        if module is None:
            raise BadModel(f"the adapter{whose} is for another model: this one has no {cut_name(path)}", NO_ADAPTER)
        side = getattr(module, "in_features", None) if ".lora_A." in name else getattr(module, "out_features", None)
        mine = tensor.shape[-1] if ".lora_A." in name else tensor.shape[0]
        if side is not None and len(tensor.shape) == 2 and ".lora_embedding" not in name and side != mine:
            cause = f"{cut_name(path)} has size {side} here and {mine} in the adapter"
            raise BadModel(f"the adapter{whose} is for another model: {cause}", NO_ADAPTER)


def shell(model: PreTrainedModel) -> PreTrainedModel:
    """Copy the modules of a model, sharing its tensors: changes to the copy's modules do not affect the model."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def attach(model: PreTrainedModel, folder: Path, merge: bool, emit: JobContext) -> PreTrainedModel:
    """Return the model with an adapter attached or merged; it is changed in place. Raises `BadModel`."""
    config, tensors = read_adapter(folder)
    check_adapter_fits(model, config, tensors)
    emit(Progress("applying the adapter"))
    try:
        with emit.uninterruptible():
            return _attached(model, folder, merge, tensors)
    except ReplError:
        raise
    except (ValueError, RuntimeError, KeyError, TypeError, NotImplementedError) as error:
        # peft has no error class of its own for a mismatch
        words = " ".join(str(error).split())[:200].rstrip(".")
        raise BadModel(f"the adapter in {folder} does not fit this model: {words}", NO_ADAPTER) from error


def _attached(model: PreTrainedModel, folder: Path, merge: bool, tensors: Iterable[str]) -> PreTrainedModel:
    import peft
    from safetensors.torch import load_file

    config = peft.PeftConfig.from_pretrained(str(folder), local_files_only=True)
    config.inference_mode, config.auto_mapping = True, None
    # the LoRA's modules by its tensors: the config may name them by patterns
    targets = sorted({name.removeprefix(TENSOR_PREFIX).partition(".lora_")[0] for name in tensors if ".lora_" in name})
    if targets:
        config.target_modules = targets
        config.fan_in_fan_out = hasattr(model.get_submodule(targets[0]), "nf")  # GPT-2's transposed layers
    dressed = peft.PeftModel(model, config, autocast_adapter_dtype=False)
    report = peft.set_peft_model_state_dict(dressed, load_file(folder / WEIGHTS))
    if extra := sorted(report.unexpected_keys):
        raise BadModel(
            f"the adapter in {folder} has a tensor that matches nothing in this model: {extra[0]}", NO_ADAPTER
        )
    if lost := sorted(key for key in report.missing_keys if ".default." in key):
        raise BadModel(f"{WEIGHTS} in {folder} lacks the tensor {lost[0].removeprefix(TENSOR_PREFIX)}", NO_ADAPTER)
    dressed.eval().requires_grad_(False)
    return dressed.merge_and_unload(safe_merge=True) if merge else dressed.get_base_model()
