"""Split a reply into its parts: thinking, answer, tool calls.

In comes streamed text, cut anywhere; out come pieces of one kind, and at the end the parts. The tags of the models
are in one table. No tokenizer is needed, and no pattern from a model is run.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from repl.core import tool_calls

THINKING, ANSWER, CALL, HEADER = "thinking", "answer", "call", "header"


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a reply; a tool call is a mapping with `name` and `arguments`."""

    thinking: str = ""
    answer: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()

    def __add__(self, other: "Parts") -> "Parts":
        calls = (*self.tool_calls, *other.tool_calls)
        return Parts(self.thinking + other.thinking, self.answer + other.answer, calls)

    def since(self, begun: "Parts") -> "Parts | None":
        """Return what these parts add to those of a beginning; None where they do not continue it."""
        count = len(begun.tool_calls)
        goes_on = self.thinking.startswith(begun.thinking) and self.answer.startswith(begun.answer)
        if not goes_on or self.tool_calls[:count] != begun.tool_calls:
            return None
        thinking, answer = self.thinking[len(begun.thinking) :], self.answer[len(begun.answer) :]
        return Parts(thinking, answer, self.tool_calls[count:])


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of streamed text of one kind: thinking, answer or call. An empty piece follows each tag."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Tag:
    """The tags around a part. Without `closes` the part goes to the end of the reply; `within` are tokens inside it."""

    kind: str
    opens: str
    closes: str = ""
    within: tuple[str, ...] = ()


