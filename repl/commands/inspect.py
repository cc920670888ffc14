"""Replies token by token: coloured by probability, listed, or in the inspector."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from math import exp
from typing import Annotated

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
from repl.session.position import ExchangeNumber, require_reply
from repl.session.replies import continue_reply, join_records, substitute_token
from repl.session.session import Session, Task
from repl.terminal.screen import render
from repl.terminal.tables import First, grid
from repl.terminal.token_colours import caption, colour_trace, percent, shade

LISTED_ALTERNATIVES = (5, 3, 2, 1, 0)  # alternatives in a row of the list: as many as there is room for


@dataclass(frozen=True, slots=True)
class Painted(Trace):
    """The last reply in colours, by probability (`on`) or `entropy`; `streams`: new replies are coloured too."""

    by: str
    streams: bool


@command("inspect", "/probs", "/probs on", see="inspect logprobs why")
def probs(
    session: Session, value: Annotated[str, RestOfLine(suggest=settings.setting_kind("probs").complete)] = ""
) -> object:
    """Colour the last reply by token probability; on or entropy: all replies.

    The probabilities are the model's own, before temperature and other logits processors. While it is on, Markdown
    is not rendered.
    """
    if value:
        return change(session, "probs", value)
    streams = session.settings.view.probs != "off"
    return look_at(session, require_reply(session), lambda found, by: as_view(Painted, found, by, streams=streams))


@command("inspect", "/inspect", "/inspect 2", see="why take probs")
def inspect(session: Session, number: ExchangeNumber = 0) -> object:
    """Browse a reply token by token, with the alternatives at each.

    NUMBER is that of its exchange, by default the last. Arrows move; a digit or Tab chooses an alternative, and
    Enter generates from it on a new branch, as /take does; p and e colour by probability and entropy; / searches, n
    finds the next match; q leaves. In a pipe the tokens are listed.
    """
    return look_at(session, require_reply(session, number), partial(as_view, Inspection))


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
    before = require_reply(session, exchange)
    count = len(require_record(before).token_ids)
    if place > count:
        raise UsageError(
            f"exchange {before.exchange} has {counted(count, 'token')}, not {place}", f"/inspect {before.exchange}"
        )
    if require_record(before).server:
        return _taken_there(session, before, place, token)
    session.require_local_model()
    asked, chosen, ended = session.conversation.asked(before), session.settings, list[Reply]()

    def work(emit: JobContext) -> Reply:
        resident = session.store.current()
        begun = substitute_token(resident, before, place, token, emit)
        try:
            done = continue_reply(resident, begun, chosen, emit)
        except ReplError as error:
            ended.extend(join_records(resident, begun, so_far) for so_far in [error.partial] if so_far)
            raise
        ended.append(join_records(resident, begun, done))
        return done

    return session.generate_turn(asked, work, whole=lambda done: ended[0])


def _taken_there(session: Session, before: Turn, place: int, token: int) -> Task[Reply]:
    """Let the server that generated a reply continue from another token."""
    remote, record = require_server(session.remote, before), require_record(before)
    request = rebuild_request(session.conversation, before, session.settings)
    remote.check(Request(session.settings, ids=record.token_ids))
    asked, lead = session.conversation.asked(before), before.text.removesuffix(record.raw)
    return session.generate_turn(asked, lambda emit: remote.reply_from(request, record, place, token, emit), lead)


def look_at(session: Session, turn: Turn, make: Callable[[Trace, str], object]) -> object:
    """Make a view of the tokens of a reply, from its record or measured again, and of how they are coloured."""
    by = "entropy" if session.settings.view.probs == "entropy" else "on"
    if (found := require_trace(turn)) is not None:
        return make(found, by)
    return session.run_on_model(lambda emit: make(measure_again(session.store.current(), turn, emit), by))


def as_view(kind: Callable[..., Trace], found: Trace, by: str, **more: bool) -> Trace:
    """Make a view of a reply, coloured by probability if the entropy is unknown."""
    own = {spot.name: getattr(found, spot.name) for spot in fields(Trace)}
    return kind(**own, by="on" if found.server else by, **more)


@render.register
def _(result: Painted) -> RenderableType:
    lines: list[RenderableType] = [colour_trace(result, result.by), "", caption(result.by, result.tokens)]
    if result.server:
        lines.append(Text(clean_line(result.truncated), "quiet"))
    if not result.streams:
        lines.append(Text.assemble(("/probs on", "accent"), (" colours replies as they are generated", "quiet")))
    return Group(*lines)


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
    """Return the columns of one token by their names; a server returns neither ids nor entropy."""
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
