"""The catalogue: models in memory, in the cache and on the Hub; fetch one, delete one."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from repl import builtin, catalog, hub
from repl.catalog import Cached, Freed, Listed
from repl.clean import clean_line
from repl.errors import UsageError
from repl.kinds import Flag, Rest
from repl.kinds import Text as Words
from repl.registry import command
from repl.screen import Said, count, joined, mebibytes, view
from repl.session import Session, Task
from repl.worker import Emit

AGES = ((86400 * 365, "year"), (86400 * 30, "month"), (86400, "day"), (3600, "hour"), (60, "minute"))


@dataclass(frozen=True, slots=True)
class Row:
    """A model in memory: `dtype`, `parameters` and `bytes` as loaded."""

    id: str
    dtype: str
    parameters: int
    bytes: int
    current: bool


@dataclass(frozen=True, slots=True)
class Models:
    """The models there are; a number at the next prompt loads one."""

    resident: list[Row]
    cached: list[Cached]
    hub: list[Listed]

    @property
    def choices(self) -> list[tuple[str, str]]:
        """Return the line behind each number, with its effect."""
        ids = [row.id for row in self.resident] + [each.id for each in self.cached] + [each.id for each in self.hub]
        return [(f"/model {id}", "loads it") for id in ids]


@command("models")
def models(session: Session, words: Annotated[str, Rest("words of a name")] = "") -> Task[Models]:
    """List models in memory, in the cache and on the Hub; words choose."""
    current = session.store.facts()
    rows = [
        Row(facts.id, facts.dtype, facts.parameters, facts.bytes, facts is current)
        for facts in (resident.facts for resident in session.store.residents())
    ]

    def look(emit: Emit) -> Models:
        fits = [word.lower() for word in words.split()]
        here = [each for each in catalog.cached(emit) if all(word in each.id.lower() for word in fits)]
        found = catalog.search(words, emit, session.store.offline)
        known = {each.id for each in here}
        mine = [row for row in rows if all(word in row.id.lower() for word in fits)]
        return Models(mine, here, [each for each in found if each.id not in known])

    return session.errand(look)


@view.register
def _(result: Models) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="accent", no_wrap=True)
    table.add_column(overflow="fold")
    for justify in ("right", "right", "left", "left"):
        table.add_column(justify=justify, style="quiet", no_wrap=True)
    number = 0
    for title, rows in (
        ("in memory", _resident(result)),
        ("cached", _cached(result)),
        ("on the Hub", _listed(result)),
    ):
        if rows:
            table.add_row("", Text(title, "quiet"))
        for row in rows:
            number += 1
            table.add_row(str(number), *(Text(clean_line(cell)) for cell in row))
    if not number:
        return Text("no model found here, and the Hub gave none", "quiet")
    return Group(table, Text("a number loads it · /info ID tells more", "quiet"))


def _resident(result: Models) -> list[tuple[str, ...]]:
    return [
        (each.id, count(each.parameters), mebibytes(each.bytes), each.dtype, "current" if each.current else "")
        for each in result.resident
    ]


def _cached(result: Models) -> list[tuple[str, ...]]:
    return [
        (
            each.id,
            count(each.parameters) if each.parameters else "",
            mebibytes(each.bytes),
            each.dtype,
            f"used {ago(each.used)}" if each.complete else "partial",
        )
        for each in result.cached
    ]


def _listed(result: Models) -> list[tuple[str, ...]]:
    return [
        (
            each.id,
            count(each.parameters) if each.parameters else "",
            mebibytes(each.bytes) if each.bytes else "",
            joined(each.licence, "gated" if each.gated else ""),
            f"{count(each.downloads)} downloads",
        )
        for each in result.hub
    ]


def ago(moment: float) -> str:
    """Say how long ago something was."""
    seconds = time.time() - moment
    for size, name in AGES:
        if seconds >= size:
            number = int(seconds // size)
            return f"{number} {name}{'' if number == 1 else 's'} ago"
    return "just now"


@command("models")
def download(session: Session, id: Annotated[str, Words("a model", suggest=catalog.names)]) -> Task[Any]:
    """Fetch a model into the cache, without loading it."""
    want, began = catalog.wanted(id), time.monotonic()

    def fetch(emit: Emit) -> str:
        found = hub.locate(want.model, want.revision, want.gguf_file, emit, offline=session.store.offline)
        size = sum(path.stat().st_size for path in found.folder.rglob("*") if path.is_file())
        seconds = time.monotonic() - began
        return joined(f"{id} is in the cache, {mebibytes(size)}", f"{seconds:.1f} s", f"/model {id} loads it")

    return session.errand(fetch, lambda job: Said(job.result()))


@dataclass(frozen=True, slots=True)
class Erasable:
    """What would be deleted; a 1 at the next prompt does it."""

    freed: Freed

    @property
    def choices(self) -> list[tuple[str, str]]:
        """Return the line behind the number, with its effect."""
        return [(f"/delete {self.freed.id} --yes", "deletes it")]


@command("models")
def delete(
    session: Session,
    id: Annotated[str, Words("a model in the cache", suggest=catalog.names.here)],
    *,
    yes: Annotated[bool, Flag()] = False,
) -> Task[Any]:
    """Delete a model from the cache; without --yes, show what that frees."""
    if id == builtin.ID:
        raise UsageError("the built-in model is not part of the cache, and stays")
    if any(resident.facts.id == id for resident in session.store.residents()):
        raise UsageError(f"{id} is in memory, its files are in use", f"/unload {id}")

    def settle(job: Any) -> Any:
        freed = job.result()
        return Said(f"{id} deleted, {mebibytes(freed.bytes)} free again") if yes else Erasable(freed)

    return session.errand(lambda emit: catalog.erase(id, emit, yes), settle)


@view.register
def _(result: Erasable) -> RenderableType:
    freed = result.freed
    several = f", {freed.revisions} revisions" if freed.revisions > 1 else ""
    lines: Iterator[Any] = iter(
        (
            (clean_line(freed.id), "accent"),
            f" takes {mebibytes(freed.bytes)}{several} in {clean_line(freed.folder)}\n",
            ("  1 ", ""),
            (f"/delete {clean_line(freed.id)} --yes", "accent"),
            ("\n    the number deletes it, anything else leaves it", "quiet"),
        )
    )
    return Text.assemble(*lines)
