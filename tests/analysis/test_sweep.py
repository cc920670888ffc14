"""A sweep: every row is what a reply of its own with the same seed would be, and nothing is lost when it is stopped."""

import json
from itertools import pairwise, product

import pytest
from conftest import Recorder
from driving import ask, bare, drawn, finish, generated, opened, refused, run

from repl.analysis.sweep import Sweep, distinct, first_difference, plan_grid
from repl.commands import registry
from repl.commands.sweep import split_beginning
from repl.core.decoding import NOTHING
from repl.core.errors import UsageError
from repl.core.events import Progress
from repl.core.settings import Settings
from repl.terminal.screen import as_record

KINDS = ["llama", "gpt2", "metaspace", "recurrent"]
PROMPT = "The quick brown fox"


@pytest.fixture
def folder(request, kind):
    return request.getfixturevalue(f"{kind}_folder")


def values(line):
    """The library's own names for what a row was made with."""
    own = {name: value for name, value in line.settings.items() if name != "temperature" or value}
    return {**own, "do_sample": True, "seed": line.seed} if line.seed is not None else {"do_sample": False}


# the rows


@pytest.mark.slow
@pytest.mark.library
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_the_ids_of_a_bare_call_with_its_seed(kind, folder):
    """Greedy, flat and sharp rows of one batch: each is what `generate` makes alone after `torch.manual_seed`."""
    model, tokenizer = bare(folder)
    with opened(folder, max_new_tokens=20) as session:
        found = run(session, f"/sweep temperature=0,0.7,1.5 top_p=0.8,1 n=2 seed=5 -- {PROMPT}")
        assert len(found.lines) == 9
        assert found.together == (0 if kind == "recurrent" else 10)
        for line in found.lines:
            rows, _ = generated(model, tokenizer, list(found.prompt_ids), {**values(line), "max_new_tokens": 20})
            assert list(line.token_ids) == rows[0]


@pytest.mark.slow
@pytest.mark.library
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_row_is_the_reply_that_a_message_would_get(kind, folder):
    """`/retry` with a row's settings gives its ids and its text, and `--exact` gives them too."""
    with opened(folder, max_new_tokens=16) as session:
        ask(session, PROMPT)
        grid = "temperature=0.8,1.3 repetition_penalty=1,1.4 min_p=0,0.05"
        found = run(session, f"/sweep {grid}")
        exact = run(session, f"/sweep --exact {grid}")
        assert found.together == len(found.lines) + 1 == 9
        assert exact.together == 0
        assert [line.token_ids for line in exact.lines] == [line.token_ids for line in found.lines]
        assert [line.logprob for line in exact.lines] == pytest.approx([line.logprob for line in found.lines], abs=1e-4)
        for line in found.lines:
            chosen = " ".join(f"{name}={value}" for name, value in line.settings.items())
            done = run(session, f"/retry do_sample=on seed=1 {chosen}")
            assert (done.token_ids, done.text, done.finish) == (line.token_ids, line.text, line.finish)


def test_fields_of_the_library_are_swept_too(llama_folder):
    """Read as /set reads them; one in JSON stays whole at its commas, and /pick takes it over."""
    with opened(llama_folder, max_new_tokens=6) as session:
        first, second, *_ = ask(session, PROMPT).token_ids
        found = run(session, f"/sweep suppress_tokens=[{first},{second}] min_length=0,6")
        assert [row.settings["suppress_tokens"] for row in found.lines] == [[first, second]] * 2
        assert not {first, second} & set(found.lines[0].token_ids)
        assert "min_length" in drawn(found)
        run(session, "/pick 2")
        assert dict(session.settings.extra) == {"suppress_tokens": [first, second], "min_length": 6}
        assert all(row.seed for row in run(session, "/sweep top_h=0.3,0.9").lines)
        refused(session, "/sweep top_h=0.3,7", "top_h '7' is not")


@pytest.mark.slow
@pytest.mark.library
def test_rows_that_end_early_leave_the_others_as_they_are(llama_folder):
    """Twenty seeds end at different lengths, by an end token, a stop string or the limit."""
    model, tokenizer = bare(llama_folder)
    with opened(llama_folder, max_new_tokens=40, stop="al") as session:
        found = run(session, f"/sweep temperature=1.6 n=20 -- {PROMPT}")
    assert {line.finish for line in found.lines} == {"stop", "length", "stop_string"}
    assert len({line.length for line in found.lines}) > 5
    for line in found.lines:
        wanted = {**values(line), "max_new_tokens": 40, "stop": ["al"]}
        assert list(line.token_ids) == generated(model, tokenizer, list(found.prompt_ids), wanted)[0][0]


