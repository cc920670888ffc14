"""Beam search: its width, the tree of its sequences, and picking another sequence."""

from dataclasses import dataclass, replace
from typing import Annotated

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from repl.analysis.beam_tree import Node, grow
from repl.commands.registry import command
from repl.core.conversation import Turn
from repl.core.errors import UsageError
from repl.core.format import join_facts, shortened
from repl.core.reply import TokenLogprobs
from repl.core.sanitize import clean
from repl.core.values import Choice, Integer, NameValue, OneOf
from repl.generation.measure.token_text import quote
from repl.session.change_settings import apply
from repl.session.replies import add_reply
from repl.session.session import Session
from repl.terminal.screen import PICK_HINT, render, score_unit
from repl.terminal.tables import fact_line
from repl.terminal.token_colours import percent

MAX_STRETCH_CHARACTERS = 200  # shown of the text of a node


@dataclass(frozen=True, slots=True)
class Picked:
    """Another sequence of the last reply, now the answer."""

    number: int
    text: str
    score: float | None
    token_ids: tuple[int, ...]


@command("chat", "/pick 2", "/pick 5", see="compare sweep beams")
def pick(session: Session, number: Annotated[int, Integer(1)]) -> object:
    """Use another sequence, an answer of /compare or a row of /sweep."""
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
    cost = turn.record.format if number == 1 else None  # it is that of the first
    record = replace(turn.record, **told, measures=TokenLogprobs(), format=cost)
    add_reply(session, session.conversation.asked(turn), record)
    return Picked(number, chosen.text, chosen.score, chosen.token_ids)


render.register(Picked, lambda result: Text(clean(result.text)))


BEAMS_OR_TREE = OneOf("a whole number from 1 to 1000, or tree", (Integer(1, 1000), Choice(("tree",))))


@dataclass(frozen=True, slots=True)
class SearchTree:
    """The sequences of a beam search as a tree; `margins` are in nats."""

    exchange: int
    beams: int
    length_penalty: float
    chosen: int
    """The number of the sequence that is the answer; 0 if it is none of them."""
    root: Node
    margins: tuple[float | None, ...]


@command("settings", "/beams 4", "/beams tree", see="num_beams pick greedy")
def beams(session: Session, count: Annotated[int | str, BEAMS_OR_TREE], *changes: NameValue) -> object:
    """Use beam search with this many beams, shown live.

    `/beams tree` draws the last beam search: the probability of each branch where the sequences differ, and their
    scores. /pick N makes another sequence the answer.
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
    """Return the tree of a reply's beam search; raises `UsageError` if there was none."""
    record = turn.record if turn else None
    if turn is None or record is None or record.search is None or not record.sequences:
        raise UsageError("the last reply was not made by a beam search", "/beams 4")
    ids = [found.token_ids for found in record.sequences]
    chosen = ids.index(record.token_ids) + 1 if record.token_ids in ids else 0
    penalty = float(record.decode.get("length_penalty") or 0.0)
    root = grow(record.sequences, record.search)
    return SearchTree(turn.exchange, record.beams, penalty, chosen, root, record.search.margins)


@render.register
def _(result: SearchTree) -> RenderableType:
    """Draw a branch for each node, below the tokens that it follows."""
    nearest = min((margin for margin in result.margins if margin is not None), default=None)
    said = join_facts(
        f"{result.beams} beams",
        score_unit(result.length_penalty) if result.root.logprob is not None else "",
        f"closest call {nearest:.2g} nats" if nearest is not None else "",
    )
    shared = replace(result.root, probability=None)  # there was no other way there
    root = Tree(_label(shared, result.chosen), guide_style="quiet", hide_root=not result.root.token_ids)
    _add_branches(root, result.root, result.chosen)
    return Group(fact_line(said), root, PICK_HINT)


def _add_branches(tree: Tree, node: Node, chosen: int) -> None:
    for branch in node.branches:
        _add_branches(tree.add(_label(branch, chosen)), branch, chosen)


def _label(node: Node, chosen: int) -> Table:
    """Draw a node: the probability of its first token, its text, and the number and score of a finished sequence."""
    score = "" if node.score is None else f"{node.score:8.3f}"
    figures = f"{node.sequence:3}{score}" if node.sequence else ""
    style = "accent" if node.sequence == chosen else ""
    chance = [] if node.probability is None else [Text(f"{percent(node.probability):>8}", "quiet")]
    label = Table.grid(*["" for _ in chance], padding=(0, 2, 0, 0), expand=True)
    label.add_column(ratio=1, overflow="fold", style=style)
    label.add_column(no_wrap=True, style=style or "quiet")
    label.add_row(*chance, _shown(node), figures)
    return label


def _shown(node: Node) -> str:
    """Return the text of a node; blank text is quoted."""
    if node.text.strip():
        return shortened(node.text, MAX_STRETCH_CHARACTERS)
    return quote(node.text) if node.text else "(ends)"
