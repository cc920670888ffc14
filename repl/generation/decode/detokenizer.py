"""Token ids in, exact text out as soon as it is certain, and the parts of a reply that the text belongs to.

The parts are the thought, the calls of tools and the answer. A tokenizer with a response template is read by the
library's own parser, any other by the table of `repl.core.parts`. For the model thread.
"""

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from repl.core.errors import Cancelled
from repl.core.events import PromptEcho, ReplyStarted, Token
from repl.core.jobs import JobContext, T, run_isolated
from repl.core.library_types import PreTrainedTokenizerBase
from repl.core.parts import ANSWER, CALL, CHANNELS, TAGS, THINKING, WITHIN, Form, Parts, PartsReader, Piece

AnyMessage = Mapping[str, Any]
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")  # names under which templates look for a thought
PARSE_S = 5.0  # a response template may hold a pattern that runs without end
Tell = Callable[[str], None]
FIELD_KINDS = {**dict.fromkeys(REASONING_FIELDS, THINKING), "content": ANSWER, "tool_calls": CALL}
TAIL_TOKENS = 256  # of the prompt in front of a reply: the template's beginning of it stands there
FAILED = "the model's response template cannot be used: thoughts and tool calls are recognised by their tags"
KEPT_TOKENS = 8
"""Tokens decoded again as the context of the next ones: an incomplete character reaches back over three."""
WINDOW_TOKENS = 16
"""Tokens after which the window is cut back to `KEPT_TOKENS`."""

_BYTE = re.compile(r"<0x[+0-9A-Fa-f][0-9A-Fa-f]>")


# the text


class Detokenizer:
    """Token ids in, text out: joined pieces equal `tokenizer.decode(ids)`, invalid bytes included.

    Special tokens add no text, but for those that mark the parts of a reply (see `marking_tokens`), and spaces stay
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
        """Return a copy in the same state."""
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


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """Return a token's text by itself; empty for an id that the tokenizer does not know or cannot spell."""
    try:
        return str(tokenizer.decode([token]))
    except Cancelled:
        raise
    except BaseException:  # the Rust side panics with a BaseException; no alternative is worth a reply
        return ""


def common_length(*texts: Sequence[object]) -> int:
    """Return how many ids, or characters, some texts begin with in common."""
    columns = enumerate(zip(*texts, strict=False))
    return next((place for place, column in columns if column.count(column[0]) < len(texts)), min(map(len, texts)))


# its parts


def reply_form(tokenizer: PreTrainedTokenizerBase) -> Form:
    """Return how a model marks the parts of its replies."""
    added = {str(token): bool(token.special) for token in tokenizer.added_tokens_decoder.values()}
    sure = {
        tag.opens
        for tag in TAGS
        if any(tag.opens.startswith(token) and (special or tag.kind == CALL) for token, special in added.items())
    }
    return Form(set(CHANNELS) <= added.keys(), frozenset(sure))


def marking_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Return the special tokens that stand in the text of a reply: they mark its parts; the others add no text."""
    added = {int(number): token for number, token in getattr(tokenizer, "added_tokens_decoder", {}).items()}
    literals = [word for tag in TAGS for word in (tag.opens, tag.closes, *tag.within)]
    if set(CHANNELS) <= {str(token) for token in added.values()}:
        literals += [*CHANNELS, *WITHIN]
    written = "\0".join([*literals, *_literals(response_template(tokenizer))])
    return {number: str(token) for number, token in added.items() if token.special and str(token) in written}


def silent_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Return the special tokens that add no text to a reply."""
    marks, added = marking_tokens(tokenizer), tokenizer.added_tokens_decoder.items()
    return {int(one): str(token) for one, token in added if token.special and int(one) not in marks}


def response_template(tokenizer: PreTrainedTokenizerBase) -> Mapping[str, object]:
    """Return the response template of a tokenizer, which may be anything; empty where it has none."""
    found = getattr(tokenizer, "response_template", None)
    return found if isinstance(found, Mapping) else {}


def _literals(found: Mapping[str, object]) -> Iterator[str]:
    """Yield the literal texts around and inside the fields of a response template, without the end of the reply."""
    fields = found.get("fields")
    for field in fields.values() if isinstance(fields, Mapping) else ():
        opens = isinstance(field, Mapping) and bool({"open", "open_pattern"} & field.keys())
        for name in ("open", "open_pattern", "close", "close_pattern", "content_args") if opens else ():
            yield from (text.replace("\\", "") for text in _texts(field.get(name)))


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)


