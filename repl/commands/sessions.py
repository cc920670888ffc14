"""Saved sessions: list and search them, continue one, set the title of the open one."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from repl.commands.registry import command
from repl.core.conversation import ASKING, exchanges
from repl.core.errors import ReplError
from repl.core.format import counted, join_facts, shortened
from repl.core.sanitize import clean_line
from repl.core.settings import short_id
from repl.core.values import AnyText, RestText
from repl.session.archive import Summary
from repl.session.position import current_branch
from repl.session.results import Message
from repl.session.session import Session
from repl.terminal.reply import PastExchange
from repl.terminal.screen import render
from repl.terminal.tables import FactLine

MAX_SESSIONS = 20  # sessions listed at once
SHOWN_EXCHANGES = 2  # last exchanges shown of a session that is resumed


@dataclass(frozen=True, slots=True)
class Sessions:
    """Saved sessions, newest first; `current` is the id of the open one, if it is saved."""

    sessions: list[Summary]
    words: str
    current: str


@command("history", "/sessions", "/sessions france", see="resume title")
def sessions(session: Session, words: RestText = "") -> Sessions:
    """List saved sessions, or those that contain WORDS.

    /resume ID continues one.
    """
    return Sessions(session.archive.sessions(words), words, session.archive.id)


@dataclass(frozen=True, slots=True)
class Resumed:
    """A resumed session: the number of its exchanges, the last ones, and a message without a reply."""

    id: str
    title: str
    count: int
    exchanges: list[PastExchange]
    unanswered: str

    @property
    def draft(self) -> str:
        """The message to put back in the prompt."""
        return self.unanswered


def newest_sessions(session: Session) -> dict[str, str]:
    """Return the titles of the newest sessions by id, for completion."""
    try:
        return {one.id: one.title for one in session.archive.sessions()[:MAX_SESSIONS]}
    except ReplError:
        return {}


@command("history", "/resume", "/resume 3f2a", see="sessions title")
def resume(
    session: Session, id: Annotated[str, AnyText("the beginning of a session's id", of_session=newest_sessions)] = ""
) -> Resumed:
    """Continue a saved session: the last one, or the one with this id.

    The beginning of the id is enough. If no model is loaded yet, the model of the session is loaded.
    """
    talk = session.archive.load(id)
    session.resume(talk)
    last = exchanges(current_branch(talk))[-SHOWN_EXCHANGES:]
    shown = [PastExchange.of(turns, session.settings.view) for turns in last]
    count = sum(turn.role in ASKING for turn in talk.turns.values())
    asked = max((turn.id for turn in talk.turns.values() if turn.role == "user"), default=0)
    replies = [turn for turn in talk.children(asked) if turn.text or turn.state in ("complete", "failed")]
    unanswered = talk.turns[asked].text if asked and not replies else ""  # the program was killed meanwhile
    return Resumed(session.archive.id, session.archive.title, count, shown, unanswered)


@command("history", "/title Capitals", "/title", see="sessions resume")
def title(session: Session, text: RestText = "") -> Message:
    """Set the title of this session; without an argument, show it."""
    if text.strip():
        session.archive.rename(" ".join(text.split()))
    return Message(
        f"title: {session.archive.title}" if session.archive.title else "no title yet · /title TEXT sets one"
    )


def moment(when: float, now: datetime) -> str:
    """Return the time of day if it is today, else the date."""
    then = datetime.fromtimestamp(when, now.tzinfo)
    return f"{then:%H:%M}" if then.date() == now.date() else f"{then:%Y-%m-%d}"


@render.register
def _(result: Sessions) -> RenderableType:
    if not result.sessions:
        return Text(
            f"no session contains {clean_line(result.words)}" if result.words else "no saved sessions yet", "quiet"
        )
    now = datetime.now().astimezone()
    table = Table.grid(padding=(0, 2))
    table.add_column(style="accent", no_wrap=True)
    table.add_column(style="quiet", no_wrap=True)
    table.add_column(overflow="fold")
    for found in result.sessions[:MAX_SESSIONS]:
        table.add_row(found.id, moment(found.when, now), _described(found, found.id == result.current))
    more = len(result.sessions) - MAX_SESSIONS
    hint = f"{more} more: /sessions WORDS finds them · " if more > 0 else ""
    return Group(table, Text(f"{hint}/resume ID continues one", "quiet"))


def _described(found: Summary, current: bool) -> FactLine:
    facts = join_facts(
        counted(found.turns, "message"), clean_line(short_id(found.model)), "this one" if current else ""
    )
    place = "\n" + shortened(found.snippet, 100) if found.snippet else ""
    return FactLine(Text.assemble(clean_line(found.title) or "untitled", (f" · {facts}{place}", "quiet")))


@render.register
def _(result: Resumed) -> RenderableType:
    facts = join_facts(counted(result.count, "exchange"), result.id)
    blocks: list[RenderableType] = [
        Text.assemble((clean_line(result.title) or "untitled", "accent"), (f" · {facts}", "quiet"))
    ]
    blocks += [part for one in result.exchanges for part in ("", one)]
    if result.unanswered:
        blocks += ["", Text(f"not answered yet: {shortened(result.unanswered, 200)}", "quiet")]
    return Group(*blocks)
