"""From a model's name to a folder: the cached copy at once, else one query of the Hub and the files needed."""

import difflib
import errno
import os
import re
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from http import HTTPStatus
from pathlib import Path

import huggingface_hub

from repl.core.errors import BadModel, Cancelled, NotFound, ReplError, Unreachable, UsageError
from repl.core.events import Progress
from repl.core.jobs import JobContext
from repl.core.settings import Load
from repl.hub import cache
from repl.hub.cache import LocalModel, cached_models
from repl.hub.consent import could_run
from repl.hub.download import DownloadProgress, call_hub, prepare
from repl.hub.model_files import TOKENIZER, list_shards

__all__ = ["LocalModel", "adapter", "cached_models", "locate"]

PROBE_S, GLANCE_S = 4.5, 2.0  # seconds for the Hub to answer; for queries that only improve an error message
SMALL = ("generation_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt", "chat_template.json")
LIGHT = (*TOKENIZER, *SMALL, "*.jinja")
PATH_PATTERN = re.compile(r"[./~]|[A-Za-z]:[\\/]|.*\\|(?:[^/]*/){2}|.*\.gguf$")
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
BUILTIN, ELSEWHERE, LOGIN = "/model builtin", "HF_HOME=FOLDER hub-repl", "hf auth login"


def locate(want: Load, emit: JobContext, offline: bool = False) -> LocalModel:
    """Find a model on this machine, or download it; a complete copy is used without asking the Hub.

    Raises `UsageError` for an invalid id, `NotFound`, `Unreachable` (within 5 s where nothing answers),
    `BadModel` for a repository without a loadable model, `ReplError` where the disk is full or not writable.
    """
    found = resolve(want, emit, offline)
    return found if isinstance(found, LocalModel) else download_files(want, found.sizes, emit)


def resolve(want: Load, emit: JobContext, offline: bool) -> "LocalModel | RepoFiles":
    """Return a model on this machine, or else its files on the Hub; raises as `locate` does."""
    if found := local(want) or cache.find_cached(want):
        return found
    prepare(emit)
    check_id(want.model)
    if is_offline(offline):
        raise not_cached(want, "offline")
    emit(Progress("asking the Hub"))
    return probe(want, emit)


def is_offline(offline: bool) -> bool:
    """Tell whether the session or `HF_HUB_OFFLINE` forbids the network."""
    from huggingface_hub import constants

    return offline or constants.HF_HUB_OFFLINE


def adapter(name: str, revision: str, emit: JobContext, offline: bool = False) -> LocalModel:
    """Return an adapter on this machine, or download its config and safetensors; raises as `locate` does."""
    want, files = Load(name, revision), ("adapter_config.json", "adapter_model.safetensors")
    if found := local(want):
        return found
    folder = cache.snapshot(name, revision)
    if folder and all((folder / file).is_file() for file in files):
        return LocalModel(name, folder, folder.name, "")
    prepare(emit)
    check_id(name)
    if is_offline(offline):
        raise Unreachable(f"offline and the adapter {want} is not cached", "/adapter none")
    emit(Progress("asking the Hub"))
    sizes = probe(want, emit).sizes
    if missing := [file for file in files if file not in sizes]:
        raise BadModel(f"{want} has no {missing[0]}; adapters are loaded from safetensors only", "/adapter none")
    meter = DownloadProgress(emit, sizes)
    check_room(want, meter.plan(list(files)))
    folder = fetch_first(want, files[0], meter, emit)
    fetch_file(want, files[1], folder.name, meter, emit)
    return LocalModel(name, folder, folder.name, "")


def local(want: Load) -> LocalModel | None:
    """Return the model at a local path, None for an id; raises `NotFound` for a path that does not exist."""
    if not want.model.strip():
        raise UsageError("no model is named", BUILTIN)
    with suppress(OSError, RuntimeError, ValueError):  # too long for a path, or an unknown home
        path = Path(want.model).expanduser().absolute()
        if path.is_dir():
            return LocalModel(want.model, path, "", want.gguf_file)
        if path.is_file() and path.suffix.lower() == ".gguf":
            return LocalModel(want.model, path.parent, "", path.name)
        if path.is_file():
            raise BadModel(f"{want.model!r} is neither a folder nor a .gguf file", f"/model {path.parent}")
    if PATH_PATTERN.match(want.model):
        raise NotFound(f"no folder or file {want.model!r}")
    return None


