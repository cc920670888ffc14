"""Answers that were made beside the conversation, and taking one of them into it with its settings."""

from collections.abc import Mapping
from dataclasses import dataclass

from repl.change import changed
from repl.conversation import Turn
from repl.errors import UsageError
from repl.events import Done
from repl.point import Question
from repl.session import Session

Words = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply that may be taken, and the settings to go on with."""

    record: Done
    words: Words


@dataclass(slots=True)
class Offer:
    """Answers to one question, by number; it stands until something else is answered."""

    asked: Question
    answers: Mapping[int, Answer]
    last: Turn | None
    """The last reply when they were made, or the one that was taken since."""


def current(session: Session) -> Offer | None:
    """Return the answers that may be taken now: those that nothing was answered after."""
    offer = session.offer
    if not isinstance(offer, Offer):
        return None
    now, then = session.last, offer.last
    return offer if (now and now.id) == (then and then.id) else None


def take(session: Session, offer: Offer, number: int) -> Turn:
    """Make an answer the reply to its question, and its settings those of the session; raises `UsageError`."""
    if number not in offer.answers:
        raise UsageError(f"there is no row {number}: they are numbered {min(offer.answers)} to {max(offer.answers)}")
    answer, talk, asked = offer.answers[number], session.conversation, offer.asked
    session.settings = changed(session.settings, answer.words, parts=("decode",))
    if asked.turn is None:
        turn = talk.add(asked.role, asked.text, asked.parent)
        offer.asked = asked = Question(asked.request, turn.id, asked.role, asked.text, asked.parent)
    role = "completion" if asked.role == "prompt" else "assistant"
    lead = asked.request.prefill
    state = "cancelled" if answer.record.finish == "cancelled" else "complete"
    reply = talk.close(talk.add(role, "", asked.turn), lead + answer.record.text, state, answer.record)
    if role == "assistant":
        talk.head = reply.id
    session.last = offer.last = reply
    session.used = len(answer.record.prompt_ids) + len(answer.record.token_ids)
    return reply
