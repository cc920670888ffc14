"""Tokens, what comes next, scores and reasons: every number is that of plain torch."""

import io
import json
from math import exp, log

import pytest
from driving import ask, ask_until, bare, choose, finish, opened, run
from rich.console import Console

from repl.analysis.why import call_ids
from repl.commands import registry
from repl.commands.score import score_windows
from repl.commands.tokens import Tokens
from repl.core.errors import Cancelled, ReplError, UsageError
from repl.core.events import Progress, Token
from repl.generation.measure.token_text import Speller, TokenPiece, find_split_characters
from repl.terminal.screen import as_record, palette, render

TEXT = "The quick brown fox jumps over the lazy dog. Prices rose by 12.5 percent in 2024."
KINDS = ["llama", "gpt2", "recurrent", "metaspace"]
WARPED = {"do_sample": True, "temperature": 0.7, "top_k": 40, "top_p": 0.8, "min_p": 0.01, "repetition_penalty": 1.3}


def drawn(result, width=80, terminal=False):
    """The text of a view, as a pipe or a terminal without colours gets it."""
    paper = io.StringIO()
    console = Console(file=paper, theme=palette("dark"), width=width, force_terminal=terminal, highlight=False)
    console.print(render(result))
    return paper.getvalue()


def plain(folder, ids):
    """Logits of one forward pass with nothing but the library, shape (tokens, vocab)."""
    import torch

    with torch.no_grad():
        return bare(folder)[0](torch.tensor([list(ids)])).logits[0].float()


def passes(session):
    """Count the forward passes of a session's model from here on."""
    counted = []
    session.store.current().model.register_forward_pre_hook(lambda *_: counted.append(1))
    return counted


@pytest.fixture(params=KINDS)
def folder(request):
    return request.getfixturevalue(f"{request.param}_folder")


@pytest.fixture
def chat(llama_folder):
    with opened(llama_folder, max_new_tokens=8) as session:
        yield session


# tokens


def test_pieces_of_a_text_are_its_ids_and_joined_its_bytes(folder):
    """Whole characters as they are, other bytes as codes: nothing is lost and nothing is hidden."""
    text = "naïve 你好  world\n\tx 🙂"
    with opened(folder) as session:
        found = run(session, f"/tokens {text}")
        tokenizer = session.store.current().tokenizer
        assert found.ids == tokenizer(text)["input_ids"]
        assert (found.characters, found.bytes) == (len(text), len(text.encode()))
        speller = Speller(tokenizer)
        assert sum(map(speller.size, found.ids)) - len(text.encode()) in (0, 1)  # a space that Metaspace puts in front
        joined = "".join(piece.text for piece in found.pieces)
        assert "\ufffd" not in joined
        assert joined.lstrip().replace("<f0><9f><99><82>", "🙂").replace("<c3><af>", "ï").startswith("naïve ")


def test_a_character_that_is_split_over_tokens_stands_over_its_bytes():
    pieces = [TokenPiece(1, "a <f0><9f>"), TokenPiece(2, "<99>"), TokenPiece(3, "<82>b"), TokenPiece(4, "<61>")]
    assert find_split_characters(pieces) == {0: "🙂"}
    rows = drawn(Tokens([1, 2, 3, 4], pieces, 4, 5, 8, 0, True)).splitlines()
    assert rows[0].endswith('"a <f0><9f>" · 🙂')


def test_a_text_of_special_tokens_is_marked(chat):
    found = run(chat, "/tokens a<|im_end|>b")
    assert [piece.special for piece in found.pieces] == [False, True, False]
    assert found.special == 1


def test_alone_it_shows_what_the_last_turn_added(chat):
    """The message as the template wrote it, then the reply, whose tokens are numbered from 1."""
    first = ask(chat, "hello")
    found = run(chat, "/tokens")
    assert found.ids == [*first.prompt_ids, *first.token_ids]
    assert found.reply == len(first.prompt_ids)
    second = ask(chat, "and you?")
    found = run(chat, "/tokens --ids")
    assert found.ids[found.reply :] == list(second.token_ids)
    assert found.ids[: found.reply] == list(second.prompt_ids)[-found.reply :]
    said = "".join(piece.text for piece in found.pieces[: found.reply])
    assert "and you?" in said
    assert "hello" not in said
    lines = drawn(found).splitlines()
    assert lines[found.reply].split()[0] == "1"
    assert lines[found.reply].split()[1] == str(second.token_ids[0])


