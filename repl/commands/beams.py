"""Beams: search width, and taking another of the sequences found."""

from dataclasses import dataclass, replace
from typing import Annotated

from rich.console import RenderableType
from rich.text import Text

from repl.change import apply
from repl.clean import clean
from repl.errors import UsageError
from repl.kinds import Change, Whole
from repl.registry import command
from repl.screen import Said, view
from repl.session import Session


@dataclass(frozen=True, slots=True)
class Picked:
    """Another sequence of the last reply, taken as the answer."""

    number: int
    text: str
    score: float | None
    token_ids: tuple[int, ...]


@command("talk")
def pick(session: Session, number: Annotated[int, Whole(1)]) -> Picked:
    """Take another of the last reply's sequences as the answer."""
    turn = session.last
    found = turn.record.sequences if turn and turn.record else ()
    if turn is None or turn.record is None or len(found) < 2:
        raise UsageError("the last reply has no other sequences", "/beams 4 num_return_sequences=4")
    if number > len(found):
        raise UsageError(f"there are {len(found)} sequences, not {number}")
    chosen = found[number - 1]
    talk = session.conversation
    record = replace(turn.record, text=chosen.text, token_ids=chosen.token_ids)
    sibling = talk.close(talk.add("assistant", "", turn.parent), chosen.text, "complete", record)
    if talk.head == turn.id:
        talk.head = sibling.id
    session.last = sibling
    return Picked(number, chosen.text, chosen.score, chosen.token_ids)


@view.register
def _(result: Picked) -> RenderableType:
    return Text(clean(result.text))


@command("settings", name="beams")
def beams(
    session: Session, count: Annotated[int, Whole(1, 1000)], *changes: Annotated[tuple[str, str], Change()]
) -> Said:
    """Search with this many beams; all of them are shown while they live and can be picked afterwards."""
    words = [("num_beams", str(count)), ("do_sample", "off"), ("num_return_sequences", str(count)), *changes]
    if count == 1:
        words[2] = ("num_return_sequences", "default")
    return apply(session, words)
