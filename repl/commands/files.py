"""Files: read one into the next message, run the lines of one, the config file and presets."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import RenderableType
from rich.text import Text

from repl.commands.registry import command
from repl.core import atomic_write, paths, settings, texts
from repl.core.errors import UsageError
from repl.core.format import counted, join_facts
from repl.core.sanitize import clean, clean_line
from repl.core.values import AnyText, RestOfLine
from repl.session import config_file
from repl.session.change_settings import apply, load
from repl.session.results import Lines, Message
from repl.session.session import CONSENT, Session
from repl.terminal.screen import render
from repl.terminal.tables import facts


@command("chat", "/read notes.txt", "/read none", see="score script")
def read(session: Session, file: Annotated[str, RestOfLine("a file")]) -> Message:
    """Put a text file before the next message.

    `/read none` removes it.
    """
    if file == "none":
        session.prepare(files=())
        return Message("no file before the next message")
    path, text = Path(file).expanduser(), texts.read_text(file)
    session.prepare(files=(*session.next_message.files, (path.name, text)))
    rows = len(text.splitlines())
    size = f"{counted(len(text), 'character')}, {counted(rows, 'line')}"
    return Message(f"{path.name}: {size} · before the next message · /read none removes it")


@command("other", "/script warm-up.txt", "/script ~/questions.txt", see="read config")
def script(session: Session, file: Annotated[str, RestOfLine("a file")]) -> Lines:
    """Run the lines of a file, up to the first that fails."""
    return Lines(texts.read_text(file, piped=True).split("\n"))


@dataclass(frozen=True, slots=True)
class Presets:
    """The values of the settings in each saved preset, by its name."""

    presets: Mapping[str, Mapping[str, str]]


@command("settings", "/preset save story", "/preset story", see="config settings reset")
def preset(session: Session, name: Annotated[str, AnyText()] = "", new: Annotated[str, AnyText()] = "") -> object:
    """Apply saved settings; without an argument, list them.

    `/preset save NAME` saves the current ones.
    """
    if not name:
        return Presets(dict(session.presets))
    if name == "save":
        return _save(session, new)
    if name not in session.presets:
        raise UsageError(f"no preset {name!r}: {', '.join(session.presets) or 'none is saved'}", "/preset save NAME")
    words = list(session.presets[name].items())
    loading = [pair for pair in words if settings.places()[pair[0]] == "load"]
    said = apply(session, [pair for pair in words if pair not in loading]) if len(words) > len(loading) else None
    return load(session, loading) if loading else said


def _save(session: Session, name: str) -> Message:
    """Append a table to the config file without changing the rest of it."""
    if not name.isidentifier():
        raise UsageError(f"{name!r} is not a valid preset name: use letters, digits and _", "/preset save NAME")
    if name in session.presets:
        raise UsageError(f"preset {name!r} exists: change it in {_path()}")
    left = ("model", "revision", "gguf_file")  # and a consent, which is for one model
    kept = [key for key, origin in session.settings.origins.items() if key not in left and origin != CONSENT]
    words = {key: settings.show_setting(key, session.settings.get(key)) for key in kept}
    if not words:
        raise UsageError("no setting is changed, so there is nothing to save", "/settings")
    lines = [f"{key} = {config_file.toml_value(key, session.settings.get(key))}" for key in words]
    atomic_write.append(_path(), "\n".join(["", f"[presets.{name}]", *lines, ""]))
    session.add_preset(name, words)
    return Message(f"preset {name} saved: {', '.join(f'{key} {word}' for key, word in words.items())}")


def _path() -> Path:
    return paths.config_folder() / "config.toml"


@dataclass(frozen=True, slots=True)
class Where:
    """The config file: its path and its text, empty if there is none."""

    path: str
    text: str


@command("settings", "/config", "/config init", see="preset settings")
def config_(session: Session, word: Annotated[str, AnyText()] = "") -> object:
    """Show the config file.

    `/config init` writes one with every setting explained.
    """
    if word not in ("", "init"):
        raise UsageError(f"/config does not take {word!r}", "/config init")
    if word == "init":
        atomic_write.write(str(_path()), config_file.config_template().encode(), False, "/config")
        return Message(f"{_path()} written, with every setting commented out")
    return Where(str(_path()), texts.read_text(str(_path())) if _path().exists() else "")


@render.register
def _(result: Where) -> RenderableType:
    if not result.text:
        return Text.assemble(clean_line(result.path), (" does not exist · ", "quiet"), ("/config init", "accent"))
    return Text.assemble((clean_line(result.path), "accent"), "\n", clean(result.text))


@render.register
def _(result: Presets) -> RenderableType:
    if not result.presets:
        return Text.assemble(("no preset is saved · ", "quiet"), ("/preset save NAME", "accent"))
    rows = ((name, (f"{key} {word}" for key, word in values.items())) for name, values in result.presets.items())
    return facts(((name, join_facts(*words)) for name, words in rows), "accent")
