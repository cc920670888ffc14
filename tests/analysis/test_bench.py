"""Speed: what is measured, what it is set against, and that nothing else is touched."""

import gc
import io
import shutil
from dataclasses import replace

import pytest
from driving import ask, finish, opened, run
from rich.console import Console

from repl.analysis import bench
from repl.analysis.bench import Bench, Clock, Plan, Run, Spread, Way
from repl.commands import registry
from repl.core.errors import Cancelled, NoModel, UsageError
from repl.core.events import Progress
from repl.terminal.screen import THEME, render

SHORT = "/bench --prompt-tokens 8,40 --new-tokens 6 --repeats 2"


@pytest.fixture(scope="module")
def session(gpt2_folder):
    with opened(gpt2_folder) as session:
        yield session


def drawn(result: object, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), theme=THEME, highlight=False)
    console.print(render(result))
    return console.file.getvalue()


def in_memory() -> int:
    from transformers import PreTrainedModel

    gc.collect()
    return sum(issubclass(type(one), PreTrainedModel) for one in gc.get_objects())


@pytest.mark.slow
def test_the_loaded_model_is_measured_at_every_length(session):
    found = run(session, SHORT)
    (entry,) = found.entries
    assert found.whole
    assert (entry.model, entry.dtype, entry.problems) == (session.facts().id, "float32", [])
    assert (entry.weight_bytes, entry.load_s) == (session.facts().bytes, session.facts().seconds)
    assert [(one.prompt_tokens, one.new_tokens, one.repeats, one.mode) for one in entry.speeds] == [
        (8, 6, 2, "generate"),
        (8, 6, 2, "loop"),
        (40, 6, 2, "generate"),
        (40, 6, 2, "loop"),
    ]
    for one in entry.speeds:
        for measured in (one.ttft_s, one.prefill_tps, one.decode_tps):
            assert 0 < measured.least <= measured.median <= measured.most
        assert one.limit == pytest.approx(one.decode_tps.median / entry.limit_tps)
    assert [*found.bandwidth] == ["cpu"]
    assert entry.limit_tps == pytest.approx(found.bandwidth["cpu"] / entry.read_bytes)


@pytest.mark.slow
def test_ways_stand_beside_bare_generate(session):
    """What is on is measured in the same run, taking turns; named by a word, whatever is on."""
    line = "/bench --prompt-tokens 40 --new-tokens 6 --repeats 2"
    named = run(session, f"{line} prompt_lookup fast=prompt_lookup prompt_lookup=3")
    (entry,) = named.entries
    ways = ["generate", "loop", "prompt_lookup", "prompt_lookup=3"]
    assert [(one.mode, one.repeats) for one in entry.speeds] == [(way, 2) for way in ways]
    bare = entry.speeds[0].decode_tps.median
    assert [one.of_bare for one in entry.speeds] == [
        pytest.approx(one.decode_tps.median / bare) for one in entry.speeds
    ]
    assert "prompt_lookup=3" in drawn(named, 90)
    run(session, "/fast prompt_lookup")
    try:
        assert [one.mode for one in run(session, line).entries[0].speeds] == ["generate", "loop", "prompt_lookup=15"]
    finally:
        run(session, "/fast off")


@pytest.mark.slow
def test_what_is_loaded_otherwise_comes_after_and_is_set_against_the_first(session):
    found = run(
        session, "/bench dtype=bfloat16 dtype=bfloat16,prompt_lookup=4 --prompt-tokens 8 --new-tokens 4 --repeats 1"
    )
    assert [(one.dtype, [each.mode for each in one.speeds]) for one in found.entries] == [
        ("float32", ["generate", "loop"]),
        ("bfloat16", ["generate", "dtype=bfloat16", "dtype=bfloat16,prompt_lookup=4"]),
    ]
    first, other = found.entries
    assert other.speeds[0].of_bare == pytest.approx(
        other.speeds[0].decode_tps.median / first.speeds[0].decode_tps.median
    )


@pytest.mark.slow
def test_an_assistant_is_measured_as_well(session, gpt2_folder, tmp_path):
    """It is brought for the runs, and the model in use stays."""
    resident = session.store.current()
    twin = tmp_path / "twin"
    shutil.copytree(gpt2_folder, twin)
    (entry,) = run(session, f"/bench assistant={twin} --prompt-tokens 8 --new-tokens 8 --repeats 1").entries
    assert [one.mode for one in entry.speeds] == ["generate", "loop", f"assistant={twin}"]
    assert session.store.current() is resident


def test_what_decides_the_words_of_a_reply_is_left_out_of_the_runs(session, emit):
    """A penalty of yours costs time that bare generate does not take."""
    way = Way("loop", session.settings.put("repetition_penalty", 2.0, "x").put("prompt_lookup", 3, "x"))
    chosen = bench.asked(way, 9).decode
    assert (chosen.repetition_penalty, chosen.do_sample, chosen.prompt_lookup) == (None, False, 3)
    assert (chosen.max_new_tokens, chosen.min_new_tokens) == (9, 9)


