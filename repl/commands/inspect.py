"""Look at replies token by token: coloured by probability, listed, or one by one on a screen of their own."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from math import exp
from typing import Annotated, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from repl.commands.registry import command
from repl.core import settings
from repl.core.conversation import Turn
from repl.core.errors import ReplError, UsageError
from repl.core.format import counted
from repl.core.jobs import JobContext
from repl.core.reply import Reply
from repl.core.sanitize import clean_line
from repl.core.values import Integer, RestOfLine
from repl.generation.interface import Request
from repl.generation.measure.token_text import quote
from repl.generation.measure.token_trace import Inspection, Seen, Trace, measure_again, require_record, require_trace
from repl.remote.engine import rebuild_request, require_server
from repl.session.change_settings import change
from repl.session.position import ExchangeNumber
from repl.session.replies import continue_reply, generate_turn, join_records, substitute_token
from repl.session.session import Session, Task
from repl.terminal.screen import render
from repl.terminal.tables import First, grid
from repl.terminal.token_colours import caption, colour_trace, percent, shade

LISTED_ALTERNATIVES = (5, 3, 2, 1, 0)  # alternatives in a row of the list: as many as there is room for


@dataclass(frozen=True, slots=True)
class Painted(Trace):
    """The last reply in colours, by probability (`on`) or `entropy`; `streams` tells whether replies come coloured."""

    by: str
    streams: bool


@command("inspect", "/probs", "/probs on", see="inspect logprobs why")
def probs(
    session: Session, value: Annotated[str, RestOfLine(suggest=settings.setting_kind("probs").complete)] = ""
) -> Any:
    """Colour the last reply by token probability; on or entropy: all replies.

    The probabilities are the model's own, before temperature and other logits processors. While it is on, Markdown
    is not rendered.
    """
    if value:
        return change(session, "probs", value)
    if session.last is None:
        raise UsageError("no replies yet", "Why is the sky blue?")
    chosen = session.settings.view.probs
    by, streams = "entropy" if chosen == "entropy" else "on", chosen != "off"
    return look_at(session, session.last, lambda found: as_view(Painted, found, by, streams=streams))


@command("inspect", "/inspect", "/inspect 2", see="why take probs")
def inspect(session: Session, number: ExchangeNumber = 0) -> Any:
    """Browse a reply token by token, with the alternatives at each.

    NUMBER is that of its exchange, by default the last. Arrows move; a digit or Tab chooses an alternative, and
    Enter generates from it on a new branch, as /take does; p and e colour by probability and entropy; / searches, n
    finds the next match; q leaves. In a pipe the tokens are listed.
    """
    turn = session.conversation.exchange(number) if number else session.last
    if turn is None:
        raise UsageError("no replies yet", "Why is the sky blue?")
    by = "entropy" if session.settings.view.probs == "entropy" else "on"
    return look_at(session, turn, lambda found: as_view(Inspection, found, by))


@command("inspect", "/take 3 464", "/take 3 464 --exchange 2", see="inspect tokens branch", needs_model=True)
def take(
    session: Session,
    place: Annotated[int, Integer(1)],
    token: Annotated[int, Integer(0)],
    *,
    exchange: ExchangeNumber = 0,
) -> Task[Reply]:
    """Replace a token of the last reply and generate from there.

    PLACE is the number of the token to replace, TOKEN the id of the new one; /inspect shows ids and does this with
    Enter. The new reply is on a branch of its own. --exchange N takes another reply than the last.
    """
    session.require_engine()
    before = session.conversation.exchange(exchange) if exchange else session.last
    if before is None or before.parent is None:
        raise UsageError("no replies yet", "Why is the sky blue?")
    count = len(require_record(before).token_ids)
    if place > count:
        raise UsageError(
            f"exchange {before.exchange} has {counted(count, 'token')}, not {place}", f"/inspect {before.exchange}"
        )
    if require_record(before).server:
        return _taken_there(session, before, place, token)
    session.require_local_model()
    asked, chosen, ended = session.conversation.turns[before.parent], session.settings, list[Reply]()

    def work(emit: JobContext) -> Reply:
        resident = session.store.current()
        begun = substitute_token(resident, before, place, token, emit)
        try:
            done = continue_reply(resident, begun, chosen, emit)
        except ReplError as error:
            ended.extend(
                join_records(resident, begun, partial) for partial in [getattr(error, "partial", None)] if partial
            )
            raise
        ended.append(join_records(resident, begun, done))
        return done

    return generate_turn(session, asked, work, whole=lambda done: ended[0])


def _taken_there(session: Session, before: Turn, place: int, token: int) -> Task[Reply]:
    """Let the server that made a reply go on from another token."""
    remote, record = require_server(session.remote, before), require_record(before)
    request = rebuild_request(session.conversation, before, session.settings)
    remote.check(Request(session.settings, ids=record.token_ids))
    asked, lead = session.conversation.turns[before.parent or 0], before.text.removesuffix(record.raw)
    return generate_turn(session, asked, lambda emit: remote.reply_from(request, record, place, token, emit), lead)


def look_at(session: Session, turn: Turn, make: Callable[[Trace], Any]) -> Any:
    """Make a result from the tokens of a reply: from its record, or measured again on the model thread."""
    found = require_trace(turn)
    if found is not None:
        return make(found)
    return session.run_on_model(lambda emit: make(measure_again(session.store.current(), turn, emit)))


def as_view(kind: Callable[..., Trace], found: Trace, by: str, **more: bool) -> Trace:
    """Make a view of a reply; its colours go by probability where no entropy is known."""
    own = {spot.name: getattr(found, spot.name) for spot in fields(Trace)}
    return kind(**own, by="on" if found.server else by, **more)


@render.register
def _(result: Painted) -> RenderableType:
    hint = (
        []
        if result.streams
        else [Text.assemble(("/probs on", "accent"), (" colours replies as they are generated", "quiet"))]
    )
    known = [Text(clean_line(result.truncated), "quiet")] if result.server else []
    return Group(colour_trace(result, result.by), "", caption(result.by, result.tokens), *known, *hint)


@render.register
def _(result: Inspection) -> RenderableType:
    tables = First(*(_table(result, listed) for listed in LISTED_ALTERNATIVES))
    return Group(tables, Text(clean_line(result.truncated), "quiet")) if result.server else tables


def _table(result: Inspection, listed: int) -> Table:
    rows = [token_cells(place, token, result, listed) for place, token in enumerate(result.tokens, 1)]
    names = list(rows[0]) if rows else []
    sides = "".join("l" if name in ("token", "likeliest") else "r" for name in names)
    return grid(sides, [list(cells.values()) for cells in rows], names)


def token_cells(place: int, token: Seen, found: Inspection, listed: int) -> dict[str, Text]:
    """Return the columns of one token under their names; a server knows neither ids nor entropy."""
    likeliest = "  ".join(f"{quote(text)} {percent(exp(value))}" for _, text, value in token.top[:listed])
    return {
        "": Text(str(place), "quiet"),
        **({} if found.server else {"id": Text(str(token.id))}),
        "token": Text.assemble((quote(token.text or token.name), shade(token, found.by))),
        "model": Text(percent(exp(token.logprob))),
        "rank": Text(token.place),
        **({"form": Text(token.form)} if any(one.form for one in found.tokens) else {}),
        **({} if token.entropy is None else {"entropy": Text(f"{token.entropy:.2f}")}),
        **({"likeliest": Text(likeliest, "quiet")} if listed else {}),
    }