def test_tokens_are_told_apart_on_a_terminal_and_in_a_pipe(chat):
    """On a terminal every other one is shaded; a pipe gets one a line."""
    found = run(chat, "/tokens The quick\nfox")
    assert "\x1b[" in drawn(found, terminal=True)
    assert "↵" in drawn(found, terminal=True)
    assert "\x1b" not in drawn(found)
    assert len(drawn(found).splitlines()) == len(found.ids) + 1


def test_without_a_text_or_a_turn_there_is_nothing_to_cut(chat):
    with pytest.raises(UsageError, match="no replies yet"):
        run(chat, "/tokens")


# next


def test_next_is_the_softmax_of_a_plain_pass(folder):
    """Ranks exact, probabilities and entropy within 1e-4."""
    with opened(folder) as session:
        found = run(session, f"/next 7 {TEXT}")
        logs = plain(folder, session.store.current().tokenizer(TEXT)["input_ids"])[-1].log_softmax(-1)
        assert [one.id for one in found.candidates] == logs.topk(7).indices.tolist()
        assert [one.logprob for one in found.candidates] == pytest.approx(logs.topk(7).values.tolist(), abs=1e-4)
        shares = [exp(one.logprob) for one in found.candidates]
        assert [one.probability for one in found.candidates] == pytest.approx(shares, abs=1e-6)
        assert found.entropy == pytest.approx(-(logs.exp() * logs).sum().item(), abs=1e-4)
        assert (found.processors, found.greedy) == ([], True)


def test_next_in_a_chat_is_where_continue_goes_on(chat):
    """The first candidate is what greedy says next; a template is used, and the text is named."""
    ask(chat, "hello")
    found = run(chat, "/next")
    assert found.after == "the last reply"
    assert found.text == chat.last.text
    before = len(chat.last.record.token_ids)
    run(chat, "/continue")
    assert chat.last.record.token_ids[before] == found.candidates[0].id


def test_next_after_a_reply_that_ended_shows_the_end(scripted_folder):
    with opened(scripted_folder(b"hello")) as session:
        done = ask(session, "hi")
        assert done.finish == "stop"
        found = run(session, "/next 3")
        assert found.after == "the last reply, where it ended"
        assert found.candidates[0].id == done.token_ids[-1]


def test_next_shows_both_distributions_side_by_side(gpt2_folder):
    """What is drawn from is what the library's own processors make of it."""
    import torch

    with opened(gpt2_folder) as session:
        choose(session, WARPED)
        found = run(session, f"/next 30 {TEXT}")
        model, tokenizer = bare(gpt2_folder)
        ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, output_scores=True,
            return_dict_in_generate=True, **WARPED,
        )  # fmt: skip
        final = output.scores[0][0].softmax(-1)
    assert [one.drawn for one in found.candidates] == pytest.approx(
        [float(final[one.id]) for one in found.candidates], abs=1e-4
    )
    assert found.processors == ["repetition_penalty 1.3", "temperature 0.7", "top_k 40", "top_p 0.8", "min_p 0.01"]
    assert found.left == int((final > 0).sum())
    assert any(one.drawn == 0 for one in found.candidates)
    assert "drawn" in drawn(found)


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("/next", "there is no text yet"),
        ("/next 0", "1 to 1000 tokens, not 0"),
        ("/next 2000", "1 to 1000 tokens, not 2000"),
    ],
)
def test_what_next_cannot_do_is_said(chat, line, match):
    with pytest.raises(UsageError, match=match):
        run(chat, line)


@pytest.mark.slow
def test_next_leaves_the_conversation_and_the_cache_good(llama_folder):
    """A later reply is the one that would have come anyway."""
    with opened(llama_folder, max_new_tokens=8) as one, opened(llama_folder, max_new_tokens=8) as other:
        for session in (one, other):
            ask(session, "hello")
        run(one, "/next", "/why 2", "/next 3 Something else", "/score nothing of this")
        assert ask(one, "and?").token_ids == ask(other, "and?").token_ids


# score


def test_score_is_a_plain_reference(folder):
    with opened(folder) as session:
        found = run(session, f"/score {TEXT}")
        ids = session.store.current().tokenizer(TEXT)["input_ids"]
        logs = plain(folder, ids).log_softmax(-1)
        expected = [row[token].item() for row, token in zip(logs, ids[1:], strict=False)]
        assert found.ids == ids
        assert found.logprobs[0] is None
        assert found.logprobs[1:] == pytest.approx(expected, abs=1e-4)
        assert found.total == pytest.approx(sum(expected), abs=1e-3)
        assert found.perplexity == pytest.approx(exp(-sum(expected) / len(expected)), rel=1e-4)
        assert found.bits_per_byte == pytest.approx(-sum(expected) / log(2) / len(TEXT.encode()), rel=1e-5)
        assert found.source == "text"


