"""The history of a beam search: every hypothesis with its parent, and what became of those that were given up."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

MOST = 200_000  # hypotheses kept in mind; a search that makes more keeps no history
NEAREST = 32  # of those given up are told at the end
LONGEST = 64  # tokens told of one of them

Candidate = tuple[int, int, float]
"""A continuation: the row of its parent, its token, and its summed log-probability."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A hypothesis not returned, from where it leaves the sequence that it shares most with; see `PrunedBeam`."""

    sequence: int
    shared: int
    ids: list[int]
    logprobs: list[float]
    fate: str
    short: float | None


@dataclass(frozen=True, slots=True)
class Given:
    """A node whose hypothesis goes no further, and why."""

    node: int
    fate: str
    short: float | None


class History:
    """Grows with the search: `look` at the continuations of one step, then `step` to those that were kept."""

    def __init__(self, ends: Collection[int]) -> None:
        self.margins: list[float | None] = []
        self._ends = frozenset(ends)
        self._nodes: list[tuple[int, int, float]] = [(-1, -1, 0.0)]  # parent, token, sum; the first is the prompt
        self._rows: list[int] = []  # the nodes of the hypotheses alive
        self._open: list[Candidate] = []
        self._beams = 0
        self._given: list[Given] = []
        self._places: dict[int, tuple[int, int]] = {}  # node: the first sequence through it, and how far in

    def width(self, beams: int) -> int:
        """Return how many continuations the library looks at: so many that enough of them have not ended."""
        return max(2, 1 + len(self._ends)) * beams

    def look(self, found: list[Candidate], beams: int) -> None:
        """Take note of the continuations of the rows, best first."""
        self._rows = self._rows or [0] * beams
        self._open, self._beams = found, beams

    def step(self, parents: list[int], tokens: list[int], sums: list[float]) -> None:
        """Take note of which continuations were kept, best first, and give the others up."""
        if len(self._nodes) > MOST:
            return
        kept = {pair: row for row, pair in enumerate(zip(parents, tokens, strict=True))}
        rows = [-1] * len(kept)
        pruned = []
        for place, (row, token, total) in enumerate(self._open):
            node = self._add(self._rows[row], token, total)
            if (row, token) in kept:
                rows[kept[row, token]] = node
            elif token not in self._ends:
                pruned.append(sums[-1] - total)
                self._given.append(Given(node, "pruned", pruned[-1]))
            elif place < self._beams:
                self._given.append(Given(node, "ended", None))
        for row, (parent, token) in enumerate(zip(parents, tokens, strict=True)):
            if rows[row] < 0:
                rows[row] = self._add(self._rows[parent], token, sums[row])
        self._left_behind(rows)
        self.margins.append(min(pruned, default=None))
        self._rows, self._open = rows, []

    def _add(self, parent: int, token: int, total: float) -> int:
        self._nodes.append((parent, token, total))
        return len(self._nodes) - 1

    def _left_behind(self, rows: list[int]) -> None:
        """Give up the hypotheses of which no continuation was even looked at."""
        parents = {self._nodes[node][0] for node in rows} | {self._nodes[given.node][0] for given in self._given}
        self._given += [Given(node, "pruned", None) for node in self._rows if node not in parents]

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> tuple[tuple[float, ...], ...]:
        """Return the log-probability of each token of each sequence; nothing where they are not all known.

        Called once, when the search is over: what is alive then is given up.
        """
        self._given += [Given(node, "running", None) for node in self._rows]
        for row, token, total in self._open:
            self._add(self._rows[row], token, total)
        below = {(parent, token): node for node, (parent, token, _) in enumerate(self._nodes)}
        found = [self._walk(number, ids, below) for number, ids in enumerate(sequences)]
        return tuple(map(tuple, found)) if all(map(len, found)) and len(self._nodes) <= MOST else ()

    def _walk(self, number: int, ids: Sequence[int], below: dict[tuple[int, int], int]) -> list[float]:
        """Follow a sequence from the prompt on, marking its nodes."""
        node, costs = 0, []
        self._places.setdefault(0, (number, 0))
        for depth, token in enumerate(ids, 1):
            after = below.get((node, token), -1)
            if after < 0:
                return []
            costs.append(self._nodes[after][2] - self._nodes[node][2])
            node = after
            self._places.setdefault(node, (number, depth))
        return costs

    def lost(self, sequences: Sequence[Sequence[int]]) -> list[Lost]:
        """Return what was given up: of each branch off the sequences what lived longest, the nearest first."""
        longest: dict[int, tuple[int, Lost]] = {}
        for given in self._given:
            if given.node in self._places:
                continue
            branch, lost = self._back(given)
            if branch not in longest or len(lost.ids) > len(longest[branch][1].ids):
                longest[branch] = (given.node, lost)
        found = [lost for _, lost in longest.values()]
        found.sort(key=lambda lost: (lost.fate == "pruned", lost.short is None, lost.short or 0.0, -len(lost.ids)))
        return found[:NEAREST]

    def _back(self, given: Given) -> tuple[int, Lost]:
        """Go from a node back to where it left the sequences; returns the first node off them."""
        chain = [given.node]
        while (parent := self._nodes[chain[-1]][0]) not in self._places:
            chain.append(parent)
        chain.reverse()
        sequence, shared = self._places[parent]
        sums = [self._nodes[node][2] for node in (parent, *chain)]
        costs = [after - before for before, after in pairwise(sums)]
        ids = [self._nodes[node][1] for node in chain]
        return chain[0], Lost(sequence, shared, ids[:LONGEST], costs[:LONGEST], given.fate, given.short)
