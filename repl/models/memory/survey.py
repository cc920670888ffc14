"""Survey a model without downloading its weights: files, config, weight headers, Python code."""

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from repl.core import paths
from repl.core.errors import BadModel, NotFound, Unreachable
from repl.core.events import Progress
from repl.core.jobs import JobContext
from repl.core.library_types import PreTrainedConfig
from repl.core.settings import Load
from repl.hub import builtin, cache, consent, locate, validate
from repl.hub.download import DownloadProgress, call_hub
from repl.hub.locate import RepoFiles
from repl.hub.model_files import CONFIGS, asked_for
from repl.hub.weight_headers import Weights, as_tensor, bits, count_weights
from repl.models import imports
from repl.models.memory.estimate import ModelSizes

GENERATE = "custom_generate/generate.py"  # replaces `generate` where code is allowed


@dataclass(frozen=True, slots=True)
class Code:
    """The Python code of a model: its files with their sizes in bytes, and the commit they belong to."""

    files: dict[str, int]
    commit: str


@dataclass(frozen=True, slots=True)
class Survey:
    """A model on this machine or on the Hub; `config` is None for a gated repository that does not show it."""

    commit: str
    weights: Weights
    config: Any
    gated: bool = False
    fetch: dict[str, int] = field(default_factory=dict)
    """Files that loading would download, with their sizes in bytes."""
    cached: int = 0
    """Bytes of the needed files that are cached already."""
    code: Code | None = None


def survey(load: Load, emit: JobContext, offline: bool) -> Survey:
    """Survey a model without downloading its weights; raises what `/model` would raise about its name and files."""
    imports.import_libraries(emit)
    if load.model == builtin.ID:
        made = builtin.ready(paths.cache_folder())
        if made is None:
            raise BadModel("the built-in model is not downloaded yet (93 MB from the package index)", "/model builtin")
        return here(replace(load, model=str(made)), cache.LocalModel(builtin.ID, made, "", ""))
    listing = locate.resolve(load, emit, offline)
    if isinstance(listing, cache.LocalModel):
        return here(load, listing)
    if problem := locate.repo_problem(load, list(listing.sizes)):
        raise problem
    return there(load, listing, emit)


# on this machine


def here(load: Load, found: cache.LocalModel) -> Survey:
    """Survey a complete folder."""
    weights = validate.examine(found.folder, found.gguf_file, allow_pickle=load.allow_pickle, trust_remote_code=True)
    files = [*weights.files, *([] if found.gguf_file else ["config.json"])]
    size = sum((found.folder / name).stat().st_size for name in files)
    code = None
    if asked_for(found.folder) or (found.folder / GENERATE).is_file():
        runs = {name: path.stat().st_size for name, path in consent.sources(found.folder).items()}
        code = Code(runs, found.commit)
    config = read_any_config(found.folder, found.gguf_file)
    return Survey(found.commit, weights, config, cached=size, code=code)


def read_any_config(folder_: Path, gguf_file: str = "") -> PreTrainedConfig:
    """Read a config without running code; an unknown type becomes a plain `PreTrainedConfig`."""
    from transformers import AutoConfig, PreTrainedConfig

    extra = {"gguf_file": gguf_file} if gguf_file else {}
    try:
        return AutoConfig.from_pretrained(str(folder_), trust_remote_code=False, local_files_only=True, **extra)
    except Exception:  # an unknown type, or invalid values: loading reports it
        with suppress(Exception):
            return PreTrainedConfig.from_dict(validate.read_model_config(folder_))
    return None


# on the Hub