def test_a_long_file_is_scored_in_windows_that_overlap(gpt2_folder, tmp_path):
    """Each token has half a context before it, or all there is; a progress is told; the path is named."""
    path = tmp_path / "story.txt"
    path.write_text(" ".join([TEXT] * 8), "utf-8")
    told = []
    with opened(gpt2_folder) as session:
        found = run(session, f"/score {path}", heard=told.append)
        ids = session.store.current().tokenizer(path.read_text("utf-8"))["input_ids"]
    assert (found.source, found.window, found.stride) == (str(path), 128, 64)
    assert f"file {path.name}" in drawn(found, 300).replace(f"{path.parent}/", "")
    assert "windows of 128" in drawn(found, 300)
    expected = []
    for begin in range(0, len(ids) - 64, 64):
        logs = plain(gpt2_folder, ids[begin : begin + 128]).log_softmax(-1)
        first = len(expected) + 1 - begin
        part = ids[begin : begin + 128]
        expected += [logs[place - 1][part[place]].item() for place in range(first, len(part))]
    assert found.logprobs[1:] == pytest.approx(expected, abs=1e-4)
    assert [event for event in told if isinstance(event, Progress)][-1].total == len(ids) - 1


@pytest.mark.parametrize("count", [1, 2, 127, 128, 129, 191, 192, 193, 500])
@pytest.mark.parametrize("window", [1, 2, 3, 128])
def test_windows_score_every_token_once(count, window):
    """In order, inside the window, and with at least half of it before each token behind the first window."""
    if window == 1:
        return
    places = []
    for begin, end, first in score_windows(count, window):
        assert end - begin <= window
        assert first >= (1 if not begin else window // 2)
        places += range(begin + first, end)
    assert places == list(range(1, count))


def test_the_view_of_a_score_is_readable_without_colour(chat):
    """A terminal gets the text in its shades with a legend, a pipe a line for each token."""
    found = run(chat, f"/score {TEXT}")
    shown = drawn(found, terminal=True)
    assert "50 % or more" in shown
    assert "\x1b[" in shown
    lines = drawn(found).splitlines()
    assert len([line for line in lines if '"' in line and "least" not in line]) >= len(found.ids)
    assert "bits per byte" in drawn(found, 200)


@pytest.mark.parametrize("line", ["/score", "/score a"])
def test_what_cannot_be_scored_is_refused(chat, line):
    with pytest.raises(UsageError):
        run(chat, line)


def test_a_file_that_is_no_text_is_refused(chat, tmp_path):
    path = tmp_path / "bytes"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ReplError, match="not UTF-8"):
        run(chat, f"/score {path}")


def test_a_score_can_be_stopped(gpt2_folder, tmp_path):
    path = tmp_path / "long.txt"
    path.write_text(" ".join([TEXT] * 60), "utf-8")
    with opened(gpt2_folder) as session:
        task = registry.parse_line(f"/score {path}").run(session)
        with pytest.raises(Cancelled):
            finish(task, lambda event: task.job.cancel())
        assert run(session, "/score still alive").total < 0


# why


