"""Two ways of loading over one reply: the numbers of plain arithmetic, and the verdict that follows from them."""

import json
from dataclasses import replace
from math import exp

import models
import pytest
from driving import ask, bare, drawn, finish, opened, refused, run
from rich.cells import cell_len

from repl.analysis.diverge import Diverged, DivergedStep, DivergedToken, FirstFlip
from repl.commands import registry
from repl.commands.diverge import BARS, bin_peaks, column, spark
from repl.core.errors import Cancelled, ReplError, UsageError
from repl.models.memory.available import Room
from repl.terminal.screen import as_record

KINDS = ["llama", "gpt2", "recurrent"]
PROMPT = "The quick brown fox"


@pytest.fixture
def folder(request, kind):
    return request.getfixturevalue(f"{kind}_folder")


def plain(folder, dtype, prompt, made):
    """Log-probabilities at each token of a reply, from one forward pass of the library: shape (tokens, vocab)."""
    import torch

    model, _ = bare(folder, dtype)
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *made]])).logits[0, len(prompt) - 1 : -1]
    return logits.double().log_softmax(-1)


def check(found, folder, dtypes, tolerance):
    """Compare every number with plain arithmetic on both models."""
    one, two = (plain(folder, dtype, found.prompt_ids, found.token_ids) for dtype in dtypes)
    kl = (one.exp() * (one - two)).sum(-1)
    assert [step.kl for step in found.steps] == pytest.approx(kl.tolist(), rel=tolerance, abs=tolerance)
    assert found.kl_most == max(step.kl for step in found.steps)
    flips = [place for place in range(len(one)) if one[place].argmax() != two[place].argmax()]
    assert [place for place, step in enumerate(found.steps) if not step.agrees] == flips
    assert found.agreeing == len(one) - len(flips)
    for step, left, right in zip(found.steps, one, two, strict=True):
        if step.agrees:
            leads = [float(logs.topk(2).values.diff().abs()) for logs in (left, right)]
        else:
            leads = [float(left[step.first] - left[step.second]), float(right[step.second] - right[step.first])]
        assert step.margins == pytest.approx(leads, abs=tolerance * 50)
    if flips:
        fork, place = found.fork, flips[0]
        assert (fork.place, fork.first.id, fork.second.id) == (place + 1, one[place].argmax(), two[place].argmax())
        assert fork.first.probabilities == pytest.approx(
            [exp(logs[place][fork.first.id]) for logs in (one, two)], abs=1e-3
        )
        assert fork.tie == (max(found.steps[place].margins) < 0.1)
    assert (found.fork is None) == (not flips)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_are_those_of_plain_forward_passes(kind, dtype, folder):
    """Tiny models of three kinds, in both halves, where the library runs them on this machine."""
    with opened(folder, max_new_tokens=40) as session:
        done = ask(session, PROMPT)
        found = run(session, f"/diverge dtype={dtype}")
    assert not found.made
    assert found.whole
    assert found.token_ids == done.token_ids
    assert found.names == ("float32", dtype)
    check(found, folder, ("float32", dtype), 2e-4)


@pytest.mark.slow
def test_the_built_in_model_in_float32_and_bfloat16(builtin_folder):
    """The question that this program starts from, on a real model."""
    with opened(builtin_folder, max_new_tokens=24) as session:
        ask(session, "Write one sentence about a river.")
        found = run(session, "/diverge dtype=bfloat16")
    one, two = (plain(builtin_folder, dtype, found.prompt_ids, found.token_ids) for dtype in ("float32", "bfloat16"))
    assert [step.first for step in found.steps] == one.argmax(-1).tolist()
    assert [step.id for step in found.steps] == one.argmax(-1).tolist()
    kl = (one.exp() * (one - two)).sum(-1).tolist()
    assert [step.kl for step in found.steps] == pytest.approx(kl, rel=0.2, abs=2e-3)  # chunks round otherwise in bf16


@pytest.mark.slow
def test_both_texts_go_on_from_the_fork(llama_folder):
    """The first is the reply as it was, the second what the other model says greedily from there."""
    import torch

    with opened(llama_folder, max_new_tokens=40) as session:
        done = ask(session, "Once upon a time")
        found = run(session, "/diverge dtype=bfloat16")
    assert found.fork is not None
    model, tokenizer = bare(llama_folder, "bfloat16")
    before = [*done.prompt_ids, *done.token_ids[: found.fork.place - 1]]
    ids = model.generate(torch.tensor([before]), max_new_tokens=24, do_sample=False)[0].tolist()
    start = tokenizer.decode(before, skip_special_tokens=True)
    assert found.fork.onward[1] == tokenizer.decode(ids, skip_special_tokens=True)[len(start) :]
    assert ids[len(before)] == found.fork.second.id
    rest = [*before, *done.token_ids[found.fork.place - 1 :][:24]]
    assert found.fork.onward[0] == tokenizer.decode(rest, skip_special_tokens=True)[len(start) :]


