"""A beam search as a tree: what its sequences share is one stretch, where they part it branches."""

from collections.abc import Sequence as Several
from dataclasses import dataclass
from math import exp

from repl.core.reply import BeamSearch, Sequence


@dataclass(frozen=True, slots=True)
class Node:
    """A stretch of tokens; a leaf is a finished sequence.

    `probability` is that of its first token after what came before, `logprob` the sum over its tokens
    (nats; None where they are not known); `score` is the library's.
    """

    text: str
    token_ids: tuple[int, ...]
    probability: float | None
    logprob: float | None
    sequence: int = 0
    score: float | None = None
    branches: tuple["Node", ...] = ()


@dataclass(frozen=True, slots=True)
class BeamPath:
    """One way from the beginning to a leaf."""

    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    logprobs: tuple[float, ...]
    sequence: int = 0
    score: float | None = None


def grow(sequences: Several[Sequence], search: BeamSearch) -> Node:
    """Return the tree of a search; its leaves are the sequences."""
    costs = search.logprobs or ((),) * len(sequences)
    paths = [
        BeamPath(found.token_ids, pieces, own, number, found.score)
        for number, (found, pieces, own) in enumerate(zip(sequences, search.pieces, costs, strict=True), 1)
    ]
    return _node(paths, 0)


def _node(paths: list[BeamPath], start: int) -> Node:
    """Take the stretch that all of some paths share from `start` on, and branch behind it."""
    first, end = paths[0], _parting(paths, start)
    own = first.logprobs[start:end]
    known = len(own) == end - start
    ending = next((path for path in paths if len(path.ids) == end), BeamPath((), (), ()))
    groups: dict[int, list[BeamPath]] = {}
    for path in paths:
        if len(path.ids) > end:
            groups.setdefault(path.ids[end], []).append(path)
    return Node(
        "".join(first.pieces[start:end]),
        first.ids[start:end],
        exp(own[0]) if own and known else None,
        sum(own) if known and first.logprobs else None,
        ending.sequence,
        ending.score,
        tuple(_node(group, end) for group in groups.values()),
    )


def _parting(paths: list[BeamPath], start: int) -> int:
    """Return where paths that are the same up to `start` part, or the first of them ends."""
    end = start
    shortest = min(len(path.ids) for path in paths)
    while end < shortest and len({path.ids[end] for path in paths}) == 1:
        end += 1
    return end