def check_id(model: str) -> None:
    """Raise `UsageError` for a name that is not a valid repository id."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # its __all__ lacks most names

    try:
        validate_repo_id(model)
    except HFValidationError as error:
        raise UsageError(f"{model!r} is not a model id: NAME or OWNER/NAME, of letters, digits, - _ and .") from error


# one query, then file by file


@dataclass(frozen=True, slots=True)
class RepoFiles:
    """A repository on the Hub: its commit, whether it is gated, its files with their sizes in bytes.

    `stored` counts the parameters of the safetensors by dtype, where the Hub says.
    """

    commit: str
    gated: bool
    sizes: dict[str, int]
    stored: dict[str, int]


def ask_hub(want: Load, emit: JobContext) -> "huggingface_hub.ModelInfo":
    """Return the Hub's `model_info`, within a few seconds; raises as `locate` does."""
    ask = partial(
        huggingface_hub.HfApi().model_info, want.model, revision=want.revision, files_metadata=True, timeout=3
    )
    try:
        return call_hub(ask, emit, PROBE_S)
    except Exception as error:  # sockets, TLS, the page of a captive portal
        raise explain_hub_error(error, want, emit) or not_cached(want, "cannot reach the Hub") from error


def probe(want: Load, emit: JobContext) -> RepoFiles:
    """Ask the Hub for the files of a model."""
    info = ask_hub(want, emit)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    stored = getattr(getattr(info, "safetensors", None), "parameters", None) or {}
    return RepoFiles(info.sha or "", bool(info.gated), sizes, dict(stored))


def download_files(want: Load, sizes: dict[str, int], emit: JobContext) -> LocalModel:
    """Download the needed files into the cache, all from one commit."""
    if problem := repo_problem(want, list(sizes)):
        raise problem
    meter = DownloadProgress(emit, sizes)
    if want.gguf_file:
        check_room(want, meter.plan([want.gguf_file]))
        folder = fetch_first(want, want.gguf_file, meter, emit)
        return LocalModel(want.model, folder, folder.name, want.gguf_file)
    folder = fetch_first(want, "config.json", meter, emit)
    first = cache.head(sizes, want.allow_pickle)
    if first.endswith(".json"):
        fetch_file(want, first, folder.name, meter, emit)
    names = [name for name in needed(want, folder, first, sizes) if not (folder / name).is_file()]
    check_room(want, meter.plan(names))
    for name in names:
        fetch_file(want, name, folder.name, meter, emit)
    return LocalModel(want.model, folder, folder.name, "")


def fetch_first(want: Load, name: str, meter: DownloadProgress, emit: JobContext) -> Path:
    """Download a file by the name of the revision, which the cache then resolves; returns the snapshot folder."""
    fetch_file(want, name, want.revision, meter, emit)
    folder = cache.snapshot(want.model, want.revision)
    if folder is None:
        raise ReplError(f"the cache under {str(cache.home())!r} does not keep downloaded files", ELSEWHERE)
    return folder


def needed(want: Load, folder: Path, first: str, names: Iterable[str]) -> list[str]:
    """List the needed files: tokenizer, templates, generation config, code if allowed, then the weights of `first`."""
    outer = [name for name in names if "/" not in name and not could_run(name)]
    top = [name for name in outer if any(fnmatchcase(name, pattern) for pattern in LIGHT)]
    templates = [name for name in names if name.startswith("additional_chat_templates/")]
    code = [name for name in names if want.trust_remote_code and could_run(name)]
    weights = list_shards(folder, first)
    if missing := [name for name in weights if name not in names]:
        raise BadModel(f"{first} of {want} names {missing[0]!r}, which does not exist")
    return [*top, *templates, *code, *weights]


def fetch_file(want: Load, name: str, revision: str, meter: DownloadProgress, emit: JobContext) -> None:
    """Download one file into the cache."""
    bar = meter.begin(name)
    try:
        call_hub(partial(huggingface_hub.hf_hub_download, want.model, name, revision=revision, tqdm_class=bar), emit)
        meter.end()
    except Cancelled:
        raise Cancelled(f"complete files are kept; {name} will restart") from None
    except Exception as error:  # as for the probe
        raise explain_hub_error(error, want, emit) or Unreachable(meter.stopped(), f"/model {want.model}") from error


def check_room(want: Load, size: int) -> None:
    """Raise `ReplError` if the disk of the cache has fewer than `size` bytes free."""
    place, free = disk()
    if size > free:
        sentence = f"{want} needs {size / 1e9:.1f} GB, but the disk of {str(place)!r} has {free / 1e9:.1f} GB free"
        raise ReplError(sentence, ELSEWHERE)


def disk() -> tuple[Path, int]:
    """Return the nearest existing folder of the cache, and the bytes free on its disk."""
    place = next((path for path in (cache.home(), *cache.home().parents) if path.exists()), Path())
    return place, shutil.disk_usage(place).free


# errors


