"""Chat: messages, plain completion, the system message, /retry and /continue."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from repl.analysis.variants import implied_words
from repl.commands.registry import command
from repl.core.conversation import Turn
from repl.core.errors import UsageError
from repl.core.format import counted, join_facts
from repl.core.reply import Reply
from repl.core.settings import Settings
from repl.core.values import NameValue, RestText
from repl.generation.interface import Request
from repl.generation.measure.token_trace import continue_record
from repl.session.change_settings import changed, full_name
from repl.session.position import ExchangeNumber, continuation_request, require_reply
from repl.session.results import Draft, Message
from repl.session.session import Session, Task


@command("chat", "Why is the sky blue?", "/say help", see="raw retry", needs_model=True)
def say(session: Session, text: RestText) -> Task[Reply]:
    """Send a message, or a text to complete if the model has no chat template."""
    session.require_engine()
    if not text.strip():
        raise UsageError("the prompt is empty")
    if not session.uses_template():
        return raw(session, text)

    asked = ({"role": "user", "content": text},)
    _check(session, Request(session.settings, messages=asked, prefill=session.next_message.prefill))

    def send() -> Task[Reply]:
        waiting, talk = session.next_message, session.conversation
        whole, aim = waiting.with_files(text), waiting.replaces
        session.prepare(files=(), replaces=None)
        return _answer(session, talk.add("user", whole, aim.parent if aim else talk.head), session.settings)

    return _sent(session, send)


@command("chat", "/raw Once upon a time", "/raw def fibonacci(n):", see="next mode say", needs_model=True)
def raw(session: Session, text: RestText) -> Task[Reply]:
    """Continue a text without the chat template and outside the conversation."""
    session.require_engine()
    _check(session, Request(session.settings, text=text))
    return _answer(session, session.conversation.add("prompt", text, None), session.settings)


@command("chat", "/retry", "/retry temperature=1.2", see="edit continue sweep", needs_model=True)
def retry(session: Session, *changes: NameValue) -> Task[Reply]:
    """Generate the last reply again, with other settings for this reply only.

    A sampling setting such as temperature turns sampling on for it.
    """
    session.require_engine()
    last = require_reply(session)
    words = [(full_name(name, session.base()), text) for name, text in changes]
    own = [] if session.decoding()["do_sample"].value else implied_words(words)
    chosen = changed(session.settings, [*own, *words], parts=("decode", "view"), base=session.base())
    return _sent(session, lambda: _answer(session, session.conversation.asked(last), chosen))


@command("chat", "/continue", "/max 200", see="retry prefill max_new_tokens", needs_model=True)
def continue_(session: Session) -> Task[Reply]:
    """Continue the last reply from its last token."""
    session.require_engine()
    last = require_reply(session)
    if last.record is None:
        raise UsageError("the last reply has no record to continue from", "/retry")
    request = continuation_request(session, last)
    _check(session, request)
    return _generate(session, request, session.conversation.asked(last), last)


@command("chat", "/prefill Sure, here is", "/prefill", see="continue system")
def prefill(session: Session, text: RestText = "") -> Message:
    """Start the next reply with this text; the model continues it."""
    session.prepare(prefill=text)
    return Message(f"the next reply starts with: {text}" if text else "prefill removed")


@command("chat", "/edit", "/edit 2", see="retry branch undo")
def edit(session: Session, number: ExchangeNumber = 0) -> Draft:
    """Edit an earlier message; the next line replaces it, on a new branch.

    NUMBER is that of its exchange, by default the last.
    """
    talk = session.conversation
    answer = talk.exchange(number) if number else talk.turns.get(talk.head or 0)
    asked = talk.question(answer) if answer else None
    if answer is None or asked is None or asked.role != "user":
        raise UsageError(
            f"exchange {number} is a completion, not a message" if number else "there is no message to edit", "/history"
        )
    session.prepare(replaces=asked)
    keys = "" if session.settings.view.accessible else "Ctrl-O opens an editor"
    return Draft(asked.text, join_facts(f"the next message replaces that of exchange {answer.exchange}", keys))


@command("chat", "/system Answer in one sentence.", "/system none", see="prefill template")
def system(session: Session, text: RestText = "") -> Message:
    """Set the system message; without an argument, show it.

    `/system none` removes it.
    """
    now = session.conversation.system
    if not text:
        return Message(f"system: {now}" if now else "no system message · /system TEXT sets one")
    session.conversation.system = "" if text == "none" else text
    return Message("system message removed" if text == "none" else "system message set · from the next message on")


@command("chat", "/clear", "/resume", see="undo tree sessions")
def clear(session: Session) -> Message:
    """Start a new conversation; model, settings and system message are kept."""
    count = len(session.conversation.path())
    session.conversation.clear()
    session.follow_head()
    return Message(f"a new conversation · {counted(count, 'message')} kept in /tree" if count else "a new conversation")


def _sent(session: Session, send: Callable[[], Task[Reply]]) -> Task[Reply]:
    """Send a message; its files, prefill and branch are kept for the next one if no reply comes."""
    waiting, head = session.next_message, session.conversation.head

    def settle(task: Task[Reply]) -> Reply:
        try:
            done: Reply = task.settle()
        finally:
            if session.conversation.head == head:
                session.prepare(files=waiting.files, prefill=waiting.prefill, replaces=waiting.replaces)
        return done

    task = send()
    return replace(task, settle=lambda: settle(task))


def _answer(session: Session, asked: Turn, chosen: Settings) -> Task[Reply]:
    """Reply to a message with the chat template, or continue a text without it."""
    if asked.role == "prompt":
        return _generate(session, Request(chosen, text=asked.text), asked)
    request = session.chat_request(asked, chosen, session.next_message.prefill)
    _check(session, request)
    session.prepare(prefill="")
    return _generate(session, request, asked)


def _check(session: Session, request: Request) -> None:
    """Refuse a request that the connected server cannot do, before a turn is added."""
    if session.remote is not None:
        session.remote.check(request)


def _generate(session: Session, request: Request, asked: Turn, before: Turn | None = None) -> Task[Reply]:
    """Answer a request; the answer continues the reply `before` if there is one."""
    work = partial(session.engine.reply, request)
    if before is None or before.record is None or not request.ids:
        return session.generate_turn(asked, work, before.text if before else request.prefill)
    kept = request.ids[len(before.record.prompt_ids) :]
    return session.generate_turn(asked, work, request.prefill, partial(continue_record, before, kept))
