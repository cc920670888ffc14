"""The chat template: the exact prompt of the next turn, and checks of the template."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated

from rich.console import RenderableType
from rich.text import Text

from repl.analysis.template_checks import Check, Span, check_template, find_spans
from repl.commands.registry import command
from repl.core import decoding
from repl.core.format import counted, join_facts
from repl.core.jobs import JobContext
from repl.core.library_types import PreTrainedTokenizerBase
from repl.core.sanitize import clean, clean_line
from repl.core.values import RestOfLine
from repl.generation.decode.detokenizer import Detokenizer
from repl.generation.prompt.chat_template import Rendered, Template, render_chat, template_values
from repl.session.session import Session, Task
from repl.terminal.screen import render
from repl.terminal.tables import grid

NEXT_MESSAGE = "(your next message)"
STYLES = {"system": "quiet", "user": "accent"}
VERDICTS = {"good": "accent", "note": "bold", "bad": "error"}


@dataclass(frozen=True, slots=True)
class PromptPiece:
    """One token of a prompt, with the role of its message."""

    id: int
    text: str
    role: str
    special: bool


@dataclass(frozen=True, slots=True)
class TurnPrompt:
    """The prompt of the next turn: its text, its ids, its tokens one by one, and their number by role."""

    text: str
    ids: list[int]
    pieces: list[PromptPiece]
    tokens: dict[str, int]
    context: int
    notice: str
    listed: bool
    """Draw a list of tokens instead of the text."""


@dataclass(frozen=True, slots=True)
class Report:
    """The results of checking a template."""

    checks: list[Check]


def _pieces(tokenizer: PreTrainedTokenizerBase, made: Rendered, parts: list[Span]) -> Iterator[PromptPiece]:
    reader = Detokenizer(tokenizer, skip_special_tokens=False)
    added = tokenizer.added_tokens_decoder
    ends = [part.end for part in parts]
    place = 0
    for token in made.ids:
        text = reader.feed(token)
        role = parts[min(bisect_right(ends, place), len(parts) - 1)].role
        yield PromptPiece(token, text, role, token in added)
        place += len(text)


@command("inspect", "/template", "/template check", see="tokens system mode", needs_model=True)
def template(
    session: Session, text: Annotated[str, RestOfLine(suggest=lambda: ["check"])] = "", *, ids: bool = False
) -> Task[Report] | Task[TurnPrompt]:
    """Show the exact prompt of the next turn.

    `/template check` checks the template for common faults. /template TEXT uses TEXT as your next message. --ids lists
    the tokens with their ids.
    """
    session.facts()
    values, prefill = template_values(session.settings.extra), session.next_message.prefill
    messages = [*session.conversation.messages(), {"role": "user", "content": text or NEXT_MESSAGE}]

    def report(emit: JobContext) -> Report:
        resident = session.store.current()
        found = check_template(
            Template(resident.tokenizer, values, emit), decoding.end_ids(resident.model.generation_config)
        )
        return Report(found)

    def prompt(emit: JobContext) -> TurnPrompt:
        resident = session.store.current()
        made = render_chat(resident.tokenizer, messages, arguments=values, prefill=prefill, emit=emit)
        parts = find_spans(Template(resident.tokenizer, values, emit), messages, made.text, prefill)
        pieces = list(_pieces(resident.tokenizer, made, parts))
        tokens = dict(Counter(piece.role for piece in pieces))
        return TurnPrompt(made.text, list(made.ids), pieces, tokens, resident.facts.context, made.notice, ids)

    return session.run_on_model(report) if text == "check" else session.run_on_model(prompt)


@render.register
def _(result: TurnPrompt) -> RenderableType:
    drawn = Text()
    for role, group in groupby(result.pieces, lambda piece: piece.role):
        pieces = list(group)
        drawn.append(f"{role} · {counted(len(pieces), 'token')}\n", "quiet")
        (_list if result.listed else _write)(drawn, pieces)
        drawn.append("" if drawn.plain.endswith("\n") else "\n")
    special = sum(piece.special for piece in result.pieces)
    of = f" of {result.context}" if result.context else ""
    drawn.append(join_facts(f"{counted(len(result.ids), 'token')}{of}", f"{special} special"), "quiet")
    if result.notice:
        drawn.append(f"\n{clean(result.notice)}", "quiet")
    return drawn


def _write(drawn: Text, pieces: list[PromptPiece]) -> None:
    for special, group in groupby(pieces, lambda piece: piece.special):
        run = list(group)
        drawn.append(clean("".join(piece.text for piece in run)), _style(run[0].role, special))


def _list(drawn: Text, pieces: list[PromptPiece]) -> None:
    for piece in pieces:
        drawn.append(f"{piece.id:>8}  ", "quiet")
        drawn.append(f"{clean_line(piece.text.replace(chr(10), '↵'))}\n", _style(piece.role, piece.special))


def _style(role: str, special: bool) -> str:
    return " ".join([STYLES.get(role, ""), "bold underline" if special else ""]).strip()


@render.register
def _(result: Report) -> RenderableType:
    checks = [
        (Text(one.verdict, VERDICTS[one.verdict]), one.name, Text(clean_line(one.reason), "quiet"))
        for one in result.checks
    ]
    return grid("lll", checks)
