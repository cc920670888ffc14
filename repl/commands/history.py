"""History: the conversation as a list and as a tree; undo, and switching between branches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from repl.commands.registry import command
from repl.core.conversation import ASKING, Conversation, Turn, exchanges
from repl.core.errors import UsageError
from repl.core.parts import Parts
from repl.core.sanitize import clean, clean_line
from repl.core.values import Integer
from repl.session.position import ExchangeNumber, current_branch
from repl.session.results import Message
from repl.session.session import Session
from repl.terminal.export import said
from repl.terminal.reply import fold_parts
from repl.terminal.screen import render


@dataclass(frozen=True, slots=True)
class ListedTurn:
    """One turn in a list, with the number of its exchange; the text of a reply is its answer."""

    number: int
    id: int
    parent: int | None
    role: str
    text: str
    state: str
    model: str
    tokens: int
    thinking: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()

    @property
    def parts(self) -> Parts:
        """Return the thought, the answer and the tool calls."""
        return Parts(self.thinking, self.text, self.tool_calls)


@dataclass(frozen=True, slots=True)
class History:
    """The current branch, oldest turn first; `shown` is the setting for thoughts: show, fold or hide."""

    system: str
    turns: list[ListedTurn]
    shown: str = "show"


@dataclass(frozen=True, slots=True)
class Forest:
    """Every turn of the session; `current` holds the ids of the turns on the current branch."""

    turns: list[ListedTurn]
    current: list[int]


def list_turn(turn: Turn, number: int) -> ListedTurn:
    """Return a turn for a list, with the number to show."""
    record, parts = turn.record, turn.parts
    model = record.model.id if record else ""
    tokens = (len(record.token_ids) or record.usage.completion) if record else 0  # a server may return no ids
    told = number, turn.id, turn.parent, turn.role, parts.answer, turn.state, model, tokens
    return ListedTurn(*told, parts.thinking, parts.tool_calls)


@command("history", "/history", "/export talk.html", see="tree sessions")
def history(session: Session) -> History:
    """Show the conversation, on the branch that the next message continues.

    Without a conversation, the completed texts are shown.
    """
    talk = session.conversation
    lines = [
        list_turn(turn, pair[-1].exchange if turn.role in ASKING else turn.exchange)
        for pair in exchanges(current_branch(talk))
        for turn in pair
    ]
    return History(talk.system, lines, session.settings.view.thinking)


@command("history", "/tree", "/go 2", see="go branch history")
def tree(session: Session) -> Forest:
    """Draw all branches of the conversation; /go N switches to one."""
    talk = session.conversation
    return Forest([list_turn(turn, turn.exchange) for turn in talk.turns.values()], [turn.id for turn in talk.path()])


@command("history", "/undo", "/undo 2", see="edit go clear")
def undo(session: Session, count: Annotated[int, Integer(1)] = 1) -> Message:
    """Undo the last exchange (a message and its reply), or the last COUNT.

    They stay in /tree.
    """
    last = session.conversation.undo(count)[-1].exchange
    session.follow_head()
    what = f"exchange {last}" if count == 1 else f"{count} exchanges"
    return Message(f"{what} undone · /go {last} returns to it")


@command("history", "/go 1", "/go 4", see="tree branch undo")
def go(session: Session, number: ExchangeNumber) -> History:
    """Switch to the end of the branch with exchange N."""
    talk = session.conversation
    talk.head = talk.leaf(_of_the_chat(talk, number)).id
    _end_on_reply(talk)
    session.follow_head()
    return history(session)


@command("history", "/branch", "/branch 2", see="go tree edit")
def branch(session: Session, number: ExchangeNumber = 0) -> Message:
    """Start a branch after exchange N, by default before the last one."""
    talk = session.conversation
    if number:
        talk.head = _of_the_chat(talk, number).id
        _end_on_reply(talk)
    else:
        talk.undo(1)
    session.follow_head()
    return Message(
        f"the next message starts a branch after exchange {talk.turns[talk.head].exchange}"
        if talk.head
        else "the next message starts a new conversation"
    )


def _of_the_chat(talk: Conversation, number: int) -> Turn:
    turn = talk.exchange(number)
    if turn.role in ("prompt", "completion"):
        raise UsageError(f"exchange {number} is a completion, not part of the conversation", f"/inspect {number}")
    return turn


def _end_on_reply(talk: Conversation) -> None:
    """Step back from a message without a reply and from an empty reply, so that the branch ends with a reply."""
    while talk.head is not None:
        here = talk.turns[talk.head]
        if here.role != "user" and (here.text or here.state == "complete"):
            break
        talk.head = here.parent


@render.register
def _(result: History) -> RenderableType:
    if not result.turns:
        return Text("no messages yet", "quiet")
    blocks: list[RenderableType] = []
    if result.system:
        blocks.append(Text.assemble(("system\n", "quiet"), clean(result.system)))
    for turn in result.turns:
        mark = "" if turn.state == "complete" else f"  {turn.state}"
        asks = turn.role in ASKING
        parts = fold_parts(replace(turn.parts, answer=turn.text.strip("\n")), result.shown)
        head = f"{turn.number} " * asks + turn.role + mark, "accent" if asks else "quiet"
        blocks.append(Text.assemble(head, "\n", said(parts)))
    return Group(*blocks)


@render.register
def _(result: Forest) -> RenderableType:
    if not result.turns:
        return Text("no messages yet", "quiet")
    below: dict[int | None, list[ListedTurn]] = {}
    for turn in result.turns:
        below.setdefault(turn.parent, []).append(turn)
    root = Tree("", hide_root=True, guide_style="quiet")
    waiting = [(root, turn) for turn in reversed(below[None])]
    while waiting:  # without recursion: a conversation may be longer than Python's stack
        parent, turn = waiting.pop()
        node = parent.add(_label(turn, below, turn.id in result.current))
        following = below.get(turn.id, [])
        forks = len(following) > 1 or len(below[turn.parent]) > 1
        place = node if forks else parent  # a branch is indented, what follows in a line is not
        waiting += [(place, child) for child in reversed(following)]
    return root


def _label(turn: ListedTurn, below: Mapping[int | None, Sequence[ListedTurn]], current: bool) -> Text:
    asks, answers = turn.role in ASKING, below.get(turn.id if turn.role in ASKING else turn.parent, [])
    text = clean_line(" ".join(said(Parts(answer=turn.text) if turn.text else turn.parts).plain.split()))
    mark = "" if turn.state == "complete" else f" ({turn.state})"
    # the number stands at the question, or where there are several at each answer
    blank = "" if asks else " " * len(f"{turn.number} ")
    number = f"{turn.number} " if asks != (len(answers) > 1) else blank
    lead = (number, "quiet"), ("❯ " if asks else "", "accent")
    return Text.assemble(*lead, (text, "" if current else "quiet"), (mark, "quiet"), no_wrap=True, overflow="ellipsis")
