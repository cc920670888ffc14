"""A choice: its log-probabilities are those of plain torch, whatever the answers share."""

import json
import random

import models
import pytest
from driving import ask, bare, drawn, opened, refused, run

from repl.analysis.choose import Accuracy, AnswerOdds, check_options, turn_list, wilson
from repl.core.errors import Failed
from repl.core.events import Progress
from repl.terminal.screen import as_record

QUESTION = "The quick brown fox jumps over the lazy dog while seven wizards"
ANSWERS = ("quietly", "quietly box", "quick", "the world", "Paris", "in 2024, and in 2025")


def plain(model, context, ids):
    """Return the log-probabilities of ids behind others, by one pass of the model alone."""
    import torch

    with torch.no_grad():
        logs = model(torch.tensor([[*context, *ids]])).logits[0].double().log_softmax(-1)
    return [float(logs[len(context) - 1 + place, token]) for place, token in enumerate(ids)]


def harness(tokenizer, context, continuation):
    """Encode a pair as lm-evaluation-harness does: spaces at the end of the context belong to the continuation."""
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    whole, before = tokenizer(context + continuation)["input_ids"], tokenizer(context)["input_ids"]
    return whole[: len(before)], whole[len(before) :]


@pytest.mark.library
@pytest.mark.parametrize("kind", ["gpt2", "metaspace", "recurrent"])
@pytest.mark.parametrize("prompt", [QUESTION, "What is", QUESTION + " "])
def test_behind_a_text_it_is_what_the_harness_computes(kind, prompt, request):
    """The ids that an answer adds, each in the model's own distribution: with a cache, in one batch or alone."""
    folder = request.getfixturevalue(f"{kind}_folder")
    model, tokenizer = bare(folder)
    with opened(folder) as session:
        found = run(session, f"/choose {' | '.join(ANSWERS)} -- {prompt}")
        again = run(session, f"/choose {' | '.join(ANSWERS)} -- {prompt}")
    for answer, option in zip(ANSWERS, found.options, strict=True):
        context, ids = harness(tokenizer, prompt, answer if prompt.endswith(" ") else f" {answer}")
        wanted = plain(model, context, ids)
        assert list(option.ids) == ids
        assert option.logprobs == pytest.approx(wanted, abs=1e-4)
        assert option.logprob == pytest.approx(sum(wanted), abs=1e-4)
        assert option.by_token == pytest.approx(sum(wanted) / len(ids), abs=1e-4)
        assert option.by_byte == pytest.approx(sum(wanted) / len(answer.encode()), abs=1e-4)
    assert sum(option.probability for option in found.options) == pytest.approx(1)
    assert [one.logprob for one in again.options] == pytest.approx([one.logprob for one in found.options], abs=1e-4)


@pytest.mark.library
def test_in_a_chat_an_answer_begins_the_reply(llama_folder):
    """Behind the generation prompt of the template, with the system text and what was said before."""
    model, tokenizer = bare(llama_folder)
    with opened(llama_folder, max_new_tokens=5) as session:
        run(session, "/system Be brief.")
        done = ask(session, "Once upon a time")
        found = run(session, f"/choose yes | no | not at all -- {QUESTION}?")
        here = run(session, "/choose yes | no")
        assert len(session.conversation.turns) == 2
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Once upon a time"}]
    asked = [*said, {"role": "assistant", "content": done.raw}, {"role": "user", "content": f"{QUESTION}?"}]
    for messages, options in ((asked, found.options), (said, here.options)):
        context = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        for option in options:
            ids = tokenizer(option.answer, add_special_tokens=False)["input_ids"]
            assert option.logprobs == pytest.approx(plain(model, context, ids), abs=1e-4)


