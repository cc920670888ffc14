"""What fits into the context: counted, said with numbers, and dropped only when told to."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from driving import ask, listen, run, session_for
from hypothesis import given
from hypothesis import strategies as st

from repl.core.conversation import Conversation
from repl.core.errors import Overflow
from repl.core.events import Notice
from repl.generation.decode.detokenizer import AnyMessage
from repl.generation.prompt.context_window import MIN_REPLY_SHARE, PromptIds, fit_messages
from repl.session.session import Session


def talk(sizes: Sequence[int], system: int = 0) -> list[AnyMessage]:
    """Return a chat whose messages have so many words each, a message of the user's last."""
    front = [{"role": "system", "content": "s " * system}] if system else []
    return front + [{"role": ("user", "assistant")[n % 2], "content": f"{n} " * size} for n, size in enumerate(sizes)]


def count(messages: Sequence[AnyMessage]) -> list[int]:
    return [1 for message in messages for _ in message["content"].split()]


def fit(messages: Sequence[AnyMessage], context: int, wanted: int, policy: str) -> PromptIds:
    return fit_messages(messages, count(messages), count, context, wanted, policy)


@pytest.mark.parametrize("policy", ["ask", "stop"])
def test_what_does_not_fit_is_refused_with_its_numbers(policy: str) -> None:
    with pytest.raises(Overflow, match="the prompt has 12 tokens, but the context is 12") as caught:
        fit(talk([4, 4, 4]), 12, 50, policy)
    assert bool(caught.value.choices) == (policy == "ask")
    assert "8 tokens" in str(caught.value.choices) or policy == "stop"


def test_a_single_message_that_is_too_long_is_offered_nothing_that_cannot_help() -> None:
    for policy in ("ask", "stop", "drop_oldest"):
        with pytest.raises(Overflow, match="this message alone is too long") as caught:
            fit(talk([40]), 12, 50, policy)
        assert not caught.value.hints


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=9).filter(lambda sizes: len(sizes) % 2 == 1),
    st.integers(0, 5),
    st.integers(8, 60),
    st.integers(1, 100),
)
def test_dropping_takes_whole_oldest_exchanges_and_no_more_than_needed(
    sizes: list[int], system: int, context: int, wanted: int
) -> None:
    """Law: system text and last message stay, whole exchanges go from the front, and one fewer would not fit."""
    messages = talk(sizes, system)
    room = max(1, min(wanted, context // MIN_REPLY_SHARE))
    try:
        fitted = fit(messages, context, wanted, "drop_oldest")
    except Overflow:
        kept = [message for message in messages if message["role"] == "system"] + [messages[-1]]
        assert len(count(kept)) >= context
        return
    left = [message for place, message in enumerate(messages) if place not in fitted.dropped]
    assert len(fitted.ids) < context
    assert fitted.ids == count(left)
    assert left[-1] == messages[-1]
    assert [m["role"] for m in left if m["role"] == "system"] == ["system"] * bool(system)
    first = bool(system)
    assert fitted.dropped == tuple(range(first, first + len(fitted.dropped)))
    assert len(fitted.dropped) % 2 == 0
    if fitted.dropped:
        one_more = [m for place, m in enumerate(messages) if place not in fitted.dropped[:-2]]
        assert len(count(one_more)) >= context - room


@pytest.fixture(scope="module")
def loaded(llama_folder: Path) -> Iterator[Session]:
    """A model with a context of 512 tokens."""
    session = session_for(llama_folder, max_new_tokens=8)
    yield session
    assert session.close(30)


@pytest.fixture
def full(loaded: Session) -> Session:
    """A chat that fills most of the context."""
    loaded.conversation = Conversation()
    loaded.last = None
    run(loaded, "/reset overflow")
    for number in range(2):
        ask(loaded, f"{number} " * 90)
    return loaded


LONG = "more " * 60


@pytest.mark.slow
def test_a_chat_that_is_too_long_is_refused_before_anything_is_made(full: Session) -> None:
    before = full.conversation.path()
    with pytest.raises(Overflow, match=r"the prompt has \d+ tokens, but the context is 512") as caught:
        ask(full, LONG)
    assert [line for line, _ in caught.value.choices] == ["/overflow drop_oldest", "/clear"]
    assert full.conversation.path() == before


def test_dropping_is_said_recorded_and_loses_nothing(full: Session) -> None:
    run(full, "/overflow drop_oldest")
    done, events = listen(full, LONG)
    assert done.dropped == (1, 2)
    assert any("the oldest 2 messages dropped" in event.text for event in events if isinstance(event, Notice))
    assert [turn.id for turn in full.conversation.path()] == [1, 2, 3, 4, 5, 6]
    text = full.store.current().tokenizer.decode(done.prompt_ids)
    assert "more more" in text
    assert "0 0 0" not in text


def test_the_record_counts_the_tokens_that_the_toolbar_shows(full: Session) -> None:
    done = ask(full, "and")
    assert full.context_used == len(done.prompt_ids) + len(done.token_ids)
