"""Speed: how fast models read and write on this machine, in a table that can be kept."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from repl.analysis import bench, variants
from repl.analysis.bench import Benched, Entry, Plan
from repl.analysis.timed_reply import BARE, FASTER, LOOP, Speed, Spread, Way
from repl.commands.registry import command
from repl.core import settings
from repl.core.atomic_write import write
from repl.core.errors import UsageError
from repl.core.format import amount, device, joined
from repl.core.jobs import Job
from repl.core.sanitize import clean_line
from repl.core.settings import Load
from repl.core.values import Integer, Kind
from repl.core.values import Text as Words
from repl.session.session import Session, Task
from repl.terminal.screen import plain, view

HEADS = ("prompt", "mode", "first token", "prefill tok/s", "decode tok/s", "vs generate", "% of limit")
RANGES = (76, 100)  # columns from which on there is room for the ranges of what is written, and for all
USUAL = 14  # letters of a way that leave room for them


@dataclass(frozen=True, slots=True)
class Several:
    """Some values of one kind, with commas between them."""

    one: Kind

    @property
    def phrase(self) -> str:
        """Name the kind."""
        return f"{self.one.phrase}, or several with commas between"

    def read(self, word: str) -> tuple[object, ...]:
        """Read each of them."""
        return tuple(self.one.read(part) for part in word.split(","))

    def show(self, value: tuple[object, ...]) -> str:
        """Join them."""
        return ",".join(self.one.show(part) for part in value)

    def complete(self) -> Collection[str]:
        """Offer what the kind offers."""
        return self.one.complete()


@command("speed", name="bench", waits=True)
def bench_(
    session: Session,
    *ways: Annotated[str, Words("a setting such as quantize=int4", variants.offered, variants.offered)],
    models: Annotated[tuple[str, ...], Several(Words("a model"))] = (),
    dtypes: Annotated[tuple[str, ...], Several(settings.kind("dtype"))] = (),
    prompt_tokens: Annotated[tuple[int, ...], Several(Integer(1))] = (32, 512),
    new_tokens: Annotated[int, Integer(2)] = 128,
    repeats: Annotated[int, Integer(1)] = 3,
    save: str = "",
    force: bool = False,
) -> Task[Benched]:
    """Measure prefill and decode speed on this machine.

    /bench prompt_lookup quantize=int4 --prompt-tokens 32,512 chooses what.
    Each length of prompt is run once to warm up, then --repeats times, with --new-tokens made in turn by the library's
    bare generate, by the loop that makes replies, and by what /fast has on. Words name more ways: prompt_lookup,
    quantize=int4, quantize=int4,prompt_lookup. Or --models A,B --dtypes float32,bfloat16. Ctrl-C keeps what is done
    so far. --save FILE.json writes it down, --force in place of a file that is there. All else stays as it is.
    """
    if save and not save.endswith(".json"):
        raise UsageError(f"{save!r} does not end in .json", "/bench --save bench.json")
    if save and not force and Path(save).expanduser().exists():  # said before the work, not after it
        raise UsageError(f"{save!r} exists", f"/bench --save {save} --force")
    if not models:
        session.facts()
    loads = bench.loads(session.settings.load, models, dtypes)
    plan = Plan(planned(session, loads, ways), prompt_tokens, new_tokens, repeats)

    def settle(job: Job[Benched]) -> Benched:
        found = job.result()
        if not save:
            return found
        content = json.dumps(plain(found), ensure_ascii=False, indent=1).encode("utf-8", "replace")
        path = write(save, content + b"\n", force, "/bench --save FILE.json --force")
        return replace(found, file=str(path))

    return session.run_on_model(lambda emit: bench.measured(plan, session.store, emit), settle)


def planned(session: Session, loads: Sequence[Load], words: Sequence[str]) -> tuple[tuple[Load, tuple[Way, ...]], ...]:
    """Return what is measured: each model with every way of writing, then those that are loaded otherwise."""
    now, get = session.settings, session.store.get
    plain = now
    for name in FASTER:
        plain = plain.reset(name)
    common = [Way(BARE), Way(LOOP, plain)]
    if on := [f"{name}={settings.show(name, now.get(name))}" for name in FASTER if now.get(name) != plain.get(name)]:
        common.append(Way(",".join(on), now, get))
    apart: dict[Load, list[Way]] = {}
    for word in words:
        one = variants.variant(word, plain)
        way = Way(one.title, one.settings, get)
        if one.settings.load != now.load:
            apart.setdefault(one.settings.load, [Way(BARE)]).append(way)
        elif all(one.settings.get(name) == plain.get(name) for name in FASTER):
            raise UsageError(f"{one.title} makes nothing faster: every run is greedy", "/help bench")
        elif one.settings not in [other.settings for other in common]:
            common.append(way)
    return tuple((load, tuple(ways)) for load, ways in ([(load, common) for load in loads] + [*apart.items()]))


@view.register
def _(result: Benched) -> RenderableType:
    blocks = [block for entry in result.entries for block in _drawn(entry)]
    return Group(*blocks, Text(_foot(result), "quiet"))


def _drawn(entry: Entry) -> list[RenderableType]:
    path = Path(entry.model)
    facts = joined(
        entry.dtype,
        "" if entry.quantization == "none" else entry.quantization,
        device(entry.device_map) if entry.device_map else "",
        f"weights {amount(entry.weight_bytes)}" if entry.weight_bytes else "",
        f"process {amount(entry.used_bytes)}" if entry.used_bytes else "",
        f"ready in {entry.load_s:.2f} s" if entry.load_s else "",
    )
    name = clean_line(path.name if path.is_absolute() else entry.model)
    blocks: list[RenderableType] = [Text.assemble((name, "accent"), (f" · {clean_line(facts)}", "quiet"))]
    blocks += [Speeds(entry.speeds)] if entry.speeds else []
    blocks += [Text(clean_line(entry.problem))] if entry.problem else []
    if entry.limit_tps and entry.speeds:
        each = f"a token needs {amount(entry.read_bytes)} of weights"
        blocks.append(Text(f"limit: {each}, memory bandwidth allows {_short(entry.limit_tps)} tokens/s", "quiet"))
    return [*blocks, Text()]


@dataclass(frozen=True, slots=True)
class Speeds:
    """The table of one model; ranges stand in it where there is room, those of what is written first."""

    speeds: Sequence[Speed]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield a row for each length of prompt and way."""
        longer = max(0, max(len(one.mode) for one in self.speeds) - USUAL)
        written, rest = (options.max_width - longer >= least for least in RANGES)
        table = Table.grid(padding=(0, 2 if written else 1))
        for side in ("right", "left", "left", "left", "left", "right", "right"):
            table.add_column(justify=side, overflow="fold")
        table.add_row(*(Text(word, "quiet") for word in HEADS))
        for one in self.speeds:
            scale, unit = (1.0, " s") if one.ttft_s.median >= 1 else (1000.0, " ms")
            table.add_row(
                str(one.prompt_tokens),
                Text(clean_line(one.mode)),
                _cell(one.ttft_s, rest, scale, unit),
                _cell(one.prefill_tps, rest),
                _cell(one.decode_tps, written),
                "" if one.of_bare is None else f"{one.of_bare:.2f}",
                "" if one.limit is None else f"{one.limit:.0%}",
            )
        yield table


def _cell(found: Spread, full: bool, scale: float = 1.0, unit: str = "") -> Text:
    middle, least, most = (_short(value * scale) for value in (found.median, found.least, found.most))
    return Text.assemble(middle + unit, (f" {least}-{most}" if full else "", "quiet"))


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _foot(result: Benched) -> str:
    if not result.entries:
        return "stopped before anything was measured"
    counted = "1 run" if result.repeats == 1 else f"{'' if result.whole else 'up to '}{result.repeats} runs"
    threads = "1 thread" if result.threads == 1 else f"{result.threads} threads"
    rates = [f"{one.device} reads {one.bytes_per_s / 1e9:.1f} GB/s" for one in result.memory]
    rows = [
        f"tok/s: medians of {counted} of {result.new_tokens} tokens after a warm-up, with ranges where there is room",
        "vs generate: decode speed against the library's generate with the first of these models",
        joined(threads, f"torch {result.versions['torch']}", *rates),
        "" if result.whole else "stopped: this is what was done by then",
        f"written to {clean_line(result.file)}" if result.file else "",
    ]
    return "\n".join(row for row in rows if row)
