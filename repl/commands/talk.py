"""Talk: messages, the system instruction, plain continuation, a fresh start."""

from typing import Annotated, Any

from repl import engine
from repl.conversation import Turn
from repl.engine import Request
from repl.errors import Cancelled, ReplError, UsageError
from repl.events import Done
from repl.kinds import Rest
from repl.registry import command
from repl.screen import Said
from repl.session import Session, Task
from repl.worker import Job


@command("talk", waits=True)
def say(session: Session, text: Annotated[str, Rest()]) -> Task[Done]:
    """Send a message, or a text to complete where the model has no chat template."""
    session.ready()
    if not text.strip():
        raise UsageError("the prompt is empty")
    return _chat(session, text) if session.chats() else _complete(session, text)


@command("talk", waits=True)
def raw(session: Session, text: Annotated[str, Rest()]) -> Task[Done]:
    """Continue a text as it stands, without the chat template and outside the conversation."""
    session.ready()
    return _complete(session, text)


def _chat(session: Session, text: str) -> Task[Done]:
    talk = session.conversation
    user = talk.add("user", text, talk.head)
    request = Request(session.settings, messages=tuple(talk.messages(user.id)))
    return _answer(session, request, talk.add("assistant", "", user.id, state="open"))


def _complete(session: Session, text: str) -> Task[Done]:
    talk = session.conversation
    prompt = talk.add("user", text, None)
    return _answer(session, Request(session.settings, text=text), talk.add("assistant", "", prompt.id, state="open"))


def _answer(session: Session, request: Request, turn: Turn) -> Task[Done]:
    """Generate on the model thread; the turn is closed with whatever comes of it."""

    def settle(job: Job[Done]) -> Done:
        try:
            done = job.result()
        except (ReplError, Cancelled) as error:
            _close(session, request, turn, getattr(error, "partial", None), "failed")
            raise
        state = "cancelled" if done.finish == "cancelled" else "complete"
        _close(session, request, turn, done, state)
        session.speed = done.timing.decode_tps or session.speed
        session.used = len(done.prompt_ids) + len(done.token_ids)
        return done

    return session.start(lambda emit: engine.reply(session.store.current(), request, emit), settle)


def _close(session: Session, request: Request, turn: Turn, done: Done | None, state: str) -> None:
    closed = session.conversation.close(turn, done.text if done else "", state, done)
    if closed.text or state == "complete":
        session.last = closed
        if request.chats:
            session.conversation.head = closed.id


@command("talk")
def system(session: Session, text: Annotated[str, Rest()] = "") -> Any:
    """Set the instruction in front of the conversation; alone it shows it, `/system none` removes it."""
    if not text:
        return Said(f"system: {session.conversation.system}" if session.conversation.system else "no system text")
    session.conversation.system = "" if text == "none" else text
    return Said("system text removed" if text == "none" else "system text set · from the next message on")


@command("talk")
def clear(session: Session) -> Said:
    """Begin a new conversation; the model, the settings and the system text stay."""
    count = len(session.conversation.path())
    session.conversation.clear()
    session.used = 0
    return Said(f"a new conversation · {count} messages set aside" if count else "a new conversation")
