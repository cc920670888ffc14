"""The list of models: in memory, in the cache and on the Hub."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from repl.commands.registry import command
from repl.core import settings
from repl.core.errors import ReplError
from repl.core.format import ago, amount, count, join_facts
from repl.core.jobs import JobContext
from repl.core.sanitize import clean_line
from repl.core.settings import Load
from repl.core.values import RestOfLine
from repl.generation.interface import Model
from repl.hub import catalog
from repl.hub.catalog import Cached, Listed
from repl.models.memory import fit
from repl.models.store import ModelInfo
from repl.session.session import Session, Task
from repl.terminal.screen import render
from repl.terminal.tables import First

Sections = Sequence[tuple[str, Sequence[Sequence[Text]]]]
"""Titles, each with a row of cells for every model: the name first."""
SIDES: tuple[JustifyMethod, ...] = ("right", "right", "left", "left")


@dataclass(frozen=True, slots=True)
class ResidentRow:
    """A model in memory: `dtype`, `parameters` and `bytes` as loaded; `line` is the command that switches to it."""

    id: str
    dtype: str
    parameters: int
    bytes: int
    current: bool
    line: str


@dataclass(frozen=True, slots=True)
class ModelList:
    """Models by place; a number at the next prompt loads one."""

    resident: list[ResidentRow]
    cached: list[Cached]
    hub: list[Listed]
    silence: str = ""
    """The error of the Hub, if its models are missing."""

    @property
    def choices(self) -> list[tuple[str, str]]:
        """Return the line and the effect of each number."""
        switches = [(row.line, "switches to it") for row in self.resident]
        ids = [each.id for each in self.cached] + [each.id for each in self.hub]
        return switches + [(f"/model {id}", "loads it") for id in ids]


@command("models", "/models", "/models qwen", see="model download info")
def models(session: Session, words: Annotated[str, RestOfLine("words of a name")] = "") -> Task[ModelList]:
    """List models in memory, in the cache and on the Hub, filtered by words."""
    current = session.store.facts()
    rows = [in_memory(each, session.pending().load, current) for each in session.store.residents()]

    def look(emit: JobContext) -> ModelList:
        fits = [word.lower() for word in words.split()]
        here = [each for each in catalog.list_cached(emit) if all(word in each.id.lower() for word in fits)]
        found, silence = list[Listed](), ""
        try:
            found = catalog.search(words, emit, session.store.offline)
        except ReplError as error:  # the local models can still be listed
            silence = error.message
        known = {each.id for each in here}
        mine = [row for row in rows if all(word in row.id.lower() for word in fits)]
        return ModelList(mine, here, [each for each in found if each.id not in known], silence)

    return session.run_io(look)


def in_memory(resident: Model, now: Load, current: ModelInfo | None) -> ResidentRow:
    """Describe a model in memory; the line that switches to it has the load settings that differ from `now`."""
    facts, load = resident.facts, resident.load
    apart = [name for name in load.__slots__ if name != "model" and getattr(load, name) != getattr(now, name)]
    words = [f"{name}={settings.show_setting(name, getattr(load, name)) or 'default'}" for name in apart]
    line = " ".join([f"/model {fit.typed_name(load)}", *(f'"{word}"' if " " in word else word for word in words)])
    return ResidentRow(facts.id, facts.form, facts.parameters, facts.bytes, facts is current, line)


@render.register
def _(result: ModelList) -> RenderableType:
    silence = clean_line(result.silence)
    memory = [_cells(each, each.dtype, "current" if each.current else "") for each in result.resident]
    cached = [
        _cells(each, each.dtype, f"used {ago(each.used)}" if each.complete else "partial") for each in result.cached
    ]
    hub = [
        _cells(each, join_facts(each.licence, "gated" if each.gated else ""), f"{count(each.downloads)} downloads")
        for each in result.hub
    ]
    parts = (("in memory", memory), ("cached", cached), ("on the Hub", hub))
    if not any(rows for _, rows in parts):
        return Text(join_facts("no model found on this machine", silence or "and none on the Hub"), "quiet")
    drawings = First(_table(parts), _table([(title, list(map(_stacked, rows))) for title, rows in parts]))
    hint = join_facts(silence, "type a number to load a model", "/info ID describes one")
    return Group(drawings, Text(hint, "quiet"))


def _table(parts: Sections) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="accent", no_wrap=True)
    table.add_column(overflow="fold")
    most = max(len(row) for _, rows in parts for row in rows)
    for justify in SIDES[: most - 1]:
        table.add_column(justify=justify, style="quiet", no_wrap=True)
    numbers = itertools.count(1)
    for title, rows in parts:
        if rows:
            table.add_row("", Text(title, "quiet"))
        for row in rows:
            table.add_row(str(next(numbers)), *row)
    return table


def _stacked(row: Sequence[Text]) -> list[Text]:
    """Put the other cells of a model below its name."""
    name, *rest = row
    return [Text.assemble(name, "\n", (join_facts(*(cell.plain for cell in rest)), "quiet"))]


def _cells(model: ResidentRow | Cached | Listed, kind: str, note: str) -> list[Text]:
    sizes = count(model.parameters) if model.parameters else "", amount(model.bytes) if model.bytes else ""
    return [Text(clean_line(word)) for word in (settings.full_name(model.id), *sizes, kind, note)]
