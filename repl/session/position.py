"""Where a conversation stands: what a model is asked to go on from."""

import re
from dataclasses import dataclass, replace
from typing import Annotated

from repl.core.conversation import Conversation, Turn
from repl.core.errors import UsageError
from repl.core.format import shortened
from repl.core.reply import Reply
from repl.core.settings import Settings
from repl.core.values import Integer
from repl.generation.interface import Request
from repl.generation.prompt.reply_parser import AnyMessage, Begun
from repl.session.session import Session

PROMPT_CHARS = 50  # characters of a question beside its number


class ExchangeKind(Integer):
    """The number of an exchange, from 1; completion offers those there are, the newest first."""

    __slots__ = ()

    @staticmethod
    def of_session(session: Session) -> dict[str, str]:
        """Return the numbers, each with its question."""
        talk = session.conversation
        asked = {turn.exchange: talk.question(turn).text for turn in talk.turns.values()}
        return {str(number): shortened(text, PROMPT_CHARS) for number, text in reversed(asked.items())}


ExchangeNumber = Annotated[int, ExchangeKind(1)]


def current_branch(talk: Conversation) -> list[Turn]:
    """Return the branch that the next message goes on; where nothing was said, the texts that were completed."""
    beside = [turn for turn in talk.turns.values() if turn.role in ("prompt", "completion")]
    return talk.path() or sorted(beside, key=lambda turn: turn.parent or turn.id)  # each text with its completions


def chat(session: Session, chosen: Settings, asked: Turn, prefill: str = "") -> Request:
    """Ask for the reply to a message, which begins with `prefill`."""
    talk = session.conversation
    return Request(chosen, messages=tuple(talk.messages(asked.id)), turns=talk.numbers(asked.id), prefill=prefill)


def continuation_request(session: Session, last: Turn) -> Request:
    """Go on from the very ids; a model that did not make them goes on from the text."""
    record, asked = last.record, session.conversation.turns[last.parent or 0]
    if record is None or not session.engine.made(record):
        if asked.role == "prompt":
            return Request(session.settings, text=asked.text + last.text)
        return chat(session, session.settings, asked, last.text)
    made = record.token_ids[:-1] if record.finish == "stop" else record.token_ids
    begun = Begun(last.text, record.prefill, made, shown=True) if last.role == "assistant" else None
    return Request(session.settings, ids=(*record.prompt_ids, *made), begun=begun, made=len(made))


WORD = re.compile(r"""(?:"[^"]*"|'[^']*'|\S)+""")
PROMPT = re.compile(r"(?:^|\s)--(?:\s|$)")


@dataclass(frozen=True, slots=True)
class Position:
    """What would come next: the request for it, after what that is in words, and the text there."""

    request: Request
    after: str
    text: str


def next_position(session: Session) -> Position:
    """Return what comes next in the conversation as it stands; raises `UsageError`."""
    talk, last = session.conversation, session.last
    if last is not None and last.role == "completion":
        return Position(
            continuation_request(session, last), "the last completion", talk.turns[last.parent or 0].text + last.text
        )
    if talk.head is None:
        raise UsageError("nothing was said yet that something could come after", "/next Once upon a time")
    head = talk.turns[talk.head]
    if head.role == "user" or head.parent is None:
        begun = session.next_message.prefill
        return Position(chat(session, session.settings, head, begun), "your message", begun or head.text)
    ended = head.record is not None and head.record.finish == "stop" and session.engine.made(head.record)
    return Position(
        continuation_request(session, head), "the last reply, where it ended" if ended else "the last reply", head.text
    )


def require_own_reply(session: Session) -> tuple[Turn, Reply]:
    """Return the last reply with its record; raises `UsageError` unless the loaded model generated it."""
    last, facts = session.last, session.facts()
    if last is None or last.record is None or not last.record.token_ids:
        raise UsageError("no replies yet", "Why is the sky blue?")
    model = last.record.model
    if not last.record.made_by(facts.id, facts.commit):
        line = f"/model {model.id}" + (f"@{model.revision}" if model.revision not in ("", "main") else "")
        raise UsageError(f"the last reply was made by {model.id}, {facts.name} is loaded", line)
    return last, last.record


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be answered: the messages of a chat, none for a text that every model completes, and that text.

    `turn` is the message that is asked again, None for a new one that no turn holds yet.
    """

    text: str
    messages: tuple[AnyMessage, ...] = ()
    turns: tuple[int, ...] = ()
    prefill: str = ""
    turn: Turn | None = None

    def after(self, said: tuple[AnyMessage, ...]) -> "Question":
        """Return the same message behind other ones."""
        return replace(self, messages=(*said, self.messages[-1]))

    def request(self, chosen: Settings, chats: bool) -> Request:
        """Return what a model is asked that chats or only completes; the setting `mode` decides before it does."""
        mode = chosen.view.mode
        if self.messages and (chats if mode == "auto" else mode == "chat"):
            return Request(chosen, messages=self.messages, turns=self.turns, prefill=self.prefill)
        return Request(chosen, text=self.text)


def question(session: Session, prompt: str | None, example: str) -> Question:
    """Return what a line with `-- PROMPT` asks at the head of the conversation, by default the last message again.

    Raises `UsageError` where there is nothing to ask.
    """
    talk, waiting = session.conversation, session.next_message
    if prompt is not None:
        if not prompt.strip():
            raise UsageError("the prompt is empty")
        text = waiting.with_files(prompt)
        said = (*talk.messages(), {"role": "user", "content": text})
        return Question(text, said, (*talk.numbers(), max(talk.turns, default=0) + 1), waiting.prefill)
    asked = last_asked(session)
    if asked is None:
        raise UsageError("nothing was asked yet", example)
    if asked.role == "prompt":
        return Question(asked.text, turn=asked)
    begun = waiting.prefill or (session.last.record.prefill if session.last and session.last.record else "")
    return Question(asked.text, tuple(talk.messages(asked.id)), talk.numbers(asked.id), begun, asked)


def last_asked(session: Session) -> Turn | None:
    """Return the message or text that the last reply answers."""
    last = session.last
    return session.conversation.turns.get(last.parent) if last is not None and last.parent else None


def split_prompt(line: str) -> tuple[list[str], str | None]:
    """Split `WORD ... -- PROMPT` into words, inside quotes with spaces, and the prompt; None where there is none."""
    mark = PROMPT.search(line)
    front, prompt = (line[: mark.start()], line[mark.end() :].strip("\n")) if mark else (line, None)
    return WORD.findall(front), prompt
