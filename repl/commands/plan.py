"""/plan: whether a model fits in memory, estimated before its weights are downloaded."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from repl.commands.registry import command
from repl.core import settings
from repl.core.format import amount, count, counted, format_map, join_facts
from repl.core.jobs import JobContext
from repl.core.sanitize import clean_line
from repl.core.settings import Load
from repl.core.values import AnyText
from repl.hub import locate
from repl.hub.weight_headers import STORED
from repl.models.memory import plan
from repl.models.memory.available import Room
from repl.models.memory.estimate import ModelSizes
from repl.models.memory.fit import FITS, TOO_LARGE
from repl.models.memory.plan import PlanRow
from repl.models.memory.survey import Code, Survey, survey
from repl.session.change_settings import changed
from repl.session.session import Session, Task
from repl.terminal.screen import render
from repl.terminal.tables import First

VERDICT_STYLES = {"fits": "", "fits with offload": "quiet", "does not fit": "quiet"}
SIZES = {"weights": "weights", "KV cache": "cache", "working": "working", "needs": "needs"}
SHOWN_SIZES = (
    *((gap, tuple(SIZES)) for gap in (2, 1)),
    *((1, titles) for titles in (("weights", "KV cache", "needs"), ("weights", "needs"), ("needs",))),
)
"""The sizes in the table, with the columns between them: as many as the window has room for."""
MIN_CACHED_BYTES = 2**20  # less in the cache is not mentioned
SHORT_VERDICTS = {"fits": "fits", "fits with offload": "offload", "does not fit": "too big"}


@dataclass(frozen=True, slots=True)
class Plan:
    """A model's size and memory needs under several load settings, and the memory of each device; in bytes."""

    model: str
    commit: str
    gated: bool
    parameters: int
    stored: dict[str, int]
    layers: int
    context: int
    fetch: dict[str, int]
    cached: int
    disk_free: int
    rooms: list[Room]
    rows: list[PlanRow]
    device_map: dict[str, str]
    code: Code | None
    choices: list[tuple[str, str]]
    default: str
    best: int
    """The row that an empty line loads, from 1; 0 for none."""


def make_plan(load: Load, rooms: Sequence[Room], offline: bool, emit: JobContext) -> Plan:
    """Read a model's files and estimate its memory; for the model thread."""
    found = survey(load, emit, offline)
    sizes = ModelSizes(found.config)
    table = plan.rows(found, load, rooms) if found.config is not None else []
    taken = plan.best(table, found.weights)
    return Plan(
        model=load.model,
        commit=found.commit,
        gated=found.gated,
        parameters=found.weights.parameters,
        stored=dict(found.weights.dtypes),
        layers=sizes.layers,
        context=sizes.context,
        fetch=found.fetch,
        cached=found.cached,
        disk_free=locate.disk()[1],
        rooms=list(rooms),
        rows=table,
        device_map=_places(found, table, taken, load, rooms),
        code=found.code,
        choices=[(row.line, "") for row in table],
        default=table[taken - 1].line if taken else "",
        best=taken,
    )


def _places(found: Survey, table: list[PlanRow], taken: int, load: Load, rooms: Sequence[Room]) -> dict[str, str]:
    """Return the device map of the best row, if there is more than one device."""
    if len(rooms) < 2 or not taken or found.code or table[taken - 1].form not in ("float32", "bfloat16"):
        return {}
    with suppress(Exception):  # a config that the library cannot build; loading gives the reason
        return plan.plan_device_map(found.config, replace(load, dtype=table[taken - 1].form), rooms)
    return {}


@command("models", "/plan", "/plan gpt2", see="memory model quantize")
def plan_(session: Session, id: Annotated[str, AnyText("a model", suggest=locate.cached_models)] = "") -> Task[Plan]:
    """Estimate whether a model fits in memory, before it is downloaded.

    The number of a row loads the model that way. Without an id, it plans for the current model.
    """
    now = session.pending()
    load = changed(now, settings.address(id), parts=("load",)).load if id else now.load
    store = session.store
    return session.run_on_model(lambda emit: make_plan(load, store.rooms(), store.offline, emit))


