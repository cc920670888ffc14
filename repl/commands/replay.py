"""Replay: the messages of this conversation answered by another model, turn by turn beside what was answered."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from repl.analysis import replay as rehearsal
from repl.analysis import variants
from repl.analysis.answerers import Answer, Problem
from repl.analysis.compare import parting
from repl.analysis.replay import Exchange, bits_per_byte, exchanges
from repl.commands.registry import command
from repl.core.errors import Cancelled, UsageError
from repl.core.format import joined, shortened
from repl.core.jobs import Job
from repl.core.reply import Reply
from repl.core.sanitize import clean
from repl.core.values import Text as Words
from repl.session.replies import add_reply
from repl.session.session import Session, Task
from repl.terminal.screen import render


@dataclass(frozen=True, slots=True)
class Told:
    """One of two answers: its text and length, how fast it was, and its bits per byte under the model that made it."""

    text: str
    tokens: int
    tokens_per_s: float | None
    bits_per_byte: float | None


@dataclass(frozen=True, slots=True)
class Parted:
    """The first difference: the token in the new answer, counted from 1, and how each goes on from there."""

    token: int
    recorded: str
    anew: str


@dataclass(frozen=True, slots=True)
class Replayed:
    """One message with both answers; `exchange` is the recorded one's, `done` the record of the new answer."""

    exchange: int
    prompt: str
    recorded: Told
    anew: Told
    same: bool
    difference: Parted | None
    problem: Problem | None
    done: Reply | None


@dataclass(frozen=True, slots=True)
class Replay:
    """A conversation answered anew; `branch` is the exchange that its new branch ends with, `before` where it stood."""

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
    difference, and length, speed and bits per byte of both answers. Model and settings stay.
    """
    talk = exchanges(session.conversation)
    if not talk:
        raise UsageError("no replies yet to replay", "/help replay")
    way = variants.way(session, model)
    made: list[Answer] = []

    def settle(job: Job[None]) -> Replay:
        session.restore()
        try:
            job.result()
        except Cancelled:
            if not made:
                raise
        before = _number(session)
        branch = _number(session) if not pinned and _add_branch(session, talk, made) else None
        turns = [_replayed(*pair) for pair in zip(talk, made, strict=False)]
        return Replay(way.title, pinned, turns, len(talk), branch, before)

    return session.run_on_model(
        lambda emit: rehearsal.answer_again(session.store, way, talk, pinned, emit, made), settle
    )


def _number(session: Session) -> int | None:
    """Return the number of the exchange where the conversation stands."""
    talk = session.conversation
    return talk.turns[talk.head].exchange if talk.head else None


def _add_branch(session: Session, talk: Sequence[Exchange], made: Sequence[Answer]) -> int | None:
    """Add new answers to the conversation: a chat as a branch, at whose end it then stands; returns that end."""
    end: int | None = None
    for exchange, answer in zip(talk, made, strict=False):
        if (done := answer.done) is None or answer.problem:
            break
        asked = session.conversation.turns[exchange.turn]
        if end is not None:
            asked = session.conversation.add("user", asked.text, end)
        reply = add_reply(session, asked, done)
        end = reply.id if exchange.asked.messages else None
    return end


def _replayed(exchange: Exchange, answer: Answer) -> Replayed:
    record, done = exchange.record, answer.done
    same_model = done is not None and record.made_by(done.model.id, done.model.commit)
    before = Answer(answer.variant, record, vocabulary=answer.vocabulary if same_model else 0)
    places = parting(before, answer) if done else None
    cut = before.cut or answer.cut
    return Replayed(
        exchange=exchange.number,
        prompt=exchange.asked.text,
        recorded=_told(record, record.measures.logprobs),
        anew=_told(done, answer.logprobs),
        same=done is not None and not cut and places is None,
        difference=Parted(places[1].token, *(one[places[1].start :] for one in (before.text, answer.text)))
        if places
        else None,
        problem=answer.problem,
        done=done,
    )


def _told(done: Reply | None, logprobs: Sequence[float]) -> Told:
    if done is None:
        return Told("", 0, None, None)
    return Told(done.text, done.usage.completion, done.timing.decode_tps, bits_per_byte(done, logprobs))


# draw


@render.register
def _(result: Replay) -> RenderableType:
    return Group(*(part for one in result.turns for part in _drawn(one)), _summary(result))


def _drawn(one: Replayed) -> list[RenderableType]:
    head = Text.assemble((f"{one.exchange} ", "quiet"), (shortened(one.prompt, 70), "accent"))
    if one.done is None:
        return [head, Text(_said(one)), Text()]
    table = Table.grid(padding=(0, 2))
    for side in ("left", "right", "right", "right"):
        table.add_column(justify=side, overflow="fold")
    table.add_row(*(Text(word, "quiet") for word in ("", "tokens", "tokens/s", "bits/byte")))
    for name, found in (("then", one.recorded), ("now", one.anew)):
        figures = (_figure(found.tokens_per_s, 1), _figure(found.bits_per_byte, 3))
        table.add_row(Text(name, "quiet"), str(found.tokens), *figures)
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
        f"a new branch ends at exchange {result.branch}" if result.branch else "",
    )
    back = [(" · ", "quiet"), (f"/go {result.before}", "accent"), (" returns", "quiet")] if result.branch else []
    return Text.assemble((said, "quiet"), *back)
