"""A chat that is longer than the context: which messages are dropped, or what the refusal says.

Sizes are counted from real ids; messages are dropped only under `/overflow drop_oldest`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from repl.core.errors import Overflow
from repl.generation.decode.detokenizer import AnyMessage

MIN_REPLY_SHARE = 8  # a reply should find at least this part of the context free


@dataclass(frozen=True, slots=True)
class PromptIds:
    """The prompt as it is sent: its ids, and the numbers of what was left out of it."""

    ids: list[int]
    dropped: tuple[int, ...] = ()


def fit_messages(
    messages: Sequence[AnyMessage],
    ids: list[int],
    count: Callable[[Sequence[AnyMessage]], list[int]],
    context: int,
    wanted: int,
    policy: str,
) -> PromptIds:
    """Return the ids of the messages that fit with `wanted` tokens behind them, and the places of the others.

    `ids` are those of all messages, `count` encodes fewer. Raises `Overflow` where nothing fits behind the prompt:
    always under `ask` and `stop`, and under `drop_oldest` where the last message alone is too long.
    """
    dropped: list[int] = []
    if policy != "drop_oldest":
        raise _overflow(messages, ids, count, context, policy)
    kept = dict(enumerate(messages))
    while len(ids) >= context - reply_room(context, wanted) and (gone := oldest(list(kept.values()))):
        dropped += [list(kept)[place] for place in gone]
        kept = {place: message for place, message in kept.items() if place not in dropped}
        ids = count(list(kept.values()))
    if len(ids) >= context:
        raise _overflow(list(kept.values()), ids, count, context, "stop")
    return PromptIds(ids, tuple(dropped))


def reply_room(context: int, wanted: int) -> int:
    """Return how many tokens of the context stay free for a reply of up to `wanted` tokens."""
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
