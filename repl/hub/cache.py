"""Which models of the Hub are on this machine, read from the folders of its cache: no network, at once."""

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from repl.core.errors import BadModel
from repl.hub.model_files import PICKLES, SAFE, TOKENIZER, read_index, read_json

COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model on disk: its name as the user said it, its folder, its commit ('' for a plain folder), its GGUF file."""

    id: str
    folder: Path
    commit: str
    gguf_file: str


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """What is asked for: a model, and which of its files will be read."""

    model: str
    revision: str = "main"
    gguf_file: str = ""
    pickle: bool = False
    code: bool = False

    def __str__(self) -> str:
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return repr(self.model + revision + (f":{self.gguf_file}" if self.gguf_file else ""))


def cached(
    model: str, revision: str = "main", gguf_file: str = "", *, pickle: bool = False, code: bool = False
) -> LocalModel | None:
    """Find a model that is complete in the cache."""
    return find_cached(ModelRequest(model, revision, gguf_file, pickle, code))


def cached_models() -> list[str]:
    """List the ids that are complete in the cache."""
    names = sorted(path.name.removeprefix("models--") for path in home().glob("models--*"))
    return [model for model in (name.replace("--", "/") for name in names) if cached(model)]


def home() -> Path:
    """Return the folder of the cache, there or not."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def snapshot(model: str, revision: str) -> Path | None:
    """Find the folder of a revision, complete or not."""
    storage = home() / f"models--{model.replace('/', '--')}"
    with suppress(OSError, ValueError):  # no such reference, or a name that no file can have
        commit = revision if COMMIT.fullmatch(revision) else (storage / "refs" / revision).read_text("utf-8").strip()
        folder = storage / "snapshots" / commit
        if COMMIT.fullmatch(commit) and folder.is_dir():
            return folder
    return None


def find_cached(want: ModelRequest) -> LocalModel | None:
    """Find what is wanted, if all of it is there."""
    folder = snapshot(want.model, want.revision)
    whole = folder is not None and complete(folder, want)
    return LocalModel(want.model, folder, folder.name, want.gguf_file) if folder and whole else None


def complete(folder: Path, want: ModelRequest) -> bool:
    """Tell whether a folder holds every file that loading takes: config, tokenizer, all weights, code if wanted."""
    if want.gguf_file:
        return (folder / want.gguf_file).is_file()
    try:
        names = {path.name for path in folder.iterdir()}
        first = head(names, want.pickle)
        needed = ["config.json", *shards(folder, first), *(modules(folder) if want.code else [])]
        tokenizer = any(fnmatchcase(name, pattern) for name in names for pattern in TOKENIZER)
        return bool(first) and tokenizer and all((folder / name).is_file() for name in needed)
    except (OSError, BadModel):
        return False


def head(names: Iterable[str], pickle: bool) -> str:
    """Name the file that weights begin with: the only one, or the index of several; '' where there is none."""
    return next((name for name in (*SAFE, *(PICKLES if pickle else ())) if name in names), "")


def shards(folder: Path, first: str) -> list[str]:
    """List the files of the weights that begin with `first`; raise `BadModel` for an index that cannot be read."""
    return read_index(folder, first) if first.endswith(".index.json") else [first]


def modules(folder: Path) -> list[str]:
    """List the Python files that the configs of model and tokenizer ask for from their own repository."""
    configs = [name for name in ("config.json", "tokenizer_config.json") if (folder / name).is_file()]
    declared = [read_json(folder, name).get("auto_map") for name in configs]
    values = [each for entry in declared for each in (entry.values() if isinstance(entry, dict) else (entry,))]
    words = [word for value in values for word in (value if isinstance(value, list) else [value])]
    return sorted({f"{word.split('.')[0]}.py" for word in words if isinstance(word, str) and "--" not in word})
