"""The log-probabilities that a server gives, gathered for the record of a reply: truncated, by id, bytes or text."""

from collections.abc import Mapping

from repl.core.reply import TokenLogprobs
from repl.generation.measure.token_stats import rounded
from repl.remote.protocol import Piece


class LogprobCollector:
    """Gathers one reply; a token whose id is not known gets a number of its own, below 0."""

    def __init__(self, limit: int) -> None:
        self._limit = limit  # alternatives that were asked for
        self._numbers: dict[object, int] = {}
        self._texts: dict[int, str] = {}
        self._tokens: list[tuple[int, float, int, int]] = []  # number, logprob, rank, length
        self._likeliest: list[tuple[tuple[int, ...], tuple[float, ...]]] = []
        self._ids: dict[int, int] = {}  # what became known of a number of our own
        self._broken = False  # a text without figures came between such with figures

    def number(self, entry: Mapping[str, object]) -> int:
        """Return the number of a token: its id, else one for its bytes (halves of characters share a text)."""
        given, data, text = entry.get("id"), entry.get("bytes"), str(entry["token"])
        if isinstance(given, int) and given >= 0:
            found = given
        else:
            key = tuple(map(str, data)) if isinstance(data, list) and data else text
            found = self._numbers.setdefault(key, -1 - len(self._numbers))
        self._texts.setdefault(found, text)
        return found

    def learn(self, number: int | None, token: int) -> None:
        """Take note of the id of a token that has a number of its own."""
        if number is not None and number < 0:
            self._ids.setdefault(number, token)

    def take(self, piece: Piece, length: int) -> None:
        """Take note of a token and how much of the reply's text it is."""
        token = piece.token
        if token.logprob is None or piece.number is None:
            self._broken = self._broken or bool(self._tokens and length)
            return
        # some servers put the token that was drawn behind the likeliest, past what was asked for
        top = token.top[: self._limit]
        found = any(number == piece.number for number, _, _ in top)
        rank = 1 + sum(value > token.logprob for _, _, value in top) if found else 0
        self._tokens.append((piece.number, token.logprob, rank, length))
        self._likeliest.append((tuple(number for number, _, _ in top), tuple(value for _, _, value in top)))

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

    def measures(self) -> TokenLogprobs:
        """Return what was gathered; nothing where it is not whole."""
        if not self._tokens or self._broken:
            return TokenLogprobs()
        numbers, logprobs, ranks, lengths = zip(*self._tokens, strict=True)
        made = self._known(numbers)
        ids = tuple(self._known(places) for places, _ in self._likeliest)
        named = {self._ids.get(number, number): text for number, text in self._texts.items()}
        return TokenLogprobs(
            logprobs=rounded(logprobs),
            ranks=ranks,
            ids=ids,
            values=tuple(rounded(values) for _, values in self._likeliest),
            texts={number: named[number] for number in sorted({*made, *(one for places in ids for one in places)})},
            lengths=lengths,
            made=made,
            limit=self.limit,
        )

    def _known(self, numbers: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(self._ids.get(number, number) for number in numbers)