def repo_problem(want: Load, names: list[str]) -> ReplError | None:
    """Return the error for a repository without the wanted model, None where its files are all right."""
    packed = [f"/model {want.model}:{name}" for name in names if name.endswith(".gguf")][:5]
    if want.gguf_file:
        return None if want.gguf_file in names else NotFound(f"no file {want.gguf_file!r} in {want.model!r}", *packed)
    if not cache.head(names, pickle=True) and packed:
        return BadModel(f"{want} has only GGUF files: name one of them", *packed)
    if "adapter_config.json" in names and "config.json" not in names:
        return BadModel(f"{want} is an adapter, not a whole model", f"/adapter {want.model}")
    if "config.json" not in names:
        return BadModel(f"{want} has no config.json: it is not a transformers model")
    return None if cache.head(names, want.allow_pickle) else no_weights(want, names)


def no_weights(want: Load, names: list[str]) -> BadModel:
    """Return the error for a repository without weights, or with pickles only."""
    if cache.head(names, pickle=True):
        return BadModel(f"the weights of {want} are pickles, which can run code when loaded", "/allow_pickle true")
    return BadModel(f"{want} has no weights: no model.safetensors and no index")


def not_cached(want: Load, why: str) -> ReplError:
    """Return the error for a model that is not cached, with the models that are."""
    folder = cache.snapshot(want.model, want.revision)
    if folder and not want.allow_pickle and cache.complete(folder, replace(want, allow_pickle=True)):
        return no_weights(want, [path.name for path in folder.iterdir()])
    state = f"the cached copy of {want} is incomplete" if folder else f"{want} is not cached"
    known = cached_models()
    others = f"; cached models: {', '.join(known[:5])}{', ...' if known[5:] else ''}" if known else ""
    nearest = difflib.get_close_matches(want.model, known, 3) or known[:3]
    return Unreachable(f"{why} and {state}{others}", *[f"/model {name}" for name in nearest], BUILTIN)


def explain_hub_error(error: Exception, want: Load, emit: JobContext) -> ReplError | None:
    """Return the error for an exception of huggingface_hub; None where neither the Hub nor the disk caused it."""
    from huggingface_hub import errors

    cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else error
    match cause:
        case errors.GatedRepoError():
            page = f"https://huggingface.co/{want.model}"
            return NotFound(f"{want.model!r} is gated: accept its terms at {page}, then log in", LOGIN)
        case errors.RepositoryNotFoundError():
            return no_such_model(want, emit)
        case errors.RevisionNotFoundError():
            return no_such_revision(want, emit)
        case errors.HfHubHTTPError(response=response):
            return explain_status(want, response.status_code)
        case OSError(errno=number) if number in DISK:
            why = os.strerror(number).lower()
            return ReplError(f"cannot write to the cache under {str(cache.home())!r}: {why}", ELSEWHERE)
    return None


def explain_status(want: Load, status: int) -> ReplError:
    """Return the error for an HTTP status."""
    words = next((each.phrase.lower() for each in HTTPStatus if each == status), "no known status")
    if status == HTTPStatus.UNAUTHORIZED:
        return NotFound("the Hub rejects the saved token", LOGIN)
    if status in (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):
        return NotFound(f"the Hub refuses {want}: {status} {words}", LOGIN)
    return not_cached(want, f"the Hub answers {status} ({words})")


def no_such_model(want: Load, emit: JobContext) -> NotFound:
    """Return the error for an id that does not exist, with similar ids."""
    ask = partial(huggingface_hub.HfApi().list_models, search=want.model.split("/")[-1], sort="downloads", limit=3)
    near = difflib.get_close_matches(want.model, cached_models(), 3)
    near += quick_lookup(lambda: [each.id for each in ask()], emit)
    hints = [f"/model {name}" for name in dict.fromkeys(near)]
    return NotFound(f"no model {want.model!r} on the Hub (or it is private)", *hints, LOGIN)


def no_such_revision(want: Load, emit: JobContext) -> NotFound:
    """Return the error for a revision that does not exist, with similar ones."""

    def ask() -> list[str]:
        refs = huggingface_hub.HfApi().list_repo_refs(want.model)
        return [each.name for each in (*refs.branches, *refs.tags)]

    known = quick_lookup(ask, emit)
    near = difflib.get_close_matches(want.revision, known, 3) or known[:5]
    return NotFound(f"no revision {want.revision!r} of {want.model!r}", *[f"/revision {name}" for name in near])


def quick_lookup(work: Callable[[], list[str]], emit: JobContext) -> list[str]:
    """Query the Hub to improve an error message: at most two seconds, an empty list on any failure."""
    try:
        return call_hub(work, emit, GLANCE_S)
    except Exception:  # the error is shown without it
        return []
