"""What the model made of each token: recorded rightly, kept, colour_trace, and gone on from with another token."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from driving import ask, ask_until, bare, choose, finish, in_parts, listen, opened, run
from rich.console import Console

from repl.commands.inspect import Painted
from repl.core import paths
from repl.core.conversation import Turn
from repl.core.errors import ReplError, UsageError
from repl.core.events import PromptEcho, Token
from repl.core.jobs import Worker
from repl.core.reply import ModelRecord, Reply, TokenLogprobs, decode_record, encode_record
from repl.core.sanitize import clean
from repl.core.settings import View
from repl.generation.interface import Runtime
from repl.generation.measure.token_text import TOP_K_STORED
from repl.generation.measure.token_trace import Inspection, Trace, read_trace
from repl.models.store import Store
from repl.session.archive import Archive
from repl.session.session import ARCHIVE_FILE, Session
from repl.terminal.export import Transcript, as_html
from repl.terminal.live import LiveOutput
from repl.terminal.screen import Screen, as_record, palette, render
from repl.terminal.token_colours import certainty, colour_trace, style

PROMPT = "Once upon a time"
KINDS = ("llama", "gpt2", "recurrent")
WARPED = {"do_sample": True, "seed": 7, "temperature": 1.6, "top_k": 20, "repetition_penalty": 1.5}
CODES = re.compile(r"\x1b\[[0-9;]*m")


def oracle(model: Any, done: Reply) -> Any:
    """Compute log-probabilities with one plain pass: shape (tokens, vocab)."""
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([[*done.prompt_ids, *done.token_ids]])).logits[0, len(done.prompt_ids) - 1 : -1]
    return logits.float().log_softmax(-1)


def assert_measured(model: Any, tokenizer: Any, done: Reply) -> None:
    """Compare a record with an independent computation."""
    import torch

    found, logs = done.measures, oracle(model, done)
    own = logs.gather(-1, torch.tensor(done.token_ids)[:, None])[:, 0]
    assert len(done.token_ids) > 0
    assert list(found.logprobs) == pytest.approx(own.tolist(), abs=1e-4)
    entropy = torch.distributions.Categorical(logits=logs).entropy()
    assert list(found.entropies) == pytest.approx(entropy.tolist(), abs=1e-4)
    for place, row in enumerate(logs):
        assert list(found.values[place]) == pytest.approx(row.topk(len(found.values[place])).values.tolist(), abs=1e-4)
        assert [row[one].item() for one in found.ids[place]] == pytest.approx(list(found.values[place]), abs=1e-4)
        near = (row - row[done.token_ids[place]]).abs() < 1e-4  # ranks of near ties may be told either way
        assert abs(found.ranks[place] - 1 - int((row > row[done.token_ids[place]]).sum())) < int(near.sum())
    assert found.texts == {one: tokenizer.decode([one]) for one in found.texts}
    assert set(found.texts) == {*done.token_ids, *(one for ids in found.ids for one in ids)}
    assert len(found.lengths) == len(done.token_ids)


@pytest.mark.slow
@pytest.mark.parametrize("values", [{}, WARPED, {**WARPED, "num_return_sequences": 2}])
@pytest.mark.parametrize("kind", KINDS)
def test_every_token_is_measured_in_the_models_own_distribution(
    kind: str, values: dict[str, object], request: pytest.FixtureRequest
) -> None:
    """Logprob, entropy, rank and alternatives are those of a plain pass, however the token was chosen."""
    folder = request.getfixturevalue(f"{kind}_folder")
    with opened(folder) as session:
        choose(session, values)
        run(session, "/max 12")
        done = ask(session, PROMPT)
    assert_measured(*bare(folder), done)
    assert sum(done.measures.lengths) == len(done.text)
    assert {len(ids) for ids in done.measures.ids} == {TOP_K_STORED}


@pytest.mark.slow
def test_the_builtin_model_is_measured_rightly_and_kept_small(builtin_folder: Path) -> None:
    with opened(builtin_folder, max_new_tokens=24) as session:
        done = ask(session, "Tell me about Paris and its rivers.")
    assert_measured(*bare(builtin_folder), done)
    bytes_of = [len(encode_record(one).encode()) for one in (done, replace(done, measures=TokenLogprobs()))]
    assert (bytes_of[0] - bytes_of[1]) / len(done.token_ids) < 160


def test_a_stopped_reply_keeps_the_measures_of_what_there_is(llama_folder: Path) -> None:
    tokens: list[Token] = []
    with opened(llama_folder, max_new_tokens=200) as session:
        enough = lambda event: isinstance(event, Token) and not tokens.append(event) and len(tokens) > 5  # noqa: E731
        done = ask_until(session, PROMPT, enough)
    assert done.finish == "cancelled"
    assert_measured(*bare(llama_folder), done)


def test_a_reply_that_went_on_is_measured_as_one(gpt2_folder: Path) -> None:
    with opened(gpt2_folder, max_new_tokens=5) as session:
        ask(session, PROMPT)
        run(session, "/continue")
        assert session.last is not None
        record = session.last.record
    assert record is not None
    assert len(record.token_ids) == 10
    assert_measured(*bare(gpt2_folder), record)


def test_more_alternatives_are_kept_where_more_are_asked_for(gpt2_folder: Path) -> None:
    with opened(gpt2_folder, max_new_tokens=3, logprobs=9) as session:
        done, events = listen(session, PROMPT)
    assert {len(ids) for ids in done.measures.ids} == {9}
    assert {len(event.top) for event in events if isinstance(event, Token) and event.id is not None} == {9}


def test_json_has_figures_only_where_they_were_asked_for(gpt2_folder: Path) -> None:
    """The contract: token lines carry them with --logprobs N, the line of the reply never."""
    from repl.terminal.live import token_record

    with opened(gpt2_folder, max_new_tokens=3) as session:
        done, events = listen(session, PROMPT)
        run(session, "/logprobs 2")
        _, more = listen(session, PROMPT)
    without, asked = ([token_record(event) for event in found if isinstance(event, Token)] for found in (events, more))
    assert {frozenset(line) for line in without} == {frozenset(("event", "text", "id"))}
    assert {"logprob", "entropy", "top"} <= set(asked[0])
    assert len(asked[0]["top"]) == 2
    assert "measures" not in as_record("say", done)


def test_colours_change_no_token(gpt2_folder: Path) -> None:
    with opened(gpt2_folder, max_new_tokens=8, do_sample="on", seed=3) as session:
        plain = ask(session, PROMPT)
        run(session, "/probs on")
        assert ask(session, PROMPT).token_ids == plain.token_ids


# kept


def saved(folder: Path) -> Session:
    from repl.core import settings
    from repl.core.settings import Settings

    chosen = Settings()
    for name, word in {"model": str(folder), "dtype": "float32", "max_new_tokens": "6"}.items():
        chosen = chosen.put(name, settings.read_setting(name, word), "you")
    session = Session(chosen, Store(Runtime, offline=True), Worker(), paths.data_folder() / ARCHIVE_FILE)
    finish(session.load(chosen))
    return session


def test_an_old_turn_shows_its_own_figures_after_a_switch_and_after_a_resume(
    llama_folder: Path, gpt2_folder: Path
) -> None:
    """The record decides, not the model that is loaded."""
    session = saved(llama_folder)
    try:
        ask(session, PROMPT)
        assert session.last is not None
        turn = session.last
        before = run(session, "/inspect")
        run(session, f"/model {gpt2_folder}")
        assert run(session, f"/inspect {turn.exchange}") == before
        name = session.archive.id
    finally:
        session.close()
    archive, _ = Archive.open(paths.data_folder() / ARCHIVE_FILE)
    again = archive.load(name).turns[turn.id]
    archive.close()
    found = read_trace(again)
    assert found is not None
    assert found.tokens == before.tokens


def test_a_record_of_an_older_version_still_loads(gpt2_folder: Path) -> None:
    with opened(gpt2_folder, max_new_tokens=2) as session:
        done = ask(session, PROMPT)
    old = json.loads(encode_record(done))
    del old["measures"]
    assert decode_record(Reply, json.dumps(old)) == replace(done, measures=TokenLogprobs())
    assert decode_record(Reply, encode_record(done)) == done


# measured again


@pytest.mark.parametrize("kind", KINDS)
def test_a_turn_without_measures_is_measured_again(kind: str, request: pytest.FixtureRequest) -> None:
    """Teacher forcing gives what was measured while the reply was made."""
    folder = request.getfixturevalue(f"{kind}_folder")
    with opened(folder, max_new_tokens=8) as session:
        ask(session, PROMPT)
        before = run(session, "/inspect")
        forget(session)
        again = run(session, "/inspect")
    assert [(one.id, one.text, one.name) for one in again.tokens] == [(a.id, a.text, a.name) for a in before.tokens]
    for one, other in zip(again.tokens, before.tokens, strict=True):
        assert (one.logprob, one.entropy) == pytest.approx((other.logprob, other.entropy), abs=1e-4)
        assert [value for _, _, value in one.top] == pytest.approx([value for _, _, value in other.top], abs=1e-4)


def forget(session: Session) -> None:
    """Take the measures out of the last reply's record, as an older version had none."""
    assert session.last is not None
    assert session.last.record is not None
    session.last = replace(session.last, record=replace(session.last.record, measures=TokenLogprobs()))
    session.conversation.turns[session.last.id] = session.last