DEEPSEEK = ("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>")
KIMI = ("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>")
HUNYUAN = tuple(
    f"<{name}:opensource>"
    for name in ("tool_call", "/tool_call", "tool_sep", "arg_key", "/arg_key", "arg_value", "/arg_value")
)
TAGS = (
    Tag(THINKING, "<think>", "</think>"),
    Tag(THINKING, "<thinking>", "</thinking>"),
    Tag(THINKING, "[THINK]", "[/THINK]"),  # Magistral, Ministral
    Tag(THINKING, "<think:opensource>", "</think:opensource>"),  # Hy3
    Tag(THINKING, "<seed:think>", "</seed:think>"),  # Seed-OSS
    Tag(THINKING, "<mm:think>", "</mm:think>"),  # MiniMax-M3
    Tag(THINKING, "<|channel>thought\n", "<channel|>"),  # Gemma 4
    Tag(THINKING, "<|START_THINKING|>", "<|END_THINKING|>"),  # Cohere
    Tag(THINKING, "<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    Tag(CALL, "<tool_call>", "</tool_call>"),  # Qwen, Hermes
    Tag(CALL, "[TOOL_CALLS]", "", ("[ARGS]", "[CALL_ID]")),  # Mistral
    Tag(CALL, "<|python_tag|>"),  # Llama 3
    Tag(CALL, "<|tool_call>", "<tool_call|>", ('<|"|>',)),  # Gemma 4
    Tag(CALL, "<seed:tool_call>", "</seed:tool_call>"),
    Tag(CALL, "<|START_ACTION|>", "<|END_ACTION|>"),
    Tag(CALL, "<|tools_prefix|>", "<|tools_suffix|>"),
    Tag(CALL, "<|tool_call_start|>", "<|tool_call_end|>"),  # LFM2
    Tag(CALL, "<tool_calls>", "</tool_calls>"),  # MiniMax-M1, Apriel
    Tag(CALL, "<minimax:tool_call>", "</minimax:tool_call>"),  # MiniMax-M2
    Tag(CALL, "]<]minimax[>[<tool_call>", "]<]minimax[>[</tool_call>"),  # MiniMax-M3
    Tag(CALL, "<TOOLCALL>", "</TOOLCALL>"),  # Nemotron Nano
    Tag(CALL, "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", DEEPSEEK),
    Tag(CALL, "<｜DSML｜function_calls>", "</｜DSML｜function_calls>"),  # DeepSeek V3.2
    Tag(CALL, "<｜DSML｜tool_calls>", "</｜DSML｜tool_calls>"),  # DeepSeek V4
    Tag(CALL, "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", KIMI),
    Tag(CALL, "<tool_calls:opensource>", "</tool_calls:opensource>", HUNYUAN),  # Hy3
    Tag(CALL, "<|function_call|>"),  # GigaChat 3.1
    Tag(CALL, "<function=", "</function>"),  # Functionary 3.1
    Tag(CALL, '<function name="', "</function>"),  # MiniCPM5
)
OPENINGS = tuple(tag.opens for tag in TAGS)
BY_OPENING = {tag.opens: tag for tag in TAGS}
CHANNELS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")
WITHIN = ("<|constrain|>",)  # in the headers of channels


@dataclass(frozen=True, slots=True)
class Form:
    """How a model marks its parts: by tags, or by `channels` with headers (gpt-oss).

    `sure` are tags that ordinary text never contains (special tokens): they count anywhere.
    """

    channels: bool = False
    sure: frozenset[str] = frozenset()

    def opened(self, prompt: str, ends: Iterable[str] = ()) -> str:
        """Return the closing tag of a thought that the prompt leaves open at its end, '' for none."""
        for tag in TAGS if not self.channels else ():
            _, found, after = prompt.rpartition(tag.opens.strip())
            if tag.kind == THINKING and found and tag.closes not in after and not any(end in after for end in ends):
                return tag.closes
        return ""


@dataclass(slots=True)
class _Span:
    """A part while it is read; `closes` is '' for one that goes to the end, `name` is that of a called tool."""

    kind: str
    opens: str = ""
    closes: str = ""
    text: str = ""
    name: str = ""
    closed: bool = False

    @property
    def whole(self) -> str:
        return self.opens + self.text + (self.closes if self.closed else "")


class PartsReader:
    """Splits a streamed reply into its parts, which do not depend on how the text is cut.

    A tag that may be ordinary text opens a thought only before the answer begins, and a call only at the
    beginning of a line; elsewhere it is text. `closing` ends a thought that the prompt opened.
    """

    def __init__(self, form: Form | None = None, closing: str = "") -> None:
        self._form = form or Form()
        self._held = ""  # may become a tag
        self._spans = [_Span(THINKING if closing else ANSWER, closes=closing)]

    def feed(self, text: str, mark: str = "") -> tuple[Piece, ...]:
        """Add text and return the certain pieces; `mark`, a special token without text, is for `TemplateReader`."""
        self._held += text
        pieces: list[Piece] = []
        while self._held:
            place, tag = self._next()
            self._say(pieces, self._held[:place])
            self._held = self._held[place + len(tag) :]
            if not tag:
                break
            (self._switch if self._form.channels else self._turn)(tag)
            if (kind := self._spans[-1].kind) != HEADER:
                pieces.append(Piece(kind, ""))
        return tuple(pieces)

    @property
    def closes_thought(self) -> str:
        """Return the closing tag of the current thought; '' outside of one."""
        span = self._spans[-1]
        return "" if span.kind != THINKING else span.closes or ("<|end|>" if self._form.channels else "")

    def end(self) -> tuple[Piece, ...]:
        """Return the text that was held back."""
        pieces: list[Piece] = []
        self._say(pieces, self._held)
        self._held = ""
        return tuple(pieces)

    def parts(self) -> Parts:
        """Return the parts so far; a text without thoughts and calls is the answer, unchanged."""
        thoughts = [span.text.strip() for span in self._spans if span.kind == THINKING]
        calls, answers = list[dict[str, Any]](), [""]
        for span in self._spans:
            found = _calls(span) if span.kind == CALL else ()
            calls += found
            if span.kind == ANSWER or (span.kind == CALL and not found):
                answers[-1] += span.whole
            else:
                answers.append("")
        if len(answers) > 1:
            answers = [text.strip() for text in answers]
        return Parts(_paragraphs(thoughts), _paragraphs(answers), tuple(calls))

    def _next(self) -> tuple[int, str]:
        """Return place and text of the next tag, or the length of the certain text and ''."""
        watched = self._watched()
        for found in _pattern(watched).finditer(self._held):
            if self._counts(found.start(), found.group()):
                return found.start(), found.group()
        ends = [size for tag in watched for size in range(1, len(tag)) if self._held.endswith(tag[:size])]
        return len(self._held) - max(ends, default=0), ""  # an end that may become a tag is held back

    def _watched(self) -> tuple[str, ...]:
        span = self._spans[-1]
        if self._form.channels:
            return CHANNELS
        if span.kind == ANSWER:
            return OPENINGS
        again = tuple(tag.opens for tag in TAGS if tag.kind == THINKING and tag.closes == span.closes)
        return (span.closes, *again) if not span.opens and span.closes else (span.closes,) if span.closes else ()

    def _counts(self, place: int, tag: str) -> bool:
        """Tell whether a tag at a place of the held text counts as one."""
        span = self._spans[-1]
        if self._form.channels or tag == span.closes or tag in self._form.sure:
            return True
        before = span.text + self._held[:place]
        if BY_OPENING[tag].kind == CALL:
            before = before.rpartition("\n")[2]
        return not before.strip()

    def _turn(self, tag: str) -> None:
        span = self._spans[-1]
        if tag == span.closes and span.kind != ANSWER:
            span.closed = True
            self._spans.append(_Span(ANSWER))
        elif span.kind == ANSWER:
            found = BY_OPENING[tag]
            self._spans.append(_Span(found.kind, tag, found.closes))

    def _switch(self, tag: str) -> None:
        span = self._spans[-1]
        if tag == "<|message|>":
            self._spans.append(_headed(span.text if span.kind == HEADER else ""))
        elif tag == "<|end|>":
            self._spans.append(_Span(ANSWER))
        elif tag == "<|start|>" or span.kind != HEADER:
            begun = span.text if span is self._spans[0] and span.text.strip().startswith("to=") else ""
            span.text = "" if begun else span.text  # the prompt contains the beginning of this header
            self._spans.append(_Span(HEADER, text=begun + " "))
        else:
            span.text += " "

    def _say(self, pieces: list[Piece], text: str) -> None:
        span = self._spans[-1]
        span.text += text
        if text and span.kind != HEADER:
            pieces.append(Piece(span.kind, text))


def read_parts(text: str) -> Parts:
    """Return the parts of a whole text."""
    reader = PartsReader()
    reader.feed(text)
    reader.end()
    return reader.parts()


def _headed(header: str) -> _Span:
    """Return the part that a channel's header begins; one with a recipient is a call."""
    if to := re.search(r"\bto=(\S+)", header):
        return _Span(CALL, name=to[1].removeprefix("functions.").partition("<|")[0])
    names = [word for word in header.replace("<|constrain|>", " ").split() if word != "assistant"]
    return _Span(ANSWER if names[:1] in ([], ["final"], ["commentary"]) else THINKING)


def _calls(span: _Span) -> tuple[dict[str, object], ...]:
    if span.name:
        return (tool_calls.call(span.name, tool_calls.value(span.text)),)
    begins = span.opens.endswith((">", "]"))  # else the tag is part of the call
    return tool_calls.read_calls(span.text if begins else span.whole, "" if span.closes else span.opens)


def _paragraphs(texts: Iterable[str]) -> str:
    return "\n\n".join(text for text in texts if text)


@cache
def _pattern(tags: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, tags)) or "(?!)")
