"""Models: load another, load again, free, and what the loaded one is."""

import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from repl import builtin, hub
from repl.change import changed, load, words
from repl.clean import clean_line
from repl.kinds import Change
from repl.kinds import Text as Words
from repl.loading import Facts
from repl.registry import command
from repl.screen import Said, count, device, mebibytes, view
from repl.session import Session, Task


def known() -> list[str]:
    """Return the models that load without the network, for completion."""
    return _known(int(time.monotonic() / 2))


@lru_cache(1)
def _known(moment: int) -> list[str]:
    """Look no more than every two seconds: a completer asks at every key."""
    return [builtin.ID, *hub.cached_models()]


@command("models")
def model(
    session: Session,
    id: Annotated[str, Words("a model", suggest=known)] = "",
    *changes: Annotated[tuple[str, str], Change()],
) -> Any:
    """Load another model: a Hub id, id@revision, id:file.gguf, a folder, or builtin.

    Load settings may follow: /model ID dtype=bfloat16 device=cpu.
    """
    return load(session, [*words(id), *changes]) if id else info(session)


@command("models", name="model!")
def model_all_the_same(
    session: Session,
    id: Annotated[str, Words("a model", suggest=known)],
    *changes: Annotated[tuple[str, str], Change()],
) -> Any:
    """Load a model like /model, even where it does not seem to fit."""
    given = [*words(id), *changes]
    session.store.allowed.add(changed(session.pending(), given).load)
    return load(session, given)


@command("models")
def reload(session: Session) -> Task[Facts]:
    """Load the model again, from the files as they are now."""
    return session.load(session.pending())


@command("models", waits=True)
def unload(session: Session) -> Task[Facts]:
    """Free the model's memory; the conversation stays."""
    return session.start(
        session.store.drop, lambda job: Said(f"{job.result().id} unloaded · /model ID loads another, /reload the same")
    )


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
        "left over": _left(facts.unexpected),
        "its own decoding": ", ".join(f"{key} {value}" for key, value in facts.base.model.items()) or "nothing set",
    }
    table = Table.grid(padding=(0, 2))
    table.add_column(style="quiet", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in ((name, value) for name, value in rows.items() if value):
        table.add_row(name, Text(clean_line(value)))
    return table


def _left(names: tuple[str, ...]) -> str:
    """Name the first tensors of the files that the model has no place for."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} in the files, which this model has no place for" if names else ""
