"""Where a conversation stands: what a model is asked to go on from."""

from dataclasses import dataclass

from repl.conversation import Turn
from repl.errors import UsageError
from repl.events import Done
from repl.loading import Facts
from repl.request import Request
from repl.session import Session
from repl.settings import Settings


def chat(session: Session, chosen: Settings, asked: Turn, prefill: str = "") -> Request:
    """Ask for the reply to a message, which begins with `prefill`."""
    talk = session.conversation
    turns = [*([0] if talk.system else []), *(turn.id for turn in talk.path(asked.id))]
    return Request(chosen, messages=tuple(talk.messages(asked.id)), turns=tuple(turns), prefill=prefill)


def onward(session: Session, last: Turn) -> Request:
    """Go on from the very ids; a model that did not make them goes on from the text."""
    record, asked = last.record, session.conversation.turns[last.parent or 0]
    if record is None or not session.engine.made(record):
        if asked.role == "prompt":
            return Request(session.settings, text=asked.text + last.text)
        return chat(session, session.settings, asked, last.text)
    made = record.token_ids[:-1] if record.finish == "stop" else record.token_ids
    return Request(session.settings, ids=(*record.prompt_ids, *made))


def made_by(record: Done, facts: Facts) -> bool:
    """Tell whether a reply was made by this model."""
    made = record.model
    return "server" not in made and (made.get("id"), made.get("commit")) == (facts.id, facts.commit)


@dataclass(frozen=True, slots=True)
class Here:
    """What would come next: the request for it, after what that is in words, and the text there."""

    request: Request
    after: str
    text: str


def here(session: Session) -> Here:
    """Return what comes next in the conversation as it stands; raises `UsageError`."""
    talk, last = session.conversation, session.last
    if last is not None and last.role == "completion":
        return Here(onward(session, last), "the last completion", talk.turns[last.parent or 0].text + last.text)
    if talk.head is None:
        raise UsageError("nothing was said yet that something could come after", "/next Once upon a time")
    head = talk.turns[talk.head]
    if head.role == "user" or head.parent is None:
        begun = session.prefill
        return Here(chat(session, session.settings, head, begun), "your message", begun or head.text)
    ended = head.record is not None and head.record.finish == "stop" and session.engine.made(head.record)
    return Here(onward(session, head), "the last reply, where it ended" if ended else "the last reply", head.text)
