"""A beam search that is watched: what is shown is what is alive, the winner comes of it, the rest can be had."""

import time
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest
from conftest import Recorder
from driving import ask, ask_until, bare, choose, generated, listen, opened, run

from repl.core.errors import UsageError
from repl.core.events import Beams, Token
from repl.generation.decode.beams import FRAME_S, Watch
from repl.generation.decode.detokenizer import common_length

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def folder(gpt2_folder):
    return gpt2_folder


@pytest.fixture
def session(folder):
    with opened(folder, max_new_tokens=8) as session:
        yield session


@pytest.fixture
def chat(llama_folder):
    with opened(llama_folder, max_new_tokens=8) as session:
        yield session


@contextmanager
def slowed(session, seconds: float = 1.2 * FRAME_S):
    """Let each step take so long that every one of them is shown."""
    hook = session.store.current().model.register_forward_pre_hook(lambda *_: time.sleep(seconds))
    try:
        yield
    finally:
        hook.remove()


def searched(model: Any, prompt: list[int], width: int, steps: int) -> list[list[tuple[list[int], float]]]:
    """A beam search by hand: the live hypotheses after each step with their summed log-probabilities.

    Every hypothesis goes through the model from its beginning. The best `2 * width` extensions are looked at; one
    that ends leaves the search.
    """
    import torch

    alive, history = [([], 0.0)], []
    for _ in range(steps):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids for ids, _ in alive])).logits[:, -1]
        sums = logits.log_softmax(-1) + torch.tensor([[total] for _, total in alive])
        values, places = sums.flatten().topk(2 * width)
        made = [
            ([*alive[place // logits.shape[-1]][0], place % logits.shape[-1]], value)
            for value, place in zip(values.tolist(), places.tolist(), strict=True)
        ]
        alive = [one for one in made if one[0][-1] != model.generation_config.eos_token_id][:width]
        history.append(alive)
    return history


@pytest.mark.slow
@pytest.mark.library
@pytest.mark.parametrize("kind", ["gpt2", "llama", "recurrent"])
@pytest.mark.parametrize("width", [2, 4])
def test_the_hypotheses_shown_are_those_of_a_search_by_hand(kind, width, request):
    """Every step is shown with the texts and cumulative scores that a plain search finds, best first."""
    folder = request.getfixturevalue(f"{kind}_folder")
    model, tokenizer = bare(folder)
    with opened(folder, max_new_tokens=8) as session:
        choose(session, {"num_beams": width, "max_new_tokens": 8})
        with slowed(session):
            done, events = listen(session, PROMPT)
    shown = [event for event in events if isinstance(event, Beams)]
    expected = searched(model, list(done.prompt_ids), width, 7)
    assert [event.step for event in shown] == list(range(1, 8))
    for event, alive in zip(shown, expected, strict=True):
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids, _ in alive]
        assert [event.common + branch.text for branch in event.branches] == texts
        assert [branch.score for branch in event.branches] == pytest.approx([total for _, total in alive], abs=1e-3)


@pytest.mark.slow
@pytest.mark.library
def test_the_winner_is_one_of_the_last_hypotheses_with_one_more_token(session):
    choose(session, {"num_beams": 4, "max_new_tokens": 8})
    run(session, "/set suppress_tokens [0]")  # so that none has ended before
    with slowed(session):
        done, events = listen(session, PROMPT)
    last = [event for event in events if isinstance(event, Beams)][-1]
    before = session.store.current().tokenizer.decode(list(done.token_ids[:-1]), skip_special_tokens=True)
    assert len(done.token_ids) == 8
    assert before in [last.common + branch.text for branch in last.branches]


@pytest.mark.slow
def test_a_winner_that_ended_early_was_alive_until_then(scripted_folder):
    """The scripted model ends its reply by itself: the search stops there, and nothing of the padding is kept."""
    with opened(scripted_folder(b"hello there"), max_new_tokens=30) as session:
        choose(session, {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 30, "early_stopping": True})
        with slowed(session):
            done, events = listen(session, "hi")
        tokenizer = session.store.current().tokenizer
    assert (done.text, done.finish) == ("hello there", "stop")
    assert done.token_ids[-1] == tokenizer.eos_token_id
    assert all(found.token_ids.count(tokenizer.eos_token_id) <= 1 for found in done.sequences)
    alive = {event.common + branch.text for event in events if isinstance(event, Beams) for branch in event.branches}
    assert "hello there" in alive


@pytest.mark.slow
@pytest.mark.library
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0, -0.5])
def test_the_score_of_a_sequence_is_its_logprob_over_its_length(folder, penalty):
    """Each sequence goes through the model once more: the sum of its tokens' log-probabilities, length-penalised."""
    import torch

    model, _ = bare(folder)
    values = {"num_beams": 4, "num_return_sequences": 4, "length_penalty": penalty, "max_new_tokens": 8}
    with opened(folder) as session:
        choose(session, values)
        done = ask(session, PROMPT)
    for found in done.sequences:
        ids = [*done.prompt_ids, *found.token_ids]
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0, len(done.prompt_ids) - 1 : -1].log_softmax(-1)
        total = sum(row[token].item() for row, token in zip(logs, found.token_ids, strict=True))
        assert found.score == pytest.approx(total / len(found.token_ids) ** penalty, rel=1e-3)
    scores = [found.score for found in done.sequences]
    assert scores == sorted(scores, reverse=True)


