"""The messages of a conversation as a chat template reads them.

A reply goes back as the library itself reads it: in parts where the tokenizer has a `response_template` or the reply
names its channels, else as the decoded text, which the template cuts as it sees fit. A thought therefore has a name of
its own (the one that the template reads) only where the library says what the thought is, and never by a guess of ours.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from repl.core.errors import Failed
from repl.core.jobs import JobContext, run_in_thread
from repl.core.parts import Parts

AnyMessage = Mapping[str, Any]
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")  # names under which templates look for a thought
CHANNEL = "<|channel|>"  # how gpt-oss names the parts of a reply
PARSE_S = 5.0  # a response template may hold a pattern that runs without end
MAX_PARSED = 500  # replies that are remembered as they were read


@dataclass(frozen=True, slots=True)
class MessageReader:
    """Makes messages for one template: `names` are those that it looks up, `prompt` renders what a reply answers.

    Templates and values that make the same prompts have the same `key`.
    """

    tokenizer: Any
    key: str
    names: Collection[str]
    prompt: Callable[[Sequence[AnyMessage]], str]
    emit: JobContext
    tools: Any = None
    """What the template is given as tools, which says of what type the arguments of a call are."""

    def messages(self, messages: Sequence[AnyMessage]) -> list[dict[str, object]]:
        """Return the messages of a conversation, whose replies have `parts` beside all that was made, exactly."""
        made: list[dict[str, Any]] = []
        for message in messages:
            plain = {name: value for name, value in message.items() if name != "parts"}
            parts = message.get("parts")
            reply = self._reply(str(message["content"]), parts, made) if isinstance(parts, Parts) else {}
            made.append({**plain, **reply})
        return made

    def _reply(self, raw: str, parts: Parts, before: Sequence[AnyMessage]) -> dict[str, object]:
        if getattr(self.tokenizer, "response_template", None) is not None:
            found = self._parsed(raw, before) or {"content": raw}
        elif CHANNEL in raw:
            found = _fields(parts)
        else:
            return {"content": raw}
        thought = next((found[name] for name in REASONING_FIELDS if found.get(name)), None)
        if thought is not None and "reasoning" in self.names and not {*REASONING_FIELDS[:2]} & {*self.names}:
            found["reasoning"] = thought  # the library gives it the other names
        return found

    def _parsed(self, raw: str, before: Sequence[AnyMessage]) -> dict[str, object]:
        """Read a reply with the library's parser, behind the prompt that it answers; nothing where that fails."""
        key = hash((self.key, repr(self.tokenizer.response_template), raw, repr(before)))
        if key not in _PARSED:
            if len(_PARSED) >= MAX_PARSED:
                _PARSED.clear()
            _PARSED[key] = self._parse(raw, before)
        return dict(_PARSED[key])

    def _parse(self, raw: str, before: Sequence[AnyMessage]) -> dict[str, object]:
        try:
            prefix = self.prompt(before) if before else ""
        except Failed:  # the template does not write what stands before by itself
            prefix = ""
        try:
            typed = {"tools": self.tools} if self.tools else {}
            work = partial(self.tokenizer.parse_response, raw, prefix=prefix, **typed)
            found = run_in_thread(work, self.emit, PARSE_S)
        except Exception:  # a stranger's pattern, on a reply that may have been cut anywhere
            return {}
        return {"content": "", **found}


_PARSED: dict[int, dict[str, Any]] = {}  # a prompt reads all replies before it again


def _fields(parts: Parts) -> dict[str, object]:
    """Return parts under the names of gpt-oss, whose template takes no answer beside a thought and a call."""
    found: dict[str, Any] = {"content": "" if parts.tool_calls and parts.thinking else parts.answer}
    found |= {"thinking": parts.thinking} if parts.thinking else {}
    return found | ({"tool_calls": list(parts.tool_calls)} if parts.tool_calls else {})
