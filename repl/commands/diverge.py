"""Diverge: compare the last reply under other load settings, token by token."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Annotated

from rich.console import RenderableType
from rich.text import Text

from repl.analysis.diverge import TIE_NATS, Asked, Diverged, FirstFlip, diverge, is_greedy, recorded_settings
from repl.analysis.variants import read_variant
from repl.commands.registry import command
from repl.core import settings
from repl.core.errors import UsageError
from repl.core.format import counted, device
from repl.core.sanitize import clean_line
from repl.core.settings import Load
from repl.core.values import RestOfLine
from repl.generation.interface import Request
from repl.generation.measure.token_text import quote
from repl.session.position import question, split_prompt
from repl.session.session import Session, Task
from repl.terminal.screen import render
from repl.terminal.tables import First, Responsive, fact_line, facts, grid

BARS, ASCII_BARS = "▁▂▃▄▅▆▇█", "_.:-=+*#"  # the same heights for a terminal without blocks
DIVERGE_EXAMPLE = "/diverge dtype=float16"
DIVERGE_WORDS = (
    "dtype=float16",
    "dtype=bfloat16",
    "dtype=float32",
    "quantize=int8",
    "quantize=int4",
    "attention=eager",
)


@command(
    "compare",
    "/diverge dtype=bfloat16",
    "/diverge quantize=int8 -- Once upon a time",
    see="compare reproduce",
    needs_model=True,
)
def diverge_(session: Session, text: Annotated[str, RestOfLine(suggest=lambda: DIVERGE_WORDS)]) -> Task[Diverged]:
    """Check whether other load settings would have changed the last reply.

    It takes one or more load settings: dtype, quantize, attention, device, or model=OTHER with the same tokenizer.
    Both versions read the greedy reply of the loaded model, which is generated first if the last reply was not
    greedy. You see the first token at which the most likely one changes, with the lead of each candidate in nats;
    the KL divergence at each token; the share of steps that agree; and how the other version continues. A lead
    below 0.1 nats in both is a near tie.
    """
    words, prompt = split_prompt(text)
    facts, now = session.facts(), session.store.current().load
    other = _other(session, words)
    if other == now:
        raise UsageError(f"{facts.name} is already loaded with {' '.join(words)}", DIVERGE_EXAMPLE)
    names = _names(now, other, facts.dtype, facts.attention, device(facts.device_map))
    record, chosen = session.last.record if session.last and not prompt else None, session.settings
    if record is not None and is_greedy(record, facts, now):
        chosen = recorded_settings(chosen, record, facts.base)
        asked = Asked(Request(chosen), names, record)
    elif record is not None and record.model.id == facts.id:
        asked = Asked(Request(chosen, ids=record.prompt_ids), names)
    else:
        found = question(session, prompt, f"{DIVERGE_EXAMPLE} -- PROMPT")
        asked = Asked(found.request(chosen, facts.chats), names)
    return session.run_on_model(lambda emit: diverge(session.store, asked, other, emit))


def _other(session: Session, words: list[str]) -> Load:
    if not words:
        raise UsageError("/diverge needs a load setting", DIVERGE_EXAMPLE)
    now = session.settings
    for word in words:
        one = read_variant(word, now, session.base()).settings
        if (one.decode, one.view, one.extra) != (now.decode, now.view, now.extra):
            name = word.partition("=")[0]
            raise UsageError(f"{name} does not change the model's logits", f"/sweep {word}", DIVERGE_EXAMPLE)
    return read_variant(",".join(words), now, session.base()).settings.load


def _names(now: Load, other: Load, dtype: str, attention: str, place: str) -> tuple[str, str]:
    """Return short names for the two load settings: the values that differ."""
    is_so = {"dtype": dtype, "attention": attention, "device": place, "quantize": dtype}
    told = [name for name in Load.__slots__ if getattr(now, name) != getattr(other, name)]
    told = ["model"] if "model" in told and set(told) <= {"model", "revision", "gguf_file"} else told
    unset = [name for name in is_so if getattr(now, name) in ("auto", "none")]
    one = [is_so[name] if name in unset else _word(now, name) for name in told]
    return " ".join(dict.fromkeys(one)), " ".join(_word(other, name) for name in told)


def _word(load: Load, name: str) -> str:
    value = settings.show_setting(name, getattr(load, name)) or "none"
    named = settings.short_id(value) if name == "model" else value
    return f"{name} {named}" if named in ("auto", "none", "on", "off", "main") else named


def _draw(found: Diverged, width: int, plain: bool) -> Iterator[RenderableType]:
    """Draw the first difference, then the divergence over all tokens."""
    if found.made:
        yield Text("on a greedy reply generated now", "quiet")
    if found.fork is None:
        yield Text(f"no difference: {counted(len(found.steps), 'token')}, the most likely in both")
    else:
        yield from _forked(found, found.fork)
    yield _line(found, min(width, 100) - 3, plain)
    count = len(found.steps)
    agree = f"{found.agreeing} of {count} steps agree ({100 * found.agreeing / count:.1f} %)"
    most = f"largest {_short(found.kl_most)} at token {found.kl_most_at}"
    yield fact_line(agree, f"KL mean {_short(found.kl_mean)} nats, {most}")
    if not found.whole:
        yield Text("the models did not fit in memory together: they were loaded in turn", "quiet")


def _forked(found: Diverged, fork: FirstFlip) -> Iterator[RenderableType]:
    names = [clean_line(name) for name in found.names]
    yield Text.assemble("first different token: ", (f"{fork.place}", "accent"), (f" of {len(found.steps)}", "quiet"))
    rows = []
    for side, name in enumerate(names):
        mine, theirs = (fork.first, fork.second)[:: 1 - 2 * side]
        own, other = ((quote(clean_line(one.text)), f"{one.probabilities[side]:.3f}") for one in (mine, theirs))
        cells = [(f"  {name}", "quiet"), *((cell, "accent") for cell in own), *((cell, "quiet") for cell in other)]
        rows.append([Text(*cell) for cell in (*cells, (f"{fork.margins[side]:.3f}", "quiet"))])
    heads = ["", "takes", "", "then", "", "nats ahead"]
    narrow = [[*row[:3], row[5]] for row in rows]
    yield First(*(grid("llllll", rows, heads, gap) for gap in (2, 1)), grid("llll", narrow, [*heads[:3], heads[5]]))
    surer, most = names[fork.margins[1] > fork.margins[0]], max(fork.margins)
    real = f"a real change: {surer} leads by {most:.2f} nats (a near tie: below {TIE_NATS:g} in both)"
    yield Text(f"a near tie: neither leads by {TIE_NATS:g} nats" if fork.tie else real)
    onward = [" ".join(text.split()) or "(ends)" for text in fork.onward]
    yield facts([(f"  {name}", text) for name, text in zip(names, onward, strict=True)])


def _line(found: Diverged, room: int, plain: bool) -> Text:
    drawn = Text(spark([step.kl for step in found.steps], room, plain), "quiet")
    for place, step in enumerate(found.steps):
        if not step.agrees:
            at = column(place, len(found.steps), room)
            drawn.stylize("accent", at, at + 1)
    return Text("KL ", "quiet") + drawn


def _short(value: float) -> str:
    return f"{value:.1e}" if 0 < value < 0.0005 else f"{value:.3f}"


def bin_peaks(values: Sequence[float], width: int) -> list[float]:
    """Return at most `width` numbers, the largest of each bin."""
    count = min(len(values), max(1, width))
    edges = [len(values) * place // count for place in range(count + 1)] if count else []
    return [max(values[begin:end]) for begin, end in pairwise(edges)]


def column(place: int, count: int, width: int) -> int:
    """Return the column of a value, of `count` values drawn in at most `width` columns."""
    shown = min(count, max(1, width))
    return next(at for at in range(shown) if place < count * (at + 1) // shown)


def spark(values: Sequence[float], width: int, plain: bool = False) -> str:
    """Draw numbers as bars, from 0 to the largest number."""
    found, signs = bin_peaks(values, width), ASCII_BARS if plain else BARS
    most = max(found, default=0.0)
    return "".join(signs[round((len(signs) - 1) * value / most) if most > 0 else 0] for value in found)


render.register(Diverged, lambda result: Responsive(partial(_draw, result)))
