"""The modules of the loaded model, identical ones folded, with its attention and KV cache."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from repl.analysis.attention import Traits, read_traits
from repl.analysis.modules import Part, block_level, cut_tree, fold_modules, levels
from repl.commands.registry import command
from repl.core.format import amount, count, counted, join_facts
from repl.core.jobs import JobContext
from repl.core.sanitize import clean_line
from repl.core.values import Integer, Kind
from repl.session.session import Session, Task
from repl.terminal.screen import render
from repl.terminal.tables import Responsive, facts

NARROW_COLUMNS, KIND_COLUMNS = 70, 18  # of a window that halves the indent; left for the kind of a module
OPENED_LEVELS = 2  # shown of a module that was asked for


@dataclass(frozen=True, slots=True)
class ModulePath(Kind):
    """A path to a module; `[3]` is read as `.3`."""

    phrase: str = "a path such as model.layers.3"

    def parse(self, word: str) -> str:
        """Return the path with dots alone."""
        return word.strip().replace("[", ".").replace("]", "").strip(".")

    def offer(self, session: Session, word: str) -> list[str]:
        """Return the paths of the loaded model that begin with a word, up to the next level."""
        known = session.store.current().modules if session.store.facts() else ()
        found = [name for name in known if name.startswith(word)]
        ends = (name.find(".", len(word)) for name in found)
        return list(dict.fromkeys(name[: end + 1 or None].rstrip(".") for name, end in zip(found, ends, strict=True)))


@dataclass(frozen=True, slots=True)
class Arch:
    """A module with its submodules; `traits` describe the whole model, None for a module of it."""

    model: str
    attention: str
    """The attention implementation."""
    part: Part
    traits: Traits | None


@command("inspect", "/arch", "/arch model.layers.3", see="info lens memory", needs_model=True)
def arch(
    session: Session, path: Annotated[str, ModulePath()] = "", *, depth: Annotated[int, Integer(1)] = 0
) -> Task[Arch]:
    """Show the modules of the model, identical ones folded, and its KV cache.

    /arch model.layers.3 opens one module; --depth N shows N levels. Inside a folded module, the numbers are those
    of one.
    """
    session.facts()

    def read(emit: JobContext) -> Arch:
        resident = session.store.current()
        model, about = resident.model, resident.facts
        whole = fold_modules(model, path)
        shown = cut_tree(whole, depth or (OPENED_LEVELS if path else block_level(whole) + 1))
        return Arch(about.name, about.attention, shown, None if path else read_traits(model, about.context))

    return session.run_on_model(read)


def _draw(result: Arch, width: int, _: bool) -> Iterator[RenderableType]:
    """Draw the facts and the tree; numbers are never cut, names and kinds are folded."""
    yield facts((name, value) for name, value in _facts(result).items() if value)
    yield Text()
    several = ["," in listed for listed in (result.part.dtype, result.part.device)]
    indent = " " if width < NARROW_COLUMNS else "  "
    rows = [
        (Text(indent * level + clean_line(one.name)), Text(_what(one, several)), _number(one))
        for level, one in levels(result.part)
    ]
    wide = [max(cell.cell_len for cell in column) for column in zip(*rows, strict=True)]
    room = width - wide[2] - 4
    name = min(wide[0], max(room // 2, room - min(wide[1], KIND_COLUMNS)))
    table = Table.grid(padding=(0, 2))
    table.add_column(overflow="fold", width=name)
    table.add_column(overflow="fold", width=max(1, min(wide[1], room - name)), style="quiet")
    table.add_column(no_wrap=True, justify="right", width=wide[2])
    for row in rows:
        table.add_row(*row)
    yield table


render.register(Arch, lambda result: Responsive(partial(_draw, result)))


def _what(part: Part, several: list[bool]) -> str:
    folded = f"{part.count} x " if part.count > 1 else ""
    each = f", {part.parameters:,} each" if part.count > 1 else ""
    tied = f" = {part.tied}" if part.tied else ""
    more = join_facts(part.dtype if several[0] else "", part.device if several[1] else "")
    inside = counted(part.inside, "part") if part.inside else ""
    kind = part.kind if part.kind != part.name else ""
    return clean_line(join_facts(f"{folded}{kind} {part.shape}".rstrip() + each + tied, more, inside))


def _number(part: Part) -> Text:
    if part.tied:
        return Text("tied", "quiet")
    return Text(f"{part.parameters * part.count:,}" if part.parameters else "")


def _facts(result: Arch) -> dict[str, str]:
    part, own = result.part, result.traits
    total, taken = part.parameters * part.count, part.bytes * part.count
    lines = {
        "model": join_facts(result.model, part.path),
        "parameters": f"{total:,} ({count(total)}) · {amount(taken)}",
        "dtype": part.dtype,
        "device": part.device,
    }
    return {**lines, **_traits(own, result.attention)} if own else lines


def _traits(own: Traits, how: str) -> dict[str, str]:
    shared = "" if own.kv_heads in (0, own.heads) else f" on {own.kv_heads} of keys and values"
    heads = f"{own.heads} heads{shared}, {own.head_width} wide" if own.kv_heads else ""
    windows = ", ".join(f"{far:,} tokens in {number} of {own.layers} layers" for far, number in own.windows.items())
    growing = f"{amount(own.kv_bytes_per_token)} per token" if own.kv_bytes_per_token else ""
    full = f"{amount(own.context_bytes)} at {own.context:,} tokens" if growing and own.context else ""
    fixed = f"{amount(own.fixed_bytes)} regardless of length" if own.fixed_bytes else ""
    return {
        "attention": join_facts(own.attention, heads, how if own.kv_heads else ""),
        "window": windows,
        "positions": join_facts(own.positions, f"context {own.context:,}" if own.context else "no fixed limit"),
        "KV cache": join_facts(growing, fixed, full),
    }
