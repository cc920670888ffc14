"""Tokens of a text, or of the last turn."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from repl.commands.registry import command
from repl.core.format import counted, join_facts
from repl.core.jobs import JobContext
from repl.core.sanitize import ascii_only, clean_line
from repl.core.values import RestText
from repl.generation.decode.detokenizer import common_length
from repl.generation.measure.token_text import Speller, TokenPiece, find_split_characters, quote
from repl.session.position import require_own_reply
from repl.session.session import Session, Task
from repl.terminal.screen import render
from repl.terminal.tables import fact_line, grid
from repl.terminal.token_colours import OnTerminal, styled_text


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids with their text; `characters` and `bytes` count the text without special tokens."""

    ids: list[int]
    pieces: list[TokenPiece]
    reply: int
    """The number of tokens before the reply, whose tokens are numbered from 1; all if there is no reply."""
    characters: int
    bytes: int
    special: int
    listed: bool
    """Draw one token per line."""


@command("inspect", "/tokens", "/tokens --ids The cat sat.", see="template score", needs_model=True)
def tokens(session: Session, text: RestText = "", *, ids: bool = False) -> Task[Tokens]:
    """Show the tokens of a text, by default of the last turn.

    --ids lists them with their ids. The last turn is your last message as the model received it, and the reply,
    from its record. The tokens of the reply are numbered as in /why. A character that is split over several tokens
    is shown in front of its bytes, such as <e4>.
    """
    message, made = ((), ()) if text else _last_turn(session)

    def split(emit: JobContext) -> Tokens:
        tokenizer = session.store.current().tokenizer
        asked = [int(token) for token in tokenizer(text)["input_ids"]] if text else message
        found = [*asked, *made]
        pieces = Speller(tokenizer).pieces(found)
        said = text or str(tokenizer.decode(found, skip_special_tokens=True))
        size, special = len(said.encode("utf-8", "replace")), sum(piece.special for piece in pieces)
        return Tokens(found, pieces, len(asked), len(said), size, special, ids)

    return session.run_on_model(split)


def _last_turn(session: Session) -> tuple[Sequence[int], Sequence[int]]:
    """Return the ids that the last message added to the prompt, and those of its reply."""
    last, record = require_own_reply(session)
    before = [turn.record for turn in session.conversation.path(last.parent) if turn.record is not None]
    if last.role == "completion" or not before:
        return record.prompt_ids, record.token_ids
    known = common_length([*before[-1].prompt_ids, *before[-1].token_ids], record.prompt_ids)
    return record.prompt_ids[known:], record.token_ids


@render.register
def _(result: Tokens) -> RenderableType:
    table = _table(result)
    return Group(table if result.listed else OnTerminal(_text(result), table), fact_line(_figures(result)))


def _text(result: Tokens) -> Text:
    drawn = Text()
    parts = [(result.pieces[: result.reply], 0), (result.pieces[result.reply :], result.reply)]
    for (pieces, start), name in zip(parts, ("message", "reply"), strict=True):
        if not pieces:
            continue
        if result.reply < len(result.pieces):
            drawn.append(f"{name} · {counted(len(pieces), 'token')}\n", "quiet")
        drawn.append(styled_text(_shaded(pieces, start)))
        drawn.append("" if drawn.plain.endswith("\n") else "\n")
    drawn.right_crop(1)
    return drawn


def _shaded(pieces: list[TokenPiece], start: int) -> Iterator[tuple[str, str]]:
    mark, split = r"\n" if ascii_only() else "↵", find_split_characters(pieces)
    for place, piece in enumerate(pieces, start):
        yield (
            split.get(place - start, "") + piece.text.replace("\n", f"{mark}\n"),
            "special" if piece.special else "band" if place % 2 else "",
        )


def _table(result: Tokens) -> Table:
    rows, split = [], find_split_characters(result.pieces)
    for place, piece in enumerate(result.pieces):
        number = Text(str(place - result.reply + 1) if place >= result.reply else "", "quiet")
        text = Text(join_facts(quote(piece.text), clean_line(split.get(place, ""))), "special" if piece.special else "")
        rows.append((number, Text(str(piece.id), "quiet"), text))
    return grid("rrl", rows)


def _figures(result: Tokens) -> str:
    special = f"{result.special} special" if result.special else ""
    sizes = ((result.characters, "character"), (result.bytes, "byte"))
    plain = len(result.ids) - result.special
    said = (counted(size, what) + (f" ({size / plain:.1f} per token)" if plain else "") for size, what in sizes)
    return join_facts(counted(len(result.ids), "token"), special, *said)
