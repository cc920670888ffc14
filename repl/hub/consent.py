"""Consent to run a model's own Python code: for one repository at one commit, or a folder until its code changes."""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from repl.core import atomic_write
from repl.core.errors import ReplError
from repl.core.settings import Load
from repl.hub.cache import LocalModel
from repl.hub.model_files import asked_for, bad_file, check_link, code_files, find_file
from repl.hub.validate import NeedsCode

FILE = "trusted.json"
CODE = (
    *(".py", ".pyw", ".pyc", ".pyx", ".pyd", ".so", ".dll", ".dylib", ".zip", ".egg", ".whl", ".sh"),
    *(".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".mm", ".metal"),
)


class Consents:
    """The code the user allowed, by model: a commit, or for a plain folder the digest of its code."""

    def __init__(self, saved: Path | None = None) -> None:
        self._saved = saved
        self.given: dict[str, str] = {}
        if saved is not None:
            with suppress(OSError, ValueError, AttributeError):
                kept = json.loads(saved.read_text("utf-8"))
                self.given = {_key(str(model)): str(mark) for model, mark in kept.items()}
        self._lasting = dict(self.given)

    def allows(self, model: str) -> bool:
        """Tell whether consent was given for a model, even if its code changed since."""
        return _key(model) in self.given

    def give(self, model: str, mark: str, lasting: bool = False) -> None:
        """Allow a model's code at this mark; `lasting` for later sessions too."""
        model = _key(model)
        self.given[model] = mark
        if lasting:
            self._lasting[model] = mark
            self._write()

    def withdraw(self, model: str) -> bool:
        """Forget a consent; False if there was none."""
        model = _key(model)
        if self._lasting.pop(model, None) is not None:
            self._write()
        return self.given.pop(model, None) is not None

    def check(self, load: Load, found: LocalModel) -> None:
        """Raise `NeedsCode` for code that changed since it was allowed, `BadModel` for code outside of the folder.

        Code that was switched on by hand is allowed from now on.
        """
        declared, code = asked_for(found.folder), sources(found.folder)
        if not declared and not code:
            return
        for name, value in declared.items():
            for file in code_files({name: value}):
                if ": " in file:
                    cause = f"takes code from another repository ({file}), which hub-repl never runs"
                    raise bad_file(name.split()[0], cause)
                if os.path.lexists(found.folder / file):
                    find_file(found.folder, file)
        now = mark(found)
        before = self.given.setdefault(_key(load.model), now)
        if before != now:
            changed = f"the code of {load.model} changed since you allowed it: from {before[:12]} to {now[:12]}"
            raise NeedsCode(tuple(code), changed)

    def _write(self) -> None:
        if self._saved is None:
            return
        try:
            atomic_write.replace(self._saved, json.dumps(self._lasting, indent=1).encode(), 0o600)
        except OSError as error:
            raise ReplError(f"cannot write {self._saved}: {error.strerror}") from error


def _key(model: str) -> str:
    """Return the key of a consent: an id, or the resolved path of a folder."""
    with suppress(OSError, RuntimeError, ValueError):  # as in `locate.local`
        path = Path(model).expanduser()
        return str(path.resolve()) if path.is_dir() else model
    return model


def mark(found: LocalModel) -> str:
    """Return the mark of a model's code: its commit, or for a plain folder a digest of the code and its `auto_map`s."""
    if found.commit:
        return found.commit
    total = hashlib.sha256(json.dumps(asked_for(found.folder), sort_keys=True).encode())
    for name, path in sources(found.folder).items():
        if path.is_dir():
            held = f"link to {os.readlink(path)}"
        else:
            with path.open("rb") as file:
                held = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"\n{json.dumps(name)} {held}".encode())
    return total.hexdigest()


def sources(place: Path) -> dict[str, Path]:
    """List the files below a folder that could run, by path: Python files, and libraries and sources they may load.

    Links to folders are listed as links. Raises `BadModel` for a link that leads out of the folder or to no file.
    """
    found: dict[str, Path] = {}
    for at, folders, files in os.walk(place):
        linked = [name for name in folders if (Path(at) / name).is_symlink()]
        for path in (Path(at) / name for name in (*filter(could_run, files), *linked)):
            name = path.relative_to(place).as_posix()
            check_link(place, path)
            found[name] = path if path.is_dir() else find_file(place, name)
    return dict(sorted(found.items()))


def could_run(name: str) -> bool:
    """Tell whether a file is code for Python or a compiler, by its name."""
    return name.lower().endswith(CODE)
