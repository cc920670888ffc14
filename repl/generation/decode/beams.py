"""Watch a beam search from inside: the library refuses a streamer there, but a logits processor sees every step."""

import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from repl.core.events import Beam, Beams, Token
from repl.core.jobs import JobContext
from repl.core.library_types import PreTrainedTokenizerBase, Tensor
from repl.core.reply import BeamSearch, PrunedBeam
from repl.generation.decode.beam_history import History, Lost
from repl.generation.decode.detokenizer import Detokenizer

NEVER = -1e9  # the sum that the library gives a hypothesis that does not count
PAUSE = 0.05  # seconds between two pictures of the search: eyes need no more


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
        self._scored = scored
        self._shown = 0.0
        self._ids: Any = None  # the step before: ids, log-probabilities, sums
        self._step: Any = None
        self._sums: Any = None
        self._history = History(ends)
        self.start = 0  # length of the prompt
        self.steps = 0
        self.first_at = 0.0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """See one step; returns the scores as they came."""
        if self._ids is None:
            self.start = input_ids.shape[1]
            self._sums = scores.new_full(input_ids.shape[:1], NEVER).float()  # all begin as one: only the first counts
            self._sums[0] = 0.0
        else:
            self._follow(input_ids)
        self._ids, self._step = input_ids, scores
        if self._scored:
            self._history.look(*self._best(scores))
        return scores

    def _best(self, scores: Tensor) -> tuple[list[tuple[int, int, float]], int]:
        """Return the continuations that the library looks at, best first, and how many of them may be kept."""
        beams, vocabulary = scores.shape
        totals = (scores.float() + self._sums[:, None]).flatten()
        values, places = totals.topk(min(self._history.width(beams), len(totals)))
        found = zip(places.tolist(), values.tolist(), strict=True)
        return [(*divmod(place, vocabulary), value) for place, value in found if value > NEVER / 2], beams

    def _follow(self, ids: Tensor) -> None:
        """Find each hypothesis's parent in the step before, and add what its last token cost."""
        self.steps += 1
        self.first_at = self.first_at or time.monotonic()
        parent = (self._ids[None] == ids[:, None, :-1]).all(-1).int().argmax(-1)
        self._sums = self._sums[parent] + self._step[parent, ids[:, -1]].float()
        if self._scored:
            self._history.step(parent.tolist(), ids[:, -1].tolist(), self._sums.tolist())
        if time.monotonic() - self._shown > PAUSE:
            self._shown = time.monotonic()
            self._emit(self.picture(ids))

    def picture(self, ids: Tensor) -> Beams:
        """Return the hypotheses in `ids` with what they have in common."""
        rows = [row[self.start :] for row in ids.tolist()]
        shared = common(rows)
        texts = [self._tokenizer.decode(row, skip_special_tokens=True) for row in (rows[0][:shared], *rows)]
        prefix = texts[0] if all(text.startswith(texts[0]) for text in texts) else ""
        sums = self._sums.tolist() if self._scored else [None] * len(rows)
        branches = tuple(Beam(text[len(prefix) :], score) for text, score in zip(texts[1:], sums, strict=True))
        return Beams(self.steps, prefix, branches, self._history.margins[-1] if self._history.margins else None)

    def best(self) -> list[int]:
        """Return the new ids of the likeliest live hypothesis; empty before the first step."""
        if self._ids is None:
            return []
        found: list[int] = self._ids[0].tolist()[self.start :]
        return found

    def search(self, seed: Sequence[int], sequences: Sequence[Sequence[int]]) -> BeamSearch:
        """Return what was considered beside the sequences that came of it; `seed` as in `Detokenizer`."""
        pieces = tuple(tuple(pieced(self._tokenizer, seed, ids)) for ids in sequences)
        if not self._scored or not (logprobs := self._history.logprobs(sequences)):
            return BeamSearch(pieces)
        cuts = (self._cut(seed, sequences, lost) for lost in self._history.lost(sequences))
        return BeamSearch(pieces, logprobs, tuple(self._history.margins), tuple(cuts))

    def _cut(self, seed: Sequence[int], sequences: Sequence[Sequence[int]], lost: Lost) -> PrunedBeam:
        before = [*seed, *sequences[lost.sequence][: lost.shared]]
        text = "".join(pieced(self._tokenizer, before, lost.ids))
        return PrunedBeam(
            lost.sequence + 1, lost.shared, text, tuple(lost.ids), tuple(lost.logprobs), lost.fate, lost.short
        )


def spelled(tokenizer: PreTrainedTokenizerBase, seed: Sequence[int], ids: Sequence[int]) -> Iterator[Token]:
    """Yield finished ids as the tokens that a streamer would have sent; `seed` as in `Detokenizer`."""
    pieces = Detokenizer(tokenizer, seed)
    for token in ids:
        yield Token(pieces.feed(token), token)
    if rest := pieces.flush():
        yield Token(rest)


def pieced(tokenizer: PreTrainedTokenizerBase, seed: Sequence[int], ids: Sequence[int]) -> list[str]:
    """Return the text of each of some ids; what is left at the end belongs to the last."""
    tokens = list(spelled(tokenizer, seed, ids))
    texts = [token.text for token in tokens if token.id is not None]
    rest = "".join(token.text for token in tokens if token.id is None)
    return [*texts[:-1], texts[-1] + rest] if texts else []


def common(rows: list[list[int]]) -> int:
    """Return how many leading ids all rows share."""
    count = 0
    for column in zip(*rows, strict=False):
        if len(set(column)) > 1:
            break
        count += 1
    return count
