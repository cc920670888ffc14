"""The models in the cache of huggingface_hub, and on the Hub: lists, search, model cards, deletion."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import huggingface_hub

from repl.core import settings
from repl.core.errors import NotFound, ReplError, Unreachable
from repl.core.events import Progress
from repl.core.jobs import CachedLookup, JobContext
from repl.core.settings import Load
from repl.hub import builtin, cache, locate, validate, weight_headers
from repl.hub.download import call_hub, import_library, prepare

SEARCH_S = 3.0  # seconds for the Hub to answer a search
MAX_SEARCH_RESULTS = 12  # models of a search that are shown
POPULAR = 500  # models of the Hub that are offered for completion
TASK = "text-generation"
WANTED = ("downloads", "gated", "safetensors", "usedStorage", "tags")


def parse_request(text: str) -> Load:
    """Return the load for `id`, `id@revision` or `id:file.gguf`."""
    parts: dict[str, Any] = {name: word for name, word in settings.address(text) if word != "default"}
    return Load(**parts)


# the cache


@dataclass(frozen=True, slots=True)
class Cached:
    """A cached model: bytes on disk of all revisions, the dtype of most weights, last use as a Unix time."""

    id: str
    bytes: int
    complete: bool
    dtype: str
    parameters: int
    used: float


def list_cached(emit: JobContext) -> list[Cached]:
    """List the models in the cache, last used first; reads headers only."""
    prepare(emit)
    found = []
    for repo in _repos():
        emit.raise_if_cancelled()
        found.append(_cached(repo))
    return sorted(found, key=lambda each: -each.used)


def _repos() -> Iterator["huggingface_hub.CachedRepoInfo"]:
    try:
        yield from (repo for repo in huggingface_hub.scan_cache_dir(cache.home()).repos if repo.repo_type == "model")
    except huggingface_hub.CacheNotFound:
        return


def _cached(repo: "huggingface_hub.CachedRepoInfo") -> Cached:
    revisions = sorted(repo.revisions, key=lambda each: ("main" in each.refs, each.last_modified))
    place = Path(revisions[-1].snapshot_path) if revisions else Path()
    packed = sorted(path.name for path in place.glob("*.gguf")) if revisions else []
    whole = bool(revisions) and cache.complete(place, Load(repo.repo_id))
    if packed and not whole:
        return Cached(f"{repo.repo_id}:{packed[0]}", repo.size_on_disk, True, "gguf", 0, repo.last_accessed)
    dtype, parameters = stored_as(place) if whole else ("", 0)
    mark = "" if not revisions or "main" in revisions[-1].refs else f"@{revisions[-1].commit_hash}"
    return Cached(repo.repo_id + mark, repo.size_on_disk, whole, dtype, parameters, repo.last_accessed)


def stored_as(place: Path) -> tuple[str, int]:
    """Return the dtype of most weights and the number of parameters; '' and 0 where they cannot be read."""
    try:
        config = validate.read_model_config(place)
        kind, files = validate.weight_files(place, config, allow_pickle=True)
        if kind != "safetensors":
            return "pickle", weight_headers.estimate_pickles(place, config, files).parameters
        found = weight_headers.count_weights(files, weight_headers.read_tensors(place, files), kind)
    except (ReplError, OSError):
        return "", 0
    return most(found.dtypes), found.parameters


def most(dtypes: dict[str, int]) -> str:
    """Return the dtype with the most parameters."""
    name = max(dtypes, key=lambda each: dtypes[each], default="")
    return weight_headers.STORED.get(name, name.lower())


@dataclass(frozen=True, slots=True)
class Freed:
    """A model deleted from the cache, and the bytes this frees."""

    id: str
    bytes: int
    revisions: int
    folder: str


def erase(id: str, emit: JobContext, really: bool) -> Freed:
    """Delete a model from the cache, or with `really` off only compute what it would free; raises `NotFound`."""
    prepare(emit)
    repos = {repo.repo_id: repo for repo in _repos()}
    if id not in repos:
        there = f"; cached models: {', '.join(sorted(repos)[:5])}" if repos else ""
        raise NotFound(f"{id!r} is not in the cache{there}", "/models")
    repo = repos[id]
    # this repository alone: two may have the same commit, and the library would take either
    alone = replace(huggingface_hub.scan_cache_dir(cache.home()), repos=frozenset({repo}))
    plan = alone.delete_revisions(*(each.commit_hash for each in repo.revisions))
    if really:
        with emit.uninterruptible():
            plan.execute()
    return Freed(id, plan.expected_freed_size, len(repo.revisions), str(repo.repo_path))


# the Hub


@dataclass(frozen=True, slots=True)
class Listed:
    """A search result on the Hub; 0 and '' where the Hub does not say."""

    id: str
    downloads: int
    parameters: int
    bytes: int
    gated: bool
    licence: str


def search(text: str, emit: JobContext, offline: bool) -> list[Listed]:
    """Search the Hub for text-generation models by name, most downloaded first; raises `Unreachable`."""
    prepare(emit)
    if locate.is_offline(offline):
        raise Unreachable("offline: the Hub is not used")
    emit(Progress("asking the Hub"))

    def ask() -> list[Listed]:
        options: Any = {"pipeline_tag": TASK, "sort": "downloads", "limit": MAX_SEARCH_RESULTS, "expand": list(WANTED)}
        return [_listed(each) for each in huggingface_hub.HfApi().list_models(search=text or None, **options)]

    try:
        return call_hub(ask, emit, SEARCH_S)
    except Exception as error:  # sockets, TLS, statuses, pages of a captive portal
        raise Unreachable("the Hub does not answer") from error


def _listed(model: "huggingface_hub.ModelInfo") -> Listed:
    marks = [tag.removeprefix("license:") for tag in model.tags or () if tag.startswith("license:")]
    total = model.safetensors.total if model.safetensors else 0
    return Listed(model.id, model.downloads or 0, total, model.used_storage or 0, bool(model.gated), " ".join(marks))


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Facts about a model that is not loaded; `files` are names and bytes, `source` is Hub or cache."""

    id: str
    source: str
    commit: str
    architecture: str
    parameters: int
    dtype: str
    cached: bool
    files: list[tuple[str, int]]
    licence: str = ""
    downloads: int = 0
    gated: bool = False
    languages: list[str] = field(default_factory=list)
    base_models: list[str] = field(default_factory=list)
    task: str = ""


