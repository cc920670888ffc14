"""Models: load another, load again, free, and what the loaded one is."""

import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from repl import builtin, hub, settings
from repl.change import load
from repl.clean import clean_line
from repl.kinds import Text as Words
from repl.loading import Facts
from repl.registry import command
from repl.screen import Said, count, device, joined, mebibytes, view
from repl.session import Session, Task


def known() -> list[str]:
    """Return the models that load without the network, for completion."""
    return _known(int(time.monotonic() / 2))


@lru_cache(1)
def _known(moment: int) -> list[str]:
    """Look no more than every two seconds: a completer asks at every key."""
    return [builtin.ID, *hub.cached_models()]


@command("models")
def model(session: Session, id: Annotated[str, Words("a model", suggest=known)] = "") -> Any:
    """Load another model: a Hub id, id@revision, id:file.gguf, a folder, or builtin."""
    return load(session, settings.address(id)) if id else info(session)


@command("models")
def reload(session: Session) -> Task[Facts]:
    """Load the model again, from the files as they are now."""
    return session.reload()


@command("models", waits=True)
def unload(session: Session, id: Annotated[str, Words("a model in memory", suggest=known)] = "") -> Task[list[Facts]]:
    """Free the memory of the current model, or of another one; the conversation stays."""
    return session.start(lambda emit: session.store.drop(emit, id), lambda job: unloaded(session, job.result()))


def unloaded(session: Session, gone: list[Facts]) -> Said:
    """Say what was freed, and what to do now that no model is current."""
    names, size = ", ".join(dict.fromkeys(facts.name for facts in gone)), mebibytes(sum(facts.bytes for facts in gone))
    left = session.store.facts()
    return Said(joined(f"{names} unloaded, {size}", "" if left else "/model ID loads another, /reload the same"))


@dataclass(frozen=True, slots=True)
class Info:
    """What is loaded, as asked for and as it is."""

    facts: Facts
    asked: dict[str, Any]


@command("models", waits=True)
def info(session: Session) -> Info:
    """Show what is loaded: architecture, size, precision, placement, limits."""
    facts = session.facts()
    chosen = session.settings.load
    return Info(facts, {name: getattr(chosen, name) for name in chosen.__slots__})


@view.register
def _(result: Info) -> RenderableType:
    facts, asked = result.facts, result.asked
    stored = ", ".join(f"{count(number)} {name}" for name, number in facts.stored.items())
    rows = {
        "model": facts.id + (f" at {facts.commit[:12]}" if facts.commit else ""),
        "folder": facts.folder,
        "architecture": f"{facts.architecture}, {facts.layers} layers, vocabulary {facts.vocabulary}",
        "parameters": f"{facts.parameters:,} ({count(facts.parameters)}), stored as {stored}",
        "dtype": f"{facts.dtype} (asked for {asked['dtype']})",
        "memory": mebibytes(facts.bytes),
        "device": f"{device(facts.device_map)} (asked for {asked['device']})",
        "attention": f"{facts.attention or 'none'} (asked for {asked['attention']})",
        "context": f"{facts.context} tokens" if facts.context else "no fixed limit",
        "talk": "chats through its template" if facts.chats else "completes text: it has no chat template",
        "its own decoding": ", ".join(f"{key} {value}" for key, value in facts.base.model.items()) or "nothing set",
    }
    table = Table.grid(padding=(0, 2))
    table.add_column(style="quiet", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, Text(clean_line(value)))
    return table
