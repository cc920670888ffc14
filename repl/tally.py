"""The log-probabilities that a server gives, gathered for the record of a reply: truncated, and by text."""

from repl.events import Measures, Token
from repl.meter import rounded


class Tally:
    """Gathers one reply; a token has no id there, so each text gets a number of its own, below 0."""

    def __init__(self, limit: int) -> None:
        self._limit = limit  # alternatives that were asked for
        self._numbers: dict[str, int] = {}
        self._tokens: list[tuple[int, float, int, int]] = []  # number, logprob, rank, length
        self._likeliest: list[tuple[tuple[int, ...], tuple[float, ...]]] = []
        self._broken = False  # a text without figures came between such with figures

    def take(self, token: Token, name: str, length: int) -> None:
        """Take note of a token: its text by itself, and how much of the reply's text it is."""
        if token.logprob is None:
            self._broken = self._broken or bool(self._tokens and length)
            return
        # some servers put the token that was drawn behind the likeliest, past what was asked for
        top = sorted(token.top, key=lambda entry: -entry[2])[: self._limit]
        found = any(text == name for _, text, _ in top)
        rank = 1 + sum(value > token.logprob for _, _, value in top) if found else 0
        self._tokens.append((self._number(name), token.logprob, rank, length))
        numbers, values = tuple(self._number(text) for _, text, _ in top), tuple(value for _, _, value in top)
        self._likeliest.append((numbers, values))

    def rest(self, length: int) -> None:
        """Give a last rest of text to the token before."""
        if self._tokens and length:
            number, logprob, rank, before = self._tokens[-1]
            self._tokens[-1] = number, logprob, rank, before + length

    @property
    def begun(self) -> bool:
        """Tell whether a token with figures came."""
        return bool(self._tokens)

    @property
    def limit(self) -> int:
        """Return how many of the likeliest the server gives."""
        return max((len(places) for places, _ in self._likeliest), default=0)

    def measures(self) -> Measures:
        """Return what was gathered; nothing where it is not whole."""
        if not self._tokens or self._broken:
            return Measures()
        numbers, logprobs, ranks, lengths = zip(*self._tokens, strict=True)
        return Measures(
            logprobs=rounded(logprobs),
            ranks=ranks,
            ids=tuple(places for places, _ in self._likeliest),
            values=tuple(rounded(values) for _, values in self._likeliest),
            texts={number: text for text, number in self._numbers.items()},
            lengths=lengths,
            made=numbers,
            limit=self.limit,
        )

    def _number(self, text: str) -> int:
        return self._numbers.setdefault(text, -1 - len(self._numbers))
