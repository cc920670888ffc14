"""The tree of turns: nothing said is lost, and going back is as if it had not been said."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from driving import ask, run, session_for
from hypothesis import given
from hypothesis import strategies as st

from repl.commands import registry
from repl.core.conversation import Conversation
from repl.core.errors import Overflow, UsageError
from repl.session.session import Session


@pytest.fixture(scope="module")
def loaded(llama_folder: Path) -> Iterator[Session]:
    session = session_for(llama_folder, max_new_tokens=6)
    yield session
    assert session.close(30)


@pytest.fixture
def session(loaded: Session) -> Session:
    """The loaded session with nothing said yet."""
    loaded.resume(Conversation())
    loaded.prepare(files=(), prefill="", replaces=None)
    run(loaded, "/reset", "/max 6")
    return loaded


def said(session: Session) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in session.conversation.path()]


@pytest.mark.slow
def test_undo_after_a_message_is_as_if_it_had_not_been_sent(session: Session) -> None:
    ask(session, "one")
    before = session.conversation.messages()
    again = ask(session, "two")
    run(session, "/undo")
    assert session.conversation.messages() == before
    assert ask(session, "two").token_ids == again.token_ids


def test_undo_takes_back_several_and_refuses_more_than_there_are(session: Session) -> None:
    ask(session, "one")
    ask(session, "two")
    with pytest.raises(UsageError, match="2 messages to undo"):
        run(session, "/undo 3")
    run(session, "/undo 2")
    assert said(session) == []
    assert len(session.conversation.turns) == 4


def test_retry_is_a_sibling_with_other_settings_for_this_once(session: Session) -> None:
    first = ask(session, "one")
    chosen = session.settings
    second = run(session, "/retry do_sample=on seed=3 temperature=2")
    path = session.conversation.path()
    assert session.settings == chosen
    assert second.seed == 3
    assert second.prompt_ids == first.prompt_ids
    assert [turn.id for turn in session.conversation.children(path[0].id)] == [2, 3]
    assert path[-1].text == second.text
    assert run(session, "/retry").token_ids == first.token_ids


def test_sampling_after_beams_is_one_plain_sample(session: Session) -> None:
    """A shorthand sets the whole manner of decoding: nothing of the one before is left."""
    run(session, "/sample seed=7")
    plain = run(session, "/raw one")
    run(session, "/beams 3", "/sample seed=7")
    again = run(session, "/raw one")
    assert (again.token_ids, again.sequences) == (plain.token_ids, ())


def test_retry_refuses_what_belongs_to_loading(session: Session) -> None:
    ask(session, "one")
    with pytest.raises(UsageError, match="belongs to loading"):
        run(session, "/retry dtype=bfloat16")


@pytest.mark.parametrize("line", ["one", "/raw one"])
def test_a_reply_that_goes_on_is_the_longer_reply(session: Session, line: str) -> None:
    """Law: six tokens and six more are the twelve that one reply makes."""
    run(session, line)
    run(session, "/continue")
    merged = session.last
    run(session, "/clear", "/max 12")
    whole = run(session, line)
    assert merged is not None
    assert merged.record is not None
    assert merged.record.token_ids == whole.token_ids
    assert merged.text == whole.text == merged.record.text


def test_a_prefilled_reply_begins_so_and_the_model_saw_it(session: Session) -> None:
    run(session, "/prefill Well,")
    done = ask(session, "one")
    assert said(session)[-1] == ("assistant", "Well," + done.text)
    resident = session.store.current()
    assert resident.tokenizer.decode(done.prompt_ids).endswith("Well,")
    assert session.next_message.prefill == ""


def test_an_edited_message_begins_a_branch_and_the_old_one_stays(session: Session) -> None:
    ask(session, "one")
    ask(session, "two")
    draft = run(session, "/edit 1")
    assert draft.draft == "one"
    ask(session, "uno")
    assert [text for role, text in said(session) if role == "user"] == ["uno"]
    assert [turn.text for turn in session.conversation.children(None)] == ["one", "uno"]
    run(session, "/go 1")
    assert [text for role, text in said(session) if role == "user"] == ["one", "two"]


def test_edit_alone_takes_the_last_message(session: Session) -> None:
    ask(session, "one")
    ask(session, "two")
    assert run(session, "/edit").draft == "two"
    with pytest.raises(UsageError, match="no exchange 9: exchanges are numbered 1 to 2"):
        run(session, "/edit 9")


def test_branch_goes_back_and_the_next_message_forks(session: Session) -> None:
    ask(session, "one")
    ask(session, "two")
    run(session, "/branch 1")
    ask(session, "three")
    assert [turn.text for turn in session.conversation.children(2)] == ["two", "three"]
    run(session, "/go 2")
    assert [text for role, text in said(session) if role == "user"] == ["one", "two"]


def test_an_answer_that_never_came_is_no_place_to_go_on_from(session: Session) -> None:
    """It failed, or was left before its first token: the next line is a message behind the exchange before."""
    ask(session, "one")
    first = session.conversation.head
    with pytest.raises(Overflow):
        ask(session, "word " * 600)
    talk = session.conversation
    for state in ("failed", "cancelled"):
        talk.close(talk.add("assistant", "", 3, "open"), "", state)
        for line in ("/go 2", "/branch 2"):
            run(session, line)
            assert talk.head == first
    talk.close(talk.add("assistant", "", 3, "open"), "half", "cancelled")
    run(session, "/go 2")
    assert said(session)[-1] == ("assistant", "half")


def test_plain_continuation_stands_beside_the_conversation(session: Session) -> None:
    ask(session, "one")
    before = session.conversation.messages()
    run(session, "/raw Once upon")
    assert session.conversation.messages() == before
    assert run(session, "/tree").turns[-1].role == "completion"


def test_files_read_go_in_front_of_the_next_message_only(session: Session, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("some text", "utf-8")
    run(session, f"/read {tmp_path / 'note.txt'}")
    ask(session, "what is it")
    assert said(session)[0] == ("user", "note.txt:\nsome text\n\nwhat is it")
    ask(session, "and now")
    assert said(session)[2] == ("user", "and now")


def test_another_model_reads_the_same_conversation(
    session: Session, metaspace_folder: Path, llama_folder: Path
) -> None:
    run(session, "/system Be brief")
    ask(session, "one")
    before = session.conversation.messages()
    run(session, f"/model {metaspace_folder}", "/mode chat")
    assert session.conversation.messages() == before
    run(session, f"/model {llama_folder}", "/mode auto", "/system none")


def test_history_and_tree_show_every_turn(session: Session) -> None:
    ask(session, "one")
    run(session, "/retry seed=1 do_sample=on")
    ask(session, "two")
    forest, listed = run(session, "/tree"), run(session, "/history")
    assert [(turn.id, turn.number) for turn in forest.turns] == [(1, 1), (2, 1), (3, 2), (4, 3), (5, 3)]
    assert forest.current == [turn.id for turn in listed.turns] == [1, 3, 4, 5]
    assert [turn.number for turn in listed.turns] == [2, 2, 3, 3]


def test_every_completion_stands_under_its_text(session: Session) -> None:
    """Also one that came after other texts, as /replay makes them."""
    run(session, "/raw one", "/raw two")
    talk = session.conversation
    talk.close(talk.add("completion", "", 1, "open"), "again", "complete")
    listed = run(session, "/history").turns
    assert [(turn.id, turn.number) for turn in listed] == [(1, 3), (2, 1), (5, 3), (3, 2), (4, 2)]


def test_every_command_takes_the_number_of_an_exchange(session: Session) -> None:
    """One number for a question and its answer, another for a second answer, and one for a completion."""
    ask(session, "one")
    first = session.last
    run(session, "/retry seed=1 do_sample=on")
    run(session, "/raw Once upon")
    assert [turn.exchange for turn in session.conversation.turns.values()] == [1, 1, 2, 3, 3]
    assert run(session, "/inspect 1").tokens[0].id == first.record.token_ids[0]
    assert run(session, "/reproduce 2").exchange == run(session, "/recipe 2").exchange == 2
    assert run(session, "/reproduce 3").identical
    assert run(session, "/edit 2").draft == "one"
    run(session, "/go 1")
    assert session.conversation.path()[-1] == first
    assert "exchange 1 undone · /go 1 returns" in run(session, "/undo").text
    for line in ("/go 3", "/branch 3", "/edit 3"):
        with pytest.raises(UsageError, match="exchange 3 is a completion"):
            run(session, line)
    assert registry.complete_line("/inspect ", session)[0] == ("3", "Once upon")


def test_an_answer_that_failed_leaves_its_number_to_the_next() -> None:
    talk = Conversation()
    asked = talk.add("user", "one", None)
    talk.close(talk.add("assistant", "", asked.id, "open"), "", "failed")
    talk.close(talk.add("assistant", "", asked.id, "open"), "yes", "complete")
    talk.close(talk.add("assistant", "", asked.id, "open"), "no", "complete")
    assert [turn.exchange for turn in talk.turns.values()] == [1, 1, 1, 2]
    assert (talk.exchange(1).text, talk.exchange(2).text) == ("yes", "no")


@given(st.lists(st.sampled_from(["say", "undo", "retry", "branch", "clear", "go"]), max_size=30), st.randoms())
def test_whatever_is_done_every_turn_stays_and_the_path_alternates(steps: list[str], random: object) -> None:
    """Law over random walks in the tree, without a model."""
    talk = Conversation()
    kept: dict[int, str] = {}
    for number, step in enumerate(steps):
        if step == "say":
            asked = talk.add("user", f"m{number}", talk.head)
            talk.head = talk.close(talk.add("assistant", "", asked.id, "open"), f"r{number}", "complete").id
        elif step == "retry" and talk.head:
            talk.head = talk.add("assistant", f"r{number}", talk.turns[talk.head].parent).id
        elif step == "undo" and talk.head:
            talk.undo(1)
        elif step == "go" and talk.turns:
            talk.head = talk.leaf(talk.exchange(1)).id
        elif step == "clear":
            talk.clear()
        kept.update({turn.id: turn.text for turn in talk.turns.values()})
        assert {turn.id: turn.text for turn in talk.turns.values()} == kept
        roles = [turn.role for turn in talk.path()]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        again = Conversation(turns={one: replace(turn, exchange=0) for one, turn in talk.turns.items()})
        assert [turn.exchange for turn in again.turns.values()] == [turn.exchange for turn in talk.turns.values()]