def generated(folder, prompt, values, count, seed=None):
    """The library's own call: its ids, raw logits and processed scores per step."""
    import torch

    model, _ = bare(folder)
    if seed is not None:
        torch.manual_seed(seed)
    ids = torch.tensor([list(prompt)])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, output_scores=True, output_logits=True,
        return_dict_in_generate=True, **values,
    )  # fmt: skip
    return output.sequences[0, len(prompt) :].tolist(), output.logits, output.scores


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_waterfall_ends_at_what_the_token_was_drawn_with(kind, request):
    """For each token of a sampled reply: first column, product of the factors and last column by the library."""
    folder = request.getfixturevalue(f"{kind}_folder")
    with opened(folder, max_new_tokens=6, seed=5) as session:
        choose(session, {**WARPED, "seed": 5, "no_repeat_ngram_size": 2, "max_new_tokens": 6})
        done = ask(session, "Once upon a time")
        choose(session, {"temperature": 2.0})  # settings of today do not count
        values = {**WARPED, "no_repeat_ngram_size": 2}
        ids, logits, scores = generated(folder, done.prompt_ids, values, 6, seed=5)
        assert ids == list(done.token_ids)
        for number, token in enumerate(ids, 1):
            found = run(session, f"/why {number}")
            raw, final = logits[number - 1][0].softmax(-1), scores[number - 1][0].softmax(-1)
            assert (found.id, found.number, found.of) == (token, number, len(ids))
            assert found.model == pytest.approx(float(raw[token]), abs=1e-4)
            assert found.probability == pytest.approx(float(final[token]), abs=1e-4)
            product = found.model
            for step in found.steps:
                product *= step.factor
            assert product == pytest.approx(found.probability, rel=1e-4)
            assert found.rank == int((raw > raw[token]).sum()) + 1
            assert found.how == "sampled"
            for one in found.candidates:
                assert one.probabilities[-1] == pytest.approx(float(final[one.id]), abs=1e-4)
                assert bool(one.removed_by) == (float(final[one.id]) == 0)
        names = [step.name for step in found.steps]
        assert names == ["repetition_penalty", "no_repeat_ngram_size", "temperature", "top_k", "top_p", "min_p"]
        kept = int((final > 0).sum())
        assert sum(step.removed for step in found.steps) == len(final) - kept


def test_who_removed_a_candidate_is_the_first_that_did(gpt2_folder):
    """By hand: the ids behind the k likeliest fall to top_k, those of the rest beyond the mass to top_p."""
    with opened(gpt2_folder, max_new_tokens=2) as session:
        choose(session, {"do_sample": True, "top_k": 5, "top_p": 0.5, "seed": 1, "max_new_tokens": 2})
        done = ask(session, TEXT)
        found = run(session, "/why 1")
        odds = plain(gpt2_folder, done.prompt_ids)[-1].softmax(-1)
        best = odds.topk(5).indices.tolist()
        for one in found.candidates:
            assert (one.removed_by == "top_k") == (one.id not in best)
        shares = odds[best] / odds[best].sum()
        kept = [token for token, before in zip(best, shares.cumsum(0) - shares, strict=True) if before < 0.5]
        assert {one.id for one in found.candidates if not one.removed_by} == set(kept)
        (by_k, by_p) = found.steps
        assert by_k.removed == len(odds) - 5
        assert by_k.mass == pytest.approx(1 - float(odds[best].sum()), abs=1e-4)
        assert by_p.removed == 5 - len(kept)
        assert "removed" in drawn(found)


def test_a_greedy_token_is_the_likeliest_behind_the_processors(chat):
    choose(chat, {"repetition_penalty": 1.5, "max_new_tokens": 8})
    done = ask(chat, "hello")
    for number in range(1, len(done.token_ids) + 1):
        found = run(chat, f"/why {number}")
        assert (found.how, found.likeliest) == ("greedy", found.id)
    assert "greedy: the most likely token" in drawn(found)


def test_a_continued_token_has_the_reply_before_it_in_its_prompt(chat):
    """The processors get the length that `generate` was called with: what counts new tokens counts from there."""
    choose(chat, {"max_new_tokens": 4})
    first = ask(chat, "hello")
    run(chat, "/continue")
    record = chat.last.record
    assert call_ids(record, 3) == (first.prompt_ids, record.token_ids[:3])
    assert call_ids(record, 5) == (first.prompt_ids + first.token_ids, record.token_ids[4:5])
    run(chat, "/continue")
    again = chat.last.record
    assert again.token_ids[:8] == record.token_ids
    assert call_ids(again, 3) == (first.prompt_ids, record.token_ids[:3])
    assert call_ids(again, 5) == (first.prompt_ids + first.token_ids, record.token_ids[4:5])
    assert call_ids(again, 9) == (first.prompt_ids + record.token_ids, again.token_ids[8:9])


def test_a_token_of_a_beam_search_is_weighed_with_its_sequence(chat):
    choose(chat, {"num_beams": 3, "max_new_tokens": 4})
    ask(chat, "hello")
    found = run(chat, "/why 1")
    assert found.how == "beams"
    assert "compares whole sequences" in drawn(found, 200)


