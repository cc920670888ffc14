"""Watch a beam search from inside: the library refuses a streamer there, but a logits processor sees every step."""

import time
from collections.abc import Collection, Sequence
from typing import Any

from repl.core.events import Beam, Beams
from repl.core.jobs import JobContext
from repl.core.library_types import ModelOutput, PreTrainedTokenizerBase, Tensor
from repl.core.reply import BeamSearch
from repl.generation.decode.detokenizer import common_length, token_texts

DEAD_SUM = -1e9  # the sum that the library gives a hypothesis that does not count
FRAME_S = 0.05  # seconds between two pictures of the search: eyes need no more


class Watch:
    """A logits processor that changes nothing and emits the live hypotheses with their summed log-probabilities.

    The library hands over the running beams, best first, as ids `(beams, length)` and log-probabilities
    `(beams, vocabulary)` of one step; the sums are kept here. Sampled beams are warped afterwards, so their sums
    cannot be known here and are left out.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, emit: JobContext, scored: bool = True, ends: Collection[int] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._emit = emit
        self.scored = scored
        self._shown = 0.0
        self._ids: Any = None  # the step before: ids, log-probabilities, sums
        self._step: Any = None
        self._sums: Any = None
        self._ends = frozenset(ends)
        self._candidates: list[tuple[tuple[int, int], float]] = []  # (parent row, token), summed log-probability
        self.margins: list[float | None] = []
        self.start = 0  # length of the prompt
        self.steps = 0
        self.first_at = 0.0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """See one step; returns the scores as they came."""
        if self._ids is None:
            self.start = input_ids.shape[1]
            self._sums = scores.new_full(input_ids.shape[:1], DEAD_SUM).float()  # all begin as one
            self._sums[0] = 0.0
        else:
            self._follow(input_ids)
        self._ids, self._step = input_ids, scores
        if self.scored:
            self._candidates = self._best(scores)
        return scores

    def _best(self, scores: Tensor) -> list[tuple[tuple[int, int], float]]:
        """Return the best continuations that do not end, one more than can be kept."""
        beams, vocabulary = scores.shape
        totals = (scores.float() + self._sums[:, None]).flatten()
        values, places = totals.topk(min((1 + len(self._ends)) * beams + 1, len(totals)))
        found = (
            (divmod(place, vocabulary), value) for place, value in zip(places.tolist(), values.tolist(), strict=True)
        )
        return [(pair, value) for pair, value in found if value > DEAD_SUM / 2 and pair[1] not in self._ends]

    def _follow(self, ids: Tensor) -> None:
        """Find each hypothesis's parent in the step before, and add what its last token cost."""
        self.steps += 1
        self.first_at = self.first_at or time.monotonic()
        parent = (self._ids[None] == ids[:, None, :-1]).all(-1).int().argmax(-1)
        self._sums = self._sums[parent] + self._step[parent, ids[:, -1]].float()
        if self.scored:
            kept = set(zip(parent.tolist(), ids[:, -1].tolist(), strict=True))
            pruned = (value for pair, value in self._candidates if pair not in kept)
            self.margins.append(next((float(self._sums[-1]) - value for value in pruned), None))
        if time.monotonic() - self._shown > FRAME_S:
            self._shown = time.monotonic()
            self._emit(self.picture(ids))

    def picture(self, ids: Tensor) -> Beams:
        """Return the hypotheses in `ids` with what they have in common."""
        rows = [row[self.start :] for row in ids.tolist()]
        shared = common_length(*rows)
        texts = [self._tokenizer.decode(row, skip_special_tokens=True) for row in (rows[0][:shared], *rows)]
        prefix = texts[0] if all(text.startswith(texts[0]) for text in texts) else ""
        sums = self._sums.tolist() if self.scored else [None] * len(rows)
        branches = tuple(Beam(text[len(prefix) :], score) for text, score in zip(texts[1:], sums, strict=True))
        return Beams(self.steps, prefix, branches, self.margins[-1] if self.margins else None)

    def best(self) -> list[int]:
        """Return the new ids of the likeliest live hypothesis; empty before the first step."""
        if self._ids is None:
            return []
        found: list[int] = self._ids[0].tolist()[self.start :]
        return found

    def search(
        self, seed: Sequence[int], sequences: Sequence[Sequence[int]], logprobs: tuple[tuple[float, ...], ...]
    ) -> BeamSearch:
        """Return the record of the search: texts and logprobs of each sequence; `seed` as in `Detokenizer`."""
        pieces = tuple(tuple(token_texts(self._tokenizer, seed, ids)) for ids in sequences)
        return BeamSearch(pieces, logprobs, tuple(self.margins) if logprobs else ())


def token_logprobs(output: ModelOutput, start: int) -> tuple[tuple[float, ...], ...]:
    """Return the log-probability of each token behind the prompt of each sequence that a beam search returned, in nats.

    `output.scores` has one tensor (beams, vocabulary) for each step, `output.beam_indices` (sequences, steps) the row
    that each token came from, -1 behind the end.
    """
    ids, rows = output.sequences[:, start:].tolist(), output.beam_indices.tolist()
    return tuple(
        tuple(
            float(output.scores[step][row, token])
            for step, (row, token) in enumerate(zip(*one, strict=False))
            if row >= 0
        )
        for one in zip(rows, ids, strict=True)
    )