@pytest.mark.slow
@pytest.mark.library
def test_a_sliding_window_is_copied_for_each_row(tmp_path):
    """Windows that have slid past the prompt hold the same for every row."""
    import models
    from transformers import MistralConfig, MistralForCausalLM

    tokenizer = models.byte_level(["<|end|>"], eos_token="<|end|>", bos_token="<|end|>")
    with models.seeded(0):
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        more = {"num_key_value_heads": 2, "sliding_window": 8, "initializer_range": 0.3}
        made = MistralForCausalLM(MistralConfig(**models.sizes(tokenizer), **shape, **more))
    folder = models.save(made, tokenizer, tmp_path)
    model, tokenizer = bare(folder)
    with opened(folder, max_new_tokens=24) as session:
        found = run(session, f"/sweep temperature=0.7,1.5 n=2 -- {PROMPT} jumps over the lazy dog")
        assert found.together == 5
        for line in found.lines:
            wanted = {**values(line), "max_new_tokens": 24}
            assert list(line.token_ids) == generated(model, tokenizer, list(found.prompt_ids), wanted)[0][0]


@pytest.mark.slow
@pytest.mark.library
def test_the_rows_of_the_built_in_model_are_those_of_separate_calls(builtin_folder):
    """A real model, in float32."""
    model, tokenizer = bare(builtin_folder)
    with opened(builtin_folder, max_new_tokens=10) as session:
        found = run(session, "/sweep temperature=0.7,1.2 top_p=0.9 n=2 -- Name three rivers of Europe.")
    for line in found.lines:
        wanted = {**values(line), "max_new_tokens": 10}
        assert list(line.token_ids) == generated(model, tokenizer, list(found.prompt_ids), wanted)[0][0]


@pytest.mark.slow
@pytest.mark.library
def test_beams_stand_beside_rows_that_share_their_steps(llama_folder):
    """What cannot share a step is made alone, and that is said."""
    with opened(llama_folder, max_new_tokens=8) as session:
        ask(session, PROMPT)
        found = run(session, "/sweep num_beams=1,3")
        assert found.together == 2
        assert "one by one: beams" in drawn(found)
        assert found.lines[1].token_ids == run(session, "/retry num_beams=3").token_ids


@pytest.mark.slow
@pytest.mark.library
def test_a_kept_cache_stays_that_of_the_prompt(llama_folder):
    """After a sweep a reply still is the one it was, and computes one token of its prompt."""
    with opened(llama_folder, max_new_tokens=10) as session:
        before = ask(session, PROMPT)
        run(session, "/sweep temperature=1,2 n=3")
        after = run(session, "/retry")
        assert after.token_ids == before.token_ids
        assert after.usage.reused == len(before.prompt_ids) - 1


# the grid


def test_the_grid_is_the_product_of_its_values():
    """Rows come in the order in which the settings were typed, each n times with the next seeds."""
    found = plan_grid(Settings(), NOTHING, ["top_p=0.9,1", "temp=0.5,2", "n=2", "seed=7"])
    wanted = [(top, temp, seed) for top, temp in product(("0.9", "1"), ("0.5", "2")) for seed in (7, 8)]
    assert [(*(text for _, text in cell.words), cell.seed) for cell in found[1:]] == wanted
    assert all(cell.chosen.decode.do_sample and cell.chosen.decode.num_beams == 1 for cell in found[1:])


def test_what_comes_to_the_same_is_made_once(gpt2_folder):
    """Greedy rows do not read top_p or a seed: there is one of them."""
    with opened(gpt2_folder, max_new_tokens=6) as session:
        found = run(session, f"/sweep temperature=0,1 top_p=0.5,1 n=3 -- {PROMPT}")
    assert [line.settings for line in found.lines[:2]] == [{"temperature": 0.0}, {"temperature": 1.0, "top_p": 0.5}]
    assert [line.seed for line in found.lines] == [None, 1, 2, 3, 1, 2, 3]
    assert found.lines[0].token_ids == found.greedy.token_ids
    assert found.made == 8


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("temperature", "is not name=value,value"),
        ("temperature=warm", "temperature 'warm' is not a number"),
        ("temperature=-0", "temperature '-0' is not a number"),
        ("dtype=float16,bfloat16", "dtype is a load setting"),
        ("wrap=1,2", "no setting 'wrap'"),
        ("reuse=on,off", "reuse cannot be swept"),
        ("n=0", "n '0' is not a whole number"),
        ("seed=1,2", "seed '1,2' is not"),
        ("temperature=1 n=5000", "n '5000' is not"),
        ("top_k=1,2,3,4,5 n=400", "2,000 rows"),
        ("top_p=0.9,1", "there is no message yet"),
        ("show 3", "there is no sweep"),
    ],
)
def test_a_wrong_grid_is_one_sentence(words, said, gpt2_session):
    """Nothing is made of it."""
    refused(gpt2_session, f"/sweep {words}", said)


