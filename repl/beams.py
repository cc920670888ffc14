"""Watch a beam search from inside: the library refuses a streamer there, but a logits processor sees every step."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from repl.events import Beams, Branch, Token
from repl.stream import Detokenizer
from repl.worker import Emit

PAUSE = 0.05  # seconds between two pictures of the search: eyes need no more


class Watch:
    """A logits processor that changes nothing and emits the live hypotheses with their summed log-probabilities.

    The library hands over the running beams, best first, as ids `(beams, length)` and log-probabilities
    `(beams, vocabulary)` of one step; the sums are kept here. Sampled beams are warped afterwards, so their sums
    cannot be known here and are left out.
    """

    def __init__(self, tokenizer: Any, emit: Emit, scored: bool = True) -> None:
        self._tokenizer = tokenizer
        self._emit = emit
        self._scored = scored
        self._shown = 0.0
        self._ids: Any = None  # the step before: ids, log-probabilities, sums
        self._step: Any = None
        self._sums: Any = None
        self.start = 0  # length of the prompt
        self.steps = 0
        self.first_at = 0.0

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """See one step; returns the scores as they came."""
        if self._ids is None:
            self.start = input_ids.shape[1]
            self._sums = scores.new_zeros(input_ids.shape[0])
        else:
            self._follow(input_ids)
        self._ids, self._step = input_ids, scores
        return scores

    def _follow(self, ids: Any) -> None:
        """Find each hypothesis's parent in the step before, and add what its last token cost."""
        self.steps += 1
        self.first_at = self.first_at or time.monotonic()
        parent = (self._ids[None] == ids[:, None, :-1]).all(-1).int().argmax(-1)
        self._sums = self._sums[parent] + self._step[parent, ids[:, -1]].float()
        if time.monotonic() - self._shown > PAUSE:
            self._shown = time.monotonic()
            self._emit(self.picture(ids))

    def picture(self, ids: Any) -> Beams:
        """Return the hypotheses in `ids` with what they have in common."""
        rows = [row[self.start :] for row in ids.tolist()]
        shared = common(rows)
        texts = [self._tokenizer.decode(row, skip_special_tokens=True) for row in (rows[0][:shared], *rows)]
        prefix = texts[0] if all(text.startswith(texts[0]) for text in texts) else ""
        sums = self._sums.tolist() if self._scored else [None] * len(rows)
        branches = tuple(Branch(text[len(prefix) :], score) for text, score in zip(texts[1:], sums, strict=True))
        return Beams(self.steps, prefix, branches)

    def best(self) -> list[int]:
        """Return the new ids of the likeliest live hypothesis; empty before the first step."""
        if self._ids is None:
            return []
        found: list[int] = self._ids[0].tolist()[self.start :]
        return found


def spelled(tokenizer: Any, seed: Sequence[int], ids: Sequence[int]) -> Iterator[Token]:
    """Yield finished ids as the tokens that a streamer would have sent; `seed` as in `Detokenizer`."""
    pieces = Detokenizer(tokenizer, seed)
    for token in ids:
        yield Token(pieces.feed(token), token)
    if rest := pieces.flush():
        yield Token(rest)


def common(rows: list[list[int]]) -> int:
    """Return how many leading ids all rows share."""
    count = 0
    for column in zip(*rows, strict=False):
        if len(set(column)) > 1:
            break
        count += 1
    return count