@pytest.mark.slow
def test_a_way_that_a_model_cannot_go_is_a_problem_and_no_end(recurrent_folder):
    with opened(recurrent_folder) as session:
        (entry,) = run(session, "/bench prompt_lookup --prompt-tokens 8 --new-tokens 3").entries
    assert [one.mode for one in entry.speeds] == ["generate", "loop"]
    assert entry.problems[0].startswith("prompt_lookup is off")


def test_rates_are_what_the_clock_says():
    """Three runs of five tokens: the prompt by the time to the first, four steps by the time after it."""
    runs = [Run(5, 0.5, 2.0), Run(5, 1.0, 4.0), Run(5, 0.25, 1.0)]
    found = bench.speed("loop", runs, 100, 5, limit=8.0)
    assert found.ttft_s == Spread(0.5, 0.25, 1.0)
    assert found.prefill_tps == Spread(200.0, 100.0, 400.0)
    assert found.decode_tps == Spread(2.0, 1.0, 4.0)
    assert found.limit == 0.25
    assert bench.speed("loop", runs, 100, 5, limit=None).limit is None


def test_exactly_as_many_tokens_are_made_as_were_asked_for(scripted_folder, emit):
    """Also where the model would have ended after two."""
    with opened(scripted_folder(b"ab", bytes(20))) as session:
        resident = session.store.current()
        assert len(ask(session, "Hi").token_ids) == 3
        assert all(
            bench.timed(resident, bench.text_ids(resident, 22), 9, emit, way).made == 9
            for way in (Way("generate"), Way("loop", session.settings))
        )


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


def test_memory_is_as_fast_as_the_fastest_read(emit):
    """The first read, which makes the pages, does not count."""
    reads = [(0, 0.1), (1, 3), (4, 4.5), (5, 7), (8, 10), (11, 13), (14, 16), (17, 19)]
    clock = iter([moment for read in reads for moment in read])
    assert bench.bandwidth("cpu", emit, lambda: next(clock)) == bench.BLOCK_BYTES / 0.5


def test_a_model_on_several_devices_has_no_such_limit(session, emit):
    runs = Bench(Plan((), (), 2, 1), session.store, emit)
    assert runs._rate(["cpu", "disk"]) is runs._rate(["disk"]) is None
    assert runs.run().bandwidth == {}
    assert runs._rate(["cpu"]) == runs._rate(["cpu"]) > 0


@pytest.mark.slow
def test_other_models_and_formats_come_and_go(session, gpt2_folder, llama_folder, tmp_path):
    """The one that is loaded is used where it is meant, and is the same object afterwards; one that fails is said."""
    resident, settings, before = session.store.current(), session.settings, in_memory()
    nothing = tmp_path / "nothing"
    found = run(session, f"{SHORT} dtype=bf16 {nothing} {llama_folder} {llama_folder},dtype=bf16")
    assert [(one.model, one.dtype, bool(one.problems)) for one in found.entries] == [
        (str(gpt2_folder), "float32", False),
        (str(gpt2_folder), "bfloat16", False),
        (str(nothing), "float32", True),
        (str(llama_folder), "float32", False),
        (str(llama_folder), "bfloat16", False),
    ]
    assert session.store.current() is resident
    assert session.settings is settings
    assert in_memory() == before
    assert "no folder or file" in drawn(found)


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


def test_a_length_that_does_not_fit_is_said_and_the_others_are_measured(session):
    (entry,) = run(session, "/bench --prompt-tokens 500,8 --new-tokens 4 --repeats 1").entries
    assert [one.prompt_tokens for one in entry.speeds] == [8, 8]
    assert "504 tokens do not fit into the context of 128" in entry.problems[0]


@pytest.mark.parametrize(("done", "kept"), [(0, []), (1, [1]), (2, [2])])
def test_what_is_done_is_kept_when_it_is_stopped(session, done, kept):
    """Before, between and after the runs of one length."""
    task = registry.read("/bench --prompt-tokens 8,16 --new-tokens 60 --repeats 2").run(session)
    seen = []

    def stop(event: object) -> None:
        if isinstance(event, Progress) and event.unit == "runs":
            seen.append(event)
            if event.done == done and len(seen) == done + 1:
                task.job.cancel()

    found = finish(task, stop)
    assert not found.whole
    said = "stopped: this is what was done by then" if kept else "stopped before anything was measured"
    assert said in drawn(found)
    measured = [one.repeats for entry in found.entries for one in entry.speeds]
    assert measured[: len(kept)] == kept
    assert sum(measured) < 8  # the runs that were under way or ahead are not there
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
        found = run(session, f"{SHORT} {gpt2_folder}")
        assert found.entries[0].speeds
        with pytest.raises(NoModel):
            session.facts()


@pytest.mark.parametrize("width", [60, 100])
def test_the_table_keeps_to_the_screen(session, width):
    said = drawn(run(session, SHORT), width)
    assert max(map(len, said.splitlines())) <= width
    assert "…" not in said
    assert "limit" in said


def test_a_clock_is_stopped_by_a_cancel(emit):
    clock = Clock(emit)
    clock.put(None)
    emit.cancel()
    with pytest.raises(Cancelled):
        clock.put(None)
