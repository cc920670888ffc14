"""What a model thinks before it answers: told apart in a stream, and shown, folded or hidden."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

THINKING, ANSWER, NOTHING = "thinking", "answer", ""
TAGS = (("<think>", "</think>"), ("<thinking>", "</thinking>"))
CHANNELS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")
REASONING = ("reasoning_content", "thinking", "reasoning")  # names of the field in a response template


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a reply: `kind` is thinking or answer."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Marks:
    """What tells thinking from answer in one reply: made beside the tokenizer, read on every thread.

    `tags` are pairs that open and close; `hidden` are the ids of tags that decoding leaves out; `closing` is the tag
    that ends the thinking which the prompt has opened; `channels` says that the reply names a channel for each part.
    """

    tags: tuple[tuple[str, str], ...] = TAGS
    hidden: Mapping[int, str] = field(default_factory=dict)
    closing: str = ""
    channels: bool = False


def marks(tokenizer: Any, prompt: str) -> Marks:
    """Find out how a model marks its thinking; `prompt` is the text that the reply goes on from."""
    added = {int(number): token for number, token in tokenizer.added_tokens_decoder.items()}
    channels = set(CHANNELS) <= {str(token) for token in added.values()}
    tags = _declared(tokenizer) or TAGS
    written = "\0".join(CHANNELS if channels else [tag for pair in tags for tag in pair])
    hidden = {number: str(token) for number, token in added.items() if token.special and str(token) in written}
    ends = [str(token) for token in added.values() if token.special and str(token) not in written]
    return Marks(tags, hidden, "" if channels else _opened(tags, prompt, ends), channels)


def _declared(tokenizer: Any) -> tuple[tuple[str, str], ...]:
    """Return the tags that the tokenizer's response template gives as plain text.

    Patterns are left aside: a regular expression of a stranger may run without end.
    """
    template = getattr(tokenizer, "response_template", None)
    fields = template.get("fields") if isinstance(template, Mapping) else None
    found = [fields[name] for name in REASONING if name in fields] if isinstance(fields, Mapping) else []
    declared = [(entry.get("open"), entry.get("close")) for entry in found if isinstance(entry, Mapping)]
    return tuple((one, _listed(closes)[0]) for opens, closes in declared if _listed(closes) for one in _listed(opens))


def _listed(value: Any) -> list[str]:
    listed = value if isinstance(value, list | tuple) else [value]
    return [one for one in listed if isinstance(one, str) and one]


def _opened(tags: Iterable[tuple[str, str]], prompt: str, ends: Iterable[str]) -> str:
    """Return the tag that closes what the end of a prompt has opened: no turn ends behind it."""
    for opening, closing in tags:
        _, found, after = prompt.rpartition(opening.strip())
        if found and closing not in after and not any(end in after for end in ends if end):
            return closing
    return ""


class Spans:
    """A reply cut into thinking and answer as it comes.

    Joined, the parts are the text without its tags, however it was cut. A tag opens only at the beginning of a reply:
    further on it is what the model talks about.
    """

    def __init__(self, found: Marks) -> None:
        self._marks = found
        self._held = ""  # may become a tag
        self._closing = found.closing
        self._fresh = True  # nothing but blanks so far: a tag may open
        self._name = ""  # of the channel that is being named
        self.kind = THINKING if found.closing else ANSWER

    def feed(self, text: str, token_id: int | None = None) -> list[Part]:
        """Return what is certain after a piece of text and the token it came with."""
        self._held += text + ("" if token_id is None else self._marks.hidden.get(token_id, ""))
        parts: list[Part] = []
        while self._held:
            cut, tag = self._next()
            self._say(parts, self._held[:cut])
            self._held = self._held[cut + len(tag) :]
            if not tag:
                break
            self._turn(tag)
        return parts

    def end(self) -> list[Part]:
        """Return what was held back."""
        parts: list[Part] = []
        self._say(parts, self._held)
        self._held = ""
        return parts

    def _next(self) -> tuple[int, str]:
        """Find the next tag, or how far the text is certain."""
        tags = self._watched()
        if self._fresh and not self._marks.channels:
            blank = len(self._held) - len(self._held.lstrip())
            rest = self._held[blank:]
            if tag := max((tag for tag in tags if rest.startswith(tag)), key=len, default=""):
                return blank, tag
            if any(tag.startswith(rest) for tag in tags):
                return blank, ""
            self._fresh = False
            return self._next()
        places = [(self._held.find(tag), tag) for tag in tags if tag in self._held]
        return min(places) if places else (len(self._held) - _partial(self._held, tags), "")

    def _watched(self) -> list[str]:
        if self._marks.channels:
            return list(CHANNELS)
        closing = [self._closing] if self._closing else []
        return closing + [opening for opening, _ in self._marks.tags if self._fresh]

    def _turn(self, tag: str) -> None:
        if self._marks.channels:
            self._switch(tag)
        elif tag == self._closing:
            self.kind, self._closing, self._fresh = ANSWER, "", False
        else:
            self.kind, self._closing = THINKING, dict(self._marks.tags)[tag]

    def _switch(self, tag: str) -> None:
        if tag == "<|message|>":
            self.kind = ANSWER if self._name.split()[:1] in ([], ["final"], ["assistant"]) else THINKING
        else:  # what follows is a name, up to the message
            self.kind = NOTHING
        self._name = ""

    def _say(self, parts: list[Part], text: str) -> None:
        if self.kind == NOTHING:
            self._name += text
        elif text:
            parts.append(Part(self.kind, text))


def _partial(text: str, tags: Iterable[str]) -> int:
    """Return the length of the longest end of a text that may become a tag."""
    sizes = [size for tag in tags for size in range(1, len(tag)) if text.endswith(tag[:size])]
    return max(sizes, default=0)


def split(found: Marks, pieces: Iterable[tuple[str, int | None]]) -> tuple[str, str]:
    """Return the thinking and the answer of a whole reply, given as pieces of text with their ids."""
    spans = Spans(found)
    parts = [part for text, token_id in pieces for part in spans.feed(text, token_id)] + spans.end()
    kinds = (THINKING, ANSWER)
    thinking, answer = ("".join(part.text for part in parts if part.kind == kind) for kind in kinds)
    return thinking, answer


# on the screen


@dataclass(frozen=True, slots=True)
class Shown:
    """What to draw: `text` as it stands, `dim` text, a `status` line to redraw in place, a `line` that stays."""

    kind: str
    text: str


class Fold:
    """A reply as a setting shows it: thinking dim (`show`), as one line with a counter (`fold`), or not (`hide`)."""

    def __init__(self, found: Marks, mode: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._spans = Spans(found)
        self._mode = mode
        self._clock = clock
        self._began: float | None = None
        self._tokens = 0
        self._open = False  # thinking is being shown
        self._over = False  # it was, and no answer came yet
        self._last = ""
        self._blank = ""  # blanks at the beginning of a reply: dropped where thinking follows

    def feed(self, text: str, token_id: int | None = None) -> list[Shown]:
        """Return what to draw for one token."""
        before = self._spans.kind
        parts = self._spans.feed(text, token_id)
        if THINKING in (before, self._spans.kind, *(part.kind for part in parts)):
            self._began = self._clock() if self._began is None else self._began
            self._tokens += 1
        return self._drawn(parts)

    def end(self) -> list[Shown]:
        """Return what is left to draw when the reply has ended, in the middle of its thinking or not."""
        drawn = self._drawn(self._spans.end())
        rest = [Shown("text", self._blank)] if self._blank and self._began is None else []
        self._blank = ""
        return drawn + rest + (self._closed() if self._open else [])

    def _drawn(self, parts: list[Part]) -> list[Shown]:
        drawn: list[Shown] = []
        for part in parts:
            drawn += self._thought(part.text) if part.kind == THINKING else self._answer(part.text)
        if self._mode == "fold" and self._spans.kind == THINKING and self._tokens:
            self._open = True
            drawn.append(Shown("status", f"thinking · {self._figures()}"))
        return drawn

    def _thought(self, text: str) -> list[Shown]:
        self._open, self._blank = True, ""
        self._last = text
        return [Shown("dim", text)] if self._mode == "show" else []

    def _answer(self, text: str) -> list[Shown]:
        closed = self._closed() if self._open else []
        text = self._blank + text
        if self._over:
            text = text.lstrip("\n")
        self._blank = text if not text.strip() and (self._over or self._began is None) else ""
        if self._blank or not text:
            return closed
        self._over = False
        return [*closed, Shown("text", text)]

    def _closed(self) -> list[Shown]:
        self._open, self._over = False, True
        if self._mode == "fold":
            return [Shown("line", f"thought for {self._figures()}")]
        return [Shown("dim", "\n" if self._last.endswith("\n") else "\n\n")] if self._mode == "show" else []

    def _figures(self) -> str:
        seconds = self._clock() - (self._began or 0.0)
        return f"{self._tokens} token{'' if self._tokens == 1 else 's'} · {seconds:.1f} s"