@pytest.mark.slow
@pytest.mark.library
def test_a_sliding_window_is_copied_for_each_answer(tmp_path):
    """A text that is longer than the window."""
    model, tokenizer = bare(models.sliding(tmp_path))
    with opened(tmp_path) as session:
        found = run(session, f"/choose {' | '.join(ANSWERS)} -- {QUESTION * 3}")
    for option in found.options:
        context, ids = harness(tokenizer, QUESTION * 3, f" {option.answer}")
        assert option.logprobs == pytest.approx(plain(model, context, ids), abs=1e-4)


def test_the_end_of_an_answer_counts_where_it_is_asked_for(llama_folder):
    """An answer that begins another is the likelier of the two; with its end it need not be."""
    model, tokenizer = bare(llama_folder)
    with opened(llama_folder) as session:
        found = run(session, "/choose the | the world -- Say it.")
        assert found.options[0].logprob > found.options[1].logprob
        assert "'the' begins 'the world'" in found.remark
        assert "--end" in drawn(found)
        ended = run(session, "/choose --end the | the world -- Say it.")
    assert not ended.remark
    messages = [{"role": "user", "content": "Say it."}]
    context = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    for option in ended.options:
        ids = [*tokenizer(option.answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        assert option.logprobs == pytest.approx(plain(model, context, ids), abs=1e-4)


# the order of a list


def test_a_lettered_list_is_turned_round():
    """Its texts change places, its letters do not, and what stands around it stays."""
    text = "Which?\nA. one\nB. two\n  (C) three\nSay a letter."
    assert turn_list(text, ["A", "B", "C"]) == "Which?\nA. three\nB. two\n  (C) one\nSay a letter."
    assert turn_list(text, ["A", "B"]) is None
    assert turn_list(text, ["one", "two", "three"]) is None
    assert turn_list("Which?", ["A", "B"]) is None


def test_the_difference_of_the_orders_is_said(llama_folder):
    """Each answer is followed to its other place; `--letters` makes the list."""
    listed = "Which is it?\nA. a fox\nB. a dog\nC. a wizard"
    with opened(llama_folder) as session:
        found = run(session, "/choose --letters a fox | a dog | a wizard -- Which is it?")
        typed = run(session, f"/choose A | B | C -- {listed}")
        turned = run(session, "/choose A | B | C -- Which is it?\nA. a wizard\nB. a dog\nC. a fox")
    assert [one.answer for one in found.options] == ["a fox", "a dog", "a wizard"]
    assert [one.logprob for one in found.options] == pytest.approx([one.logprob for one in typed.options], abs=1e-4)
    assert [one.turned for one in typed.options] == pytest.approx(
        [one.probability for one in turned.options[::-1]], abs=1e-4
    )
    first = (typed.options[0].probability - turned.options[2].probability) / 2
    last = (turned.options[0].probability - typed.options[2].probability) / 2
    assert typed.first_place == pytest.approx(first + last, abs=1e-4)
    assert "list reversed" in drawn(typed)
    assert "by token  by byte" in drawn(found, 60)  # no column is folded


# files


def test_the_interval_is_that_of_wilson():
    """Published values: 81 of 263 (Newcombe 1998), and the edges."""
    found = wilson(81, 263)
    assert (found.low, found.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    found = wilson(0, 10)
    assert (found.low, found.high) == pytest.approx((0.0, 0.2775), abs=5e-5)
    assert wilson(10, 10).high == pytest.approx(1.0)
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0.0, 1.0)


@pytest.mark.slow
@pytest.mark.library
def test_a_file_of_items_has_the_accuracy_that_plain_torch_computes(gpt2_folder, tmp_path):
    """By the answers' log-probabilities in all, and by byte; each wrong item is listed."""
    model, tokenizer = bare(gpt2_folder)
    draw = random.Random(3)
    words = ["the", "quick", "brown", "fox", "jumps", "lazy", "dog", "while", "seven", "wizards", "box", "France"]
    items = [
        {
            "id": number,
            "prompt": " ".join(draw.choices(words, k=9)),
            "answers": [" ".join(draw.sample(words, k=length)) for length in (1, 2, 3)],
            "right": draw.randrange(3),
        }
        for number in range(20)
    ]
    file = tmp_path / "items.jsonl"
    file.write_text("".join(json.dumps(item) + "\n" for item in items))
    with opened(gpt2_folder) as session:
        heard = []
        found = run(session, f"/choose {file}", heard=heard.append)
    total, by_byte, wrong = 0, 0, []
    for item in items:
        sums = []
        for answer in item["answers"]:
            sums.append(sum(plain(model, *harness(tokenizer, item["prompt"], f" {answer}"))))
        sizes = [len(answer) for answer in item["answers"]]
        given = sums.index(max(sums))
        shares = [value / size for value, size in zip(sums, sizes, strict=True)]
        total += given == item["right"]
        by_byte += shares.index(max(shares)) == item["right"]
        if given != item["right"]:
            wrong.append((item["id"], item["answers"][given], sums[given] - sums[item["right"]]))
    assert (found.total.right, found.by_byte.right, found.total.items) == (total, by_byte, 20)
    assert [(one.id, one.given) for one in found.wrong] == [(number, given) for number, given, _ in wrong]
    assert [one.margin for one in found.wrong] == pytest.approx([margin for *_, margin in wrong], abs=1e-4)
    steps = [event for event in heard if isinstance(event, Progress) and event.stage == "scoring answers"]
    assert [event.done for event in steps] == [*range(20)]
    assert "95 % interval" in drawn(found)
    assert as_record("choose", found)["data"]["total"]["right"] == total


def test_lines_that_cannot_be_answered_are_said_and_the_rest_counts(gpt2_folder, tmp_path):
    """A line that is no JSON, that lacks what it needs, that is too long: a sentence each."""
    good = {"prompt": QUESTION, "answers": ["box", "dog"], "right": "box"}
    lines = [
        json.dumps(good),
        "{no json",
        json.dumps({"prompt": QUESTION}),
        json.dumps({**good, "answers": ["one", ""]}),
        json.dumps({**good, "right": 2}),
        json.dumps({**good, "prompt": QUESTION * 100}),
        json.dumps({**good, "right": 1}),
    ]
    file = tmp_path / "items.jsonl"
    file.write_text("\n".join(lines))
    with opened(gpt2_folder) as session:
        found = run(session, f"/choose {file}")
    assert isinstance(found, Accuracy)
    assert (found.total.items, found.total.right) == (2, 1)
    assert [line for line, _ in found.failed] == [2, 3, 4, 5, 6]
    assert found.answers["box"].items == 1
    assert found.failed[0][1].startswith("the line is not JSON")
    file.write_text("\n".join(lines[1:3]))
    with opened(gpt2_folder) as session, pytest.raises(Failed, match="no item could be answered · line 1"):
        run(session, f"/choose {file}")
    assert "line 5: right is 2" in drawn(found)


# what is refused


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/choose yes | | no -- Is it?", "an answer is empty"),
        ("/choose yes -- Is it?", "needs at least two answers"),
        ("/choose yes | no | yes -- Is it?", "'yes' is given twice"),
        ("/choose yes | no", "there is no message yet"),
        ("/choose yes", "needs at least two answers"),
    ],
)
def test_a_wrong_choice_is_one_sentence(line, said, gpt2_folder):
    with opened(gpt2_folder) as session:
        refused(session, line, said)


def test_a_choice_is_drawn_and_written_field_by_field(gpt2_folder):
    """What is shown is in the record, with the ids."""
    with opened(gpt2_folder) as session:
        found = run(session, f"/choose box | dog -- {QUESTION}")
    assert isinstance(found, AnswerOdds)
    data = as_record("choose", found)["data"]
    assert {"answer", "ids", "logprobs", "logprob", "by_token", "by_byte", "probability", "turned"} == {
        *data["options"][0]
    }
    assert "by byte" in drawn(found, 60)
    assert check_options(["a", "b"]) == ("a", "b")
