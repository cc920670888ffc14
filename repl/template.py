"""Chat templates: messages in, the exact prompt out; what a template reads, and what it makes of a chat."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from repl import sandbox
from repl.decoding import PREFIX
from repl.errors import Failed, UsageError
from repl.kinds import nearest
from repl.sandbox import Chat, Outcome
from repl.worker import Emit

Message = Mapping[str, Any]
REASONING = ("reasoning_content", "thinking", "reasoning")  # names under which templates look for it
CUT = "CONTINUE_FINAL_MESSAGE_TAG "  # what the library cuts a message to go on from at: the space tells of trimming
MARKS = re.compile("[\U000f0000\U000f0001]")  # what the library puts around control tokens that a user typed
FOLDED = "the chat template has no place for a system text: it was put in front of your first message"
DROPPED = "the chat template leaves the system text out"


@dataclass(frozen=True, slots=True)
class Span:
    """The part of a prompt that a message is written as, in characters; the role `template` is nobody's message."""

    role: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt as the model gets it: `text` encodes to `ids`, `notice` is what the user should know of it, or empty."""

    ids: tuple[int, ...]
    text: str
    notice: str = ""


class Refused(Failed):
    """The author of a template does not want such a chat; the message is theirs."""


class Template:
    """The chat template of a tokenizer with values for the variables that it reads; for the model thread.

    Raises `UsageError` where the tokenizer has none, `Failed` where it is broken.
    """

    def __init__(self, tokenizer: Any, arguments: Mapping[str, Any], emit: Emit) -> None:
        self.source = source(tokenizer)
        self.reading = sandbox.read(self.source, emit)
        self.tokenizer, self._emit = tokenizer, emit
        self.controls = _controls(tokenizer, self.reading.literals)
        special = {name: _plain(value) for name, value in tokenizer.special_tokens_map.items()}
        self._variables = {**special, **self.marked(dict(arguments))}

    def marked(self, value: Any) -> Any:
        """Mark the control tokens in what a user typed, so that they are encoded as text."""
        try:
            from transformers.utils.chat_template_utils import mark_control_tokens
        except ImportError:  # a library that cannot tell them apart
            return value
        longest = sorted(self.controls, key=len, reverse=True)
        return mark_control_tokens(value, re.compile("|".join(map(re.escape, longest)) or "(?!)"))

    def outcomes(self, *chats: Chat) -> list[Outcome]:
        """Render several chats, an outcome for each; control tokens in the messages stay marked."""
        ready = [replace(chat, messages=[self.marked(_aliased(one)) for one in chat.messages]) for chat in chats]
        return sandbox.render(self.source, ready, self._variables, self._emit)

    def text(self, messages: Sequence[Message], generation_prompt: bool = True) -> str:
        """Render one chat; raises `Failed`."""
        (outcome,) = self.outcomes(Chat(messages, generation_prompt))
        if outcome.error:
            raise (Refused if outcome.refused else Failed)(outcome.error, *sandbox.WAY_OUT)
        return outcome.text

    def continued(self, messages: Sequence[Message], prefill: str) -> str:
        """Render a chat whose last reply begins with `prefill` and is not ended."""
        if prefill.lstrip().startswith("<think"):  # templates write a thought of their own in front of such a reply
            return self._behind(messages, prefill)
        last = {"role": "assistant", "content": prefill + CUT}
        (outcome,) = self.outcomes(Chat([*messages, last], False))
        mark, start = CUT.strip(), MARKS.sub("", prefill).strip()
        if outcome.error or mark not in outcome.text or start not in MARKS.sub("", outcome.text):
            return self._behind(messages, prefill)  # the template makes something else of it
        place = outcome.text.rindex(mark)
        whole = outcome.text[place:].startswith(CUT)
        return outcome.text[:place] if whole else outcome.text[:place].rstrip()

    def _behind(self, messages: Sequence[Message], prefill: str) -> str:
        return self.text(messages) + str(self.marked(prefill))

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the ids of a rendered text; raises `Failed` where user text cannot be kept apart from control."""
        sanitize = {"sanitize_control_tokens": True} if MARKS.search(text) else {}
        try:
            found = self.tokenizer(text, add_special_tokens=False, **sanitize)["input_ids"]
        except ValueError as error:
            raise Failed(f"the prompt cannot be encoded: {error}", *sandbox.WAY_OUT) from error
        return tuple(int(token) for token in found)


def render(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    arguments: Mapping[str, Any],
    prefill: str = "",
    generation_prompt: bool = True,
    emit: Emit,
) -> Rendered:
    """Make the prompt of a chat, whose reply begins with `prefill` where there is one.

    Control tokens in messages, prefill and arguments are encoded as plain text. A system text that the template
    refuses is put in front of the first user message. Raises `UsageError` without a template, `Failed` where it
    fails or passes its bounds, `Cancelled`.
    """
    template = Template(tokenizer, arguments, emit)

    def write(chat: Sequence[Message]) -> str:
        return template.continued(chat, prefill) if prefill else template.text(chat, generation_prompt)

    text, notice = _with_system(write, messages)
    return Rendered(template.encode(text), MARKS.sub("", text), notice)