def test_the_winner_is_told_as_tokens_after_the_search(session):
    run(session, "/beams 3")
    done, events = listen(session, PROMPT)
    tokens = [event for event in events if isinstance(event, Token)]
    assert [token.id for token in tokens if token.id is not None] == list(done.token_ids)
    assert "".join(token.text for token in tokens) == done.text == done.sequences[0].text
    places = [isinstance(event, Token) for event in events]
    assert places == sorted(places)


@pytest.mark.library
def test_drawn_beams_show_no_scores(session):
    """Their log-probabilities are warped after the watch has seen them: a number would be wrong."""
    choose(session, {"num_beams": 2, "do_sample": True, "seed": 3, "max_new_tokens": 6})
    with slowed(session):
        _, events = listen(session, PROMPT)
    shown = [event for event in events if isinstance(event, Beams)]
    assert shown
    assert {branch.score for event in shown for branch in event.branches} == {None}


def test_a_quick_search_is_drawn_no_more_often_than_eyes_see(session):
    run(session, "/beams 2", "/max 60", "/set suppress_tokens [0]")
    began = time.monotonic()
    _, events = listen(session, PROMPT)
    assert len([event for event in events if isinstance(event, Beams)]) <= (time.monotonic() - began) / FRAME_S + 1


# cancel


@pytest.mark.slow
@pytest.mark.library
@pytest.mark.parametrize("step", [1, 5])
def test_a_cancelled_search_keeps_its_best_so_far(session, step):
    """The text is one of the hypotheses of the steps just then, and the next search is whole."""
    choose(session, {"num_beams": 3, "max_new_tokens": 40})
    run(session, "/set suppress_tokens [0]")
    shown: list[Beams] = []

    def enough(event) -> bool:
        shown.extend([event] if isinstance(event, Beams) else [])
        return isinstance(event, Beams) and event.step >= step

    with slowed(session):
        done = ask_until(session, PROMPT, enough)
    assert done.finish == "cancelled"
    assert done.text
    assert step <= len(done.token_ids) < 40
    assert session.last.text == done.text
    assert session.last.state == "cancelled"
    history = searched(*hypotheses_of(session, done), 3, len(done.token_ids))
    assert list(done.token_ids) in [ids for alive in history[-2:] for ids, _ in alive]
    run(session, "/max 6")
    assert len(ask(session, PROMPT).token_ids) == 6


def hypotheses_of(session, done) -> tuple[Any, list[int]]:
    """The model with the end suppressed as the session has it, and the prompt."""
    model = session.store.current().model

    def silenced(ids):
        output = model(ids)
        output.logits[..., 0] = -float("inf")
        return output

    silenced.generation_config = model.generation_config
    return silenced, list(done.prompt_ids)


def test_a_search_cancelled_before_its_first_step_is_empty_and_whole_again(session):
    """In the prompt's own pass nothing has been found yet."""
    run(session, "/beams 2")
    with slowed(session):
        done = ask_until(session, PROMPT, lambda _: True)  # the echo of the prompt comes first
    assert done.finish == "cancelled"
    assert len(done.token_ids) <= 2
    assert len(ask(session, PROMPT).token_ids) == 8


def test_a_search_that_breaks_off_keeps_its_best_so_far(session):
    calls = count()

    def fail(*_):
        if next(calls) == 5:
            raise RuntimeError("boom")

    run(session, "/beams 3")
    hook = session.store.current().model.register_forward_pre_hook(fail)
    with pytest.raises(Exception, match=r"^the reply stopped: boom$") as caught:
        ask(session, PROMPT)
    hook.remove()
    assert len(caught.value.partial.token_ids) == 4
    assert session.last.text == caught.value.partial.text


# pick