@render.register
def _(result: Plan) -> RenderableType:
    parts: list[RenderableType] = [_head(result)]
    if result.rows:
        shown = ((gap, {title: SIZES[title] for title in titles}) for gap, titles in SHOWN_SIZES)
        parts.append(First(*(_table(result, sizes, gap) for gap, sizes in shown)))
    if result.device_map:
        parts.append(Text("\n".join(["", *map(clean_line, format_map(result.device_map))]), "quiet"))
    if result.code:
        files = "\n".join(f"  {clean_line(name)}  {size:,} bytes" for name, size in result.code.files.items())
        own = "its own Python code, which does not run unless you allow it (/trust)"
        parts.append(Text(f"\n{own}:\n{files}", "quiet"))
    return Group(*parts, _end(result))


def _head(result: Plan) -> Text:
    mixed = len(result.stored) > 1
    named = ((STORED.get(name, clean_line(name)), size) for name, size in result.stored.items())
    stored = ", ".join(f"{count(size)} {name}" if mixed else name for name, size in named)
    facts = join_facts(
        f"{count(result.parameters)} parameters, stored as {stored}",
        f"{result.layers} layers" if result.layers else "",
        f"context {result.context}" if result.context else "",
    )
    fetch = sum(result.fetch.values())
    files = f"{counted(len(result.fetch), 'file')} to download, {amount(fetch)}" if fetch else "nothing to download"
    where = join_facts(
        f"commit {result.commit[:12]}" if result.commit else "",
        "gated: accept its terms on its page" if result.gated else "not gated" if result.commit else "",
        files,
        f"{amount(result.cached)} here" if result.cached >= MIN_CACHED_BYTES else "",
        f"disk {amount(result.disk_free)} free" if result.fetch else "",
    )
    free = "available: " + join_facts(
        *(f"{room.device} {amount(room.free)} of {amount(room.total)}" for room in result.rooms)
    )
    name = (clean_line(settings.full_name(result.model)), "accent")
    return Text.assemble(name, "\n", (f"{facts}\n{where}\n{free}\n", "quiet"))


def _table(result: Plan, sizes: Mapping[str, str], gap: int) -> Table:
    table = Table.grid(padding=(0, gap))
    for style, side in (("accent", "right"), ("", "left"), ("quiet", "right"), *[("", "right")] * len(sizes)):
        table.add_column(style=style, justify=side, no_wrap=True)  # type: ignore[arg-type]  # the words it takes
    devices = list(result.rows[0].verdicts)
    shown = devices if len(devices) < 4 else [plan.TOGETHER, "cpu"]
    for _ in shown:
        table.add_column(no_wrap=True)
    table.add_row(*(Text(title, "quiet") for title in ("", "", "tokens", *sizes, *(f" {device}" for device in shown))))
    for number, row in enumerate(result.rows, 1):
        name = row.form if number == 1 or result.rows[number - 2].form != row.form else ""
        words = [Text(f" {SHORT_VERDICTS[row.verdicts[each]]}", VERDICT_STYLES[row.verdicts[each]]) for each in shown]
        style = "" if FITS in row.verdicts.values() else "quiet"
        figures = [Text(amount(getattr(row, size)), style) for size in sizes.values()]
        tokens = str(row.tokens) if row.tokens % 1024 else f"{row.tokens // 1024}k"
        table.add_row(str(number), Text(name), tokens, *figures, *words)
    return table


def _end(result: Plan) -> Text:
    if not result.rows:
        return Text("the memory beside the weights cannot be estimated without its config", "quiet")
    if not result.default:
        fits = any(word != TOO_LARGE for row in result.rows for word in row.verdicts.values())
        said = "a number loads it that way" if fits else "none of this fits here"
        return Text(said, "quiet")
    return Text.assemble(
        ("\nEnter", "accent"), (f" loads it as in row {result.best}, a number as in that row", "quiet")
    )
