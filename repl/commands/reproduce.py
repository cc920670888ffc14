"""The same reply again from its record: are the token ids the same, and if not, what came between."""

from dataclasses import dataclass

from rich.text import Text

from repl.analysis import recipe
from repl.analysis.diverge import TIE_NATS
from repl.analysis.reproduce import Changed, Fork, ForkToken, find_fork, generate_again, list_changes
from repl.commands.registry import command
from repl.core.errors import UsageError
from repl.core.format import counted
from repl.core.jobs import JobContext
from repl.core.reply import Reply
from repl.core.sanitize import clean_line
from repl.generation.decode.detokenizer import common_length
from repl.generation.interface import Model, Request
from repl.models.store import ModelInfo
from repl.remote.engine import Remote, rebuild_request, require_server
from repl.session.position import ExchangeNumber
from repl.session.session import Session, Task
from repl.terminal.screen import render

MODEL_FIELDS = ("served", "kind", "fingerprint")  # what a server says of the model that answers


@dataclass(frozen=True, slots=True)
class Reproduced:
    """A reply beside its repetition: `same` ids from the first on are identical, of the `total` that were recorded."""

    exchange: int
    identical: bool
    same: int
    total: int
    fork: Fork | None
    changed: list[Changed]
    reused: int
    """Tokens of the prompt that came from a kept cache then; now all are computed."""
    token_ids: tuple[int, ...]
    server: str = ""
    """The server that made both."""


def reproduce_here(resident: Model, turn: int, record: Reply, emit: JobContext) -> Reproduced:
    """Make a recorded reply once more and compare the ids; for the model thread."""
    before, made = recipe.last_call(record)
    now = generate_again(resident, record, emit)
    same = common_length(made, now)
    identical = len(made) == len(now) == same
    parted = None if identical else find_fork(resident, [*before, *made[:same]], made[same:], now[same:], emit)
    found = list_changes(record, resident)
    return Reproduced(turn, identical, same, len(made), parted, found, record.usage.reused, tuple(now))


def reproduce_there(remote: Remote, request: Request, turn: int, record: Reply, emit: JobContext) -> Reproduced:
    """Have a server make a recorded reply once more and compare the ids."""
    done = remote.reply_again(request, record, emit)
    broken = record.finish in ("cancelled", "failed")
    now = done.token_ids[: len(record.token_ids)] if broken else done.token_ids
    if not now:
        raise UsageError(f"{remote.host} returned no token ids this time", "/retry")
    same = common_length(record.token_ids, now)
    pairs = [(name, *(str(getattr(one.model, name, "")) for one in (record, done))) for name in MODEL_FIELDS]
    found = [Changed(name, then, later) for name, then, later in pairs if then != later]
    if record.seed is None and record.sampled:
        found.append(Changed("seed", "not sent", "not sent either, so the server draws anew"))
    identical = len(record.token_ids) == len(now) == same
    return Reproduced(turn, identical, same, len(record.token_ids), None, found, 0, tuple(now), remote.host)


@command("reproduce", "/reproduce", "/reproduce 2", see="recipe diverge seed", needs_model=True)
def reproduce(session: Session, number: ExchangeNumber = 0) -> Task[Reproduced]:
    """Generate a reply again from its record and compare the token ids.

    By default the last. What a server made, it is asked for once more.
    """
    turn, record = recipe.recorded_reply(session.conversation, session.last, number)
    if record.server:
        remote = require_server(session.remote, turn)
        request = rebuild_request(session.conversation, turn, session.settings)
        return session.run_network(lambda emit: reproduce_there(remote, request, turn.exchange, record, emit))
    facts = session.facts()
    if (facts.id, facts.commit) != (record.model.id, record.model.commit):
        raise other_model_error(facts, turn.exchange, record)
    if record.finish in ("cancelled", "failed") and record.beams > 1:
        raise UsageError(
            f"exchange {turn.exchange} is a beam search that was broken off: it cannot be led to the same place"
        )
    return session.run_on_model(lambda emit: reproduce_here(session.store.current(), turn.exchange, record, emit))


def other_model_error(facts: ModelInfo, turn: int, record: Reply) -> UsageError:
    """Make the error for a reply of another model."""
    name, commit, file = record.model.id, record.model.commit, str(record.load.get("gguf_file") or "")
    exact = name + (f":{file}" if file else f"@{commit}" if commit else "")
    return UsageError(f"exchange {turn} was made by {name}, and {facts.id} is loaded", f"/model {exact}")


@render.register
def _(result: Reproduced) -> Text:
    count = f"{result.total} of {result.total}" if result.identical else f"{result.same} of {result.total}"
    drawn = Text.assemble(f"{count} token ids identical", (f" · exchange {result.exchange}", "quiet"))
    if parted := result.fork:
        drawn.append(f"\nfirst difference at token {result.same + 1}")
        drawn.append(f"\n  then  {_shown(parted.then)}\n  now   {_shown(parted.now)}")
        drawn.append(_apart(parted.margin), "quiet")
    elif not result.identical:
        drawn.append(f"\nfirst difference at token {result.same + 1}")
    for said in _said(result):
        drawn.append(f"\n{said}", "quiet")
    return drawn


def _shown(one: ForkToken) -> str:
    return "the end" if one.logprob is None else f"{clean_line(repr(one.text))}  {one.logprob:.3f}"


def _apart(margin: float | None) -> str:
    if margin is None:
        return ""
    return f"    {'a near tie: ' if margin < TIE_NATS else ''}{margin:.3f} nats apart"


def _said(result: Reproduced) -> list[str]:
    rows = [f"{one.name} was {clean_line(one.then)}, is {clean_line(one.now)}" for one in result.changed]
    if result.identical:
        return rows
    if not rows and result.server:
        rows.append(f"{clean_line(result.server)} names the same model and fingerprint")
    elif not rows:
        rows.append("versions, format, device, attention and threads are the same")
    if result.reused:
        rows.append(
            f"{counted(result.reused, 'token')} of the prompt came from the KV cache then, all were computed now"
        )
    return rows