def test_pick_takes_another_sequence_as_the_answer(chat):
    """What follows builds on it, the record says its ids, and it can be changed again."""
    run(chat, "/beams 4")
    done = ask(chat, "hello")
    assert len({found.token_ids for found in done.sequences}) == 4
    for number in (3, 1, 2):
        picked = run(chat, f"/pick {number}")
        found = done.sequences[number - 1]
        assert (picked.text, picked.token_ids, picked.score) == (found.text, found.token_ids, found.score)
        assert [turn.text for turn in chat.conversation.path()] == ["hello", found.text]
        assert chat.last.record.token_ids == found.token_ids
    said = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": done.sequences[1].text},
        {"role": "user", "content": "more"},
    ]
    whole = chat.store.current().tokenizer.apply_chat_template(
        said, add_generation_prompt=True, sanitize_control_tokens=True
    )
    assert list(ask(chat, "more").prompt_ids) == whole["input_ids"]


def test_pick_works_for_several_draws(chat):
    run(chat, "/sample", "/seed 3", "/num_return_sequences 3")
    done = ask(chat, "hello")
    assert run(chat, "/pick 3").token_ids == done.sequences[2].token_ids
    assert done.sequences[2].score is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "line", "words"),
    [
        ([], "/pick 1", "no other sequences"),
        (["hello"], "/pick 2", "no other sequences"),
        (["/beams 2", "hello"], "/pick 3", "there are 2 sequences, not 3"),
        (["/beams 2", "hello"], "/pick 0", "'0'"),
        (["/beams 2", "hello"], "/pick", "needs number"),
    ],
)
def test_a_sequence_that_is_not_there_is_one_sentence(chat, before, line, words):
    run(chat, *before)
    path = chat.conversation.path()
    with pytest.raises(UsageError, match=words):
        run(chat, line)
    assert chat.conversation.path() == path


@pytest.mark.parametrize("lines", [["/num_return_sequences 3"], ["/num_beams 2", "/num_return_sequences 3"]])
def test_more_sequences_than_the_search_can_give_are_refused_with_what_to_type(session, lines):
    run(session, *lines)
    with pytest.raises(UsageError, match="num_return_sequences 3 needs") as caught:
        ask(session, PROMPT)
    assert "/beams 3" in caught.value.hints
    run(session, "/beams 3")
    assert len(ask(session, PROMPT).sequences) == 3


def test_beams_returns_as_many_as_it_searches_and_one_turns_it_off(session):
    run(session, "/beams 3 length_penalty=0.5")
    assert len(ask(session, PROMPT).sequences) == 3
    run(session, "/beams 1")
    assert ask(session, PROMPT).sequences == ()


# the watch alone


@pytest.mark.library
def test_the_watch_changes_nothing(folder):
    import torch

    watch = Watch(bare(folder)[1], Recorder())
    scores = torch.randn(3, 20)
    assert watch(torch.tensor([[1, 2]] * 3), scores) is scores
    assert torch.equal(watch(torch.tensor([[1, 2, n] for n in range(3)]), scores), scores)
    assert watch.best() == [0]
    assert Watch(None, Recorder()).best() == []


@pytest.mark.library
def test_the_watch_sees_what_generate_returns_in_the_end(folder):
    """The hypotheses before the last step are the sequences of a search that is one step shorter."""
    from transformers import LogitsProcessorList

    model, tokenizer = bare(folder)
    prompt, seen = tokenizer(PROMPT)["input_ids"], []
    watch = Watch(tokenizer, Recorder())

    def look(ids, scores):
        watch(ids, scores)
        seen.append(watch.picture(ids) if watch.steps else None)
        return scores

    values = {"num_beams": 3, "length_penalty": 0.0, "suppress_tokens": [0]}
    generated(
        model, tokenizer, prompt, {**values, "max_new_tokens": 6, "logits_processor": LogitsProcessorList([look])}
    )
    rows, scores = generated(model, tokenizer, prompt, {**values, "max_new_tokens": 5, "num_return_sequences": 3})
    assert [tokenizer.decode(row, skip_special_tokens=True) for row in rows] == [
        seen[-1].common + branch.text for branch in seen[-1].branches
    ]
    assert [branch.score for branch in seen[-1].branches] == pytest.approx(scores, abs=1e-4)


@pytest.mark.parametrize(
    ("rows", "shared"), [([[1, 2, 3], [1, 2, 4]], 2), ([[1], [2]], 0), ([[5, 6]], 2), ([[1, 2], [1]], 1), ([[]], 0)]
)
def test_common_counts_the_leading_ids_that_all_share(rows, shared):
    assert common_length(*rows) == shared
