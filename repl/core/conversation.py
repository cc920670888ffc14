"""The turns of a conversation as a tree: every message and reply stays, the path to the head is what the model sees."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import NotRequired, TypedDict

from repl.core.errors import UsageError
from repl.core.parts import Parts
from repl.core.reply import Reply

ASKING = ("user", "prompt")  # roles of a turn that waits for an answer


@dataclass(frozen=True, slots=True)
class Turn:
    """One message; `state` is open, complete, cancelled or failed, `record` says how a reply was made.

    The `text` of a reply is all of it, exactly: what it was made to begin with, and what was made.
    """

    id: int
    parent: int | None
    role: str
    text: str
    state: str = "complete"
    record: Reply | None = None
    exchange: int = field(default=0, compare=False)
    """The number by which people know it: a question and its answer have one, each further answer has its own."""

    @property
    def parts(self) -> Parts:
        """Return thought, answer and tool calls."""
        record = self.record
        if record is None or not self.text.endswith(record.raw):
            return Parts(answer=self.text)
        lead = Parts(answer=self.text.removesuffix(record.raw)) if record.begun is None else Parts()
        return lead + record.parts


class ChatMessage(TypedDict):
    """A message for a model; a reply has its parts."""

    role: str
    content: str
    parts: NotRequired[Parts]


def forget(turn: Turn) -> None:
    """Keep nothing: a conversation without an archive."""


@dataclass(slots=True)
class Conversation:
    """A tree of turns with a head; `system` is the instruction in front, `keep` is told every change of a turn.

    Roles are user and assistant; prompt and completion without a template: those are outside of the conversation.
    """

    system: str = ""
    turns: dict[int, Turn] = field(default_factory=dict)
    head: int | None = None
    keep: Callable[[Turn], None] = forget
    _answered: set[int | None] = field(default_factory=set, init=False)
    _exchanges: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        for turn in sorted(self.turns.values(), key=lambda turn: turn.id):
            self._put(turn)

    # grow

    def add(self, role: str, text: str, parent: int | None, state: str = "complete") -> Turn:
        """Add a turn below another (None: a new beginning); the head stays where it is."""
        return self._save(Turn(max(self.turns, default=0) + 1, parent, role, text, state))

    def close(self, turn: Turn, text: str, state: str, record: Reply | None = None) -> Turn:
        """Save an open turn with its final text, state and record."""
        return self._save(replace(turn, text=text, state=state, record=record))

    def _save(self, turn: Turn) -> Turn:
        turn = self._put(turn)
        self.keep(turn)
        return turn

    def _put(self, turn: Turn) -> Turn:
        """Keep a turn under the number of its exchange: that of its question, unless this was answered before."""
        asked = self.turns.get(turn.parent or 0)
        if not turn.exchange and asked and turn.role not in ASKING and turn.parent not in self._answered:
            turn = replace(turn, exchange=asked.exchange)
        elif not turn.exchange:
            self._exchanges += 1
            turn = replace(turn, exchange=self._exchanges)
        if turn.role not in ASKING and (turn.text or turn.state == "complete"):  # else the next answer is the first
            self._answered.add(turn.parent)
        self.turns[turn.id] = turn
        return turn

    # look

    def exchange(self, number: int) -> Turn:
        """Return the answer of an exchange, or its question as long as there is none; raises `UsageError`."""
        found = [turn for turn in self.turns.values() if turn.exchange == number]
        if not found:
            known = f"exchanges are numbered 1 to {self._exchanges}" if self.turns else "the conversation is empty"
            raise UsageError(f"no exchange {number}: {known}", "/tree")
        return found[-1]

    def question(self, turn: Turn) -> Turn:
        """Return the question of a turn; a question is its own."""
        return turn if turn.role in ASKING else self.turns.get(turn.parent or 0, turn)

    def asked(self, reply: Turn) -> Turn:
        """Return the message or the text that a reply answers; raises `UsageError` where a damaged archive lost it."""
        if (found := self.turns.get(reply.parent or 0)) is None:
            raise UsageError("the message of this reply is lost", "/history")
        return found

    def path(self, leaf: int | None = None) -> list[Turn]:
        """Return the turns from the beginning to a leaf, by default the head."""
        turns: list[Turn] = []
        here = self.head if leaf is None else leaf
        while here is not None:
            turns.append(self.turns[here])
            here = self.turns[here].parent
        return turns[::-1]

    def children(self, parent: int | None) -> list[Turn]:
        """Return the turns below one, oldest first; of None: the beginnings."""
        return [turn for turn in self.turns.values() if turn.parent == parent]

    def leaf(self, turn: Turn) -> Turn:
        """Return the newest end of the branch that a turn is on."""
        while below := [child for child in self.children(turn.id) if child.state != "failed"]:
            turn = below[-1]
        return turn

    def messages(self, leaf: int | None = None) -> list[ChatMessage]:
        """Return the path as role/content pairs, a reply with all of its text and, beside that, its parts."""
        system: list[ChatMessage] = [{"role": "system", "content": self.system}] if self.system else []
        return system + [message(turn.role, turn.text, turn.parts) for turn in self.path(leaf)]

    def numbers(self, leaf: int | None = None) -> tuple[int, ...]:
        """Return the numbers of the turns of these messages, 0 for the system text."""
        return (*([0] if self.system else []), *(turn.id for turn in self.path(leaf)))

    # move

    def undo(self, count: int) -> list[Turn]:
        """Move the head before the last `count` messages; returns the turns that left the path; raises `UsageError`."""
        path = self.path()
        asked = [turn for turn in path if turn.role == "user"]
        if count > len(asked):
            raise UsageError(f"there {_are(len(asked))} to undo", "/history")
        first = asked[-count]
        self.head = first.parent
        return path[path.index(first) :]

    def clear(self) -> None:
        """Start a new conversation; the turns so far stay in the tree."""
        self.head = None


def exchanges(turns: Iterable[Turn]) -> list[list[Turn]]:
    """Return the turns of a path by exchange: each question with its answer; the number is that of the last one."""
    found: list[list[Turn]] = []
    for turn in turns:
        if turn.role in ASKING or not found:
            found.append([])
        found[-1].append(turn)
    return found


def message(role: str, content: str, parts: Parts) -> ChatMessage:
    """Return a message of a conversation; the chat template's form of it is made when it is rendered."""
    found: ChatMessage = {"role": role, "content": content}
    return {**found, "parts": parts} if role == "assistant" else found


def _are(count: int) -> str:
    return "is nothing" if not count else "is 1 message" if count == 1 else f"are {count} messages"