def test_beams_are_measured_when_they_are_looked_at(gpt2_folder: Path) -> None:
    with opened(gpt2_folder, max_new_tokens=5) as session:
        run(session, "/beams 3")
        done = ask(session, PROMPT)
        assert done.measures == TokenLogprobs()
        found = run(session, "/probs")
        model, _ = bare(gpt2_folder)
        logs = oracle(model, done)
        assert [one.logprob for one in found.tokens] == pytest.approx(
            [row[one].item() for row, one in zip(logs, done.token_ids, strict=True)], abs=1e-4
        )
        run(session, "/pick 2")
        assert [one.id for one in run(session, "/inspect").tokens] == list(done.sequences[1].token_ids)


def test_another_model_does_not_measure_a_turn(llama_folder: Path, gpt2_folder: Path) -> None:
    with opened(llama_folder, max_new_tokens=3) as session:
        ask(session, PROMPT)
        forget(session)
        run(session, "/dtype bfloat16")
        with pytest.raises(ReplError, match="generated in float32, but the model is loaded in bfloat16") as caught:
            run(session, "/inspect")
        assert caught.value.hints == ("/dtype float32",)
        run(session, f"/model {gpt2_folder}")
        with pytest.raises(ReplError, match="which is not loaded") as caught:
            run(session, "/probs")
        assert str(llama_folder) in caught.value.hints[0]


