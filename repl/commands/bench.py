"""Speed: prefill and decode on this machine, a row for each way to generate."""

from collections.abc import Sequence
from typing import Annotated

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from repl.analysis import variants
from repl.analysis.bench import BARE_GENERATE, Bench, Benched, BenchSizes, WaySpeed
from repl.commands.registry import command
from repl.core import decoding, settings
from repl.core.errors import UsageError
from repl.core.format import amount, counted, join_facts
from repl.core.sanitize import clean_line
from repl.core.values import AnyText, Integer
from repl.session.session import Session, Task
from repl.terminal.screen import render

HEADS = ("", "first token", "prefill tok/s", "decode tok/s", "vs generate", "% of limit")


@command("speed", "/bench", "/bench quantize=int4 --new-tokens 32", see="fast quantize stats", needs_model=True)
def bench_(
    session: Session,
    *ways: Annotated[
        str, AnyText("a model, or a setting such as quantize=int4", variants.complete_words, variants.complete_words)
    ],
    prompt_tokens: Annotated[int, Integer(1)] = 256,
    new_tokens: Annotated[int, Integer(2)] = 128,
    repeats: Annotated[int, Integer(1)] = 3,
) -> Task[Benched]:
    """Measure prefill and decode speed on this machine.

    After a warm-up, --repeats replies of --new-tokens are generated in turn by the library's plain generate(), by
    the decode loop used here, and with what /fast has on. Words add rows: prompt_lookup, quantize=int4,
    quantize=int4,prompt_lookup, dtype=bfloat16, or other models. Ctrl-C keeps the finished runs. Your settings do
    not change.
    """
    session.facts()
    planned, sizes = _plan(session, ways), BenchSizes(prompt_tokens, new_tokens, repeats)
    return session.run_on_model(lambda emit: Bench(session.store, sizes, emit).run(planned))


def _plan(session: Session, words: Sequence[str]) -> list[variants.Variant]:
    """Return the ways to measure: the loaded model in each, and those that words name; raises `UsageError`."""
    now = session.settings
    plain = now
    for name in decoding.AHEAD:
        plain = plain.reset(name)
    found = [variants.Variant(BARE_GENERATE, plain), variants.Variant("loop", plain)]
    if on := [
        f"{name}={settings.show_setting(name, now.get(name))}"
        for name in decoding.AHEAD
        if now.get(name) != plain.get(name)
    ]:
        found.append(variants.Variant(",".join(on), now))
    for word in words:
        one = variants.read_variant(word, plain)
        if one.settings.load == now.load and all(one.settings.get(name) == plain.get(name) for name in decoding.AHEAD):
            raise UsageError(f"{one.title} has no effect on speed: every run is greedy", "/help bench")
        if one.settings not in [way.settings for way in found]:
            found.append(one)
    return found


@render.register
def _(result: Benched) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(overflow="fold")
    for _ in HEADS[1:]:
        table.add_column(justify="right", overflow="fold")
    table.add_row(*(Text(head, "quiet") for head in HEADS))
    for row in result.rows:
        table.add_row(*_cells(row))
    problems = [Text(clean_line(problem)) for problem in result.problems]
    return Group(*([table] if result.rows else []), *problems, Text(_foot(result), "quiet"))


def _cells(row: WaySpeed) -> list[str | Text]:
    first = row.ttft_s
    return [
        Text(clean_line(row.way)),
        f"{_short(first)} s" if first >= 1 else f"{_short(first * 1000)} ms",
        _short(row.prefill_tps),
        _short(row.decode_tps),
        "" if row.of_bare is None else f"{row.of_bare:.2f}",
        "" if row.limit_tps is None else f"{100 * row.decode_tps / row.limit_tps:.0f}",
    ]


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _foot(result: Benched) -> str:
    stopped = "" if result.whole else "stopped early: results so far"
    if not result.rows:
        return "nothing was measured" if result.whole else "stopped before anything was measured"
    sizes, first = result.sizes, result.rows[0]
    runs = counted(min(row.runs for row in result.rows), "run")
    rates = [f"{device} reads {rate / 1e9:.1f} GB/s" for device, rate in result.bandwidth.items()]
    weights = f"{amount(first.read_bytes)} of weights read per token"
    limit = [join_facts(*rates, weights, f"at most {_short(first.limit_tps)} tokens/s")] if first.limit_tps else []
    medians = f"medians of {runs}: {sizes.new_tokens} tokens after a prompt of {sizes.prompt_tokens}"
    rows = [join_facts(medians, first.dtype, counted(result.threads, "thread")), *limit, stopped]
    return "\n".join(row for row in rows if row)
