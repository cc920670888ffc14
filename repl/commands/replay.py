"""Replay: the messages of this conversation answered by another model, turn by turn beside what was answered."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from repl.analysis import compare, variants
from repl.analysis.answerers import Problem, full_text
from repl.analysis.replay import Again, Bits, Rehearsal, exchanges
from repl.commands.registry import command
from repl.core.errors import Cancelled, UsageError
from repl.core.format import joined, shortened
from repl.core.jobs import Job
from repl.core.reply import Reply
from repl.core.sanitize import clean
from repl.core.values import Text as Words
from repl.generation.decode.kv_cache import common
from repl.session.session import Session, Task
from repl.terminal.screen import render


@dataclass(frozen=True, slots=True)
class Side:
    """One of two answers: its text and length, how fast it was, and its bits per byte under either model."""

    text: str
    tokens: int
    tokens_per_s: float | None
    bits_per_byte: Bits


@dataclass(frozen=True, slots=True)
class Parted:
    """The first difference: the token in the new answer, counted from 1, and how each goes on from there."""

    token: int
    recorded: str
    anew: str


@dataclass(frozen=True, slots=True)
class Replayed:
    """One message with both answers; `turn` is the message's, `done` the record of the new answer."""

    turn: int
    prompt: str
    recorded: Side
    anew: Side
    same: bool
    difference: Parted | None
    problem: Problem | None
    done: Reply | None


@dataclass(frozen=True, slots=True)
class Replay:
    """A conversation answered anew; `branch` is the turn that its new branch ends with, `before` where it stood."""

    title: str
    pinned: bool
    turns: list[Replayed]
    total: int
    branch: int | None
    before: int | None


@command("compare", needs_model=True)
def replay(
    session: Session,
    model: Annotated[str, Words("a model or settings", variants.offered, variants.offered)],
    *,
    pinned: bool = False,
) -> Task[Any]:
    """Answer the messages of this conversation with another model.

    Other settings are written as for /compare: dtype=bfloat16, or several joined by commas. Each message is answered
    after the new answers before it; they make a branch of their own, where the conversation stands then (/go returns).
    --pinned answers each after the recorded ones, and adds nothing to the conversation. Told of each: the first
    difference, lengths, speed, and bits per byte of both answers under both models. Model and settings stay.
    """
    talk = exchanges(session.conversation)
    if not talk:
        raise UsageError("no replies yet to replay", "/help replay")
    way = variants.way(session, model)
    work = Rehearsal(session.store, way, talk, pinned, session.settings.load)

    def settle(job: Job[None]) -> Replay:
        session.restore()
        try:
            job.result()
        except Cancelled:
            if not work.found:
                raise
        found, before = tuple(work.found), session.conversation.head
        branch = None if pinned else graft(session, found)
        return Replay(way.title, pinned, [replayed(one) for one in found], len(talk), branch, before)

    return session.run_on_model(work.run, settle)


def graft(session: Session, found: Sequence[Again]) -> int | None:
    """Add new answers to the conversation: a chat as a branch, at whose end it then stands; returns that end."""
    talk = session.conversation
    end: int | None = None
    for again in found:
        if (done := again.made.done) is None or again.made.problem:
            break
        asked = talk.turns[again.exchange.turn]
        role = "assistant" if again.messages else "completion"
        if end is not None and again.messages:
            asked = talk.add("user", asked.text, end)
        state = "cancelled" if again.made.cut else "complete"
        turn = talk.close(talk.add(role, "", asked.id), full_text(again.made), state, done)
        end = turn.id if again.messages else None
    if end is not None:
        talk.head = end
        session.follow_head()
    return end


def replayed(again: Again) -> Replayed:
    """Put both answers to a message beside each other."""
    record, made = again.exchange.record, again.made
    ways = [record.token_ids, made.ids] if again.alike else [[*map(ord, record.raw)], [*map(ord, made.text)]]
    same = common(*ways)
    ended = [same == len(way) for way in ways]
    cut = made.cut or record.finish in ("cancelled", "failed")
    parted = None
    if made.done and not all(ended) and not (any(ended) and cut):
        shared = common([*map(ord, record.raw)], [*map(ord, made.text)])
        place = same if again.alike else compare.piece(made, shared)
        parted = Parted(place + 1, record.raw[shared:], made.text[shared:])
    return Replayed(
        turn=again.exchange.turn,
        prompt=again.exchange.text,
        recorded=_side(record, again.before),
        anew=_side(made.done, again.after),
        same=made.done is not None and not cut and all(ended),
        difference=parted,
        problem=made.problem,
        done=made.done,
    )


def _side(done: Reply | None, weight: Bits) -> Side:
    return Side(done.text, done.usage.completion, done.timing.decode_tps, weight) if done else Side("", 0, None, weight)


# draw


@render.register
def _(result: Replay) -> RenderableType:
    return Group(*(part for one in result.turns for part in _drawn(one)), _summary(result))


def _drawn(one: Replayed) -> list[RenderableType]:
    head = Text.assemble((f"{one.turn} ", "quiet"), (shortened(one.prompt, 70), "accent"))
    if one.done is None:
        return [head, Text(_said(one)), Text()]
    table = Table.grid(padding=(0, 2))
    for side in ("left", "right", "right", "right", "right"):
        table.add_column(justify=side, overflow="fold")
    table.add_row(*(Text(word, "quiet") for word in ("", "tokens", "tokens/s", "bits/byte then", "now")))
    for name, found in (("then", one.recorded), ("now", one.anew)):
        weights = (_figure(found.bits_per_byte.recorded, 3), _figure(found.bits_per_byte.anew, 3))
        table.add_row(Text(name, "quiet"), str(found.tokens), _figure(found.tokens_per_s, 1), *weights)
    return [head, table, Text(_said(one)), Text()]


def _figure(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _said(one: Replayed) -> str:
    if one.problem is not None:
        return clean(joined(one.problem.message, *one.problem.hints))
    if one.same:
        return f"the same {one.recorded.tokens} tokens"
    if (parted := one.difference) is None:
        return "the same as far as it goes"
    ways = [shortened(text, 30) or "the end" for text in (parted.recorded, parted.anew)]
    return f"differs at token {parted.token}\n  then  {ways[0]}\n  now   {ways[1]}"


def _summary(result: Replay) -> Text:
    same = sum(one.same for one in result.turns)
    made = sum(one.done is not None for one in result.turns)
    said = joined(
        f"{same} of {made} answers the same",
        f"{made} of {result.total} messages answered" if made < result.total else "",
        "answered after the recorded ones, nothing was added" if result.pinned else "",
        f"a new branch ends at turn {result.branch}" if result.branch else "",
    )
    back = [(" · ", "quiet"), (f"/go {result.before}", "accent"), (" returns", "quiet")] if result.branch else []
    under = "bits/byte of either answer under the model then and the one now"
    return Text.assemble((said, "quiet"), *back, (f"\n{under}", "quiet"))
