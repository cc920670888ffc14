"""Beams: search width, the tree of what a search found, and taking another of its sequences."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated

from rich.cells import cell_len
from rich.console import RenderableType
from rich.text import Text

from repl.analysis.beam_tree import Node, grow
from repl.commands.registry import command
from repl.core.conversation import Turn
from repl.core.errors import UsageError
from repl.core.fields import OneOf
from repl.core.format import join_facts, shortened
from repl.core.reply import TokenLogprobs
from repl.core.sanitize import clean
from repl.core.values import Assignment, Choice, Integer
from repl.generation.measure.token_text import quote
from repl.session.change_settings import apply
from repl.session.replies import add_reply
from repl.session.session import Session
from repl.terminal.responsive import Responsive
from repl.terminal.screen import render
from repl.terminal.token_colours import percent

GUIDES = ("├ ", "└ ", "│ "), ("|-", "`-", "| ")


@dataclass(frozen=True, slots=True)
class Picked:
    """Another sequence of the last reply, taken as the answer."""

    number: int
    text: str
    score: float | None
    token_ids: tuple[int, ...]


@command("chat", "/pick 2", "/pick 5", see="compare sweep beams")
def pick(session: Session, number: Annotated[int, Integer(1)]) -> object:
    """Take another sequence, an answer of /compare or a row of /sweep instead."""
    if take := session.get_pick():
        return take(number)
    turn = session.last
    found = turn.record.sequences if turn and turn.record else ()
    if turn is None or turn.record is None or len(found) < 2:
        raise UsageError("the last reply has no other sequences", "/beams 4", "/compare now beams=4")
    if number > len(found):
        raise UsageError(f"there are {len(found)} sequences, not {number}")
    chosen = found[number - 1]
    told = {name: getattr(chosen, name) for name in ("text", "raw", "thinking", "tool_calls", "token_ids")}
    record = replace(turn.record, **told, measures=TokenLogprobs())
    add_reply(session, session.conversation.turns[turn.parent or 0], record)
    return Picked(number, chosen.text, chosen.score, chosen.token_ids)


@render.register
def _(result: Picked) -> RenderableType:
    return Text(clean(result.text))


BEAMS_OR_TREE = OneOf("a whole number from 1 to 1000, or tree", (Integer(1, 1000), Choice(("tree",))))


@dataclass(frozen=True, slots=True)
class SearchTree:
    """What a beam search found: from the common beginning to the finished sequences."""

    exchange: int
    beams: int
    length_penalty: float
    chosen: int
    """The sequence that is the answer."""
    root: Node
    margins: tuple[float | None, ...]


@command("settings", "/beams 4", "/beams tree", see="num_beams pick greedy", name="beams")
def beams(
    session: Session, count: Annotated[int | str, BEAMS_OR_TREE], *changes: Annotated[tuple[str, str], Assignment()]
) -> object:
    """Search with this many beams, shown live.

    `/beams tree` draws what the last search found. The tree shows how likely each way was where the sequences part,
    and their scores. /pick N takes another sequence as the answer.
    """
    if isinstance(count, str):
        return search_tree(session.last)
    if count > 1:
        session.require_local("a beam search")
    words = [("num_beams", str(count)), ("do_sample", "off"), ("num_return_sequences", str(count)), *changes]
    if count == 1:
        words[2] = ("num_return_sequences", "default")
    return apply(session, words)


def search_tree(turn: Turn | None) -> SearchTree:
    """Return the tree of a reply's search; raises `UsageError` where there was none."""
    record = turn.record if turn else None
    if turn is None or record is None or record.search is None or not record.sequences:
        raise UsageError("the last reply was not made by a beam search", "/beams 4")
    ids = [found.token_ids for found in record.sequences]
    chosen = ids.index(record.token_ids) + 1 if record.token_ids in ids else 0
    penalty = float(record.decode.get("length_penalty") or 0.0)
    root = grow(record.sequences, record.search)
    return SearchTree(turn.exchange, record.beams, penalty, chosen, root, record.search.margins)


def _draw(found: SearchTree, width: int, plain: bool) -> Iterator[RenderableType]:
    """Draw a line for each stretch of text, indented below where it parts from others."""
    nearest = min((margin for margin in found.margins if margin is not None), default=None)
    said = join_facts(
        f"{found.beams} beams",
        f"score = nats / tokens^{found.length_penalty:g}" if found.root.logprob is not None else "",
        f"closest call {nearest:.2g} nats" if nearest is not None else "",
    )
    yield Text(said, "quiet")
    yield from _lines(found.root, "", "", width, GUIDES[plain], found.chosen)
    yield Text.assemble(("/pick N", "accent"), (" selects another answer", "quiet"))


def _lines(node: Node, lead: str, below: str, width: int, guides: tuple[str, str, str], chosen: int) -> Iterator[Text]:
    chance = f"{percent(node.probability):>8} " if lead and node.probability is not None else ""
    figures = _figures(node)
    room = max(8, width - cell_len(lead + chance + figures) - 2)
    text, style = _line(node, room), "accent" if node.sequence == chosen else ""
    line = Text.assemble((lead + chance, "quiet"), (text, style))
    if figures:
        line.pad_right(max(1, width - line.cell_len - cell_len(figures)))
    if text or figures:
        yield line + Text(figures, style or "quiet")
    for branch in node.branches:
        last = branch is node.branches[-1]
        inner = below + ("  " if last else guides[2])
        yield from _lines(branch, below + guides[last], inner, width, guides, chosen)


def _line(node: Node, most: int) -> str:
    """Return the text of a stretch on one line, with what cannot be seen in quotes."""
    if node.text.strip():
        return shortened(node.text, most)
    blank = quote(node.text) if node.text else ""
    return blank or ("(ends)" if node.token_ids else "")


def _figures(node: Node) -> str:
    if not node.sequence:
        return ""
    return f"{node.sequence:3}" + ("" if node.score is None else f"{node.score:8.3f}")


@render.register
def _(result: SearchTree) -> RenderableType:
    return Responsive(lambda width, plain: _draw(result, width, plain))
