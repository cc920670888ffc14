"""Who says what in a rendered prompt: the part of it that each message is written as."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from repl.generation.prompt.chat_template import Template
from repl.generation.prompt.reply_parser import AnyMessage


@dataclass(frozen=True, slots=True)
class Span:
    """The part of a prompt that a message is written as, in characters; the role `template` is nobody's message."""

    role: str
    start: int
    end: int


def find_spans(template: Template, messages: Sequence[AnyMessage], text: str, prefill: str = "") -> list[Span]:
    """Find the part of a rendered text that each message is written as: what it adds to those before it.

    Where a template writes a message differently once others follow, its own last line is searched instead. What
    asks for the reply is the template's, and the beginning of the reply, `prefill`, the assistant's.
    """
    found: list[Span] = []
    place = 0
    for count, message in enumerate(messages, 1):
        outcome = template.attempt(messages[:count], generation_prompt=False)
        alone = outcome.text
        exact = not outcome.error and text.startswith(alone) and len(alone) >= place
        end = len(alone) if exact else _searched(template, str(message["content"]), text, place)
        found.append(Span(str(message["role"]), place, end))
        place = end
    begun = max(place, len(text) - len(prefill)) if text.endswith(prefill) else len(text)
    rest = [Span("template", place, begun), Span("assistant", begun, len(text))]
    headed = [span for one in found for span in _headed(template, messages, one, text)]
    return headed + [span for span in rest if span.start < span.end]


def _searched(template: Template, content: str, text: str, place: int) -> int:
    line = (content.strip().splitlines() or [""])[-1]
    found = text.find(line, place)
    if not line or found < 0:
        return place
    ends = "|".join(map(re.escape, template.controls)) or "(?!)"
    tail = re.compile(rf"\s*(?:{ends})?\n*").match(text, found + len(line))
    return tail.end() if tail else found + len(line)


def _headed(template: Template, messages: Sequence[AnyMessage], span: Span, text: str) -> list[Span]:
    """Split off what a template says by itself before the first message: a system text of its own."""
    content = str(messages[0]["content"]).strip()
    said = text.rfind(content, span.start, span.end)
    if span.start or said < 0 or not content:
        return [span]
    ends = [one for one in template.controls if text[said + len(content) : span.end].lstrip().startswith(one)]
    cut = max((text.rfind(one, 0, said) + len(one) for one in ends if text.rfind(one, 0, said) >= 0), default=0)
    cut += len(text[cut:said]) - len(text[cut:said].lstrip("\n")) if cut else 0
    return [Span("template", 0, cut), replace(span, start=cut)] if cut else [span]
