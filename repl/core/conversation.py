"""The turns of a conversation as a tree: every message and reply stays, the path to the head is what the model sees."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NotRequired, TypedDict

from repl.core.errors import UsageError
from repl.core.parts import Parts
from repl.core.reply import Reply


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

    @property
    def parts(self) -> Parts:
        """Return what was thought, answered and called."""
        record = self.record
        if record is None or not self.text.endswith(record.raw):
            return Parts(answer=self.text)
        lead = Parts(answer=self.text.removesuffix(record.raw)) if record.begun is None else Parts()
        return lead + record.parts


class ChatMessage(TypedDict):
    """A message as a model is given it; of a reply with its parts."""

    role: str
    content: str
    parts: NotRequired[Parts]


def forget(turn: Turn) -> None:
    """Keep nothing: a conversation without an archive."""


@dataclass(slots=True)
class Conversation:
    """A tree of turns with a head; `system` is the instruction in front, `keep` is told every change of a turn.

    Roles are user and assistant; prompt and completion where the template was not used: those stand beside the talk.
    """

    system: str = ""
    turns: dict[int, Turn] = field(default_factory=dict)
    head: int | None = None
    keep: Callable[[Turn], None] = forget

    # grow

    def add(self, role: str, text: str, parent: int | None, state: str = "complete") -> Turn:
        """Add a turn below another (None: a new beginning); the head stays where it is."""
        turn = Turn(max(self.turns, default=0) + 1, parent, role, text, state)
        self.turns[turn.id] = turn
        self.keep(turn)
        return turn

    def close(self, turn: Turn, text: str, state: str, record: Reply | None = None) -> Turn:
        """Write down how an open turn ended."""
        closed = replace(turn, text=text, state=state, record=record)
        self.turns[turn.id] = closed
        self.keep(closed)
        return closed

    # look

    def turn(self, number: int) -> Turn:
        """Return a turn by its number; raises `UsageError`."""
        if number not in self.turns:
            known = f"turns are numbered 1 to {len(self.turns)}" if self.turns else "no messages yet"
            raise UsageError(f"no turn {number}: {known}", "/tree")
        return self.turns[number]

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
        """Return the turn of each of these messages, 0 for the system text."""
        return (*([0] if self.system else []), *(turn.id for turn in self.path(leaf)))

    # move

    def undo(self, count: int) -> list[Turn]:
        """Take the head back before the last messages, and return what left the path; raises `UsageError`."""
        path = self.path()
        asked = [turn for turn in path if turn.role == "user"]
        if count > len(asked):
            raise UsageError(f"there {_are(len(asked))} to undo", "/history")
        first = asked[-count]
        self.head = first.parent
        return path[path.index(first) :]

    def clear(self) -> None:
        """Begin anew; the turns so far stay in the tree."""
        self.head = None


def message(role: str, content: str, parts: Parts) -> ChatMessage:
    """Return a message of a conversation; what a template reads is made of it where it is rendered."""
    found: ChatMessage = {"role": role, "content": content}
    return {**found, "parts": parts} if role == "assistant" else found


def _are(count: int) -> str:
    return "is nothing" if not count else "is 1 message" if count == 1 else f"are {count} messages"
