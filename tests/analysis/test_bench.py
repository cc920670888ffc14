"""Speed: what is measured, what it is set against, and that nothing else is touched."""

import shutil
from dataclasses import replace

import pytest
from driving import ask, drawn, finish, opened, run

from repl.analysis import bench
from repl.analysis.bench import BARE_GENERATE, Bench, BenchSizes
from repl.analysis.variants import Variant
from repl.commands import registry
from repl.core.errors import Cancelled, NoModel, UsageError
from repl.core.events import Progress

SHORT = "/bench --prompt-tokens 40 --new-tokens 6 --repeats 2"


@pytest.fixture(scope="module")
def session(gpt2_folder):
    with opened(gpt2_folder) as session:
        yield session


@pytest.mark.slow
def test_the_loaded_model_is_measured(session):
    found = run(session, SHORT)
    assert found.whole
    assert (found.problems, [*found.bandwidth]) == ([], ["cpu"])
    assert [(row.way, row.runs) for row in found.rows] == [("generate", 2), ("loop", 2)]
    for row in found.rows:
        assert (row.model, row.dtype) == (session.facts().id, "float32")
        assert min(row.ttft_s, row.prefill_tps, row.decode_tps) > 0
        assert row.limit_tps == pytest.approx(found.bandwidth["cpu"] / row.read_bytes)
        assert row.of_bare == pytest.approx(row.decode_tps / found.rows[0].decode_tps)


@pytest.mark.slow
def test_ways_stand_beside_bare_generate(session):
    """What is on is measured in the same run, taking turns; named by a word, whatever is on."""
    line = "/bench --prompt-tokens 40 --new-tokens 6 --repeats 2"
    named = run(session, f"{line} prompt_lookup prompt_lookup=3")
    ways = ["generate", "loop", "prompt_lookup", "prompt_lookup=3"]
    assert [(row.way, row.runs) for row in named.rows] == [(way, 2) for way in ways]
    assert "prompt_lookup=3" in drawn(named, 90)
    run(session, "/fast prompt_lookup")
    try:
        assert [row.way for row in run(session, line).rows] == ["generate", "loop", "prompt_lookup=15"]
    finally:
        run(session, "/fast off")


@pytest.mark.slow
def test_an_assistant_is_measured_as_well(session, gpt2_folder, tmp_path):
    """It is brought for the runs, and the model in use stays."""
    resident = session.store.current()
    twin = tmp_path / "twin"
    shutil.copytree(gpt2_folder, twin)
    found = run(session, f"/bench assistant={twin} --prompt-tokens 8 --new-tokens 8 --repeats 1")
    assert [row.way for row in found.rows] == ["generate", "loop", f"assistant={twin}"]
    assert session.store.current() is resident


@pytest.mark.slow
def test_a_way_that_a_model_cannot_go_is_a_problem_and_no_end(recurrent_folder):
    with opened(recurrent_folder) as session:
        found = run(session, "/bench prompt_lookup --prompt-tokens 8 --new-tokens 3")
    assert [row.way for row in found.rows] == ["generate", "loop"]
    assert found.problems == ["prompt_lookup is off for this model"]


def test_a_model_that_ends_early_is_timed_as_others_are(scripted_folder, emit):
    """Also where the model would have ended after two."""
    with opened(scripted_folder(b"ab", bytes(20))) as session:
        resident = session.store.current()
        assert len(ask(session, "Hi").token_ids) == 3
        runs = Bench(session.store, BenchSizes(22, 9, 1), emit)
        for way in (Variant(BARE_GENERATE, session.settings), Variant("loop", session.settings)):
            found = runs._time(resident, way, bench.text_ids(resident, 22), 9)  # one run alone, which /bench repeats
            assert found.decode_tps > 0


def test_prompts_are_plain_english_of_the_very_length(session):
    resident = session.store.current()
    ids = bench.text_ids(resident, 1000)
    assert len(ids) == 1000
    assert resident.tokenizer.decode(ids).startswith("The river rises in the hills")
    assert bench.text_ids(resident, 3) == ids[:3]


def test_a_token_needs_all_weights_but_the_other_rows_of_an_input_embedding(session):
    """Where input and output share one matrix, all of it is read."""
    from transformers import GPT2Config, GPT2LMHeadModel

    resident = session.store.current()
    counts = {name: weight.numel() for name, weight in resident.model.named_parameters()}
    assert bench.read_bytes(resident) == 4 * (sum(counts.values()) - counts["transformer.wte.weight"])
    tied = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=50, n_positions=16))
    assert bench.read_bytes(replace(resident, model=tied)) == 4 * sum(one.numel() for one in tied.parameters())


@pytest.mark.slow
def test_memory_is_as_fast_as_the_fastest_read(emit):
    """The first read, which makes the pages, does not count."""
    reads = [(0, 0.1), (1, 3), (4, 4.5), (5, 7), (8, 10), (11, 13), (14, 16), (17, 19)]
    clock = iter([moment for read in reads for moment in read])
    assert bench.measure_bandwidth("cpu", emit, lambda: next(clock)) == bench.BLOCK_BYTES / 0.5


