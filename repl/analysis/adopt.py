"""Rows of a sweep as answers: taking one of them into the conversation, with its settings."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from repl.analysis.sweep import Cell
from repl.core import decoding
from repl.core.decoding import SAMPLING
from repl.core.errors import UsageError
from repl.generation.decode.batch import Made
from repl.session.change_settings import changed
from repl.session.position import Question
from repl.session.session import Session


@dataclass(frozen=True, slots=True)
class Taken:
    """A row that is the answer now, and how the next reply is made."""

    number: int
    text: str
    token_ids: tuple[int, ...]
    now: str


def offer(session: Session, asked: Question, cells: Mapping[int, Cell], made: Mapping[int, Made]) -> None:
    """Let /pick take one of these rows."""
    session.set_pick(lambda number: take(session, asked, cells, made, number))


def take(session: Session, asked: Question, cells: Mapping[int, Cell], made: Mapping[int, Made], number: int) -> Taken:
    """Make a row the reply to its question, and its settings those of the session; raises `UsageError`."""
    if number not in made:
        raise UsageError(f"there is no row {number}: they are numbered {min(made)} to {max(made)}", "/sweep")
    talk, done = session.conversation, made[number].done
    session.change(changed(session.settings, words(session, cells[number], made[number]), parts=("decode",)))
    if asked.turn is None:
        asked = replace(asked, turn=talk.add(asked.role, asked.text, asked.parent).id)
        session.prepare(files=(), prefill="")
    role = "completion" if asked.role == "prompt" else "assistant"
    state = "cancelled" if done.finish == "cancelled" else "complete"
    reply = talk.close(talk.add(role, "", asked.turn), asked.request.prefill + done.raw, state, done)
    if role == "assistant":
        talk.head = reply.id
    session.set_last(reply)
    offer(session, asked, cells, made)
    return Taken(number, reply.parts.answer, done.token_ids, decoding.phrase(session.decoding()))


def words(session: Session, cell: Cell, made: Made) -> list[tuple[str, str]]:
    """Return what has to be set to go on as a row was made; its seed is not: it would fix all further replies."""
    samples = made.done.seed is not None
    beams = [("num_beams", "1")] if (session.decoding()["num_beams"].value or 1) > 1 else []
    kept = [(name, text) for name, text in cell.words if samples or name not in SAMPLING]
    return [("do_sample", "on" if samples else "off"), *beams, *kept]