def there(want: Load, listing: RepoFiles, emit: JobContext) -> Survey:
    """Survey a repository on the Hub: its file list, its config, and the headers of its weights."""
    try:
        place = locate.fetch_first(want, "config.json", DownloadProgress(emit, listing.sizes), emit)
    except NotFound:
        if not listing.gated:
            raise
        outer = {
            name: size for name, size in listing.sizes.items() if name.endswith(".safetensors") and "/" not in name
        }
        return Survey(listing.commit, by_count(listing, outer, None), None, True, outer)
    read = read_any_config(place)
    names = files_to_load(want, place, listing, emit)
    headed = [name for name in names if name.endswith(validate.WEIGHT_ENDINGS)]
    weights = remote_weights(want, headed, listing, read, emit)
    missing = {name: listing.sizes[name] for name in names if not (place / name).is_file()}
    code = None if want.gguf_file else code_there(want, place, listing, emit)
    kept = sum(listing.sizes[name] for name in names if name not in missing)
    return Survey(listing.commit, weights, read, listing.gated, missing, kept, code)


def files_to_load(want: Load, place: Path, listing: RepoFiles, emit: JobContext) -> list[str]:
    """List the files that loading reads; the index of sharded weights is downloaded for it."""
    if want.gguf_file:
        return [want.gguf_file]
    first = cache.head(listing.sizes, want.allow_pickle)
    if first.endswith(".json"):
        locate.fetch_file(want, first, listing.commit, DownloadProgress(emit, listing.sizes), emit)
    index = [first] if first.endswith(".json") else []
    return ["config.json", *index, *locate.needed(want, place, first, listing.sizes)]


def code_there(want: Load, place: Path, listing: RepoFiles, emit: JobContext) -> Code | None:
    """List the code of a repository whose configs ask for some; its configs are downloaded for it."""
    files = {name: size for name, size in sorted(listing.sizes.items()) if consent.could_run(name)}
    for name in (name for name in listing.sizes if files and fnmatchcase(name, CONFIGS) and "/" not in name):
        locate.fetch_file(want, name, listing.commit, DownloadProgress(emit, listing.sizes), emit)
    return Code(files, listing.commit) if GENERATE in files or asked_for(place) else None


def remote_weights(
    want: Load, names: list[str], listing: RepoFiles, config: PreTrainedConfig, emit: JobContext
) -> Weights:
    """Read safetensors headers on the Hub; other formats are counted from the Hub's metadata."""
    from huggingface_hub import HfApi, errors

    if not all(name.endswith(".safetensors") for name in names):
        return by_count(listing, names, config)
    emit(Progress("reading headers"))
    ask = partial(HfApi().get_safetensors_metadata, want.model, revision=listing.commit)
    wrong = BadModel(f"the weights of {want} are not safetensors files")
    try:
        found = call_hub(ask, emit).files_metadata.values()
    except (errors.SafetensorsParsingError, TypeError) as error:
        raise wrong from error
    except Exception as error:  # sockets, TLS, the page of a captive portal
        stopped = Unreachable("the Hub stopped answering while the headers were read", f"/plan {want.model}")
        raise locate.explain_hub_error(error, want, emit) or stopped from error
    try:
        tensors = {name: as_tensor(each.dtype, each.shape) for file in found for name, each in file.tensors.items()}
        return count_weights(names, tensors, "safetensors")
    except (TypeError, ValueError) as error:  # the library does not validate headers
        raise wrong from error


def by_count(listing: RepoFiles, names: Iterable[str], config: PreTrainedConfig) -> Weights:
    """Count parameters from the Hub's metadata, or else estimate them from the sizes of the files."""
    names = list(names)
    size = sum(listing.sizes[name] for name in names)
    kind = "gguf" if any(name.endswith(".gguf") for name in names) else "safetensors"
    stored = Counter(listing.stored) or Counter({"F16": size // 2})
    total = stored.total()
    taken = sum(number * bits(name) // 8 for name, number in stored.items())
    sizes = ModelSizes(config) if config is not None else None
    outside = 2 * sizes.vocabulary * sizes.hidden if sizes else 0
    return Weights(tuple(names), total, taken, dict(stored), kind, max(0, total - outside))
