"""The turns of a conversation as a tree: every message and reply stays, the path to the head is what the model sees."""

from dataclasses import dataclass, field, replace

from repl.events import Done


@dataclass(frozen=True, slots=True)
class Turn:
    """One message; `state` is open, complete, cancelled or failed, `record` says how a reply was made."""

    id: int
    parent: int | None
    role: str
    text: str
    state: str = "complete"
    record: Done | None = None


@dataclass(slots=True)
class Conversation:
    """A tree of turns with a head; `system` is the instruction in front of it."""

    system: str = ""
    turns: dict[int, Turn] = field(default_factory=dict)
    head: int | None = None

    def add(self, role: str, text: str, parent: int | None, state: str = "complete") -> Turn:
        """Add a turn below another (None: a new beginning); the head stays where it is."""
        turn = Turn(len(self.turns) + 1, parent, role, text, state)
        self.turns[turn.id] = turn
        return turn

    def close(self, turn: Turn, text: str, state: str, record: Done | None = None) -> Turn:
        """Write down how an open turn ended."""
        closed = replace(turn, text=text, state=state, record=record)
        self.turns[turn.id] = closed
        return closed

    def path(self, leaf: int | None = None) -> list[Turn]:
        """Return the turns from the beginning to a leaf, by default the head."""
        turns: list[Turn] = []
        here = self.head if leaf is None else leaf
        while here is not None:
            turns.append(self.turns[here])
            here = self.turns[here].parent
        return turns[::-1]

    def messages(self, leaf: int | None = None) -> list[dict[str, str]]:
        """Return the path as the role/content pairs that a chat template takes."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return system + [{"role": turn.role, "content": turn.text} for turn in self.path(leaf)]

    def clear(self) -> None:
        """Begin anew; the turns so far stay in the tree."""
        self.head = None
