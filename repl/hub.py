"""From a model's name to a folder: what is cached at once, else one short probe and the files that are needed."""

import difflib
import errno
import importlib
import logging
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import replace
from fnmatch import fnmatchcase
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

from repl import snapshots
from repl.errors import BadModel, Cancelled, NotFound, ReplError, Unreachable, UsageError
from repl.events import Progress
from repl.quiet import Bar
from repl.snapshots import Found, Want, cached, cached_models
from repl.worker import Emit, aside

__all__ = ["Found", "cached", "cached_models", "locate"]

T = TypeVar("T")
PROBE, GLANCE = 4.5, 2.0  # seconds for the Hub to answer at all; for what only makes an error message better
CHUNK = 1 << 20  # bytes between two looks at whether the user stopped the download
SMALL = ("generation_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt", "chat_template.json")
LIGHT = (*snapshots.TOKENIZER, *SMALL, "*.jinja")
PATH = re.compile(r"[./~]|[A-Za-z]:[\\/]|.*\\|(?:[^/]*/){2}|.*\.gguf$")
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
BUILTIN, ELSEWHERE, LOGIN = "/model builtin", "HF_HOME=FOLDER hub-repl", "hf auth login"


def locate(
    model: str,
    revision: str,
    gguf_file: str,
    emit: Emit,
    *,
    offline: bool = False,
    pickle: bool = False,
    code: bool = False,
) -> Found:
    """Find a model on this machine, or download it; a complete copy is used without asking the Hub.

    Raises `UsageError` for what cannot be an id, `NotFound`, `Unreachable` (within 5 s where nothing answers),
    `BadModel` for a repository without a model that loads, `ReplError` where the disk does not take it.
    """
    want = Want(model, revision, gguf_file, pickle, code)
    if found := local(want) or snapshots.find(want):
        return found
    prepare(emit)
    check_id(model)
    from huggingface_hub import constants

    if offline or constants.HF_HUB_OFFLINE:
        raise absent(want, "offline")
    emit(Progress("resolve"))
    return download(want, probe(want, emit), emit)


def local(want: Want) -> Found | None:
    """Find a folder or a .gguf file; raise `NotFound` for a path that leads nowhere, None for what is no path."""
    if not want.model.strip():
        raise UsageError("no model is named", BUILTIN)
    with suppress(OSError, RuntimeError, ValueError):  # a name too long for a path, a home that is not there
        path = Path(want.model).expanduser().absolute()
        if path.is_dir():
            return Found(want.model, path, "", want.gguf_file)
        if path.is_file() and path.suffix.lower() == ".gguf":
            return Found(want.model, path.parent, "", path.name)
        if path.is_file():
            raise BadModel(f"{want.model!r} is neither a folder nor a .gguf file", f"/model {path.parent}")
    if PATH.match(want.model):
        raise NotFound(f"no folder or file {want.model!r}")
    return None


def check_id(model: str) -> None:
    """Raise `UsageError` for what the Hub does not take as an id."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(model)
    except HFValidationError as error:
        raise UsageError(f"{model!r} is not a model id: NAME or OWNER/NAME, of letters, digits, - _ and .") from error


# the library, made quiet and possible to stop


class Watch(logging.Handler):
    """Keeps the library's words off the terminal, and ends a cancelled download when it logs that it tries again."""

    job: ContextVar[Emit | None] = ContextVar("job", default=None)

    def emit(self, record: logging.LogRecord) -> None:
        """Raise `Cancelled` on a thread whose job was stopped."""
        if job := self.job.get():
            job.check()


def prepare(emit: Emit) -> None:
    """Import the library, once, and take its log off the terminal."""
    with emit.shield():  # an import cut short stays broken
        importlib.import_module("huggingface_hub.hf_api")
        importlib.import_module("huggingface_hub.file_download").constants.DOWNLOAD_CHUNK_SIZE = CHUNK
        logger = logging.getLogger("huggingface_hub")
        if not any(isinstance(each, Watch) for each in logger.handlers):
            logger.handlers[:] = [Watch()]
        logger.propagate = True


def watched(work: Callable[[], T], emit: Emit, seconds: float = 0.0) -> T:
    """Run a call of the library aside; `TimeoutError` after `seconds`, `Cancelled` at once."""

    def run() -> T:
        Watch.job.set(emit)
        return work()

    return aside(run, emit, seconds)