@pytest.fixture(scope="module")
def gpt2_session(gpt2_folder):
    with opened(gpt2_folder, max_new_tokens=6) as session:
        yield session


# the figures


@pytest.mark.slow
def test_the_figures_of_a_row_are_those_of_plain_arithmetic(llama_folder):
    """Mean log-probability in the model's own distribution, distinct-2, and where it leaves the greedy row."""
    import torch

    model, tokenizer = bare(llama_folder)
    with opened(llama_folder, max_new_tokens=20) as session:
        found = run(session, f"/sweep temperature=0.4,2 repetition_penalty=1.2 n=2 -- {PROMPT}")
    start = list(found.prompt_ids)
    greedy = generated(model, tokenizer, start, {"max_new_tokens": 20, "do_sample": False})[0][0]
    assert list(found.greedy.token_ids) == greedy
    for line in found.lines:
        ids = list(line.token_ids)
        with torch.no_grad():
            logs = model(torch.tensor([start + ids])).logits[0, len(start) - 1 : -1].double().log_softmax(-1)
        assert line.logprobs == pytest.approx(
            [float(row[token]) for row, token in zip(logs, ids, strict=True)], abs=1e-4
        )
        assert line.logprob == pytest.approx(sum(line.logprobs) / len(ids))
        text = ids[:-1] if line.finish == "stop" else ids
        assert line.distinct_2 == len(set(pairwise(text))) / (len(text) - 1)
        assert ids[: line.parts - 1] == greedy[: line.parts - 1]
        assert ids[line.parts - 1 : line.parts] != greedy[line.parts - 1 : line.parts]


def test_distinct_and_parted_at_their_edges():
    """One token has no pairs; a text that goes on longer parts where the other ends."""
    assert distinct([3]) is None
    assert distinct([1, 2, 1, 2]) == pytest.approx(2 / 3)
    assert first_difference([1, 2], [1, 2]) is None
    assert first_difference([1, 2, 3], [1, 2]) == 3
    assert first_difference([], [1]) == 1


# stop, show, pick, save


@pytest.mark.slow
def test_a_sweep_that_is_stopped_keeps_what_is_there(llama_folder):
    """Rows that have ended are whole, the others are as far as they came; nothing else changes."""
    with opened(llama_folder, max_new_tokens=60) as session:
        before = ask(session, PROMPT)
        task = registry.parse_line("/sweep temperature=1.4 n=8").run(session)

        def stop(event):
            if isinstance(event, Progress) and event.done > 8 * 12:
                task.job.cancel()

        found = finish(task, stop)
        assert isinstance(found, Sweep)
        assert not found.whole
        assert {line.finish for line in found.lines} >= {"cancelled"}
        assert all(10 <= line.length < 60 for line in found.lines if line.finish == "cancelled")
        assert "stopped by you" in drawn(found)
        assert run(session, "/retry").token_ids == before.token_ids


@pytest.mark.slow
def test_rows_made_one_after_another_may_be_stopped_between(recurrent_folder):
    """The rows that were not begun are counted."""
    with opened(recurrent_folder, max_new_tokens=10) as session:
        task = registry.parse_line(f"/sweep temperature=1 n=4 -- {PROMPT}").run(session)
        found = finish(task, lambda event: task.job.cancel() if "2 of 5" in getattr(event, "stage", "") else None)
        assert [line.finish for line in found.lines][:1] == ["length"]
        assert len(found.lines) + found.left_out == 4
        assert found.left_out
        assert "not started" in drawn(found)


def test_progress_tells_rows_and_tokens(llama_folder):
    """What is done is said while it goes on."""
    heard = []
    with opened(llama_folder, max_new_tokens=5) as session:
        run(session, f"/sweep temperature=1,2 -- {PROMPT}", heard=heard.append)
    steps = [event for event in heard if isinstance(event, Progress)]
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert steps[-1] == Progress("sweep: 3 of 3 rows", 15, 0, "tokens")


