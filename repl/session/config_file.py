"""`config.toml`: settings by name, presets, aliases and startup lines; a bad key is named with its line."""

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from repl.core import settings, texts
from repl.core.errors import ReplError, UsageError
from repl.core.settings import Settings
from repl.core.values import did_you_mean

ENGINE_KEYS = ("url", "key_env", "model")  # keys of a server
Preset = Mapping[str, str]
"""Settings by name, each as the word a user would type."""


@dataclass(frozen=True, slots=True)
class Config:
    """The values of the file; `wrong` are sentences about its mistakes, which stop nothing."""

    settings: Settings = field(default_factory=Settings)
    startup: tuple[str, ...] = ()
    presets: Mapping[str, Preset] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    engines: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Servers by name: `url`, and if need be `key_env` (a variable that holds the key) and `model`."""
    wrong: tuple[str, ...] = ()


def read_config_file(path: Path) -> Config:
    """Read the file; no file is an empty one."""
    try:
        if not path.exists():
            return Config()
        text = texts.read_text(str(path))
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        return Config(wrong=(f"{path} is not valid TOML: {error}",))
    except ReplError as error:
        return Config(wrong=(error.message,))
    return ConfigReader(path, text).read(table)


class ConfigReader:
    """Goes through the file's table, collecting what is wrong with it."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._text = text
        self._wrong: list[str] = []

    def read(self, table: dict[str, object]) -> Config:
        """Return the values of the table."""
        startup = self._startup(table.pop("startup", []))
        presets = {name: self._preset(name, rest) for name, rest in self._table(table.pop("presets", {}), "presets")}
        aliases = {
            name: str(line) for name, line in self._table(table.pop("aliases", {}), "aliases") if self._line(name, line)
        }
        found = self._table(table.pop("engines", {}), "engines")
        engines = {name: taken for name, rest in found if (taken := self._engine(name, rest))}
        chosen = Settings()
        for key, word in self._words(table).items():
            chosen = chosen.put(key, settings.read_setting(key, word), "config")
        return Config(chosen, startup, presets, aliases, engines, tuple(self._wrong))

    def _startup(self, lines: object) -> tuple[str, ...]:
        if isinstance(lines, list) and all(isinstance(line, str) for line in lines):
            return tuple(lines)
        self._say("startup", 'startup is not a list of lines such as ["/greedy"]')
        return ()

    def _table(self, value: object, key: str) -> list[tuple[str, object]]:
        if isinstance(value, dict):
            return list(value.items())
        self._say(key, f"{key} is not a table: write [{key}]")
        return []

    def _preset(self, name: str, value: object) -> Preset:
        if isinstance(value, dict):
            return self._words(value)
        self._say(name, f"preset {name!r} is not a table: write [presets.{name}]")
        return {}

    def _line(self, name: str, line: object) -> bool:
        good = isinstance(line, str) and line.startswith("/") and re.fullmatch(r"[a-z][a-z0-9_]*", name) is not None
        if not good:
            self._say(name, f'alias {name!r} is not a word with a line such as "/sample temperature=1"')
        return good

    def _engine(self, name: str, value: object) -> dict[str, str]:
        table = value if isinstance(value, dict) else {}
        good = "url" in table and all(isinstance(word, str) for word in table.values())
        if not good or (strange := sorted(set(table) - set(ENGINE_KEYS))):
            key = "" if not good else f": it does not take {strange[0]!r}"
            self._say(name, f'engine {name!r} is not a table with url = "http://host:8000", key_env, model{key}')
            return {}
        return table

    def _words(self, table: dict[str, object]) -> dict[str, str]:
        """Return the settings of a table as words, leaving out those that cannot be read."""
        good: dict[str, str] = {}
        for key, value in table.items():
            try:
                name = _name(key)
                if value not in ("", [], "default"):
                    settings.read_setting(name, typed_word(value))
                    good[key] = typed_word(value)
            except UsageError as error:
                self._say(key, error.message)
        return good

    def _say(self, key: str, sentence: str) -> None:
        found = re.search(rf"(?m)^[ \t]*\[*(?:presets\.|engines\.)?[\"']?{re.escape(key)}\b", self._text)
        number = self._text.count("\n", 0, found.start()) + 1 if found else 1
        self._wrong.append(f"{self._path}:{number} {sentence}")


def _name(key: str) -> str:
    if key not in settings.places():
        raise UsageError(f"no setting {key!r}{did_you_mean(key, settings.places())}")
    return key


def typed_word(value: object) -> str:
    """Return the word that a user types for a value of TOML or Python."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return json.dumps(value) if isinstance(value, list | tuple | dict) else str(value)


def toml_value(name: str, chosen: object) -> str:
    """Return the TOML for a setting's value."""
    if isinstance(chosen, bool):
        return "true" if chosen else "false"
    if isinstance(chosen, int) and (word := settings.show_setting(name, chosen)) != str(chosen):
        chosen = word
    return json.dumps(list(chosen) if isinstance(chosen, tuple) else chosen, ensure_ascii=False)


def config_template() -> str:
    """Return a config file with every setting in it, commented out and explained."""
    lines = ["# hub-repl: remove the # before a setting to use it; /settings shows the values in effect.", ""]
    for part in settings.SPECS:
        lines.append(f"# {part} settings")
        for name in (name for name, home in settings.places().items() if home == part):
            default = settings.declared_field(name).default
            shown = toml_value(name, default) if default is not None else '"default"'
            lines.append(f"# {name} = {shown}".ljust(40) + f"  # {settings.help_of(name)}")
        lines.append("")
    lines += ["# lines that run at the start", '# startup = ["/greedy"]', ""]
    lines += ["# /preset creative", "# [presets.creative]", "# do_sample = true", "# temperature = 1.1", ""]
    lines += ["# /connect box", "# [engines.box]", '# url = "http://127.0.0.1:8000"', ""]
    return "\n".join([*lines, "# /calm", "# [aliases]", '# calm = "/sample temperature=0.3"', ""])
