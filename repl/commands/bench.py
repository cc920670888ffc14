"""Speed: how fast models read and write on this machine, in one table for each model."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from repl.analysis import variants
from repl.analysis.bench import BARE, FASTER, LOOP, Bench, Benched, Entry, Plan, Speed, Way
from repl.commands.registry import command
from repl.core import settings
from repl.core.errors import UsageError
from repl.core.format import amount, device, joined
from repl.core.sanitize import clean_line
from repl.core.settings import Load
from repl.core.values import Integer, Kind
from repl.core.values import Text as Words
from repl.session.session import Session, Task
from repl.terminal.screen import render

HEADS = ("prompt", "mode", "first token", "prefill tok/s", "decode tok/s", "range", "vs generate", "% of limit")


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


@command("speed", name="bench", needs_model=True)
def bench_(
    session: Session,
    *ways: Annotated[str, Words("a model, or a setting such as quantize=int4", variants.offered, variants.offered)],
    prompt_tokens: Annotated[tuple[int, ...], Several(Integer(1))] = (32, 512),
    new_tokens: Annotated[int, Integer(2)] = 128,
    repeats: Annotated[int, Integer(1)] = 3,
) -> Task[Benched]:
    """Measure prefill and decode speed on this machine.

    /bench prompt_lookup quantize=int4 --prompt-tokens 32,512 chooses what.
    Each length of prompt is run once to warm up, then --repeats times, with --new-tokens made in turn by the library's
    bare generate, by the loop that makes replies, and by what /fast has on. Words name more ways: prompt_lookup,
    quantize=int4, quantize=int4,prompt_lookup, dtype=bfloat16, or other models. Ctrl-C keeps what is done so far.
    /export FILE --view writes all figures down. All else stays as it is.
    """
    plan = Plan(planned(session, ways), prompt_tokens, new_tokens, repeats)
    return session.run_on_model(lambda emit: Bench(plan, session.store, emit).run(), lambda job: job.result())


def planned(session: Session, words: Sequence[str]) -> tuple[tuple[Load, tuple[Way, ...]], ...]:
    """Return what is measured: the current model with every way, then what is loaded otherwise."""
    now, get, loaded = session.settings, session.store.get, bool(session.store.facts())
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
        if one.settings.load != now.load or not loaded:
            apart.setdefault(one.settings.load, [Way(BARE)]).append(way)
        elif all(one.settings.get(name) == plain.get(name) for name in FASTER):
            raise UsageError(f"{one.title} makes nothing faster: every run is greedy", "/help bench")
        elif one.settings not in [other.settings for other in common]:
            common.append(way)
    if not apart:
        session.facts()
    here = {now.load: common} if loaded else {}
    return tuple((load, tuple(ways)) for load, ways in {**here, **apart}.items())


@render.register
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
        f"ready in {entry.load_s:.2f} s" if entry.load_s else "",
    )
    name = clean_line(path.name if path.is_absolute() else entry.model)
    blocks: list[RenderableType] = [Text.assemble((name, "accent"), (f" · {clean_line(facts)}", "quiet"))]
    blocks += [_table(entry.speeds)] if entry.speeds else []
    blocks += [Text(clean_line(problem)) for problem in entry.problems]
    if entry.limit_tps and entry.speeds:
        each = f"a token needs {amount(entry.read_bytes)} of weights"
        blocks.append(Text(f"limit: {each}, memory bandwidth allows {_short(entry.limit_tps)} tokens/s", "quiet"))
    return [*blocks, Text()]


def _table(speeds: Sequence[Speed]) -> Table:
    table = Table.grid(padding=(0, 1))
    for side in ("right", "left", "left", "left", "right", "left", "right", "right"):
        table.add_column(justify=side, overflow="fold")
    table.columns[1].min_width = min(15, max(len(one.mode) for one in speeds))
    table.add_row(*(Text(word, "quiet") for word in HEADS))
    for one in speeds:
        first = one.ttft_s.median
        table.add_row(
            str(one.prompt_tokens),
            Text(clean_line(one.mode)),
            f"{_short(first)} s" if first >= 1 else f"{_short(first * 1000)} ms",
            _short(one.prefill_tps.median),
            _short(one.decode_tps.median),
            Text(f"{_short(one.decode_tps.least)}-{_short(one.decode_tps.most)}", "quiet"),
            "" if one.of_bare is None else f"{one.of_bare:.2f}",
            "" if one.limit is None else f"{one.limit:.0%}",
        )
    return table


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _foot(result: Benched) -> str:
    if not result.entries:
        return "stopped before anything was measured"
    counted = "1 run" if result.repeats == 1 else f"{'' if result.whole else 'up to '}{result.repeats} runs"
    threads = "1 thread" if result.threads == 1 else f"{result.threads} threads"
    rates = [f"{device} reads {rate / 1e9:.1f} GB/s" for device, rate in result.bandwidth.items()]
    rows = [
        f"tok/s: medians of {counted} of {result.new_tokens} tokens after a warm-up",
        "vs generate: decode speed against the library's generate with the first of these models",
        joined(threads, f"torch {result.versions['torch']}", *rates),
        "" if result.whole else "stopped: this is what was done by then",
    ]
    return "\n".join(row for row in rows if row)
