"""Replay: the messages of this conversation answered by another model, beside the recorded answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from rich.console import Group, RenderableType
from rich.text import Text

from repl.analysis import replay as rehearsal
from repl.analysis import variants
from repl.analysis.answerers import Answer
from repl.analysis.compare import Answers
from repl.analysis.replay import Exchange, beside_record, is_same, recorded_exchanges
from repl.commands.registry import command
from repl.core.errors import Cancelled, UsageError
from repl.core.format import join_facts
from repl.core.jobs import Job
from repl.core.values import AnyText
from repl.session.replies import add_reply
from repl.session.session import Session, Task
from repl.terminal.screen import render


@dataclass(frozen=True, slots=True)
class Replay:
    """A conversation answered again; its new branch ends with exchange `branch`, it stood at exchange `before`."""

    title: str
    pinned: bool
    turns: list[Answers]
    total: int
    branch: int | None
    before: int | None


@command("compare", "/replay gpt2", "/replay dtype=bfloat16 --pinned", see="compare go", needs_model=True)
def replay(
    session: Session,
    model: Annotated[str, AnyText("a model or settings", variants.complete_words, variants.complete_words)],
    *,
    pinned: bool = False,
) -> Task[None]:
    """Answer the messages of this conversation with another model.

    Other settings are written as for /compare: dtype=bfloat16, or several joined by commas. Each message is
    answered after the new answers before it, on a new branch (/go returns). With --pinned, each is answered after
    the recorded answers, and nothing is added to the conversation. You see the first difference, and the length,
    speed and bits per byte of both answers. Model and settings stay the same.
    """
    talk = recorded_exchanges(session.conversation)
    if not talk:
        raise UsageError("no replies yet to replay", "/help replay")
    way = variants.read_way(session, model)
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
        shown = session.settings.view.thinking
        turns = [beside_record(*pair, shown) for pair in zip(talk, made, strict=False)]
        return Replay(way.title, pinned, turns, len(talk), branch, before)

    return session.run_on_model(
        lambda emit: rehearsal.answer_again(session.store, way, talk, pinned, emit, made), settle
    )


def _number(session: Session) -> int | None:
    """Return the number of the last exchange on the current branch."""
    talk = session.conversation
    return talk.turns[talk.head].exchange if talk.head else None


def _add_branch(session: Session, talk: Sequence[Exchange], made: Sequence[Answer]) -> int | None:
    """Add new answers to the conversation, those of a chat as a new branch; returns the id of its last turn."""
    end: int | None = None
    for exchange, answer in zip(talk, made, strict=False):
        if (done := answer.done) is None or answer.problem or (done.finish == "cancelled" and not done.raw):
            break
        asked = session.conversation.turns[exchange.turn]
        if end is not None:
            asked = session.conversation.add("user", asked.text, end)
        reply = add_reply(session, asked, done)
        end = reply.id if exchange.asked.messages else None
    return end


@render.register
def _(result: Replay) -> RenderableType:
    made = sum(each.columns[1].done is not None for each in result.turns)
    said = join_facts(
        f"{sum(map(is_same, result.turns))} of {made} answers the same",
        f"{made} of {result.total} messages answered" if made < result.total else "",
        "each answered after the recorded answers; nothing was added" if result.pinned else "",
        f"a new branch ends at exchange {result.branch}" if result.branch else "",
    )
    back = [(" · ", "quiet"), (f"/go {result.before}", "accent"), (" returns", "quiet")] if result.branch else []
    turns = (part for each in result.turns for part in (render(each), Text()))
    return Group(*turns, Text.assemble((said, "quiet"), *back))
