"""A conversation answered anew: the same model says the same again, another one stands beside it turn by turn."""

import json
from collections.abc import Iterator
from math import log
from pathlib import Path
from typing import Any

import pytest
from driving import ask, bare, drawn, finish, opened, run
from fakeserver import FakeServer, refusal
from fakeserver import chat as said
from rich.cells import cell_len

from repl.analysis.replay import is_same
from repl.commands import registry
from repl.core.errors import Cancelled, UsageError
from repl.core.events import ColumnEvent, Event, Progress, Token
from repl.session.session import Session
from repl.terminal.screen import as_record

LINES = ("Once upon a time", "And then?", "What is the capital of France?")


@pytest.fixture
def chat(llama_folder: Path) -> Iterator[Session]:
    """A conversation of three messages."""
    with opened(llama_folder, max_new_tokens=10) as session:
        run(session, "/system Be brief.", *LINES)
        yield session


@pytest.mark.slow
@pytest.mark.parametrize("how", ["greedy", "sample temperature=1.2", "beams 3", "pinned"])
def test_the_same_model_says_the_same_again(chat: Session, how: str) -> None:
    """Law: with the settings that were recorded, and the draws, there is no difference."""
    if how != "pinned":
        run(chat, "/clear", f"/{how}", *LINES)
    found = run(chat, "/replay now" + (" --pinned" if how == "pinned" else ""))
    assert [*map(is_same, found.turns)] == [True] * 3
    assert [turn.columns[1].difference for turn in found.turns] == [None] * 3
    assert all(turn.columns[0].text == turn.columns[1].text for turn in found.turns)
    for turn in found.turns:
        if how != "beams 3":  # a search keeps no figures of its tokens
            assert turn.columns[0].bits_per_byte == pytest.approx(turn.columns[1].bits_per_byte, abs=1e-4)
    assert "3 of 3 answers the same" in drawn(found)


@pytest.mark.slow
def test_its_own_answers_make_a_branch(chat: Session, other_folder: Path) -> None:
    """The first conversation stays, /go returns to it; model, settings and cache are as before."""
    talk = chat.conversation
    before, head = talk.messages(), talk.head
    number = talk.turns[head].exchange
    settings, resident, size = chat.settings, chat.store.current(), chat.store.current().runtime.kv_cache.size()
    found = run(chat, f"/replay {other_folder}")
    path = talk.path()
    assert (found.before, found.branch) == (number, path[-1].exchange)
    assert [turn.text for turn in path if turn.role == "user"] == list(LINES)
    assert [turn.text for turn in path if turn.role == "assistant"] == [turn.columns[1].text for turn in found.turns]
    assert {turn.record.model.id for turn in path if turn.record} == {str(other_folder)}
    assert talk.messages(head) == before
    assert (chat.settings, chat.store.current(), chat.store.current().runtime.kv_cache.size()) == (
        settings,
        resident,
        size,
    )
    assert f"/go {number}" in drawn(found)
    run(chat, f"/go {number}")
    assert talk.messages() == before


@pytest.mark.slow
def test_each_new_answer_follows_the_new_ones_before_it(chat: Session, other_folder: Path) -> None:
    """Law: they are what a conversation with the other model would have been."""
    found = run(chat, f"/replay {other_folder}")
    with opened(other_folder, max_new_tokens=10) as plain:
        run(plain, "/system Be brief.")
        assert [ask(plain, line).token_ids for line in LINES] == [
            turn.columns[1].done.token_ids for turn in found.turns
        ]


@pytest.mark.slow
def test_pinned_answers_follow_the_recorded_ones(chat: Session, other_folder: Path) -> None:
    """Law: what the other model says when it is put behind the same history; nothing is added."""
    turns, head = dict(chat.conversation.turns), chat.conversation.head
    found = run(chat, f"/replay {other_folder} --pinned")
    assert (chat.conversation.turns, chat.conversation.head, found.branch) == (turns, head, None)
    prompts = [chat.conversation.exchange(one.exchange).record.prompt_ids for one in found.turns]
    assert [one.columns[1].done.prompt_ids for one in found.turns] == prompts
    run(chat, f"/model {other_folder}", "/info", "/retry")
    assert chat.last.record.token_ids == found.turns[-1].columns[1].done.token_ids


