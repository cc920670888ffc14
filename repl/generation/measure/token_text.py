"""The text of single tokens in the middle of a text; bytes that are no whole character read `<e4>`."""

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

from rich.cells import cell_len, set_cell_size

from repl.core.library_types import PreTrainedTokenizerBase
from repl.core.sanitize import ascii_only, clean_line

TOP_K_STORED = 5  # alternatives that every record has
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPLIT = re.compile("(?:<[89a-f][0-9a-f]>)+")  # bytes of characters that are split over tokens, as a piece has them
ESCAPED = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True, slots=True)
class Scored:
    """One token of a text in the model's distribution: logprob and entropy in nats, rank 1 for the most likely."""

    id: int
    logprob: float
    entropy: float
    rank: int
    top: tuple[tuple[int, str, float], ...] = ()
    """The likeliest tokens there: (id, text, logprob in nats)."""


@dataclass(frozen=True, slots=True)
class TokenPiece:
    """One token: its text, where bytes that are no whole character read `<e4>`, and whether it steers the model."""

    id: int
    text: str
    special: bool = False


class Speller:
    """Tells the text of single tokens, as they read in the middle of a text; for the model thread."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._added = tokenizer.added_tokens_decoder
        backend = getattr(tokenizer, "backend_tokenizer", None)
        decoder = getattr(backend, "decoder", None)
        self._bytes = decoder is not None and decoder.decode(["Ã", "©"]) == "é"
        self._anchor = list(tokenizer("a", add_special_tokens=False)["input_ids"])[-1:]
        self._before = str(tokenizer.decode(self._anchor))

    def pieces(self, ids: Iterable[int]) -> list[TokenPiece]:
        """Return a piece for each id."""
        return [TokenPiece(token, self.text(token), self.special(token)) for token in ids]

    def special(self, token: int) -> bool:
        """Tell whether a token was added to the vocabulary to steer: an end, a role, a tool."""
        return token in self._added and self._added[token].special

    def text(self, token: int) -> str:
        """Return the text of a token; empty for an id that stands for nothing."""
        if token in self._added:
            return str(self._added[token])
        raw = self._raw(token)
        return ESCAPED.sub(_code, raw.decode("utf-8", "surrogateescape")) if raw else self._behind(token)

    def size(self, token: int) -> int:
        """Return how many bytes of UTF-8 a token is."""
        return len(self._raw(token) or self.text(token).encode("utf-8", "replace"))

    def _raw(self, token: int) -> bytes:
        """Return the bytes of a token that is written as such; nothing where it is text."""
        written = self._tokenizer.convert_ids_to_tokens(token) or ""
        if self._bytes and all(character in _stand_ins() for character in written):
            return bytes(_stand_ins()[character] for character in written)
        found = None if self._bytes else BYTE.fullmatch(written)
        return bytes([int(found[1], 16)]) if found else b""

    def _behind(self, token: int) -> str:
        """Decode a token behind a letter: at the beginning of a text some tokenizers drop its space."""
        both = str(self._tokenizer.decode([*self._anchor, token]))
        return both.removeprefix(self._before) if both.startswith(self._before) else self._tokenizer.decode([token])


def find_split_characters(pieces: Sequence[TokenPiece]) -> dict[int, str]:
    """Return the characters that are split over several tokens by the place of the first of these."""
    ends = [*accumulate(len(piece.text) for piece in pieces)]
    found = SPLIT.finditer("".join(piece.text for piece in pieces))
    codes = {bisect_right(ends, one.start()): one[0].replace("<", "").replace(">", "") for one in found}
    return {place: bytes.fromhex(code).decode("utf-8", "ignore") for place, code in codes.items()}


def quote(text: str, most: int = 0) -> str:
    """Return a piece in quotes on one line, its line ends and tabs written as in code; at `most` so many columns."""
    line = clean_line(text.replace("\n", r"\n").replace("\t", r"\t"))
    if most and cell_len(line) > most - 2:
        more = "..." if ascii_only() else "…"
        line = set_cell_size(line, max(0, most - 2 - len(more))) + more
    return f'"{line}"'


def _code(found: re.Match[str]) -> str:
    return f"<{ord(found[0]) - 0xDC00:02x}>"


@cache
def _stand_ins() -> dict[str, int]:
    """Return the bytes by the printable characters that byte-level tokenizers write them as."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return {chr(byte) if byte in printable else chr(next(others)): byte for byte in range(256)}
