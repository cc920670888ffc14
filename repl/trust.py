"""Consent to run a model's own Python code: for one repository at one commit, until it changes."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from repl import folder
from repl.folder import NeedsCode
from repl.headers import bad, read_json
from repl.settings import Load
from repl.snapshots import Found

FILE = "trusted.json"


class Consents:
    """What the user allowed to run, by model: a commit, or for a plain folder the digest of its Python files."""

    def __init__(self, saved: Path | None = None) -> None:
        self._saved = saved
        self.given: dict[str, str] = {}
        if saved is not None:
            with suppress(OSError, ValueError, AttributeError):
                kept = json.loads(saved.read_text("utf-8"))
                self.given = {str(model): str(mark) for model, mark in kept.items()}
        self._lasting = dict(self.given)

    def give(self, model: str, mark: str, lasting: bool = False) -> None:
        """Allow a model's code as it is now; `lasting` for later sessions too."""
        self.given[model] = mark
        if lasting:
            self._lasting[model] = mark
            self._write()

    def withdraw(self, model: str) -> bool:
        """Forget a consent; False if there was none."""
        if self._lasting.pop(model, None) is not None:
            self._write()
        return self.given.pop(model, None) is not None

    def check(self, load: Load, found: Found) -> None:
        """Raise `NeedsCode` if the code is not what was allowed; code that was switched on by hand is from now on."""
        declared = {} if found.gguf_file else asked_for(found.folder)
        if not declared:
            return
        if elsewhere := [name for name in folder.code_files(declared) if ": " in name]:
            raise bad("config.json", f"takes code from another repository ({elsewhere[0]}), which hub-repl never runs")
        now = mark(found)
        before = self.given.setdefault(load.model, now)
        if before != now:
            said = f"the code of {load.model} changed since you allowed it: from {before[:12]} to {now[:12]}"
            raise NeedsCode(folder.code_files(declared), said)

    def _write(self) -> None:
        if self._saved is not None:
            self._saved.parent.mkdir(parents=True, exist_ok=True)
            self._saved.write_text(json.dumps(self._lasting, indent=1), encoding="utf-8")
            self._saved.chmod(0o600)


def asked_for(place: Path) -> dict[str, Any]:
    """Return the classes that a folder asks for from Python files: for its model and for its tokenizer."""
    asked: dict[str, Any] = {}
    for name in ("config.json", "tokenizer_config.json"):
        if (place / name).is_file():
            declared = read_json(place, name).get("auto_map")
            asked |= {f"{name} {key}": value for key, value in declared.items()} if isinstance(declared, dict) else {}
    return asked


def mark(found: Found) -> str:
    """Return what a consent is for: the commit, or a digest of the Python files of a plain folder."""
    return found.commit or digest({path.name: path.read_bytes() for path in sources(found.folder)})


def sources(place: Path) -> list[Path]:
    """List the Python files of a folder, those below it too."""
    return sorted(path for path in place.rglob("*.py") if path.is_file())


def digest(files: Mapping[str, bytes]) -> str:
    """Return one name for the contents of some files."""
    total = hashlib.sha256()
    for name, content in files.items():
        total.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
    return total.hexdigest()[:40]
