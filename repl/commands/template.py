"""The chat template: the exact prompt of the next turn, and what the template may get wrong."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from repl.analysis.template_checks import Check, check
from repl.commands.registry import command
from repl.core import decoding
from repl.core.format import counted, joined
from repl.core.jobs import JobContext
from repl.core.library_types import PreTrainedTokenizerBase
from repl.core.sanitize import clean, clean_line
from repl.core.values import RestOfLine
from repl.generation.decode.detokenizer import Detokenizer
from repl.generation.prompt.chat_template import Rendered, Template, arguments, render_chat
from repl.generation.prompt.spans import Span, spans
from repl.generation.runtime import Model
from repl.session.session import Session, Task
from repl.terminal.screen import render

NEXT = "(your next message)"
STYLES = {"system": "magenta", "user": "green", "assistant": "cyan"}
VERDICTS = {"good": "green", "note": "yellow", "bad": "red"}


@dataclass(frozen=True, slots=True)
class Piece:
    """One token of a prompt, and whose message it belongs to."""

    id: int
    text: str
    role: str
    special: bool


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the next turn sends: text and ids, the tokens one by one, and how many each role takes."""

    text: str
    ids: list[int]
    pieces: list[Piece]
    tokens: dict[str, int]
    context: int
    notice: str
    listed: bool
    """Draw it as a list of tokens instead of as text."""


@dataclass(frozen=True, slots=True)
class Report:
    """What was found out about a template."""

    checks: list[Check]


@dataclass(frozen=True, slots=True)
class Turn:
    """The chat that a turn sends, the beginning of its reply, and the values of the template's variables."""

    messages: Sequence[Mapping[str, Any]]
    prefill: str
    values: Mapping[str, Any]


def prompt(resident: Model, turn: Turn, listed: bool, emit: JobContext) -> Prompt:
    """Render a chat, and tell its tokens apart by role; for the model thread."""
    tokenizer, messages = resident.tokenizer, turn.messages
    made = render_chat(tokenizer, messages, arguments=turn.values, prefill=turn.prefill, emit=emit)
    parts = spans(Template(tokenizer, turn.values, emit), messages, made.text, turn.prefill)
    pieces = list(_pieces(tokenizer, made, parts))
    tokens = dict(Counter(piece.role for piece in pieces))
    return Prompt(made.text, list(made.ids), pieces, tokens, resident.facts.context, made.notice, listed)


def _pieces(tokenizer: PreTrainedTokenizerBase, made: Rendered, parts: list[Span]) -> Iterator[Piece]:
    reader = Detokenizer(tokenizer, skip_special_tokens=False)
    added = tokenizer.added_tokens_decoder
    ends = [part.end for part in parts]
    place = 0
    for token in made.ids:
        text = reader.feed(token)
        role = parts[min(bisect_right(ends, place), len(parts) - 1)].role
        yield Piece(token, text, role, token in added)
        place += len(text)


def report(resident: Model, values: Mapping[str, Any], emit: JobContext) -> Report:
    """Try the template of a model; for the model thread."""
    template = Template(resident.tokenizer, values, emit)
    return Report(check(template, decoding.stops(resident.model.generation_config)))


@command("inspect", needs_model=True)
def template(session: Session, text: Annotated[str, RestOfLine(suggest=lambda: ["check", "--ids"])] = "") -> Task[Any]:
    """Show the exact prompt of the next turn.

    `/template check` tries the template. /template TEXT puts TEXT where your next message goes. --ids lists the tokens
    with their ids.
    """
    session.facts()
    values = arguments(session.settings.extra)
    if text == "check":
        return session.run_on_model(lambda emit: report(session.store.current(), values, emit))
    listed = text.split()[:1] == ["--ids"]
    said = text.removeprefix("--ids").lstrip() if listed else text
    messages = [*session.conversation.messages(), {"role": "user", "content": said or NEXT}]
    turn = Turn(messages, session.next_message.prefill, values)
    return session.run_on_model(lambda emit: prompt(session.store.current(), turn, listed, emit))


@render.register
def _(result: Prompt) -> RenderableType:
    drawn = Text()
    for role, group in groupby(result.pieces, lambda piece: piece.role):
        pieces = list(group)
        drawn.append(f"{role} · {counted(len(pieces), 'token')}\n", "quiet")
        (_list if result.listed else _write)(drawn, pieces)
        drawn.append("" if drawn.plain.endswith("\n") else "\n")
    special = sum(piece.special for piece in result.pieces)
    of = f" of {result.context}" if result.context else ""
    drawn.append(joined(f"{counted(len(result.ids), 'token')}{of}", f"{special} special"), "quiet")
    if result.notice:
        drawn.append(f"\n{clean(result.notice)}", "quiet")
    return drawn


def _write(drawn: Text, pieces: list[Piece]) -> None:
    for special, group in groupby(pieces, lambda piece: piece.special):
        run = list(group)
        drawn.append(clean("".join(piece.text for piece in run)), _style(run[0].role, special))


def _list(drawn: Text, pieces: list[Piece]) -> None:
    for piece in pieces:
        drawn.append(f"{piece.id:>8}  ", "quiet")
        drawn.append(f"{clean_line(piece.text.replace(chr(10), '↵'))}\n", _style(piece.role, piece.special))


def _style(role: str, special: bool) -> str:
    return " ".join([STYLES.get(role, ""), "bold underline" if special else ""]).strip()


@render.register
def _(result: Report) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(style="quiet", overflow="fold")
    for found in result.checks:
        table.add_row(Text(found.verdict, VERDICTS[found.verdict]), found.name, Text(clean_line(found.reason)))
    return table
