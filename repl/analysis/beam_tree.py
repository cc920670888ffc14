"""A beam search as a tree: tokens that its sequences share are one node; it branches where they differ."""

from collections.abc import Sequence as Several
from dataclasses import dataclass
from math import exp

from repl.core.reply import BeamSearch, Sequence


@dataclass(frozen=True, slots=True)
class Node:
    """Some tokens in a row; a leaf is a finished sequence.

    `probability` is that of its first token, `logprob` the sum over its tokens in nats; None if unknown. `score` is
    the sequence score of the library.
    """

    text: str
    token_ids: tuple[int, ...]
    probability: float | None
    logprob: float | None
    sequence: int = 0
    score: float | None = None
    branches: tuple["Node", ...] = ()


def grow(sequences: Several[Sequence], search: BeamSearch) -> Node:
    """Return the tree of a search; its leaves are the sequences, numbered from 1."""
    costs = search.logprobs or ((),) * len(sequences)

    def node(rows: list[int], start: int) -> Node:
        """Return the tokens that some sequences share from `start` on, with the branches after them."""
        first, ids = rows[0], {row: sequences[row].token_ids for row in rows}
        places = enumerate(zip(*ids.values(), strict=False))
        end = next((place for place, tokens in places if len({*tokens}) > 1), min(map(len, ids.values())))
        own = costs[first][start:end]
        known = len(own) == end - start
        leaf = next((row for row in rows if len(ids[row]) == end), None)
        groups: dict[int, list[int]] = {}
        for row in rows:
            if len(ids[row]) > end:
                groups.setdefault(ids[row][end], []).append(row)
        return Node(
            "".join(search.pieces[first][start:end]),
            ids[first][start:end],
            exp(own[0]) if own and known else None,
            sum(own) if known and costs[first] else None,
            0 if leaf is None else leaf + 1,
            None if leaf is None else sequences[leaf].score,
            tuple(node(group, end) for group in groups.values()),
        )

    return node([*range(len(sequences))], 0)
