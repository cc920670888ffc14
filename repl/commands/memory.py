"""Memory: what each device has, what the models in it take, and what others take."""

from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from repl.commands.registry import command
from repl.core import settings
from repl.core.format import amount
from repl.core.jobs import JobContext
from repl.core.sanitize import clean_line
from repl.generation.interface import Model
from repl.models import imports, store
from repl.models.memory.available import Room
from repl.session.session import Session, Task
from repl.terminal.screen import render
from repl.terminal.tables import First, fact_line, grid


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """The memory of one device in bytes; `allocator` is what it keeps without a tensor in it."""

    name: str
    total: int
    free: int
    program: int
    allocator: int
    others: int


@dataclass(frozen=True, slots=True)
class Held:
    """What one resident model takes, in bytes."""

    id: str
    dtype: str
    device: str
    weights: int
    cache: int
    tokens: int
    current: bool


@dataclass(frozen=True, slots=True)
class Memory:
    """Every device, and every resident model, the most recently used first."""

    devices: list[DeviceMemory]
    models: list[Held]
    keep_models: str


@command("models", "/memory", "/unload", see="plan unload info")
def memory(session: Session) -> Task[Memory]:
    """Show the memory of each device, and the use by models and KV caches."""
    keep = settings.show_setting("keep_models", session.settings.view.keep_models)

    def look(emit: JobContext) -> Memory:
        imports.import_libraries(emit)
        current = session.store.facts()
        models = [
            held(each, size, each.facts is current) for each, size in store.resident_sizes(session.store.residents())
        ]
        return Memory([taken(room) for room in session.store.measure()], models, keep)

    return session.run_on_model(look)


def taken(room: Room) -> DeviceMemory:
    """Describe a device."""
    allocator = 0 if room.device == "cpu" else room.back
    return DeviceMemory(room.device, room.total, room.free, room.own, allocator, room.others)


def held(resident: Model, weights: int, current: bool) -> Held:
    """Weigh a resident model; on the model thread."""
    facts, (tokens, size) = resident.facts, resident.runtime.kv_cache.size()
    return Held(
        facts.name, facts.form, ", ".join(dict.fromkeys(facts.device_map.values())), weights, size, tokens, current
    )


@render.register
def _(result: Memory) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    for justify in ("left", "right", "right", "right", "right"):
        table.add_column(justify=justify, no_wrap=True)
    table.add_row(*(Text(name, "quiet") for name in ("", "total", "free", "this program", "others")))
    for one in result.devices:
        table.add_row(Text(one.name, "accent"), *map(amount, (one.total, one.free, one.program, one.others)))
    empty = [
        f"{one.name} keeps {amount(one.allocator)} of it reserved but unused" for one in result.devices if one.allocator
    ]
    rows = [Text(line, "quiet") for line in empty]
    return Group(table, *rows, Text(), draw_models(result))


def draw_models(result: Memory) -> RenderableType:
    """Draw the resident models."""
    if not result.models:
        return Text("no model is in memory", "quiet")
    rows: list[list[str | Text]] = [
        [
            Text(">" if one.current else "", "accent"),
            Text(clean_line(one.id), "accent" if one.current else ""),
            one.dtype,
            one.device,
            amount(one.weights),
            f"{amount(one.cache)}, {one.tokens} tokens" if one.tokens else "none",
        ]
        for one in result.models
    ]
    heads = ["", "", "", "", "weights", "KV cache"]
    table = First(*(grid("llllrr", rows, heads, gap) for gap in (2, 1)))
    stay = "models stay while they fit" if result.keep_models == "auto" else f"at most {result.keep_models} stay"
    return Group(table, fact_line(stay, f"keep_models {result.keep_models}"))