# colour_trace


def test_painted_text_is_the_text(llama_folder: Path) -> None:
    """Law: colours add nothing and lose nothing."""
    with opened(llama_folder, max_new_tokens=30) as session:
        run(session, "/prefill Well")
        ask(session, PROMPT)
        for by in ("on", "entropy"):
            assert session.last is not None
            found = run(session, "/probs")
            assert colour_trace(found, by).plain == clean(session.last.text)
        assert found.lead == "Well"


@pytest.mark.parametrize("chats", [False, True])
@pytest.mark.parametrize("theme", ["dark", "light", "mono"])
def test_a_coloured_stream_is_its_text_on_a_terminal(theme: str, chats: bool) -> None:
    """Without the codes of styles stands what was said, tabs as spaces; with them, what was unlikely."""
    pieces = [("a likely\t", -0.1), ("thing\n\n", -1.5), ("\x1b[31m", -3.0), ("", -9.0), ("好\n", -9.0)]
    tokens = [Token(text, number, logprob, 0.5) for number, (text, logprob) in enumerate(pieces)]
    screen = Screen(interactive=True)
    out, err = io.StringIO(), io.StringIO()
    screen.out = Console(file=out, force_terminal=True, color_system="256", theme=palette("dark"), width=60)
    screen.err = Console(file=err, force_terminal=True, color_system="256", theme=palette("dark"), width=60)
    screen.paint(theme)
    for _ in range(2):
        with LiveOutput(screen, View(probs="on", theme=theme)) as pane:
            for event in in_parts(*tokens) if chats else tokens:
                pane.draw([event])
    said = clean("".join(text for text, _ in pieces)).expandtabs(4)
    assert CODES.sub("", out.getvalue()) == said * 2
    assert out.getvalue().startswith("a likely    \x1b[")
    colours = re.search(r"\x1b\[(?:[\d;]*;)?(?:38;|[39][0-7])", out.getvalue())  # rich keeps a style's first rendering
    assert (colours is not None) is (theme != "mono")
    assert CODES.sub("", err.getvalue()).count("50 % or more") == 1  # the legend is for once


