"""A reply in its parts: what the model thought, what it answered, and the tools that it called."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Parts:
    """What a reply consists of; a tool call is a mapping with `name` and `arguments`, as the model wrote them."""

    thinking: str = ""
    answer: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()

    def __add__(self, other: "Parts") -> "Parts":
        return Parts(self.thinking + other.thinking, self.answer + other.answer, (*self.tool_calls, *other.tool_calls))
