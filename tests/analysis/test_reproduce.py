"""The same reply again from its record: identical, or the first difference with its margin and what changed."""

import io
import json
from dataclasses import replace

import pytest
from decoding import ways
from driving import ask, ask_until, bare, choose, finish, opened, run
from rich.console import Console

from repl.commands import registry
from repl.commands.reproduce import Reproduced
from repl.core.errors import Cancelled, UsageError
from repl.core.events import Progress, Token
from repl.core.reply import Environment, Reply
from repl.session.session import Session
from repl.terminal.screen import THEME, as_record, render

STORY = "Once upon a time"


@pytest.fixture(scope="module")
def session(gpt2_folder):
    with opened(gpt2_folder) as session:
        yield session


@pytest.fixture(scope="module")
def chat(llama_folder):
    with opened(llama_folder) as session:
        yield session


def forged(session: Session, **changes: object) -> Reply:
    """Change what is written down of the last reply."""
    turn = session.last
    assert turn is not None
    assert turn.record is not None
    record = replace(turn.record, **changes)
    session.last = session.conversation.close(turn, turn.text, "complete", record)
    return record


def drawn(result: Reproduced, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), theme=THEME, highlight=False)
    console.print(render(result))
    return console.file.getvalue()


CASES = {
    **ways("greedy", "sample, all knobs", "beams 4, long ones", "sample, three answers"),
    "sample, without a seed": {"do_sample": True},
    "greedy, penalties and a stop string": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "stop": ["e"]},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_id_is_the_same(session, name):
    choose(session, {"max_new_tokens": 20, **CASES[name]})
    done = ask(session, STORY)
    found = run(session, "/reproduce")
    assert found.identical
    assert (found.same, found.total, found.fork) == (len(done.token_ids), len(done.token_ids), None)
    assert found.token_ids == done.token_ids
    assert found.changed == []
    assert drawn(found) == f"{found.total} of {found.total} token ids identical · exchange {session.last.exchange}\n"


@pytest.mark.slow
def test_a_chat_with_its_beginning_and_what_a_cache_gave(chat):
    """Earlier turns, a system text, a prefill, a reply that was stopped and one that went on."""
    run(chat, "/max 9", "/system Be brief.", "Hi", "/prefill Well,", "And you?")
    assert run(chat, "/reproduce").identical
    reused = run(chat, "/reproduce").reused
    assert reused == chat.last.record.usage.reused > 0
    kept = chat.last.record
    forged(chat, token_ids=(*kept.token_ids, 9))
    assert f"{reused} tokens of the prompt came from the KV cache then" in drawn(run(chat, "/reproduce"))
    forged(chat, token_ids=kept.token_ids)
    run(chat, "/continue")
    assert run(chat, "/reproduce").identical
    assert run(chat, "/reproduce").total == 9
    ask_until(chat, "/retry max_new_tokens=300", lambda event: isinstance(event, Token) and event.id is not None)
    assert run(chat, "/reproduce").identical
    assert run(chat, "/reproduce 2").exchange == 2


def test_it_leaves_the_conversation_and_the_cache_as_they_were(chat):
    """The next reply reuses what it would have reused, and stands where it would have stood."""
    run(chat, "/reset", "/max 8", "/clear", "One", "/reproduce", "Two")
    with_it, turns = chat.last.record, len(chat.conversation.turns)
    run(chat, "/reproduce")
    assert len(chat.conversation.turns) == turns
    run(chat, "/clear", "One", "Two")
    assert with_it.usage == chat.last.record.usage
    assert with_it.token_ids == chat.last.record.token_ids


@pytest.mark.parametrize("place", [0, 7, 11])
def test_a_forged_record_is_reported_at_the_forged_token(session, gpt2_folder, place):
    """With the distance of the two tokens, computed independently by a plain forward pass."""
    import torch

    run(session, "/reset", "/max 12")
    done = ask(session, STORY)
    true = done.token_ids[place]
    forged(session, token_ids=(*done.token_ids[:place], 77, *done.token_ids[place + 1 :]))
    found = run(session, "/reproduce")
    assert not found.identical
    assert (found.same, found.total) == (place, 12)
    assert (found.fork.then.id, found.fork.now.id) == (77, true)
    model, tokenizer = bare(gpt2_folder)
    with torch.no_grad():
        logs = model(torch.tensor([[*done.prompt_ids, *done.token_ids[:place]]])).logits[0, -1].log_softmax(-1)
    assert found.fork.then.logprob == pytest.approx(float(logs[77]), abs=1e-4)
    assert found.fork.margin == pytest.approx(float(logs[true] - logs[77]), abs=1e-4)
    assert found.fork.now.text == tokenizer.decode([true])
    record = json.loads(json.dumps(as_record("reproduce", found)))
    assert record["data"]["fork"]["margin"] == found.fork.margin
    said = drawn(found)
    assert said.startswith(f"{place} of 12 token ids identical")
    assert f"first difference at token {place + 1}" in said
    assert "versions, dtype, device, attention and threads are the same" in said


def test_a_record_that_is_shorter_or_longer_is_reported_at_its_end(session):
    run(session, "/reset", "/max 12")
    done = ask(session, STORY)
    forged(session, token_ids=done.token_ids[:5])
    found = run(session, "/reproduce")
    assert (found.same, found.total, found.fork.then.id, found.fork.margin) == (5, 5, None, None)
    assert not found.identical
    assert "the end" in drawn(found)
    forged(session, token_ids=(*done.token_ids, 5, 6))
    found = run(session, "/reproduce")
    assert (found.same, found.total, found.fork.now.id) == (12, 14, None)


@pytest.mark.slow
def test_what_changed_since_is_said(session, gpt2_folder):
    """Versions and threads of the record, and the format that the model is in now."""
    run(session, "/reset", "/max 4", STORY)
    record = session.last.record
    places = replace(record.environment, threads=64, attention="eager")
    forged(session, versions={**record.versions, "torch": "2.9.1"}, environment=places)
    run(session, "/dtype bfloat16", "/info")
    found = run(session, "/reproduce")
    then = {one.name: one.then for one in found.changed}
    assert then == {"torch": "2.9.1", "dtype": "float32", "threads": "64", "attention": "eager"}
    assert "dtype was float32, is bfloat16" in drawn(found)
    forged(session, versions={}, environment=Environment(), given={})
    assert [one.name for one in run(session, "/reproduce").changed] == ["dtype"]
    run(session, "/dtype float32", "/info")


@pytest.mark.slow
def test_a_reply_of_another_model_names_the_line_that_loads_it(gpt2_folder, recurrent_folder):
    with opened(gpt2_folder) as session:
        run(session, "/max 5", STORY, f"/model {recurrent_folder}", "/info")
        with pytest.raises(UsageError, match="was generated by") as refused:
            run(session, "/reproduce")
        assert refused.value.hints == (f"/model {gpt2_folder}",)
        run(session, *refused.value.hints, "/info")
        assert run(session, "/reproduce").identical


@pytest.mark.slow
def test_it_can_be_stopped(session):
    run(session, "/reset", "/max 60", STORY)
    task = registry.parse_line("/reproduce").run(session)
    with pytest.raises(Cancelled):
        finish(task, lambda event: task.job.cancel() if isinstance(event, Progress) else None)
    assert run(session, "/reproduce").identical


def test_without_a_model_or_a_reply_it_says_so(session, gpt2_folder):
    with opened(gpt2_folder) as fresh:
        with pytest.raises(UsageError, match="no replies yet"):
            run(fresh, "/reproduce")
        with pytest.raises(UsageError, match="no exchange 3"):
            run(fresh, "/reproduce 3")