def test_nothing_is_coloured_in_a_pipe() -> None:
    screen = Screen()
    screen.out.file = out = io.StringIO()
    with LiveOutput(screen, View(probs="on")) as pane:
        pane.draw([Token("a", 1, -9.0, 0.5)])
    assert out.getvalue() == "a\n"


def test_entropy_and_probability_go_by_one_scale() -> None:
    """An even choice among four is as certain as a probability of a quarter."""
    import math

    assert certainty(math.log(0.25), 0.0, "on") == pytest.approx(certainty(0.0, math.log(4), "entropy"))
    assert style(certainty(0.0, 9.0, "on")) == ""


def test_probs_is_a_setting_and_a_look_at_the_last_reply(gpt2_folder: Path) -> None:
    with opened(gpt2_folder, max_new_tokens=3) as session:
        with pytest.raises(UsageError, match="no replies yet"):
            run(session, "/probs")
        assert run(session, "/probs entropy").text.startswith("probs entropy")
        assert session.settings.view.probs == "entropy"
        assert run(session, "/probs off").text == "probs off"
        ask(session, PROMPT)
        found = run(session, "/probs")
        assert isinstance(found, Painted)
        assert not isinstance(found, Inspection)  # which the shell would open on a screen of its own
        console = Console(file=io.StringIO(), width=100, theme=palette("dark"))
        console.print(render(found))
        console.print(render(run(session, "/inspect")))
        assert "/probs on colours replies" in console.file.getvalue()  # type: ignore[attr-defined]


def test_an_exported_page_has_the_colours_that_are_on(gpt2_folder: Path, tmp_path: Path) -> None:
    with opened(gpt2_folder, max_new_tokens=12) as session:
        run(session, "/mode chat" if session.facts().chats else "/mode complete")
        ask(session, PROMPT)
        assert session.last is not None
        plain, coloured = (as_html(Transcript("a", "t", "", 1, [session.last]), by) for by in ("off", "on"))
        run(session, "/probs on", f"/export {tmp_path / 'page.html'}")
    strip = re.compile(r"<[^>]*>")
    assert "shade" in coloured.partition("<body>")[2]
    assert "shade" not in plain.partition("<body>")[2]
    first, second = (strip.sub("", text.partition("<h2>")[2]) for text in (coloured, plain))
    assert first == second
    assert "50 % or more" in (tmp_path / "page.html").read_text("utf-8")


# another token


