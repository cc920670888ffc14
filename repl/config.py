"""`config.toml`: keys are setting names; a bad key is named with its line and does not stop the start."""

import re
import tomllib
from pathlib import Path
from typing import Any

from repl import settings
from repl.errors import UsageError
from repl.kinds import nearest
from repl.settings import Settings


def read(path: Path, base: Settings) -> tuple[Settings, list[str], list[str]]:
    """Return the settings with the file's values, its `startup` lines, and what is wrong with it, a sentence each."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return base, [], []
    except (OSError, UnicodeDecodeError) as error:
        return base, [], [f"{path} cannot be read: {error}"]
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        return base, [], [f"{path} is not valid TOML: {error}"]
    return _apply(path, text, table, base)


def _apply(path: Path, text: str, table: dict[str, Any], base: Settings) -> tuple[Settings, list[str], list[str]]:
    wrong: list[str] = []
    startup = table.pop("startup", [])
    if not (isinstance(startup, list) and all(isinstance(line, str) for line in startup)):
        wrong.append(f'{path}:{_line(text, "startup")} startup is not a list of lines such as ["/greedy"]')
        startup = []
    for key, value in table.items():
        try:
            base = base.put(_name(key), settings.read(key, _word(value)), "config")
        except UsageError as error:
            wrong.append(f"{path}:{_line(text, key)} {error.message}")
    return base, startup, wrong


def _name(key: str) -> str:
    if key not in settings.places():
        close = nearest(key, list(settings.places()))
        raise UsageError(f"no setting {key!r}" + (f", did you mean {close}?" if close else ""))
    return key


def _word(value: Any) -> str:
    """Return the word a user would type for a TOML value."""
    import json

    if isinstance(value, bool):
        return "on" if value else "off"
    return json.dumps(value) if isinstance(value, list | dict) else str(value)


def _line(text: str, key: str) -> int:
    found = re.search(rf"(?m)^[ \t]*\[*[\"']?{re.escape(key)}\b", text)
    return text.count("\n", 0, found.start()) + 1 if found else 1
