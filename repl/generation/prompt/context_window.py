"""What fits into a model's context: counted from real ids, said with numbers, and dropped only when told to."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repl.core.errors import Overflow

Message = Mapping[str, Any]
SHARE = 8  # a reply should find at least this part of the context free


@dataclass(frozen=True, slots=True)
class Fitted:
    """The prompt that is sent: its messages and ids, and the places of the messages that were left out."""

    messages: tuple[Message, ...]
    ids: list[int]
    dropped: tuple[int, ...] = ()


def fit(
    messages: Sequence[Message],
    count: Callable[[Sequence[Message]], list[int]],
    context: int,
    wanted: int,
    policy: str,
) -> Fitted:
    """Return the messages that fit with `wanted` tokens behind them, as far as the policy allows.

    `count` encodes messages; `context` 0 is no limit. Raises `Overflow` where nothing fits behind the prompt:
    always under `ask` and `stop`, and under `drop_oldest` where the last message alone is too long.
    """
    kept, ids, dropped = tuple(messages), count(messages), []
    if not context or len(ids) + 1 <= context - (0 if policy != "drop_oldest" else _room(context, wanted)):
        return Fitted(kept, ids)
    if policy != "drop_oldest":
        raise _overflow(kept, ids, count, context, policy)
    places = list(range(len(kept)))
    while len(ids) >= context - _room(context, wanted):
        gone = oldest(kept)
        if not gone:
            break
        dropped += [places[place] for place in gone]
        places = [place for number, place in enumerate(places) if number not in gone]
        kept = tuple(message for number, message in enumerate(kept) if number not in gone)
        ids = count(kept)
    if len(ids) >= context:
        raise _overflow(kept, ids, count, context, "stop")
    return Fitted(kept, ids, tuple(dropped))


def _room(context: int, wanted: int) -> int:
    return max(1, min(wanted, context // SHARE))


def oldest(messages: Sequence[Message]) -> list[int]:
    """Return the places of the oldest exchange: a message with what was answered to it; never the last message."""
    asked = [place for place, message in enumerate(messages) if message["role"] == "user"]
    if len(asked) < 2:
        return []
    return list(range(asked[0], asked[1]))


def _overflow(
    messages: Sequence[Message],
    ids: list[int],
    count: Callable[[Sequence[Message]], list[int]],
    context: int,
    policy: str,
) -> Overflow:
    said = f"the prompt has {len(ids)} tokens, the context holds {context}"
    first = oldest(messages)
    if policy != "ask" or not first:
        return Overflow(said, "/overflow drop_oldest" if first else "/clear")
    rest = [message for place, message in enumerate(messages) if place not in first]
    freed = len(ids) - len(count(rest))
    return Overflow(
        said,
        choices=(
            (
                "/overflow drop_oldest",
                f"leave out the oldest messages as needed, the first exchange has {freed} tokens",
            ),
            ("/clear", "begin a new conversation with this message"),
        ),
    )