@pytest.mark.parametrize("kind", KINDS)
def test_a_taken_alternative_begins_a_branch_of_its_own(kind: str, request: pytest.FixtureRequest) -> None:
    """The new reply is the prefix, the alternative and what greedy decoding makes of them, and nothing else."""
    folder = request.getfixturevalue(f"{kind}_folder")
    with opened(folder, max_new_tokens=6) as session:
        first = ask(session, PROMPT)
        before = session.last
        assert before is not None
        other = first.measures.ids[3][2]
        events: list[Any] = []
        done = run(session, f"/take 4 {other}", heard=events.append)
        after = session.last
        assert after is not None
        assert after.record is not None
        assert session.conversation.turns[before.id] == before
    assert after.parent == before.parent
    assert after.id != before.id
    assert after.record.token_ids[:4] == (*first.token_ids[:3], other)
    assert after.record.prompt_ids == first.prompt_ids
    assert done.prompt_ids == (*first.prompt_ids, *first.token_ids[:3], other)
    told = "".join(event.text for event in events if isinstance(event, PromptEcho | Token))
    assert told == after.text == after.record.text
    model, tokenizer = bare(folder)
    assert_measured(model, tokenizer, after.record)
    greedy = oracle(model, after.record).argmax(-1).tolist()
    assert greedy[4:] == list(after.record.token_ids[4:])
    assert (done.usage.reused == len(done.prompt_ids) - 1) is (kind != "recurrent")


def taken(session: Session, line: str) -> Reply:
    """Put another token in a place, and return the record of what came of it."""
    run(session, line)
    assert session.last is not None
    assert session.last.record is not None
    return session.last.record


def test_a_token_that_was_not_listed_may_be_taken_too(gpt2_folder: Path) -> None:
    with opened(gpt2_folder, max_new_tokens=3) as session:
        first = ask(session, PROMPT)
        other = next(one for one in range(300, 400) if one not in first.measures.ids[1])
        record = taken(session, f"/take 2 {other}")
        assert record.token_ids[:2] == (first.token_ids[0], other)
        assert_measured(*bare(gpt2_folder), record)
        with pytest.raises(UsageError, match="has no token 99999"):
            run(session, "/take 2 99999")
        with pytest.raises(UsageError, match="tokens, not 50"):
            run(session, "/take 50 1")


def test_an_end_token_that_is_taken_ends_the_reply(llama_folder: Path) -> None:
    with opened(llama_folder, max_new_tokens=5) as session:
        first = ask(session, PROMPT)
        end = session.store.current().tokenizer.eos_token_id
        record = taken(session, f"/take 3 {end}")
        assert (record.token_ids, record.finish) == ((*first.token_ids[:2], end), "stop")
        assert_measured(*bare(llama_folder), record)


def test_an_exchange_that_is_none_is_said_to_be_none(llama_folder: Path) -> None:
    with opened(llama_folder, max_new_tokens=3) as session:
        ask(session, PROMPT)
        with pytest.raises(UsageError, match="no exchange 9"):
            run(session, "/inspect 9")


def test_what_is_looked_at_is_plain_data(llama_folder: Path) -> None:
    """--json has the tokens with their measures, field by field."""
    with opened(llama_folder, max_new_tokens=3) as session:
        done = ask(session, PROMPT)
        found = run(session, "/inspect")
    assert isinstance(found, Inspection)
    data = json.loads(json.dumps(as_record("inspect", found)["data"]))
    assert [token["id"] for token in data["tokens"]] == list(done.token_ids)
    assert "".join(token["text"] for token in data["tokens"]) == done.text
    assert len(data["tokens"][0]["top"]) == TOP_K_STORED


def test_a_trace_survives_texts_that_do_not_fit_their_lengths() -> None:
    """A damaged record shows what it can and raises nothing."""
    found = TokenLogprobs((-1.0,), (0.5,), (1,), ((5,),), ((-1.0,),), {5: "x"}, (7,))
    record = Reply("ab", (1,), (5,), "stop", ModelRecord(), {}, {}, None, None, None, measures=found)  # type: ignore[arg-type]
    trace = read_trace(Turn(1, None, "assistant", "ab", "complete", record))
    assert isinstance(trace, Trace)
    assert trace.tokens[0].text == "ab"