@pytest.mark.slow
def test_each_answer_has_the_bits_per_byte_of_its_own_model(
    chat: Session, llama_folder: Path, other_folder: Path
) -> None:
    """They agree with plain forward passes over prompt and answer; the end token does not count."""
    import torch

    found = run(chat, f"/replay {other_folder} --pinned")
    for turn in found.turns:
        for side, folder in zip(turn.columns, (llama_folder, other_folder), strict=True):
            done, model = side.done, bare(folder)[0]
            own = done.token_ids[:-1] if done.finish == "stop" else done.token_ids
            whole, start = [*done.prompt_ids, *own], len(done.prompt_ids)
            with torch.no_grad():
                logits = model(torch.tensor([whole])).logits[0].log_softmax(-1)
            nats = -sum(float(logits[place - 1, whole[place]]) for place in range(start, len(whole)))
            assert side.bits_per_byte == pytest.approx(nats / log(2) / len(side.text.encode()), rel=1e-3)


@pytest.mark.slow
def test_where_they_part_is_told(chat: Session, other_folder: Path) -> None:
    found = run(chat, f"/replay {other_folder} --pinned")
    for turn in found.turns:
        one, two = turn.columns
        same = next(n for n, (a, b) in enumerate(zip(one.text, two.text, strict=False)) if a != b)
        for column in turn.columns:
            mark = column.difference
            assert mark.start <= same < mark.end
            assert column.text[mark.start : mark.end] == mark.text
    second = found.turns[0].columns[1].difference
    assert f"differs from 1 at token {second.token}" in " ".join(drawn(found).split())
    record = json.loads(json.dumps(as_record("replay", found), default=str))
    assert record["data"]["turns"][2]["columns"][1]["done"]["token_ids"] == list(
        found.turns[2].columns[1].done.token_ids
    )


@pytest.mark.slow
def test_another_tokenizer_is_weighed_by_its_own_tokens(chat: Session, metaspace_folder: Path) -> None:
    found = run(chat, f"/replay {metaspace_folder},mode=chat --pinned")
    assert all("no chat template" in turn.columns[1].problem.message for turn in found.turns)
    with pytest.raises(UsageError, match="no chat template, which a conversation needs"):
        run(chat, f"/replay {metaspace_folder}")


@pytest.mark.slow
def test_settings_are_replayed_as_well(chat: Session) -> None:
    found = run(chat, "/replay repetition_penalty=1.8,max=4")
    assert [len(turn.columns[1].done.token_ids) for turn in found.turns] == [4, 4, 4]
    assert chat.settings.decode.max_new_tokens == 10


@pytest.mark.slow
def test_completed_texts_are_replayed_where_nothing_was_said(gpt2_folder: Path, llama_folder: Path) -> None:
    with opened(gpt2_folder, max_new_tokens=8) as session:
        run(session, "Once upon", "Prices rose")
        assert [*map(is_same, run(session, "/replay now --pinned").turns)] == [True, True]
        found = run(session, f"/replay {llama_folder}")
        talk = session.conversation
        children = [talk.children(talk.exchange(turn.exchange).parent) for turn in found.turns]
        assert [[child.role for child in each] for each in children] == [["completion"] * 2] * 2
        assert found.branch is None


def cancel_in(session: Session, line: str, answer: int) -> Any:
    """Run a replay and cancel it while an answer is made."""
    task, begun = registry.parse_line(line).run(session), [0]

    def heard(event: Event) -> None:
        begun[0] += not isinstance(event, ColumnEvent)
        if begun[0] == answer and isinstance(event, ColumnEvent) and isinstance(event.event, Token):
            task.job.cancel()

    return finish(task, heard)


@pytest.mark.slow
def test_a_cancel_keeps_what_is_done(chat: Session) -> None:
    head = chat.conversation.head
    found = cancel_in(chat, "/replay max=150", 2)
    assert (len(found.turns), found.total) == (2, 3)
    assert found.turns[1].columns[1].done.finish == "cancelled"
    assert not is_same(found.turns[1])
    path = chat.conversation.path()
    assert [turn.state for turn in path] == ["complete", "complete", "complete", "cancelled"]
    assert "2 of 3 messages answered" in drawn(found)
    run(chat, f"/go {found.before}")
    assert chat.conversation.head == head