@pytest.mark.slow
def test_a_row_is_taken_with_its_settings(llama_folder):
    """It answers the message, its record can be reproduced, and the next reply is made as it was."""
    with opened(llama_folder, max_new_tokens=8) as session:
        ask(session, PROMPT)
        head = session.conversation.head
        found = run(session, "/sweep temperature=0,1.5 top_p=0.9 n=2 seed=3")
        assert run(session, "/pick 3").text.startswith("row 3 taken · sample")
        turn = session.conversation.turns[session.conversation.head]
        assert turn.record.token_ids == found.lines[2].token_ids
        assert turn.parent == session.conversation.turns[head].parent
        assert (session.settings.decode.temperature, session.settings.decode.top_p) == (1.5, 0.9)
        assert session.settings.decode.do_sample
        assert session.settings.decode.seed is None
        assert turn.record.seed == 4
        assert run(session, "/reproduce").identical
        run(session, "/pick 1")
        assert session.last.record.token_ids == found.lines[0].token_ids
        assert not session.settings.decode.do_sample
        ask(session, "And then?")
        with pytest.raises(UsageError, match="no other sequences"):
            run(session, "/pick 2")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_new_prompt_joins_the_conversation_only_when_a_row_is_taken(kind, folder):
    """Until then the tree is as it was; then the prompt stands there once, with every row that was taken."""
    with opened(folder, max_new_tokens=6) as session:
        ask(session, "Once upon a time")
        turns = dict(session.conversation.turns)
        found = run(session, f"/sweep temperature=1.1 n=2 -- {PROMPT}\n  jumps")
        assert session.conversation.turns == turns
        run(session, "/pick 2", "/pick 1")
        new = [turn for number, turn in session.conversation.turns.items() if number not in turns]
        assert [turn.text for turn in new] == [f"{PROMPT}\n  jumps", found.lines[1].text, found.lines[0].text]
        assert session.last.record.prompt_ids == found.prompt_ids
        with pytest.raises(UsageError, match="no row 3"):
            run(session, "/pick 3")


def test_a_row_is_shown_and_all_are_written(gpt2_folder):
    with opened(gpt2_folder, max_new_tokens=6) as session:
        found = run(session, f"/sweep temperature=0,2 n=2 -- {PROMPT}")
        assert run(session, "/sweep show 3") == found.lines[2] == run(session, "/sweep").lines[2]
        assert "temp 2" in drawn(run(session, "/sweep show 3"))
        with pytest.raises(UsageError, match="no row 9"):
            run(session, "/sweep show 9")
    record = json.loads(json.dumps(as_record("sweep", found)))["data"]
    assert [tuple(row["token_ids"]) for row in record["lines"]] == [line.token_ids for line in found.lines]
    assert (record["lines"][2]["settings"], record["lines"][2]["seed"]) == ({"temperature": 2.0}, 2)


@pytest.mark.slow
@pytest.mark.parametrize("width", [60, 100, 140])
def test_the_table_fits_its_window(width, llama_folder):
    """Whatever is drawn stays inside, wide characters included."""
    from rich.cells import cell_len

    with opened(llama_folder, max_new_tokens=20) as session:
        found = run(session, f"/sweep temperature=0,1.2 top_p=0.9,1 repetition_penalty=1.1 n=2 -- {PROMPT}")
    text = drawn(found, width)
    assert all(cell_len(row) <= width for row in text.splitlines())
    assert "/pick N" in text


def test_a_shared_beginning_is_said_once():
    """It ends with a whole word; a single row, or rows with little in common, are shown whole."""
    rows = ["The old lighthouse keeper was\nawake.", "The old lighthouse  keeper went home."]
    assert split_beginning(rows) == ("The old lighthouse keeper", ["… was awake.", "… went home."])
    for others in (rows[:1], ["The sea.", "The sun."]):
        assert split_beginning(others) == ("", others)


def test_rows_refuse_numbers_that_are_none(llama_folder):
    """A recorder stands in for the job: the error names the place."""
    import torch

    from repl.core.errors import Failed
    from repl.generation.decode.batch import Batch
    from repl.generation.interface import Request

    with opened(llama_folder, max_new_tokens=6) as session:
        resident = session.store.current()
        with torch.no_grad():
            resident.model.get_output_embeddings().weight.fill_(float("nan"))
        requests = [Request(session.settings, text=PROMPT)] * 2
        with pytest.raises(Failed, match="NaN or infinite at token 1"):
            Batch(resident, requests, Recorder()).run()
