"""The events of a running job: frozen values, made on the model thread, read on the main thread."""

from dataclasses import dataclass

from repl.core.parts import Piece
from repl.core.reply import Reply, TakenBack


@dataclass(frozen=True, slots=True)
class Token:
    """One token as it is made: `text` is empty while a character is incomplete, `id` None for a last rest of text."""

    text: str
    id: int | None = None
    logprob: float | None = None
    """Log-probability of this token in the model's own distribution, in nats."""
    entropy: float | None = None
    """Entropy of that distribution, in nats."""
    top: tuple[tuple[int, str, float], ...] = ()
    """The likeliest tokens there, as many as `/logprobs` asks for: (id, text, logprob in nats)."""
    pieces: tuple[Piece, ...] = ()
    """In a chat: the text of thought, answer and tool calls that became certain with this token."""


@dataclass(frozen=True, slots=True)
class ReplyStarted:
    """A chat reply begins: its tokens come with their pieces."""


@dataclass(frozen=True, slots=True)
class PromptEcho:
    """The text that a reply continues, as the model sees it; in a chat with its pieces."""

    text: str
    pieces: tuple[Piece, ...] = ()


@dataclass(frozen=True, slots=True)
class Beam:
    """A live hypothesis of a beam search: what it adds to the common text, and its summed log-probability in nats."""

    text: str
    score: float | None


@dataclass(frozen=True, slots=True)
class Beams:
    """The hypotheses alive after one step of a beam search, best first."""

    step: int
    common: str
    branches: tuple[Beam, ...]
    margin: float | None = None
    """How far the best hypothesis pruned at this step lies behind the last one kept, in nats."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stage of a job is; `unit` is `B` for bytes or the plural of what is counted; `total` 0 is unknown."""

    stage: str
    done: int = 0
    total: int = 0
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Notice:
    """One sentence the user should read while the job goes on."""

    text: str


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Several answers to one message follow, each in a column of its own."""

    titles: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ColumnEvent:
    """An event of one of several answers; columns count from 0."""

    column: int
    event: "Event"


Event = Token | TakenBack | ReplyStarted | PromptEcho | Beams | Progress | Notice | Reply | SideBySide | ColumnEvent