@pytest.mark.slow
def test_the_same_numbers_are_the_same(llama_folder):
    """Another attention leaves every step as it was, and that is the first thing said."""
    with opened(llama_folder, max_new_tokens=30) as session:
        ask(session, PROMPT)
        found = run(session, "/diverge attention=eager")
    assert found.fork is None
    assert found.agreeing == len(found.steps) == 30
    assert found.kl_most < 1e-5
    assert drawn(found).startswith("no difference: 30 tokens, the most likely in both\n")


@pytest.mark.slow
def test_a_sampled_reply_gives_way_to_a_greedy_one(llama_folder):
    """It is made for the occasion, said to be, and leaves the conversation as it was."""
    with opened(llama_folder, max_new_tokens=12) as session:
        greedy = ask(session, PROMPT)
        sampled = run(session, "/retry do_sample=on temperature=3 seed=1")
        turns = dict(session.conversation.turns)
        found = run(session, "/diverge dtype=bfloat16")
        assert found.made
        assert found.token_ids == greedy.token_ids != sampled.token_ids
        assert session.conversation.turns == turns
        assert "on a greedy reply generated now" in drawn(found)
        other = run(session, "/diverge dtype=bfloat16 -- Once upon a time")
        assert other.made
        assert other.prompt_ids != found.prompt_ids


@pytest.mark.slow
def test_a_reply_counts_with_the_settings_that_made_it(llama_folder):
    """Whatever is set now: it was greedy, and its own penalty is part of what the likeliest token is."""
    with opened(llama_folder, max_new_tokens=20) as session:
        done = run(session, "/repetition_penalty 1.5", PROMPT)
        before = run(session, "/diverge dtype=bfloat16")
        found = run(session, "/repetition_penalty default", "/top_k 3", "/diverge dtype=bfloat16")
        assert not found.made
        assert found.token_ids == done.token_ids == tuple(step.first for step in found.steps)
        assert found == before


def test_a_reply_with_a_token_put_in_is_not_greedy(llama_folder):
    """One is made now, each of whose tokens is the likeliest."""
    with opened(llama_folder, max_new_tokens=4) as session:
        done = ask(session, PROMPT)
        other = next(token for token in range(60, 90) if token != done.token_ids[0])
        run(session, f"/take 1 {other}")
        found = run(session, "/diverge dtype=bfloat16")
    assert found.made
    assert found.token_ids == tuple(step.first for step in found.steps) == done.token_ids


@pytest.mark.slow
def test_penalties_count_on_both_sides(llama_folder):
    """The likeliest token is the one after what the library does to the logits, on both sides."""
    from transformers import RepetitionPenaltyLogitsProcessor

    with opened(llama_folder, max_new_tokens=25, repetition_penalty=1.4) as session:
        ask(session, PROMPT)
        found = run(session, "/diverge dtype=bfloat16")
    import torch

    ids, size = [*found.prompt_ids, *found.token_ids], len(found.prompt_ids)
    for dtype, side in (("float32", "first"), ("bfloat16", "second")):
        model, _ = bare(llama_folder, dtype)
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, size - 1 : -1].float()
        penalty = RepetitionPenaltyLogitsProcessor(1.4)
        wanted = [int(penalty(torch.tensor([ids[: size + at]]), row[None]).argmax()) for at, row in enumerate(logits)]
        assert [getattr(step, side) for step in found.steps] == wanted


@pytest.mark.slow
def test_another_model_with_the_same_tokenizer(llama_folder, tmp_path):
    """Other weights behind the same vocabulary compare, and the first model stays the current one."""
    other = models.llama(tmp_path / "other", seed=1)
    with opened(llama_folder, max_new_tokens=12) as session:
        ask(session, PROMPT)
        found = run(session, f"/diverge model={other}")
        assert session.facts().id == str(llama_folder)
    assert found.names[1] == "other"
    assert found.kl_mean > 0.5
    assert found.agreeing < 6
    assert "a real change: " in drawn(found)


def test_another_tokenizer_is_refused_with_the_reason(llama_folder, metaspace_folder):
    with opened(llama_folder, max_new_tokens=4) as session:
        ask(session, PROMPT)
        with pytest.raises(UsageError, match=r"a different tokenizer: .* of the 500 tokens"):
            run(session, f"/diverge model={metaspace_folder}")
        assert len(session.store.residents()) == 1