def card(want: Load, emit: JobContext, offline: bool) -> ModelCard:
    """Return the card of a model from the Hub, or from the cache where the Hub does not answer.

    Raises `NotFound` and `Unreachable` as `hub.locate` does.
    """
    prepare(emit)
    here = cache.snapshot(want.model, want.revision)
    if not locate.is_offline(offline):
        try:
            return _card(want, locate.ask_hub(want, emit))
        except ReplError:
            if here is None:
                raise
    if here is None:
        raise locate.not_cached(want, "offline")
    return _from_cache(want, here)


def _card(want: Load, said: "huggingface_hub.ModelInfo") -> ModelCard:
    data: Mapping[str, object] = vars(said.card_data) if said.card_data else {}
    parameters = said.safetensors.parameters if said.safetensors else {}
    kinds = (said.config or {}).get("architectures") or []
    return ModelCard(
        id=want.model,
        source="Hub",
        commit=said.sha or "",
        architecture=", ".join(map(str, kinds)),
        parameters=said.safetensors.total if said.safetensors else 0,
        dtype=most(parameters),
        licence=str(data.get("license_name") or data.get("license") or ""),
        downloads=said.downloads or 0,
        gated=bool(said.gated),
        languages=_several(data.get("language")),
        base_models=_several(data.get("base_model")),
        task=said.pipeline_tag or "",
        cached=cache.find_cached(want) is not None,
        files=[(each.rfilename, each.size or 0) for each in said.siblings or ()],
    )


def _from_cache(want: Load, here: Path) -> ModelCard:
    try:
        kinds = validate.read_model_config(here).get("architectures")
    except ReplError:
        kinds = None
    dtype, parameters = stored_as(here)
    paths = sorted(path for path in here.rglob("*") if path.is_file())
    return ModelCard(
        id=want.model,
        source="cache",
        commit=here.name,
        architecture=", ".join(_several(kinds)),
        parameters=parameters,
        dtype=dtype,
        cached=cache.find_cached(want) is not None,
        files=[(path.relative_to(here).as_posix(), path.stat().st_size) for path in paths],
    )


def _several(value: object) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list) else [str(value)] if value else []


# names for completion


class ModelNames:
    """Model ids for completion; asking never waits for the disk or the network."""

    def __init__(self) -> None:
        self._cached = CachedLookup(lambda: [builtin.ID, *cache.cached_models()], [builtin.ID], 2.0)
        self._hub: CachedLookup[list[str]] = CachedLookup(_popular, [], 900.0)

    def here(self) -> list[str]:
        """Return the ids in the cache."""
        return self._cached.now(0.05)

    def __call__(self, offline: bool = True, held: Iterable[str] = ()) -> list[str]:
        """Return the ids in memory, in the cache, and the most downloaded ones of the Hub."""
        listed = [] if offline else self._hub.now()
        return list(dict.fromkeys([*held, *self.here(), *listed]))


def _popular() -> list[str]:
    try:
        import_library()
        asked = huggingface_hub.HfApi().list_models(pipeline_tag=TASK, sort="downloads", limit=POPULAR)
        return [] if locate.is_offline(False) else [each.id for each in asked]
    except Exception:  # completion may fail silently
        return []


names = ModelNames()