class TemplateReader:
    """Reads a reply with the library's parser and the tokenizer's response template; by tags once that fails."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, before: str, table: PartsReader, tell: Tell) -> None:
        self._table, self._tell = table, tell
        self._text = ""
        self._message: Mapping[str, Any] = {}
        self._parser: Any = None
        self._parser = self._tried(lambda: tokenizer.get_response_parser(prefix=before))

    def feed(self, text: str, mark: str = "") -> tuple[Piece, ...]:
        """Return the pieces that are certain after more text; `mark` is a special token that adds no text."""
        self._text += text
        found, parser = self._table.feed(text), self._parser
        if parser is None or not text + mark:
            return found if parser is None else ()
        return _pieces(self._tried(lambda: parser.feed(text + mark)))

    def end(self) -> tuple[Piece, ...]:
        """Return the pieces that were held back."""
        found, parser = self._table.end(), self._parser
        if parser is None:
            return found
        ended = self._tried(parser.finalize)
        self._message, events = ended or ({}, None)
        return _pieces(events)

    def parts(self) -> Parts:
        """Return the parts so far; a text without a thought or a tool call is the answer, unchanged."""
        if self._parser is None:
            return self._table.parts()
        found = self._message
        thinking = next((str(found[name]) for name in REASONING_FIELDS if found.get(name)), "")
        calls, answer = found.get("tool_calls") or (), str(found.get("content") or "")
        calls = [one for one in (calls if isinstance(calls, list | tuple) else [calls]) if isinstance(one, dict)]
        bare = not thinking and not calls and answer.strip() == self._text.strip()
        return Parts(thinking, self._text if bare else answer, tuple(one.get("function") or one for one in calls))

    def _tried(self, work: Callable[[], T]) -> T | None:
        try:
            return run_isolated(work, PARSE_S)
        except Exception:  # a template may be anything, and so may what it raises
            self._parser = None
            self._tell(FAILED)
            return None


def _pieces(events: Iterable[Mapping[str, Any]] | None) -> tuple[Piece, ...]:
    """Return the text in the events of the library's parser."""
    chunks = [event for event in events or () if event["type"] == "region_chunk" and event["text"]]
    return tuple(Piece(FIELD_KINDS[event["field"]], event["text"]) for event in chunks if event["field"] in FIELD_KINDS)


@dataclass(frozen=True, slots=True)
class Begun:
    """A chat reply that is continued: its text so far, the prefill that it began with, and the ids generated."""

    text: str
    prefill: str
    ids: tuple[int, ...] = ()
    shown: bool = False
    """Whether the text stands on the screen already."""


class Reading:
    """Reads one reply into thought, answer and tool calls; the prompt's ids end with those of its beginning."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], begun: Begun, tell: Tell) -> None:
        self._tokenizer, self._begun, self._tell = tokenizer, begun, tell
        self._silent = silent_tokens(tokenizer)
        ahead = list(prompt[: len(prompt) - len(begun.ids)])
        text = str(tokenizer.decode(ahead[-TAIL_TOKENS - len(begun.prefill) :]))
        before, found, after = text.rpartition(begun.prefill.strip() or "\0")
        self._before = before if found and not after.strip() else text
        self._form = reply_form(tokenizer)
        self._closing = self._form.opened(self._before, self._silent.values())
        reader = self._fresh()
        self.lead = (*reader.feed(begun.text), *reader.end()) if begun.text else ()
        self.begun = reader.parts() if begun.text else Parts()

    def open(self, emit: JobContext) -> None:
        """Emit the start of the reply, and its beginning unless that is on the screen."""
        emit(ReplyStarted())
        if self._begun.text and not self._begun.shown:
            emit(PromptEcho(self._begun.text, self.lead))

    def begin(self) -> PartsReader | TemplateReader:
        """Return a reader for a reply that has read its beginning."""
        reader = self._fresh()
        reader.feed(self._begun.text)
        return reader

    def begin_tags(self) -> PartsReader:
        """Return a reader by tags alone that has read the beginning of the reply."""
        reader = PartsReader(self._form, self._closing)
        reader.feed(self._begun.text)
        return reader

    def take(self, reader: PartsReader | TemplateReader, token: Token) -> tuple[Piece, ...]:
        """Return the pieces that are certain after one token."""
        return reader.feed(token.text, "" if token.id is None else self._silent.get(token.id, ""))

    def parts(self, text: str, ids: Sequence[int]) -> Parts:
        """Return the parts of a reply of some text and ids, with its beginning."""
        reader = self.begin()
        reader.feed(text, self._silent.get(ids[-1], "") if ids else "")
        reader.end()
        return reader.parts()

    def _fresh(self) -> PartsReader | TemplateReader:
        table = PartsReader(self._form, self._closing)
        if not response_template(self._tokenizer):
            return table
        return TemplateReader(self._tokenizer, self._before, table, self._tell)