@pytest.mark.slow
def test_a_model_on_several_devices_has_no_such_limit(session, emit):
    runs = Bench(session.store, BenchSizes(8, 2, 1), emit)
    assert runs._rate({"cpu", "disk"}) is runs._rate({"disk"}) is None  # what is measured of a device is kept
    assert runs.run([]).bandwidth == {}
    assert runs._rate({"cpu"}) == runs._rate({"cpu"}) > 0


@pytest.mark.slow
def test_other_models_and_formats_are_rows_too(session, gpt2_folder, llama_folder, tmp_path):
    """The model in use is the same object afterwards; one that fails is said."""
    resident, settings, held = session.store.current(), session.settings, session.store.residents()
    nothing = tmp_path / "nothing"
    found = run(session, f"{SHORT} dtype=bf16 {nothing} {llama_folder} {llama_folder},dtype=bf16")
    assert [(row.model, row.dtype) for row in found.rows] == [
        (str(gpt2_folder), "float32"),
        (str(gpt2_folder), "float32"),
        (str(gpt2_folder), "bfloat16"),
        (str(llama_folder), "float32"),
        (str(llama_folder), "bfloat16"),
    ]
    assert [row.of_bare is None for row in found.rows] == [False, False, False, True, True]
    bare, other = found.rows[0].decode_tps, found.rows[2]
    assert other.of_bare == pytest.approx(other.decode_tps / bare)
    assert session.store.current() is resident
    assert session.store.residents() == held
    assert session.settings is settings
    assert "no folder or file" in drawn(found)


@pytest.mark.slow
def test_the_conversation_and_its_cache_stay(llama_folder):
    """The next reply takes over from the cache what it would have taken over."""
    with opened(llama_folder) as session:
        run(session, "/max 6", "Hello")
        turns, last = dict(session.conversation.turns), session.last
        run(session, SHORT)
        assert (session.conversation.turns, session.last) == (turns, last)
        reused = ask(session, "Again").usage.reused
        run(session, "/clear", "Hello")
        assert ask(session, "Again").usage.reused == reused > 0


@pytest.mark.slow
def test_a_dtype_that_the_model_has_is_no_second_copy(gpt2_folder):
    """Neither beside the loop nor afterwards."""
    with opened(gpt2_folder, dtype="auto") as session:
        assert session.facts().dtype == "float32"
        resident, most = session.store.current(), 0
        task = registry.parse_line("/bench dtype=float32 --prompt-tokens 8 --new-tokens 3 --repeats 1").run(session)

        def count(event: object) -> None:
            nonlocal most
            most = max(most, len(session.store.residents()))

        assert [row.way for row in finish(task, count).rows] == ["generate", "loop", "dtype=float32"]
        assert (most, session.store.residents()) == (1, [resident])


def test_a_length_that_does_not_fit_is_said(session):
    found = run(session, "/bench --prompt-tokens 500 --new-tokens 4 --repeats 1")
    assert found.rows == []
    assert "(504 tokens) exceed the context of 128" in found.problems[0]


@pytest.mark.slow
@pytest.mark.parametrize(("done", "kept"), [(0, []), (1, [1])])
def test_what_is_done_is_kept_when_it_is_stopped(session, done, kept):
    """Before and between the runs."""
    task = registry.parse_line("/bench --prompt-tokens 16 --new-tokens 60 --repeats 2").run(session)
    seen = []

    def stop(event: object) -> None:
        if isinstance(event, Progress) and event.unit == "runs":
            seen.append(event)
            if event.done == done and len(seen) == done + 1:
                task.job.cancel()

    found = finish(task, stop)
    assert not found.whole
    said = "stopped early: results so far" if kept else "stopped before anything was measured"
    assert said in drawn(found)
    measured = [row.runs for row in found.rows]
    assert measured[: len(kept)] == kept
    assert sum(measured) < 4  # the runs that were under way or ahead are not there
    assert ask(session, "Once").token_ids


@pytest.mark.parametrize(
    "words", ["dtype=float31", "--prompt-tokens 0", "--new-tokens 1", "temperature=0.7", "nothing=3"]
)
def test_words_that_cannot_be_read_are_refused(session, words):
    with pytest.raises(UsageError):
        run(session, f"/bench {words}")


@pytest.mark.slow
def test_without_a_model_there_is_nothing_to_measure(gpt2_folder):
    with opened(gpt2_folder) as session:
        run(session, "/unload")
        with pytest.raises(NoModel):
            run(session, "/bench")


@pytest.mark.slow
@pytest.mark.parametrize("width", [60, 100])
def test_the_table_keeps_to_the_screen(session, width):
    said = drawn(run(session, SHORT), width)
    assert max(map(len, said.splitlines())) <= width
    assert "…" not in said
    assert "limit" in said


@pytest.mark.parametrize("way", [BARE_GENERATE, "loop"])
def test_a_run_is_stopped_by_a_cancel(session, emit, way):
    resident = session.store.current()
    runs = Bench(session.store, BenchSizes(3, 9, 1), emit)
    emit.cancel()
    with pytest.raises(Cancelled):
        runs._time(resident, Variant(way, session.settings), bench.text_ids(resident, 3), 9)  # one run alone