def test_a_cancel_before_the_first_answer_is_only_a_cancel(chat: Session) -> None:
    turns = dict(chat.conversation.turns)
    task = registry.parse_line("/replay now").run(chat)
    task.job.cancel()
    with pytest.raises(Cancelled):
        finish(task)
    assert chat.conversation.turns == turns


def test_a_cancel_before_the_first_token_makes_no_branch(chat: Session) -> None:
    """Nothing of the answer is there: the conversation stands where it did, and nothing else is said."""
    talk = chat.conversation
    turns, head = dict(talk.turns), talk.head
    task = registry.parse_line("/replay now").run(chat)

    def reading(event: Event) -> None:
        if isinstance(event, ColumnEvent) and isinstance(event.event, Progress) and event.event.stage[:6] != "answer":
            task.job.cancel()

    found = finish(task, reading)
    assert (found.turns[0].columns[1].done.raw, found.branch) == ("", None)
    assert (talk.turns, talk.head) == (turns, head)
    assert "new branch" not in drawn(found)


@pytest.mark.slow
def test_what_cannot_be_replayed_is_said(llama_folder: Path, chat: Session) -> None:
    from repl.core.errors import ReplError

    with pytest.raises(ReplError, match="/no/such"):
        run(chat, "/replay /no/such")
    run(chat, "/clear")
    with opened(llama_folder) as fresh, pytest.raises(UsageError, match="no replies yet"):
        run(fresh, "/replay now")


@pytest.mark.slow
def test_a_server_is_asked_each_message_after_its_own_answers(chat: Session) -> None:
    """They make a branch; what no model here has made has no tokens to weigh, and the two texts are compared."""
    talk = chat.conversation
    with FakeServer(said("One."), said("Two."), said("Three.")) as server:
        found = run(chat, f"/replay {server.url}")
        asked = [one for one in server.asked if one.path.endswith("/chat/completions")]
    assert [turn.columns[1].text for turn in found.turns] == ["One.", "Two.", "Three."]
    assert [*map(is_same, found.turns)] == [False] * 3
    assert {turn.columns[1].bits_per_byte for turn in found.turns} == {None}
    said_before = [[message["content"] for message in one.body["messages"]] for one in asked]
    assert said_before == [
        ["Be brief.", LINES[0]],
        ["Be brief.", LINES[0], "One.", LINES[1]],
        ["Be brief.", LINES[0], "One.", LINES[1], "Two.", LINES[2]],
    ]
    assert [turn.text for turn in talk.path() if turn.role == "assistant"] == ["One.", "Two.", "Three."]
    assert "0 of 3 answers the same" in drawn(found)
    run(chat, f"/go {found.before}")
    assert ask(chat, "Again").model.id == chat.facts().id  # the model here answers as before


@pytest.mark.slow
def test_a_server_is_given_the_recorded_answers_where_they_are_pinned(chat: Session) -> None:
    talk = chat.conversation
    turns, answers = dict(talk.turns), [turn.text for turn in talk.path() if turn.role == "assistant"]
    with FakeServer(said(answers[0]), said("Other."), said("Words.")) as server:
        found = run(chat, f"/replay {server.url} --pinned")
        last = server.asked[-1]
    assert [*map(is_same, found.turns)] == [True, False, False]
    assert [message["content"] for message in last.body["messages"]][2::2] == answers[:2]
    assert talk.turns == turns


@pytest.mark.slow
def test_a_server_that_refuses_is_said_with_the_turn(chat: Session) -> None:
    """What was answered by then stays."""
    head = chat.conversation.head
    with FakeServer(said("One."), refusal(500, "out of order"), refusal(500, "out of order")) as server:
        found = run(chat, f"/replay {server.url}")
    assert [turn.columns[1].text for turn in found.turns][:1] == ["One."]
    assert "out of order" in found.turns[1].columns[1].problem.message
    assert "out of order" in drawn(found)
    run(chat, f"/go {found.before}")
    assert chat.conversation.head == head


@pytest.mark.slow
@pytest.mark.parametrize("width", [30, 60, 100, 200])
def test_a_replay_fits_every_window(chat: Session, other_folder: Path, width: int) -> None:
    assert max(map(cell_len, drawn(run(chat, f"/replay {other_folder}"), width).splitlines())) <= width