class Meter:
    """Adds up the bytes of several files and says how far they are."""

    def __init__(self, emit: Emit, sizes: dict[str, int]) -> None:
        self._emit, self._sizes, self._total = emit, sizes, sum(sizes.values())
        self._before = self._done = 0
        self._name = ""

    def begin(self, name: str) -> type[Bar]:
        """Start the next file; returns what the library takes for a progress bar."""
        self._name, self._done = name, 0
        meter = self

        class Transfer(Bar):
            def __init__(self, *args: Any, **options: Any) -> None:
                rust = "bar_format" in options  # xet calls from Rust, where nothing may be raised
                super().__init__(meter.note if rust else meter.report, *args, **options)

            def update_transfer(self, _: int) -> None:
                """Leave bytes on the wire uncounted; without this method xet would make, and count, two bars."""

        return Transfer

    def report(self, _: str, done: int, __: int) -> None:
        """Take a step of the file under way; raises `Cancelled` once the job was stopped."""
        self._done = done
        self._emit(Progress("download", self._before + done, self._total, "B"))

    def note(self, name: str, done: int, total: int) -> None:
        """Take a step and raise nothing."""
        with suppress(Cancelled):
            self.report(name, done, total)

    def end(self) -> None:
        """Count the file under way as done, however it came."""
        self._before += self._sizes[self._name]
        self.report(self._name, 0, 0)

    def stopped(self) -> str:
        """Say how far the file under way has come."""
        size = self._sizes[self._name]
        unit, word = next(((unit, word) for unit, word in ((1e9, "GB"), (1e6, "MB")) if size >= unit), (1e3, "kB"))
        return f"the download of {self._name} stopped at {self._done / unit:.3g} of {size / unit:.3g} {word}"


# one probe, then file by file


def probe(want: Want, emit: Emit) -> dict[str, int]:
    """Ask the Hub for the files of a model and their sizes in bytes."""
    from huggingface_hub import HfApi

    def ask() -> Any:
        return HfApi().model_info(want.model, revision=want.revision, files_metadata=True, timeout=3)

    try:
        siblings = watched(ask, emit, PROBE).siblings
    except Exception as error:  # sockets, TLS, the page of a captive portal: no answer is no answer
        raise explained(error, want, emit) or absent(want, "cannot reach the Hub") from error
    return {file.rfilename: file.size or 0 for file in siblings or ()}


def download(want: Want, sizes: dict[str, int], emit: Emit) -> Found:
    """Bring the files that are needed into the cache, all of one commit."""
    if problem := flaw(want, list(sizes)):
        raise problem
    first = snapshots.head(sizes, want.pickle)
    begin = [want.gguf_file] if want.gguf_file else ["config.json", *([first] if first.endswith(".json") else [])]
    fetch(want, want.revision, begin[:1], sizes, emit)  # by name, so that the cache learns what it stands for
    folder = snapshots.snapshot(want.model, want.revision)
    if folder is None:
        raise ReplError(f"the cache under {str(snapshots.home())!r} does not keep what is downloaded", ELSEWHERE)
    fetch(want, folder.name, begin[1:], sizes, emit)
    if not want.gguf_file:
        fetch(want, folder.name, [*light(sizes, want), *heavy(want, folder, first, sizes)], sizes, emit)
    return Found(want.model, folder, folder.name, want.gguf_file)


def light(names: dict[str, int], want: Want) -> list[str]:
    """Choose the files that come before the weights: tokenizer, templates, defaults, and code if wanted."""
    top = [name for name in names if "/" not in name and any(fnmatchcase(name, pattern) for pattern in LIGHT)]
    templates = [name for name in names if name.startswith("additional_chat_templates/")]
    return [*top, *templates, *[name for name in names if want.code and name.endswith(".py")]]


def heavy(want: Want, folder: Path, first: str, names: dict[str, int]) -> list[str]:
    """List the files of the weights; raise `BadModel` if the index names one that is not there."""
    parts = snapshots.shards(folder, first)
    if missing := [name for name in parts if name not in names]:
        raise BadModel(f"{first} of {want} names {missing[0]!r}, which is not there")
    return parts


def fetch(want: Want, revision: str, names: list[str], sizes: dict[str, int], emit: Emit) -> None:
    """Download the files that the cache does not have."""
    from huggingface_hub import hf_hub_download

    folder = snapshots.snapshot(want.model, revision) if revision != want.revision else None
    todo = [name for name in names if folder is None or not (folder / name).is_file()]
    meter = Meter(emit, {name: sizes[name] for name in todo})
    check_room(want, sum(sizes[name] for name in todo))
    for name in todo:
        bar = meter.begin(name)
        try:
            watched(lambda n=name, b=bar: hf_hub_download(want.model, n, revision=revision, tqdm_class=b), emit)  # type: ignore[misc]
        except Cancelled:
            abandon()
            raise
        except Exception as error:  # as for the probe
            raise explained(error, want, emit) or Unreachable(meter.stopped(), f"/model {want.model}") from error
        meter.end()


def abandon() -> None:
    """Stop transfers that go on in Rust."""
    with suppress(ImportError):  # private to the library, and absent in versions without xet
        importlib.import_module("huggingface_hub.utils._xet").abort_xet_session()


