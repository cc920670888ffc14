"""Memory of each device: its total, and the parts used by the models and by other programs."""

from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.text import Text

from repl.commands.registry import command
from repl.core import settings
from repl.core.format import amount
from repl.core.jobs import JobContext
from repl.core.sanitize import clean_line
from repl.models import imports, store
from repl.session.session import Session, Task
from repl.terminal.screen import render
from repl.terminal.tables import First, fact_line, grid


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """The memory of one device in bytes; `allocator` is reserved by torch but unused."""

    name: str
    total: int
    free: int
    program: int
    allocator: int
    others: int


@dataclass(frozen=True, slots=True)
class Held:
    """The memory of one loaded model in bytes; its KV cache holds `tokens`."""

    id: str
    dtype: str
    device: str
    weights: int
    cache: int
    tokens: int
    current: bool


@dataclass(frozen=True, slots=True)
class Memory:
    """Every device, and every loaded model, the most recently used first."""

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
        models = []
        for each, weights in store.resident_sizes(session.store.residents()):
            facts, (tokens, size) = each.facts, each.runtime.kv_cache.size()
            places = ", ".join(dict.fromkeys(facts.device_map.values()))
            models.append(Held(facts.name, facts.form, places, weights, size, tokens, facts is current))
        devices = [
            DeviceMemory(one.device, one.total, one.free, one.own, 0 if one.device == "cpu" else one.back, one.others)
            for one in session.store.measure()
        ]
        return Memory(devices, models, keep)

    return session.run_on_model(look)


@render.register
def _(result: Memory) -> RenderableType:
    rows: list[list[str | Text]] = [
        [Text(one.name, "accent"), *map(amount, (one.total, one.free, one.program, one.others))]
        for one in result.devices
    ]
    table = grid("lrrrr", rows, ["", "total", "free", "this program", "others"])
    empty = [
        Text(f"{one.name} keeps {amount(one.allocator)} of it reserved but unused", "quiet")
        for one in result.devices
        if one.allocator
    ]
    return Group(table, *empty, Text(), _draw_models(result))


def _draw_models(result: Memory) -> RenderableType:
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
    narrow = [row[:2] + row[4:] for row in rows]
    table = First(*(grid("llllrr", rows, heads, gap) for gap in (2, 1)), grid("llrr", narrow, heads[2:]))
    stay = "models stay while they fit" if result.keep_models == "auto" else f"at most {result.keep_models} stay"
    return Group(table, fact_line(stay, f"keep_models {result.keep_models}"))
