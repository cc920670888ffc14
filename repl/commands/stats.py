"""Totals of the session: replies, tokens and time, also by model."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from rich.console import Group, RenderableType
from rich.text import Text

from repl.commands.registry import command
from repl.core import settings
from repl.core.format import join_facts
from repl.core.reply import Reply
from repl.core.sanitize import clean_line
from repl.core.values import RestOfLine
from repl.session.change_settings import change
from repl.session.session import Session
from repl.terminal.screen import render
from repl.terminal.tables import First, grid


@dataclass(frozen=True, slots=True)
class Total:
    """Sums over some replies: tokens of their prompts, those from the KV cache, generated tokens, seconds.

    `decode_tps` is the decode speed over all replies, without their first tokens; None if there are no others.
    """

    model: str
    replies: int
    prompt: int
    reused: int
    made: int
    seconds: float
    decode_tps: float | None


@dataclass(frozen=True, slots=True)
class Stats:
    """The totals of this conversation with all its branches, and those of each model and dtype."""

    total: Total
    models: list[Total]
    line: bool
    """Whether a line of figures is shown under each reply."""


def sum_replies(name: str, records: Iterable[Reply]) -> Total:
    """Add up the figures of replies."""
    found = list(records)
    timed = [one for one in found if one.timing.decode_tps and one.usage.completion > 1]
    steps = sum(one.usage.completion - 1 for one in timed)
    seconds = sum((one.usage.completion - 1) / (one.timing.decode_tps or 1.0) for one in timed)
    return Total(
        name,
        len(found),
        sum(one.usage.prompt for one in found),
        sum(one.usage.reused for one in found),
        sum(one.usage.completion for one in found),
        sum(one.timing.total_s for one in found),
        steps / seconds if seconds else None,
    )


def label(record: Reply) -> str:
    """Return the model of a reply and its dtype or quantization."""
    packed = record.model.quantization
    name = settings.BUILT_IN_NAME if record.model.id == "builtin" else record.model.id
    return join_facts(name, record.model.dtype, "" if packed == "none" else packed)


@command("other", "/stats", "/stats off", see="bench doctor")
def stats(
    session: Session, value: Annotated[str, RestOfLine(suggest=settings.setting_kind("stats").complete)] = ""
) -> object:
    """Show totals of this session; on or off: statistics under replies.

    All replies on all branches of the conversation count, stopped ones too.
    """
    if value:
        return change(session, "stats", value)
    turns = session.conversation.turns.values()
    # a picked sequence is a turn of its own, with the timing of the reply it was generated with
    records = list({(turn.parent, turn.record.timing): turn.record for turn in turns if turn.record}.values())
    names = dict.fromkeys(map(label, records))
    models = [sum_replies(name, (one for one in records if label(one) == name)) for name in names]
    return Stats(sum_replies("", records), models, session.settings.view.stats)


@render.register
def _(result: Stats) -> RenderableType:
    if not result.total.replies:
        return Text("no replies yet", "quiet")
    heads = ["replies", "prompt", "reused", "generated", "time", "tokens/s", ""]
    rows: list[list[str | Text]] = [
        [
            f"{one.replies}",
            f"{one.prompt:,}",
            f"{one.reused:,}",
            f"{one.made:,}",
            _time(one.seconds),
            f"{one.decode_tps:.1f}" if one.decode_tps else "",
            Text(clean_line(one.model or "total"), "accent" if one.model else "quiet"),
        ]
        for one in (result.models if len(result.models) < 2 else [*result.models, result.total])
    ]
    narrow = grid("rrrrl", [row[:2] + row[3:4] + row[5:] for row in rows], heads[:2] + heads[3:4] + heads[5:])
    table = First(grid("rrrrrrl", rows, heads), narrow)
    off = [] if result.line else [Text("statistics under replies are off · /stats on", "quiet")]
    return Group(table, *off)


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