@pytest.mark.slow
def test_what_does_not_fit_beside_is_loaded_in_turn(llama_folder):
    """The numbers are the same, and the model before is the current one again."""
    with opened(llama_folder, max_new_tokens=20) as session:
        ask(session, PROMPT)
        beside = run(session, "/diverge dtype=bfloat16")
        size = session.facts().bytes
        assert len(session.store.residents()) == 1
        run(session, "/reload")
        room = [Room("cpu", int(size * 1.3), 2**40)]
        session.store.measure = lambda: room
        found = run(session, "/diverge dtype=bfloat16")
        assert not found.whole
        assert replace(found, whole=True) == beside
        assert session.facts().dtype == "float32"
        assert len(session.store.residents()) == 1
        assert "loaded in turn" in drawn(found)
        assert run(session, "/retry").token_ids == beside.token_ids


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "needs text"),
        ("temperature=0.7", "temperature does not change the model's logits"),
        ("dtype=float16 temperature=0.7", "temperature does not change the model's logits"),
        ("dtype=bf17", "'bf17' is not one of"),
        ("dtype=float32", "is already loaded with dtype=float32"),
        ("dtype=float16", "there is no message yet"),
        ("-- hello", "needs a load setting"),
    ],
)
def test_a_wrong_line_is_one_sentence(line, said, quiet_session):
    """Nothing is loaded for it."""
    refused(quiet_session, f"/diverge {line}", said)
    assert len(quiet_session.store.residents()) == 1


@pytest.fixture(scope="module")
def quiet_session(gpt2_folder):
    with opened(gpt2_folder, max_new_tokens=4) as session:
        yield session


def test_a_device_that_is_not_there_changes_nothing(gpt2_folder):
    """Loading says why, and the model stays."""
    with opened(gpt2_folder, max_new_tokens=4) as session:
        done = ask(session, PROMPT)
        with pytest.raises(ReplError):
            run(session, "/diverge device=cuda:77")
        assert len(session.store.residents()) == 1
        assert run(session, "/retry").token_ids == done.token_ids


@pytest.mark.slow
def test_the_result_is_whole_in_json(llama_folder):
    """Every step stands there with both candidates and both margins."""
    with opened(llama_folder, max_new_tokens=10) as session:
        ask(session, PROMPT)
        found = run(session, "/diverge dtype=bf16")
    record = json.loads(json.dumps(as_record("diverge", found)))["data"]
    assert len(record["steps"]) == 10
    assert set(record["steps"][0]) >= {"id", "kl", "first", "second", "margins"}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["generating a greedy reply", "comparing"])
def test_a_cancel_leaves_everything_as_it_was(stage, llama_folder):
    """Wherever it comes, the model, the conversation and the next reply are the same."""
    with opened(llama_folder, max_new_tokens=30) as session:
        done = ask(session, PROMPT)
        run(session, "/retry do_sample=on seed=1")
        turns = dict(session.conversation.turns)
        task = registry.parse_line("/diverge dtype=bfloat16").run(session)
        with pytest.raises(Cancelled):
            finish(task, lambda event: task.job.cancel() if getattr(event, "stage", "") == stage else None)
        assert session.conversation.turns == turns
        assert session.facts().dtype == "float32"
        assert run(session, "/retry").token_ids == done.token_ids


# the drawing


def forked(margins, tie, text=" beauty"):
    tokens = DivergedToken(5, text, (0.18, 0.17)), DivergedToken(6, " great", (0.17, 0.19))
    fork = FirstFlip(28, *tokens, margins, tie, ("a\nb", ""))
    steps = (DivergedStep(5, "x", 0.01, 5, 6, (0.05, 0.06)),) * 200
    return Diverged(
        ("float32", "bfloat16 eager"),
        False,
        (1,),
        (5,) * 200,
        "",
        steps,
        199,
        fork,
        0.1,
        0.2,
        3,
        True,
    )


def test_the_verdict_names_its_number():
    """Below 0.1 nats in both it is a near tie, else a real change."""
    assert "a near tie: neither leads by 0.1 nats" in drawn(forked((0.05, 0.06), True))
    said = drawn(forked((0.05, 0.3), False))
    assert "a real change: bfloat16 eager leads by 0.30 nats" in said
    assert "(ends)" in said


@pytest.mark.parametrize("width", [60, 100, 140])
def test_the_drawing_fits_its_window(width):
    """A long reply is drawn in the columns there are."""
    text = drawn(forked((0.05, 0.06), True, " 你好 \x1b[31m beauty"), width)
    assert all(cell_len(row) <= width for row in text.splitlines())
    assert "\x1b" not in text
    assert any(row.startswith("KL ") for row in text.splitlines())


def test_a_spark_line_keeps_its_peaks():
    """The largest of each stretch is drawn, in at most the width; a column is found for every value."""
    values = [0.0] * 100
    values[37] = 2.0
    assert len(spark(values, 20)) == 20
    assert spark(values, 20).index(BARS[-1]) == column(37, 100, 20) == 7
    assert spark([1.0, 0.5, 0.0], 10) == "█▅▁"
    assert spark([1.0, 0.0], 10, plain=True).isascii()
    assert spark([], 10) == ""
    assert spark([0.0, 0.0], 10) == BARS[0] * 2
    assert bin_peaks([3.0, 1.0, 2.0], 2) == [3.0, 2.0]
    assert [column(place, 5, 10) for place in range(5)] == list(range(5))