def test_a_token_is_found_by_its_text(scripted_folder):
    """A token of that text, or the one that it begins in."""
    with opened(scripted_folder(b"hello there")) as session:
        ask(session, "hi")
        assert run(session, "/why e").number == 2
        assert run(session, "/why there").number == 7
        assert run(session, '/why "o t"').number == 5
        assert run(session, "/why <|return|>").number == 12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("/why 99", "tokens 1 to 8"),
        ("/why 0", "tokens 1 to 8"),
        ("/why zebra", "no 'zebra'"),
    ],
)
def test_what_why_cannot_do_is_said(chat, line, match):
    ask(chat, "hello")
    with pytest.raises(UsageError, match=match):
        run(chat, line)


def test_a_reply_of_another_model_is_not_explained_by_this_one(llama_folder, gpt2_folder):
    """It says which model to load."""
    with opened(llama_folder, max_new_tokens=4) as session:
        ask(session, "hello")
        finish(run_load(session, gpt2_folder))
        for line in ("/why 1", "/tokens"):
            with pytest.raises(UsageError, match="is loaded") as raised:
                run(session, line)
            assert raised.value.hints == (f"/model {llama_folder}",)


def run_load(session, folder):
    return session.load(session.settings.put("model", str(folder), "you"))


def test_without_an_argument_the_least_certain_token_is_explained(chat):
    """The one of the lowest probability, by its record; its row begins with a bar."""
    choose(chat, {"do_sample": True, "seed": 3, "max_new_tokens": 8})
    done = ask(chat, "hello")
    texts = chat.store.current().tokenizer.batch_decode([[token] for token in done.token_ids])
    shares = [share for share, text in zip(done.measures.logprobs, texts, strict=True) if text.strip()]
    found = run(chat, "/why")
    assert done.measures.logprobs[found.number - 1] == min(shares)
    assert sum(mark in drawn(found, 100) for mark in "▏▎▍▌▋▊▉█") >= 1


def test_a_cancelled_reply_is_explained_too(chat):
    choose(chat, {"max_new_tokens": 200})
    done = ask_until(chat, "hello", lambda event: isinstance(event, Token))
    assert done.finish == "cancelled"
    assert run(chat, "/why 1").id == done.token_ids[0]


# all of them


def test_every_view_has_a_json_form_and_fits_60_columns(chat):
    """Plain values only, and no line is longer than the screen."""
    choose(chat, {**WARPED, "max_new_tokens": 8})
    ask(chat, "hello")
    for line in ("/tokens", "/next 5", f"/score {TEXT}", "/why 3"):
        result = run(chat, line)
        record = json.loads(json.dumps(as_record("x", result)))
        assert record["event"] == "result"
        assert max(map(len, drawn(result, 60).splitlines())) <= 60
    assert {"candidates", "entropy"} <= as_record("next", run(chat, "/next"))["data"].keys()
    first = as_record("next", run(chat, "/next"))["data"]["candidates"][0]
    assert {"id", "text", "probability", "logprob"} <= first.keys()


def test_hostile_pieces_do_not_act_on_the_terminal(chat):
    """Control bytes in a text are shown, not sent."""
    for line in ("/tokens a\x1b[31mb\x9b", "/score a\x1b[31mb\x9bc", "/next a\x1b[31mb\u202e"):
        assert "\x1b" not in drawn(run(chat, line))
        assert "\x1b[31m" not in drawn(run(chat, line), terminal=True)


@pytest.mark.slow
def test_the_builtin_model_agrees_with_plain_torch(builtin_folder):
    """`/score`, `/next` and `/why` on a real model."""
    text = "The capital of France is"
    with opened(builtin_folder, max_new_tokens=3) as session:
        ids = session.store.current().tokenizer(text)["input_ids"]
        logs = plain(builtin_folder, ids).log_softmax(-1)
        scored, following = run(session, f"/score {text}"), run(session, f"/next 1 {text}")
        expected = [row[token].item() for row, token in zip(logs, ids[1:], strict=False)]
        assert scored.logprobs[1:] == pytest.approx(expected, abs=1e-4)
        assert following.candidates[0].text == " Paris"
        assert following.candidates[0].logprob == pytest.approx(logs[-1].max().item(), abs=1e-4)
        run(session, "/sample temperature=0.7 top_p=0.9 seed=4")
        done = run(session, f"/raw {text}")
        found = run(session, "/why 2")
        values = {"do_sample": True, "temperature": 0.7, "top_p": 0.9}
        made, _, scores = generated(builtin_folder, done.prompt_ids, values, 3, seed=4)
        assert made == list(done.token_ids)
        assert found.probability == pytest.approx(float(scores[1][0].softmax(-1)[made[1]]), abs=1e-4)
