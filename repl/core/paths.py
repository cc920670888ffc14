"""The program's folders; `HUB_REPL_HOME` puts them all under one folder."""

import os
from pathlib import Path

import platformdirs

from repl.core.errors import ReplError


def _folder(kind: str, usual: str) -> Path:
    home = os.environ.get("HUB_REPL_HOME", "")
    path = Path(os.path.expanduser(home)) / kind if home else Path(usual)
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ReplError(f"cannot make the folder {path}: {error.strerror}", "HUB_REPL_HOME=FOLDER hub-repl") from error
    return path


def config_folder() -> Path:
    """Return the folder of `config.toml`."""
    return _folder("config", platformdirs.user_config_dir("hub-repl", appauthor=False))


def data_folder() -> Path:
    """Return the folder of the prompt history and the log."""
    return _folder("data", platformdirs.user_data_dir("hub-repl", appauthor=False))


def cache_folder() -> Path:
    """Return the folder of files that can be recreated: the built-in model."""
    return _folder("cache", platformdirs.user_cache_dir("hub-repl", appauthor=False))