def check_room(want: Want, size: int) -> None:
    """Raise `ReplError` if the disk of the cache has fewer bytes free than this."""
    place = next((path for path in (snapshots.home(), *snapshots.home().parents) if path.exists()), Path())
    free = shutil.disk_usage(place).free
    if size > free:
        sentence = f"{want} needs {size / 1e9:.1f} GB, and the disk of {str(place)!r} has {free / 1e9:.1f} GB free"
        raise ReplError(sentence, ELSEWHERE)


# what went wrong, in the user's terms


def flaw(want: Want, names: list[str]) -> ReplError | None:
    """Say why a repository with these files does not hold what is wanted."""
    packed = [f"/model {want.model}:{name}" for name in names if name.endswith(".gguf")][:5]
    if want.gguf_file:
        return None if want.gguf_file in names else NotFound(f"no file {want.gguf_file!r} in {want.model!r}", *packed)
    if not snapshots.head(names, pickle=True) and packed:
        return BadModel(f"{want} holds GGUF files only, and one of them has to be named", *packed)
    if "adapter_config.json" in names and "config.json" not in names:
        return BadModel(f"{want} is an adapter, not a whole model", f"/adapter {want.model}")
    if "config.json" not in names:
        return BadModel(f"{want} holds no config.json: it is no model for transformers")
    return None if snapshots.head(names, want.pickle) else weightless(want, names)


def weightless(want: Want, names: list[str]) -> BadModel:
    """Say that there are no weights, or only pickles."""
    if snapshots.head(names, pickle=True):
        return BadModel(f"the weights of {want} are pickles, which can run code when read", "/allow_pickle true")
    return BadModel(f"{want} holds no weights: no model.safetensors and no index of several")


def absent(want: Want, why: str) -> ReplError:
    """Say that a model is not on this machine, and what is."""
    folder = snapshots.snapshot(want.model, want.revision)
    if folder and not want.pickle and snapshots.complete(folder, replace(want, pickle=True)):
        return weightless(want, [path.name for path in folder.iterdir()])
    state = f"the cached copy of {want} is incomplete" if folder else f"{want} is not cached"
    known = cached_models()
    others = f"; cached models: {', '.join(known[:5])}{', ...' if known[5:] else ''}" if known else ""
    nearest = difflib.get_close_matches(want.model, known, 3) or known[:3]
    return Unreachable(f"{why} and {state}{others}", *[f"/model {name}" for name in nearest], BUILTIN)


def explained(error: Exception, want: Want, emit: Emit) -> ReplError | None:
    """Translate what the Hub or the disk said; None where nobody said anything."""
    from huggingface_hub import errors

    cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else error
    match cause:
        case errors.GatedRepoError():
            page = f"https://huggingface.co/{want.model}"
            return NotFound(f"{want.model!r} is gated: accept its terms at {page}, then log in", LOGIN)
        case errors.RepositoryNotFoundError():
            return unknown(want, emit)
        case errors.RevisionNotFoundError():
            return unrevised(want, emit)
        case errors.HfHubHTTPError(response=response):
            return refused(want, response.status_code)
        case OSError(errno=number) if number in DISK:
            sentence = f"cannot write to the cache under {str(snapshots.home())!r}: {cause.strerror}"
            return ReplError(sentence.lower() if False else sentence, ELSEWHERE)
    return None


def refused(want: Want, status: int) -> ReplError:
    """Say what an HTTP status means here."""
    words = next((each.phrase.lower() for each in HTTPStatus if each == status), "no known status")
    if status == HTTPStatus.UNAUTHORIZED:
        return NotFound("the Hub does not accept the saved token", LOGIN)
    if status in (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):
        return NotFound(f"the Hub does not give out {want}: {status} {words}", LOGIN)
    return absent(want, f"the Hub answers {status} ({words})")


def unknown(want: Want, emit: Emit) -> NotFound:
    """Say that there is no such model, with the nearest that there are."""
    from huggingface_hub import HfApi

    word = want.model.split("/")[-1]
    near = difflib.get_close_matches(want.model, cached_models(), 3)
    near += glance(lambda: [each.id for each in HfApi().list_models(search=word, sort="downloads", limit=3)], emit)
    return NotFound(f"no model {want.model!r} on the Hub (or it is private)", *[f"/model {n}" for n in near], LOGIN)


def unrevised(want: Want, emit: Emit) -> NotFound:
    """Say that there is no such revision, with those that there are."""
    from huggingface_hub import HfApi

    def ask() -> list[str]:
        refs = HfApi().list_repo_refs(want.model)
        return [each.name for each in (*refs.branches, *refs.tags)]

    known = glance(ask, emit)
    near = difflib.get_close_matches(want.revision, known, 3) or known[:5]
    return NotFound(f"no revision {want.revision!r} of {want.model!r}", *[f"/revision {name}" for name in near])


def glance(work: Callable[[], list[str]], emit: Emit) -> list[str]:
    """Look up what only makes a message better: for two seconds, and nothing if that is not enough."""
    try:
        return watched(work, emit, GLANCE)
    except Exception:  # the message has to come without it
        return []
