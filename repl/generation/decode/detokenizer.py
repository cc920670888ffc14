"""Token ids in, exact text out: as soon as it is certain, and at the same cost for every token."""

import copy
import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from repl.core.events import Token
from repl.core.library_types import PreTrainedTokenizerBase
from repl.generation.prompt.reply_parser import marking_tokens

KEPT_TOKENS = 8
"""Tokens decoded again as the context of the next ones: an incomplete character reaches back over three."""
WINDOW_TOKENS = 16
"""Tokens after which the window is cut back to `KEPT_TOKENS`."""

_BYTE = re.compile(r"<0x[+0-9A-Fa-f][0-9A-Fa-f]>")


class Detokenizer:
    """Token ids in, text out: joined pieces equal `tokenizer.decode(ids)`, invalid bytes included.

    Special tokens add no text, but for those that mark the parts of a reply (see `reply_parser`), and spaces stay
    where they are (`clean_up_tokenization_spaces=False`).
    `seed` are the ids before them (for raw completion), so that the first word keeps its leading space; then the
    pieces are what `decode(seed + ids)` adds to `decode(seed)`. Each token is decoded in a window of at most
    `WINDOW_TOKENS` tokens.

    `DecodeStream` of the tokenizers library does not do: it writes `中` for three byte tokens and raises
    when a fourth one turns them into `����`, and its window grows with every skipped or undecodable token.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, seed: Sequence[int] = (), skip_special_tokens: bool = True
    ) -> None:
        self._backend: Any = getattr(tokenizer, "backend_tokenizer", None)  # the Rust side; None for a Python tokenizer
        marks = marking_tokens(tokenizer) if skip_special_tokens else {}
        self._silent = _special(tokenizer) - marks.keys() if skip_special_tokens else frozenset[int]()
        plain = {"clean_up_tokenization_spaces": False} if hasattr(tokenizer, "clean_up_tokenization_spaces") else {}
        self._decode = partial(tokenizer.decode, skip_special_tokens=skip_special_tokens and not marks, **plain)
        self._merges = self._backend is not None and _merges_bytes(self._backend)
        self._doubtful = 3 if self._backend is None else 1  # replacement characters that may stand for one incomplete
        self._probe = _probe(tokenizer) if self._backend is None else []
        self._window: list[int] = []
        self._done = 0  # characters of the window's text that were given out
        self._owed = ""  # the end of the seed's text: shown already, not yet given out here
        for token_id in self._last(seed):
            self.feed(token_id)
        self._owed = self._rest()

    def feed(self, token_id: int) -> str:
        """Return the text that can no longer change after this token; '' while a character is incomplete.

        Byte-fallback tokens are held until their run ends, since one invalid byte changes the text of all of them.
        A Rust panic of the tokenizer passes.
        """
        if self._is_silent(token_id):
            return ""
        self._window.append(token_id)
        if self._is_byte(token_id):
            return ""
        return self._unseen(self._settled())

    def flush(self) -> str:
        """Return the rest: what was held back at the end of the ids."""
        rest = self._unseen(self._rest())
        self._window.clear()
        self._done, self._owed = 0, ""
        return rest

    def fork(self) -> "Detokenizer":
        """Return another one that goes on from here by itself."""
        twin = copy.copy(self)
        twin._window = [*self._window]
        return twin

    def _is_silent(self, token_id: int) -> bool:
        unknown = self._backend is not None and self._backend.id_to_token(token_id) is None
        return unknown or token_id in self._silent  # a vocabulary may be smaller than the model's output

    def _is_byte(self, token_id: int) -> bool:
        return self._merges and _BYTE.fullmatch(self._backend.id_to_token(token_id)) is not None

    def _last(self, seed: Sequence[int]) -> list[int]:
        heard: list[int] = []
        for token_id in reversed(seed):
            if not self._is_silent(token_id):
                heard.append(token_id)
                if len(heard) >= KEPT_TOKENS and not self._is_byte(token_id):
                    break
        return heard[::-1]

    def _settled(self) -> str:
        now: str = self._decode(self._window)
        end = max(self._done, self._certain(now))
        text, held = now[self._done : end], len(now) - end
        self._done = end
        if len(self._window) > WINDOW_TOKENS:
            self._window = self._window[-KEPT_TOKENS:]
            self._done = len(self._decode(self._window)) - held
        return text

    def _certain(self, now: str) -> int:
        sure = now[: -self._doubtful]
        end = len(sure) + len(now[len(sure) :].rstrip("\ufffd"))
        if self._probe:  # a Python tokenizer may join words afterwards: `ab@@` and `cd` are `abcd`
            end = min(end, common_length(now, self._decode(self._window + self._probe)))
        return end

    def _rest(self) -> str:
        now = self._decode(self._window) if self._window else ""
        return str(now[self._done :])

    def _unseen(self, text: str) -> str:
        if not self._owed or not text:
            return text
        seen = common_length(self._owed, text)
        self._owed = self._owed[seen:] if seen == len(text) else ""
        return text[seen:]


def _special(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return frozenset(getattr(tokenizer, "all_special_ids", ()))
    return frozenset(token_id for token_id, token in backend.get_added_tokens_decoder().items() if token.special)


def _merges_bytes(backend: Any) -> bool:
    return backend.decoder is not None and backend.decoder.decode(["<0xC3>", "<0xA9>"]).strip() == "é"


def _probe(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Find a token that is a word or letter of its own, to see what one more token would change."""
    if not hasattr(tokenizer, "convert_tokens_to_string"):
        return []
    first = range(min(1000, len(tokenizer)))
    return next(([token_id] for token_id in first if tokenizer.decode([token_id]).isalpha()), [])


def spell_tokens(tokenizer: PreTrainedTokenizerBase, seed: Sequence[int], ids: Sequence[int]) -> Iterator[Token]:
    """Yield finished ids as the tokens that a streamer would have sent; `seed` as in `Detokenizer`."""
    pieces = Detokenizer(tokenizer, seed)
    for token in ids:
        yield Token(pieces.feed(token), token)
    if rest := pieces.flush():
        yield Token(rest)


def token_texts(tokenizer: PreTrainedTokenizerBase, seed: Sequence[int], ids: Sequence[int]) -> list[str]:
    """Return the text of each of some ids; what is left at the end belongs to the last."""
    tokens = list(spell_tokens(tokenizer, seed, ids))
    texts = [token.text for token in tokens if token.id is not None]
    rest = "".join(token.text for token in tokens if token.id is None)
    return [*texts[:-1], texts[-1] + rest] if texts else []


def common_length(*texts: Sequence[object]) -> int:
    """Return how many ids, or characters, some texts begin with in common."""
    columns = enumerate(zip(*texts, strict=False))
    return next((place for place, column in columns if column.count(column[0]) < len(texts)), min(map(len, texts)))
