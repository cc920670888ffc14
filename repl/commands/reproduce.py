"""The same reply again from its record: are the token ids the same, and if not, what came between."""

from dataclasses import dataclass
from typing import Annotated

from rich.text import Text

from repl import recipe
from repl.again import Candidate, Changed, Fork, changes, fork, generated
from repl.clean import clean_line
from repl.errors import UsageError
from repl.events import Done
from repl.kinds import Whole
from repl.loading import Facts, Resident
from repl.registry import command
from repl.reuse import common
from repl.screen import view
from repl.session import Session, Task
from repl.worker import Emit

TIE = 0.1  # nats between two tokens below which their order is a matter of rounding


@dataclass(frozen=True, slots=True)
class Reproduced:
    """A reply beside its repetition: `same` ids from the first on are identical, of the `total` that were recorded."""

    turn: int
    identical: bool
    same: int
    total: int
    fork: Fork | None
    changed: list[Changed]
    reused: int
    """Tokens of the prompt that came from a kept cache then; now all are computed."""
    token_ids: tuple[int, ...]


def compared(resident: Resident, turn: int, record: Done, emit: Emit) -> Reproduced:
    """Make a recorded reply once more and compare the ids; for the model thread."""
    before, made = recipe.parts(record)
    now = generated(resident, record, emit)
    same = common(made, now)
    identical = len(made) == len(now) == same
    parted = None if identical else fork(resident, [*before, *made[:same]], made[same:], now[same:])
    found = changes(record, resident)
    return Reproduced(turn, identical, same, len(made), parted, found, record.usage.reused, tuple(now))


@command("prove", waits=True)
def reproduce(session: Session, number: Annotated[int, Whole(1)] = 0) -> Task[Reproduced]:
    """Make a reply again from its record: are the ids the same?

    By default the last.
    """
    facts = session.facts()
    turn, record = recipe.chosen(session.conversation, session.last, number)
    if (facts.id, facts.commit) != (record.model["id"], record.model["commit"]):
        raise other(facts, turn.id, record)
    if record.finish in ("cancelled", "failed") and (record.decode.get("num_beams") or 1) > 1:
        raise UsageError(f"turn {turn.id} is a beam search that was broken off: it cannot be led to the same place")
    return session.start(lambda emit: compared(session.store.current(), turn.id, record, emit))


def other(facts: Facts, turn: int, record: Done) -> UsageError:
    """Make the error for a reply of another model."""
    name, commit, file = str(record.model["id"]), str(record.model["commit"]), str(record.load.get("gguf_file") or "")
    exact = name + (f":{file}" if file else f"@{commit}" if commit else "")
    return UsageError(f"turn {turn} was made by {name}, and {facts.id} is loaded", f"/model {exact}")


@view.register
def _(result: Reproduced) -> Text:
    count = f"{result.total} of {result.total}" if result.identical else f"{result.same} of {result.total}"
    drawn = Text.assemble(f"{count} token ids identical", (f" · turn {result.turn}", "quiet"))
    if parted := result.fork:
        drawn.append(f"\nfirst difference at token {result.same + 1}")
        drawn.append(f"\n  then  {_shown(parted.then)}\n  now   {_shown(parted.now)}")
        drawn.append(_apart(parted.margin), "quiet")
    for said in _said(result):
        drawn.append(f"\n{said}", "quiet")
    return drawn


def _shown(one: Candidate) -> str:
    return "the end" if one.logprob is None else f"{clean_line(repr(one.text))}  {one.logprob:.3f}"


def _apart(margin: float | None) -> str:
    if margin is None:
        return ""
    return f"    {'a near tie: ' if margin < TIE else ''}{margin:.3f} nats apart"


def _said(result: Reproduced) -> list[str]:
    rows = [f"{one.name} was {clean_line(one.then)}, is {clean_line(one.now)}" for one in result.changed]
    if result.identical:
        return rows
    if not rows:
        rows.append("versions, format, device, attention and threads are the same")
    if result.reused:
        rows.append(f"{result.reused} tokens of the prompt came from a kept cache then, all were computed now")
    return rows
