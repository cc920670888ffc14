"""What is asked of a model, and the ids that it comes to: through the chat template, or as plain text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from repl.core.errors import UsageError
from repl.core.events import Notice
from repl.core.format import counted
from repl.core.jobs import JobContext
from repl.core.settings import Settings
from repl.generation.prompt import chat_template, context_window
from repl.generation.prompt.context_window import PromptIds
from repl.generation.prompt.messages import AnyMessage
from repl.generation.prompt.reply_parser import Begun
from repl.generation.runtime import Model


@dataclass(frozen=True, slots=True)
class Request:
    """What to answer: the messages of a chat, a text to continue, or the very ids to go on from."""

    settings: Settings
    messages: tuple[AnyMessage, ...] = ()
    turns: tuple[int, ...] = ()
    """The numbers of the turns that the messages are, 0 for the system text."""
    text: str = ""
    ids: tuple[int, ...] = ()
    prefill: str = ""
    """What the reply begins with, in a chat."""
    begun: Begun | None = None
    """The reply of a chat that `ids` end with."""

    @property
    def chats(self) -> bool:
        """Tell whether the template is used."""
        return bool(self.messages)

    @property
    def system(self) -> str:
        """The instruction in front of the chat, empty where there is none."""
        first = self.messages[0] if self.messages else {}
        return first["content"] if first.get("role") == "system" else ""

    @property
    def seeded(self) -> bool:
        """Tell whether the reply's text goes on from the prompt's, as a continuation does."""
        return not self.messages or bool(self.prefill)


def encode_prompt(resident: Model, request: Request, wanted: int, emit: JobContext) -> PromptIds:
    """Return the ids of the prompt; of a chat that is too long, those that the overflow setting allows.

    `wanted` is how many tokens the reply may have. Raises `UsageError`, among them `Overflow`, and `Failed` where
    the template does not do.
    """
    if request.ids:
        return PromptIds(list(request.ids))
    if not request.chats:
        ids = [int(token) for token in resident.tokenizer(request.text)["input_ids"]]
        if not ids:
            raise UsageError("the prompt is empty: the model needs at least one token to go on from")
        return PromptIds(ids)
    fitted = _fitted(resident, request, wanted, emit)
    dropped = tuple(request.turns[place] for place in fitted.dropped)
    if dropped:
        left = counted(len(dropped), "message")
        emit(Notice(f"the oldest {left} left out: the context of {resident.facts.context} tokens is full"))
    return PromptIds(fitted.ids, dropped)


def _fitted(resident: Model, request: Request, wanted: int, emit: JobContext) -> PromptIds:
    values: dict[str, Any] = chat_template.template_values(request.settings.extra)

    def count(messages: Sequence[AnyMessage]) -> list[int]:
        made = chat_template.render_chat(
            resident.tokenizer, messages, arguments=values, prefill=request.prefill, emit=emit
        )
        resident.runtime.mention(made.notice, emit)
        return list(made.ids)

    policy = request.settings.decode.overflow
    return context_window.fit_messages(request.messages, count, resident.facts.context, wanted, policy)