def _with_system(write: Callable[[Sequence[Message]], str], messages: Sequence[Message]) -> tuple[str, str]:
    if not messages or messages[0]["role"] != "system":
        return write(messages), ""
    try:
        text = write(messages)
    except Refused as refused:
        try:
            return write(folded(messages)), FOLDED
        except Failed:  # then the system text was not the reason
            raise refused from None
    said = str(messages[0]["content"]).strip()
    return text, "" if said in MARKS.sub("", text) else DROPPED


def folded(messages: Sequence[Message]) -> list[Message]:
    """Put the system text in front of the first message behind it."""
    system, *rest = messages
    if not rest:
        return [{**system, "role": "user"}]
    first, *rest = rest
    return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]


def source(tokenizer: Any) -> str:
    """Return the chat template of a tokenizer, of several the default one; raises `UsageError`."""
    found = getattr(tokenizer, "chat_template", None)
    if isinstance(found, Mapping):
        if "default" in found:
            return str(found["default"])
        names = ", ".join(sorted(map(str, found))) or "none"
        raise UsageError(f"the chat templates have no default among them: {names}", *sandbox.WAY_OUT)
    if not found:
        raise UsageError("the model has no chat template", *sandbox.WAY_OUT)
    return str(found)


def _controls(tokenizer: Any, literals: str) -> tuple[str, ...]:
    """Return the tokens that steer, as the library tells them: special ones, and those that the template writes."""
    added = tokenizer.added_tokens_decoder.values()
    named = getattr(tokenizer, "chat_control_tokens", None)
    if named is not None:
        return tuple(str(token) for token in added if token.special or str(token) in named)
    return tuple(
        str(token) for token in added if token.special or (str(token) in literals and not str(token).isspace())
    )


def _plain(value: Any) -> Any:
    return [str(one) for one in value] if isinstance(value, list | tuple) else str(value)


def _aliased(message: Message) -> dict[str, Any]:
    """Leave out what is None, and give a message's reasoning every name that templates know it by."""
    known = {name: value for name, value in message.items() if value is not None and name != "parts"}
    reasoning = next((known[name] for name in REASONING if name in known), None)
    return known if reasoning is None else {"thinking": reasoning, **known, "reasoning_content": reasoning}


# arguments


def variables(tokenizer: Any, emit: Emit) -> list[str]:
    """Return the names that a template reads and a user may set."""
    found = sandbox.read(source(tokenizer), emit).variables
    return sorted(name for name in found if not name.endswith(("_token", "_tokens")))


def argument(tokenizer: Any, name: str, word: str, emit: Emit) -> tuple[str, Any]:
    """Read `template.NAME VALUE`: the full name, and the value as JSON or text, None for `default`.

    Raises `UsageError` with the nearest name where the template reads no such variable.
    """
    short, known = name.removeprefix(PREFIX).replace("-", "_"), variables(tokenizer, emit)
    if short not in known:
        close = nearest(short, known)
        reads = f"it reads {', '.join(known)}" if known else "it reads none"
        hints = [f"/set {PREFIX}{close} {word}"] if close else []
        raise UsageError(f"the chat template has no variable {short!r}, {reads}", *hints)
    return PREFIX + short, _value(word)


def _value(word: str) -> Any:
    words = {"default": None, "none": None, "on": True, "off": False, "True": True, "False": False}
    if word in words:
        return words[word]
    try:
        return json.loads(word)
    except ValueError:
        return word


def arguments(extra: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Pick the template's variables from settings that were made by name."""
    return {name.removeprefix(PREFIX): value for name, value in extra if name.startswith(PREFIX)}


# who says what


def spans(template: Template, messages: Sequence[Message], text: str, prefill: str = "") -> list[Span]:
    """Find the part of a rendered text that each message is written as: what it adds to those before it.

    Where a template writes a message differently once others follow, its own last line is searched instead. What
    asks for the reply is the template's, and the beginning of the reply, `prefill`, the assistant's.
    """
    chats = [Chat(messages[: count + 1], False) for count in range(len(messages))]
    found: list[Span] = []
    place = 0
    for message, outcome in zip(messages, template.outcomes(*chats), strict=True):
        alone = MARKS.sub("", outcome.text)
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


def _headed(template: Template, messages: Sequence[Message], span: Span, text: str) -> list[Span]:
    """Split off what a template says by itself before the first message: a system text of its own."""
    content = str(messages[0]["content"]).strip()
    said = text.rfind(content, span.start, span.end)
    if span.start or said < 0 or not content:
        return [span]
    ends = [one for one in template.controls if text[said + len(content) : span.end].lstrip().startswith(one)]
    cut = max((text.rfind(one, 0, said) + len(one) for one in ends if text.rfind(one, 0, said) >= 0), default=0)
    cut += len(text[cut:said]) - len(text[cut:said].lstrip("\n")) if cut else 0
    return [Span("template", 0, cut), replace(span, start=cut)] if cut else [span]
