"""From a `Load` to a model in memory; runs on the model thread."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from weakref import WeakValueDictionary

from transformers import GenerationConfig

from repl.core import decoding, library, paths
from repl.core.decoding import ModelDefaults
from repl.core.errors import (
    BadModel,
    Cancelled,
    MissingExtra,
    NoMemory,
    ReplError,
    Unreachable,
    is_memory,
    root_cause,
    sentence,
)
from repl.core.jobs import JobContext
from repl.core.library_types import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from repl.core.settings import Load
from repl.hub import builtin, locate, validate
from repl.hub.consent import Consents
from repl.hub.validate import NeedsCode
from repl.hub.weight_headers import Weights
from repl.models import adapters, device_map, from_files, imports, model_config, packed_linear, quantization
from repl.models.adapters import Adapter, BaseModel
from repl.models.memory import estimate, fit
from repl.models.memory.available import measure_rooms
from repl.models.store import LoadedModel, MakeRoom, ModelInfo, R

SILENT_FIELDS = ("transformers_version", "use_cache", "output_attentions", "output_hidden_states")
"""Fields of a generation config that do not affect the text."""


BASES: WeakValueDictionary[Load, BaseModel] = WeakValueDictionary()
"""Base models in memory by their `Load` without an adapter: an adapter can be attached without loading again."""


def load_model(
    load: Load,
    emit: JobContext,
    offline: bool,
    make_room: MakeRoom,
    make_runtime: Callable[[], R],
    consents: Consents | None = None,
) -> LoadedModel[R]:
    """Load a model.

    Before the weights are read, `make_room` is called with the bytes needed and a check that raises `NoMemory`.
    `make_runtime` makes the generation state kept with the model (KV cache, last logits).
    Raises a `ReplError` or `Cancelled`; nothing stays in memory then.
    """
    began = time.monotonic()
    adapter = Adapter.of(load.adapter)
    over = adapters.find_adapter(adapter, emit, offline) if adapter.name else None
    bare = replace(load, adapter="none")
    with _translated(load):
        base = None if adapter.merge else BASES.get(bare)
        if base is None or base.served == load.adapter or library.offloaded(base.model):
            base = _bare(load, emit, offline, make_room, consents or Consents())
        base.served, base.bytes = load.adapter, base.bytes or base.model.get_memory_footprint()
        model = base.model
        if over:
            model = adapters.attach(model if adapter.merge else adapters.shell(model), over, adapter.merge, emit)
            if adapter.merge and quantization.packs_after_load(load):
                base.packing = _packed(model, load, emit)
    if not adapter.merge:
        BASES[bare] = base
    facts = _facts(load, base, model, began)
    paths_of_modules = tuple(name for name, _ in model.named_modules() if name)
    return LoadedModel(load, facts, model.eval(), base.tokenizer, make_runtime(), paths_of_modules, base)


def _bare(load: Load, emit: JobContext, offline: bool, make_room: MakeRoom, consents: Consents) -> BaseModel:
    """Load a base model; its weights are packed here unless an adapter is merged into them first."""
    device_map.placement_options(load)  # a device that is not there needs no model to be found
    found = _find(load, emit, offline)
    allowed = {"allow_pickle": load.allow_pickle, "trust_remote_code": load.trust_remote_code}
    try:
        if load.trust_remote_code:
            consents.check(load, found)
        weights = validate.examine(found.folder, found.gguf_file, **allowed)
    except NeedsCode as error:
        error.found = found
        raise
    quantization.require_packages(load, quantization.stored_form(found.folder))
    config = from_files.load_config(found, load)
    from_files.require_text_model(config)
    needed = estimate.estimate_needs(weights, config, load).total
    make_room(needed, lambda rooms: fit.check_fits(weights, config, load, rooms))
    with _weighed(weights, config, load), imports.no_gc():
        tokenizer = from_files.load_tokenizer(found, load, emit)
        model, report = from_files.load_weights(found, load, config, weights.format, emit)
        from_files.check_loaded(found, model, report)
        later = not quantization.packs_after_load(load) or Adapter.of(load.adapter).merge
        packing = None if later else _packed(model, load, emit)
    unexpected = tuple(sorted(report.get("unexpected_keys") or ()))
    return BaseModel(model, tokenizer, found, weights, packing, unexpected=unexpected)


def _packed(model: PreTrainedModel, load: Load, emit: JobContext) -> packed_linear.Packing:
    if "disk" in device_map.read_device_map(model).values():
        said = f"{load.quantize} quantizes weights in memory, but some are on disk"
        raise BadModel(said, "/max_memory default", "/quantize none")
    return packed_linear.pack(model, load.quantize, emit)


def load_tokenizer_alone(
    load: Load, emit: JobContext, consents: Consents | None = None
) -> tuple[PreTrainedTokenizerBase, Path]:
    """Load only the tokenizer of a model on this machine; returns it with its folder. Raises a `ReplError`."""
    found = _find(load, emit, offline=True)
    if load.trust_remote_code:
        (consents or Consents()).check(load, found)
    return from_files.load_tokenizer(found, load, emit), found.folder


def _find(load: Load, emit: JobContext, offline: bool) -> locate.LocalModel:
    if load.model != builtin.ID:
        return locate.locate(load, emit, offline)
    home = paths.cache_folder()
    if (made := builtin.ready(home) if offline else builtin.folder(home, emit)) is None:
        raise Unreachable("the built-in model is not downloaded yet, and this session is offline", "/model FOLDER")
    return locate.LocalModel(builtin.ID, made, "", "")


def _facts(load: Load, base: BaseModel, model: PreTrainedModel, began: float) -> ModelInfo:
    found, weights, tokenizer = base.found, base.weights, base.tokenizer
    config = model_config.text_config(model.config)
    places, own = device_map.read_device_map(model), _base(model)
    size = base.bytes if load.adapter == "none" else model.get_memory_footprint()
    return ModelInfo(
        id=load.model,
        commit=found.commit,
        folder=str(found.folder),
        architecture=type(model).__name__,
        parameters=sum(weight.numel() for weight in model.parameters())
        if load.quantize == load.adapter == "none"
        else weights.parameters,
        bytes=size,
        dtype=str(model.dtype).removeprefix("torch."),
        stored=dict(weights.dtypes),
        device_map=places,
        attention=library.attention(model.config),
        context=model_config.get_count(config, "max_position_embeddings"),
        layers=model_config.get_count(config, "num_hidden_layers"),
        vocabulary=model_config.get_count(config, "vocab_size"),
        chats=bool(getattr(tokenizer, "chat_template", None)),
        base=own,
        seconds=time.monotonic() - began,
        quantization=load.quantize if load.quantize != "none" else quantization.stored_form(found.folder) or "none",
        packed=base.packing.linears if base.packing else 0,
        left=base.packing.left if base.packing else 0,
        adapter=load.adapter,
        unexpected=base.unexpected,
        touched=base.touched,
        remarks=(
            *quantization.quantization_remarks(load, weights, base.packing, size),
            *device_map.placement_remarks(load, places),
            *adapters.adapter_remarks(found.folder, Adapter.of(load.adapter)),
            *_beyond(tokenizer, model_config.get_count(config, "vocab_size")),
            *decoding.remarks(own),
        ),
    )


def _beyond(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> list[str]:
    """Return a notice where the tokenizer has ids that the model has no embedding for."""
    count = len(tokenizer)
    said = f"the tokenizer has {count} tokens, the embedding {vocabulary}: tokens beyond that cannot be used"
    return [said] if 0 < vocabulary < count else []


def _base(model: PreTrainedModel) -> ModelDefaults:
    theirs = model.generation_config.to_diff_dict().items()
    own = {name: value for name, value in theirs if value is not None and name not in SILENT_FIELDS and name[0] != "_"}
    if isinstance(own.get("stop_strings"), str):
        own["stop_strings"] = [own["stop_strings"]]
    return ModelDefaults(own, library.generation_defaults(), frozenset(vars(GenerationConfig())))


# what goes wrong while a model loads


@contextmanager
def _translated(load: Load) -> Iterator[None]:
    """Turn errors of the libraries while loading into one sentence."""
    try:
        yield
    except (ReplError, Cancelled):
        raise
    except ImportError as error:
        way_out = () if load.attention == "auto" else ("/attention auto",)
        first = root_cause(error)  # the library says only which of its own modules failed
        said = "a package is missing for" if isinstance(first, ImportError) else "a package cannot be imported for"
        raise MissingExtra(f"{said} {load.model}: {sentence(first)}", *way_out) from error
    except json.JSONDecodeError as error:
        raise BadModel(f"a file of {load.model} is not valid JSON: {sentence(error)}") from error
    except BaseException as error:  # the Rust sides of the libraries panic with a BaseException
        if is_memory(error):
            said = f"{load.model} does not fit: {sentence(error)}"
            raise NoMemory(said, f"/plan {fit.typed_name(load)}", "/device auto") from error
        raise BadModel(f"{load.model} does not load: {sentence(error)}") from error


@contextmanager
def _weighed(weights: Weights, config: PreTrainedConfig, load: Load) -> Iterator[None]:
    """Add needed and free memory, and loads that need less, to an out-of-memory error."""
    try:
        yield
    except BaseException as error:  # as above
        if isinstance(error, ReplError | Cancelled) or not is_memory(error):
            raise
        rooms = measure_rooms()
        needs = estimate.estimate_needs(weights, config, load)
        free = ", ".join(map(fit.format_room, rooms))
        said = f"{load.model} does not fit: {sentence(error)}; it needs {fit.format_needs(needs)}, and {free}"
        found = fit.remedies(weights, config, load, rooms)
        raise NoMemory(said, choices=tuple(choice for _, less, choice in found if less.total < needs.total)) from error
