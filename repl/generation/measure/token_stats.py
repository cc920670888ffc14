"""Measure the tokens of a reply as they are made: in the model's own distribution, before any processor changes it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from repl.core import library
from repl.core.errors import Cancelled
from repl.core.library_types import PreTrainedModel, PreTrainedTokenizerBase, Tensor
from repl.core.reply import TokenLogprobs
from repl.generation.measure.forward import token_figures

TOP_K_STORED = 5  # alternatives that every record has
DIGITS = 5  # decimals of what is kept, in nats


class Meter:
    """Measures one reply; `listed` alternatives go with each token's event, `TOP_K_STORED` or more into the record.

    `several` says that one forward pass may bring more than one token, as assisted decoding does.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, listed: int, several: bool = False) -> None:
        self._tokenizer = tokenizer
        self._listed = listed
        self.several = several
        self._rows: Any = None  # logits of the last forward pass, shape (places, vocab)
        self._place = 0  # of the next token in them
        self._figures: list[tuple[float, float, int]] = []  # logprob, entropy, rank of each token
        self._likeliest: list[tuple[tuple[int, ...], tuple[float, ...]]] = []  # ids and logprobs
        self._lengths: list[int] = []
        self._texts: dict[int, str] = {}

    @contextmanager
    def reading(self, model: PreTrainedModel) -> Iterator[None]:
        """Take the logits of every forward pass meanwhile."""
        parts = library.speakers(model)
        hooks = [part.register_forward_hook(lambda _, __, output: self._take(output.logits[0])) for part in parts]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._rows = None

    def _take(self, rows: Tensor) -> None:
        self._rows, self._place = rows if self._figures else rows[-1:], 0  # a prompt brings one token only

    def measure(self, token: int) -> dict[str, Any]:
        """Measure the token that was just made; returns the fields of its event."""
        row = self._rows[min(self._place, len(self._rows) - 1) if self.several else -1]
        self._place += 1
        [((logprob, entropy, rank), ids, values)] = token_figures(row[None], [token], max(TOP_K_STORED, self._listed))
        self._figures.append((logprob, entropy, rank))
        self._likeliest.append((ids, values))
        pairs = zip(ids[: self._listed], values, strict=False)
        return {
            "logprob": logprob,
            "entropy": entropy,
            "top": tuple((one, self._text(one), value) for one, value in pairs),
        }

    def told(self, token: int | None, text: str) -> None:
        """Take note of the text that a token brought; a last rest belongs to the token before."""
        if token is not None:
            self._lengths.append(len(text))
        elif self._lengths:
            self._lengths[-1] += len(text)

    def measures(self, ids: tuple[int, ...]) -> TokenLogprobs:
        """Return what was measured of a reply with these ids; nothing where it is not whole."""
        if not ids or len(self._lengths) != len(ids) or len(self._figures) < len(ids):
            return TokenLogprobs()
        logprobs, entropies, ranks = zip(*self._figures[: len(ids)], strict=True)  # a cancel loses the last one
        likeliest = self._likeliest[: len(ids)]
        named = {*ids, *(one for places, _ in likeliest for one in places)}
        return TokenLogprobs(
            logprobs=round_figures(logprobs),
            entropies=round_figures(entropies),
            ranks=ranks,
            ids=tuple(places for places, _ in likeliest),
            values=tuple(round_figures(values) for _, values in likeliest),
            texts={one: self._text(one) for one in sorted(named)},
            lengths=tuple(self._lengths),
        )

    def _text(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = token_text(self._tokenizer, token)
        return self._texts[token]


def round_figures(values: tuple[float, ...]) -> tuple[float, ...]:
    """Return figures with the decimals that are kept, without a minus before zero."""
    return tuple(round(value, DIGITS) + 0.0 for value in values)


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """Return a token's text by itself; empty for an id that the tokenizer does not know or cannot spell."""
    try:
        return str(tokenizer.decode([token]))
    except Cancelled:
        raise
    except BaseException:  # the Rust side panics with a BaseException; no alternative is worth a reply
        return ""
