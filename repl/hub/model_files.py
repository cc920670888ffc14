"""Read files of an untrusted model folder: no path leads out of it, and empty files and LFS pointers are refused.

In come a folder and the name of a file, possibly from a config or an index; out come a path, the first bytes or
the JSON. Nothing here reads weights or runs code.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from repl.core.errors import BadModel

SAFE = ("model.safetensors", "model.safetensors.index.json")  # in the order in which transformers looks for them
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZER = ("tokenizer*", "tokenization*", "vocab*", "rwkv_vocab*", "tekken*", "*.model", "*.tiktoken", "*.bpe")
POINTER = b"version https://git-lfs"
CONFIGS = "*config*.json"  # all configs that may hold an `auto_map`, also versioned ones such as config.4.0.0.json
MAX_JSON_BYTES = 100_000_000


def bad_file(name: str, cause: str, *hints: str) -> BadModel:
    """Return the error for a file; long names are cut."""
    return BadModel(f"{cut_name(name)} {cause}", *hints)


def cut_name(name: str) -> str:
    """Cut a foreign name to 100 characters."""
    return name if len(name) <= 100 else f"{name[:100]}…"


def list_names(names: list[str]) -> str:
    """Join names for a sentence, three at most."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(cut_name, names[:3])) + more


def find_file(folder: Path, name: str) -> Path:
    """Return the path of a file in a folder; raises `BadModel` if it is missing, or leads out of the folder."""
    words = PureWindowsPath(name)  # parses drives and both separators on every system
    if words.anchor or ".." in words.parts or "\0" in name:
        raise bad_file(name, "is a path that leads out of the folder")
    path = folder / name
    try:
        check_link(folder, path)
        there = path.is_file()
    except RuntimeError as error:
        raise bad_file(name, "is a link to itself") from error
    except (OSError, ValueError) as error:  # too long, or not encodable
        raise bad_file(name, "is not a valid file name") from error
    if not there:
        cause = "is a broken link" if path.is_symlink() else "is not a file" if path.exists() else "is missing"
        raise bad_file(name, cause)
    return path


def check_link(folder: Path, path: Path) -> None:
    """Raise `BadModel` for a path whose links lead out of the folder.

    A snapshot in the cache of huggingface_hub may link to the blobs of its repository, and to shared blobs.
    """
    home, real = folder.resolve(), path.resolve()
    homes = [home]
    if home.parent.name == "snapshots":
        repository = home.parent.parent
        homes += [(repository / "blobs").resolve(), (repository.parent / "blobs").resolve()]
    if not any(real.is_relative_to(each) for each in homes):
        raise bad_file(path.relative_to(folder).as_posix(), f"is a link that leads out of the folder, to {real}")


def read_start(folder: Path, name: str, contents: str = "file itself") -> bytes:
    """Return the first bytes of a file; raises `BadModel` for an empty file and a Git LFS pointer."""
    with find_file(folder, name).open("rb") as file:
        first = file.read(len(POINTER))
    if not first:
        raise bad_file(name, "is empty")
    if first == POINTER:
        raise bad_file(name, f"is a Git LFS pointer, not the {contents}: fetch it with git lfs pull")
    return first


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON object; raises `BadModel`."""
    read_start(folder, name)
    if (size := (folder / name).stat().st_size) > MAX_JSON_BYTES:
        raise bad_file(name, f"is {size:,} bytes long, too large for such a file")
    try:
        value = json.loads((folder / name).read_bytes().decode())
    except json.JSONDecodeError as error:
        raise bad_file(name, f"is not JSON (line {error.lineno}, column {error.colno})") from error
    except (ValueError, RecursionError) as error:
        raise bad_file(name, "is not JSON") from error
    if not isinstance(value, dict):
        raise bad_file(name, "is not a JSON object")
    return value


def list_shards(folder: Path, first: str) -> list[str]:
    """List the weight files in an index, or `first` itself; raises `BadModel` for an index that is not valid."""
    if not first.endswith(".index.json"):
        return [first]
    content = read_json(folder, first)
    placed = content.get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(isinstance(file, str) for file in placed.values()):
        raise bad_file(first, "has no weight_map from tensors to files")
    if not isinstance(content.get("metadata"), dict):
        raise bad_file(first, "has no metadata, which transformers requires")
    return sorted(set(placed.values()))


# Python code named in configs


def asked_for(place: Path) -> dict[str, object]:
    """Return the `auto_map` entries of all configs in a folder: lists of classes by config file and auto class."""
    asked: dict[str, Any] = {}
    for name in sorted(path.name for path in place.glob(CONFIGS) if path.is_file()):
        for key, value in _maps(read_json(place, name)):
            asked.setdefault(f"{name} {key}", []).extend(value if isinstance(value, list) else [value])
    return asked


def _maps(content: object) -> Iterator[tuple[str, object]]:
    """Yield the entries of every `auto_map` at any depth; the older form for tokenizers is a list."""
    parts = [content]
    while parts:
        part = parts.pop()
        parts += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        declared = part.get("auto_map") if isinstance(part, dict) else None
        if isinstance(declared, dict):
            yield from declared.items()
        elif declared:
            yield "AutoTokenizer", declared


def code_files(code: Mapping[str, object]) -> tuple[str, ...]:
    """List the Python files of `auto_map` entries: `modeling_x.py`, or `owner/name: modeling_x.py` from elsewhere."""
    classes = [each for value in code.values() for each in (value if isinstance(value, list) else [value])]
    paths = [each.rpartition(".")[0] or each for each in classes if isinstance(each, str)]
    return tuple(sorted({cut_name(path.replace("--", ": ")) + ".py" for path in paths}))
