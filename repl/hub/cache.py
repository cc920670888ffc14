"""The cache of huggingface_hub: which models are complete on this machine, without the network."""

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from repl.core.errors import BadModel
from repl.core.settings import Load
from repl.hub.model_files import PICKLES, SAFE, TOKENIZER, asked_for, code_files, list_shards

COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model on disk: the name the user typed, its folder, its commit ('' for a plain folder), its GGUF file."""

    id: str
    folder: Path
    commit: str
    gguf_file: str


def cached_models() -> list[str]:
    """List the ids of the complete models in the cache."""
    names = sorted(path.name.removeprefix("models--") for path in home().glob("models--*"))
    return [model for model in (name.replace("--", "/") for name in names) if find_cached(Load(model))]


def home() -> Path:
    """Return the folder of the cache; it may not exist."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def snapshot(model: str, revision: str) -> Path | None:
    """Return the snapshot folder of a revision, complete or not; None where there is none."""
    storage = home() / f"models--{model.replace('/', '--')}"
    with suppress(OSError, ValueError):  # no such reference, or an invalid file name
        commit = revision if COMMIT.fullmatch(revision) else (storage / "refs" / revision).read_text("utf-8").strip()
        folder = storage / "snapshots" / commit
        if COMMIT.fullmatch(commit) and folder.is_dir():
            return folder
    return None


def find_cached(want: Load) -> LocalModel | None:
    """Return the model of a load if it is complete in the cache, else None."""
    folder = snapshot(want.model, want.revision)
    whole = folder is not None and complete(folder, want)
    return LocalModel(want.model, folder, folder.name, want.gguf_file) if folder and whole else None


def complete(folder: Path, want: Load) -> bool:
    """Tell whether a folder has every file that loading reads: config, tokenizer, all weights, code if allowed."""
    if want.gguf_file:
        return (folder / want.gguf_file).is_file()
    try:
        names = {path.name for path in folder.iterdir()}
        first = head(names, want.allow_pickle)
        code = code_files(asked_for(folder)) if want.trust_remote_code else ()
        needed = ["config.json", *list_shards(folder, first), *(name for name in code if ": " not in name)]
        tokenizer = any(fnmatchcase(name, pattern) for name in names for pattern in TOKENIZER)
        return bool(first) and tokenizer and all((folder / name).is_file() for name in needed)
    except (OSError, BadModel):
        return False


def head(names: Iterable[str], pickle: bool) -> str:
    """Return the weight file, or the index of sharded weights, among some names; '' where there is none."""
    return next((name for name in (*SAFE, *(PICKLES if pickle else ())) if name in names), "")
