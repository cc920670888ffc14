"""The ids of a prompt: through the chat template, or as plain text, and as many messages as the context holds.

What fits is counted from real ids, said with numbers, and dropped only when told to.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from repl.core.errors import Overflow, UsageError
from repl.core.events import Notice
from repl.core.format import counted
from repl.core.jobs import JobContext
from repl.generation.decode.detokenizer import AnyMessage
from repl.generation.interface import Model, Request
from repl.generation.prompt import chat_template

MIN_REPLY_SHARE = 8  # a reply should find at least this part of the context free


@dataclass(frozen=True, slots=True)
class PromptIds:
    """The prompt as it is sent: its ids, and the numbers of what was left out of it."""

    ids: list[int]
    dropped: tuple[int, ...] = ()


def fit_messages(
    messages: Sequence[AnyMessage],
    count: Callable[[Sequence[AnyMessage]], list[int]],
    context: int,
    wanted: int,
    policy: str,
) -> PromptIds:
    """Return the ids of the messages that fit with `wanted` tokens behind them, and the places of the others.

    `count` encodes messages; `context` 0 is no limit. Raises `Overflow` where nothing fits behind the prompt:
    always under `ask` and `stop`, and under `drop_oldest` where the last message alone is too long.
    """
    ids, dropped = count(messages), list[int]()
    if not context or len(ids) < context - (_room(context, wanted) if policy == "drop_oldest" else 0):
        return PromptIds(ids)
    if policy != "drop_oldest":
        raise _overflow(messages, ids, count, context, policy)
    kept = dict(enumerate(messages))
    while len(ids) >= context - _room(context, wanted) and (gone := oldest(list(kept.values()))):
        dropped += [list(kept)[place] for place in gone]
        kept = {place: message for place, message in kept.items() if place not in dropped}
        ids = count(list(kept.values()))
    if len(ids) >= context:
        raise _overflow(list(kept.values()), ids, count, context, "stop")
    return PromptIds(ids, tuple(dropped))


def _room(context: int, wanted: int) -> int:
    return max(1, min(wanted, context // MIN_REPLY_SHARE))


def oldest(messages: Sequence[AnyMessage]) -> list[int]:
    """Return the places of the oldest exchange: a message with what was answered to it; never the last message."""
    asked = [place for place, message in enumerate(messages) if message["role"] == "user"]
    if len(asked) < 2:
        return []
    return list(range(asked[0], asked[1]))


def _overflow(
    messages: Sequence[AnyMessage],
    ids: list[int],
    count: Callable[[Sequence[AnyMessage]], list[int]],
    context: int,
    policy: str,
) -> Overflow:
    said = f"the prompt has {len(ids)} tokens, but the context is {context}"
    first = oldest(messages)
    if not first:
        return Overflow(f"{said}: this message alone is too long")
    if policy != "ask":
        return Overflow(said, "/overflow drop_oldest")
    rest = [message for place, message in enumerate(messages) if place not in first]
    freed = len(ids) - len(count(rest))
    return Overflow(
        said,
        choices=(
            (
                "/overflow drop_oldest",
                f"drop the oldest messages as needed; the first exchange has {freed} tokens",
            ),
            ("/clear", "start a new conversation with this message"),
        ),
    )


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
            raise UsageError("the prompt is empty: the model needs at least one token to continue")
        return PromptIds(ids)
    fitted = _fitted(resident, request, wanted, emit)
    dropped = tuple(request.turns[place] for place in fitted.dropped)
    if dropped:
        left = counted(len(dropped), "message")
        emit(Notice(f"the oldest {left} dropped: the context of {resident.facts.context} tokens is full"))
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
    return fit_messages(request.messages, count, resident.facts.context, wanted, policy)
