"""The session in figures, and the line under each reply."""

import io
from dataclasses import replace

import pytest
from driving import ask, ask_until, opened, run
from rich.console import Console

from repl.commands.stats import Stats, Total, sum_replies
from repl.core.events import Token
from repl.core.reply import ModelRecord, Reply, Timing, Usage
from repl.terminal.screen import THEME, render, reply_figures


def done(prompt: int, reused: int, made: int, tps: float | None, seconds: float) -> Reply:
    usage, timing = Usage(prompt, reused, made), Timing(0.5, 10.0, tps, seconds)
    model = ModelRecord("m", dtype="float32")
    return Reply("", (), (), "stop", model, {}, {}, None, usage, timing)


def drawn(result: object, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), theme=THEME, highlight=False)
    console.print(render(result))
    return console.file.getvalue()


def test_totals_are_sums_and_the_rate_is_of_all_steps():
    """Ten steps at 10 and ninety at 30 tokens/s: a hundred steps in four seconds; a single token has no rate."""
    records = [done(10, 0, 11, 10.0, 1.5), done(30, 20, 91, 30.0, 3.5), done(5, 0, 1, None, 0.5)]
    assert sum_replies("m", records) == Total("m", 3, 45, 20, 103, 5.5, pytest.approx(25.0))
    assert sum_replies("", []) == Total("", 0, 0, 0, 0, 0, None)


@pytest.mark.slow
def test_every_branch_counts_and_each_model_by_itself(llama_folder, gpt2_folder):
    with opened(llama_folder) as session:
        assert run(session, "/stats").total.replies == 0
        assert drawn(run(session, "/stats")) == "no replies yet\n"
        run(session, "/max 5", "One", "Two", "/undo", "Three")
        ask_until(session, "/retry max_new_tokens=90", lambda event: isinstance(event, Token) and event.id is not None)
        run(session, "/dtype bfloat16", "Four", f"/model {gpt2_folder}", "/dtype float32", "Once")
        records = [turn.record for turn in session.conversation.turns.values() if turn.record]
        found = run(session, "/stats")
    assert isinstance(found, Stats)
    assert found.total == sum_replies("", records)
    assert found.total.replies == len(records) == 6
    assert found.total.reused > 0
    assert [(one.model, one.replies) for one in found.models] == [
        (f"{llama_folder} · float32", 4),
        (f"{llama_folder} · bfloat16", 1),
        (f"{gpt2_folder} · float32", 1),
    ]
    assert sum(one.made for one in found.models) == found.total.made == sum(one.usage.completion for one in records)
    said = drawn(found)
    assert "total" in said
    assert f"{found.total.prompt:,}" in said
    assert all(len(line) <= 60 for line in drawn(found, 60).splitlines())


def test_a_sequence_that_was_picked_is_not_counted_again(gpt2_folder):
    with opened(gpt2_folder) as session:
        run(session, "/max 4", "/beams 3", "Once", "/pick 2")
        assert len(session.conversation.turns) == 3
        assert run(session, "/stats").total.replies == 1


def test_the_setting_of_the_same_name_still_works(gpt2_folder):
    with opened(gpt2_folder) as session:
        run(session, "/max 2", "Once", "/stats off")
        assert not session.settings.view.stats
        assert "/stats on" in drawn(run(session, "/stats"))
        run(session, "/stats on")
        assert session.settings.view.stats
        assert "/stats on" not in drawn(run(session, "/stats"))


def test_the_line_under_a_reply_tells_what_was_reused(llama_folder):
    """Tokens, time to the first, rate, and how much of the prompt the kept cache held; nothing where it held none."""
    with opened(llama_folder) as session:
        run(session, "/max 5")
        first, second = ask(session, "One"), ask(session, "Two")
    assert "reused" not in reply_figures(first)
    assert f"{second.usage.reused} of {second.usage.prompt} reused" in reply_figures(second)
    assert second.usage.reused > 0
    assert reply_figures(second).startswith("5 tokens · first after ")
    assert "tokens/s" in reply_figures(replace(second, timing=Timing(0.1, 1.0, 9.0, 1.0)))
