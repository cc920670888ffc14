"""Thinking is told apart from the answer wherever a reply is cut, and nothing else of it is lost."""

from itertools import groupby

import models
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repl.thinking import ANSWER, CHANNELS, THINKING, Fold, Marks, Part, Spans, marks, split

PLAIN = Marks()
OPENED = Marks(closing="</think>")
NAMED = Marks(channels=True)
HARMONY = (
    "<|channel|>analysis<|message|>They greet.<|end|>"
    "<|start|>assistant<|channel|>commentary to=functions.look<|message|>{}<|end|>"
    "<|start|>assistant<|channel|>final<|message|>Hello."
)

REPLIES = [
    (PLAIN, "<think>\nHm.\n</think>\n\nYes.", "\nHm.\n", "\n\nYes."),
    (PLAIN, "  \n<think>a</think>b", "a", "  \nb"),
    (PLAIN, "<thinking>a </think> b</thinking>c", "a </think> b", "c"),
    (PLAIN, "<think></think>b", "", "b"),
    (PLAIN, "<think>never closed </thin", "never closed </thin", ""),
    (PLAIN, "Write <think>x</think> like this.", "", "Write <think>x</think> like this."),
    (PLAIN, "<think>a</think>b<think>c</think>", "a", "b<think>c</think>"),
    (PLAIN, "<thin", "", "<thin"),
    (PLAIN, "<thinker>a", "", "<thinker>a"),
    (PLAIN, "a < b", "", "a < b"),
    (PLAIN, "", "", ""),
    (OPENED, "Hm.</think>Yes.", "Hm.", "Yes."),
    (OPENED, "<think>\nHm.</think>Yes.", "\nHm.", "Yes."),
    (OPENED, "never closed", "never closed", ""),
    (NAMED, HARMONY, "They greet.{}", "Hello."),
    (NAMED, "<|message|>Hello.<|end|>", "", "Hello."),
    (NAMED, "Hello.", "", "Hello."),
]


def cut(found: Marks, pieces: list[str]) -> list[tuple[str, str]]:
    """Feed pieces; return the parts with neighbours of a kind joined."""
    spans = Spans(found)
    parts = [part for piece in pieces for part in spans.feed(piece)] + spans.end()
    grouped = groupby(parts, lambda part: part.kind)
    return [(kind, "".join(part.text for part in group)) for kind, group in grouped]


@pytest.mark.parametrize(("found", "text", "thinking", "answer"), REPLIES)
def test_a_reply_is_thinking_and_answer(found, text, thinking, answer):
    assert split(found, [(text, None)]) == (thinking, answer)


@pytest.mark.parametrize(("found", "text", "thinking", "answer"), REPLIES)
def test_every_cut_into_two_and_into_characters_gives_the_same_parts(found, text, thinking, answer):
    whole = cut(found, [text])
    assert cut(found, list(text)) == whole
    for place in range(len(text)):
        assert cut(found, [text[:place], text[place:]]) == whole


BITS = st.sampled_from(
    ["<think>", "</think>", "<thinking>", "</thinking>", "<", "/", "think", ">", " ", "\n", "ü", "x"]
)
NAMES = st.sampled_from([*CHANNELS, "final", "analysis", "<|", "x ", "\n"])


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([PLAIN, OPENED, NAMED]).flatmap(
        lambda found: st.tuples(st.just(found), st.lists(NAMES if found.channels else BITS, max_size=12))
    )
)
def test_no_cut_changes_a_reply_and_nothing_but_tags_is_lost(case):
    found, pieces = case
    text = "".join(pieces)
    parts = cut(found, pieces)
    assert parts == cut(found, [text]) == cut(found, list(text))
    if not found.channels:
        assert is_text_without_tags("".join(part for _, part in parts), text)


def is_text_without_tags(joined: str, text: str) -> bool:
    """Whether `joined` is `text` with some tags taken out."""
    reachable = {0}
    tags = ("<think>", "</think>", "<thinking>", "</thinking>")
    for place in range(len(text) + 1):
        if place in reachable:
            reachable |= {place + len(tag) for tag in tags if text.startswith(tag, place)}
    ways = {(0, 0)}
    while ways:
        here, there = ways.pop()
        if here == len(text) and there == len(joined):
            return True
        if here < len(text) and there < len(joined) and text[here] == joined[there]:
            ways.add((here + 1, there + 1))
        ways |= {(here + len(tag), there) for tag in tags if text.startswith(tag, here)}
    return False


# what the tokenizer says


def tokenizer_with(*specials: str, **attributes: object):
    made = models.byte_level(["<|end_of_text|>", *specials], eos_token="<|end_of_text|>")
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def reply(tokenizer, text: str) -> list[tuple[str, int]]:
    """The tokens of a reply with the text that decoding shows of each."""
    ids = tokenizer(text)["input_ids"]
    return [(tokenizer.decode([token], skip_special_tokens=True), token) for token in ids]


def test_tags_that_decoding_leaves_out_are_told_by_their_ids():
    tokenizer = tokenizer_with("<think>", "</think>")
    pieces = reply(tokenizer, "<think>Hm.</think>Yes.<|end_of_text|>")
    assert "".join(text for text, _ in pieces) == "Hm.Yes."
    assert split(marks(tokenizer, "Hello"), pieces) == ("Hm.", "Yes.")


def test_a_model_that_names_its_channels_is_known_by_its_tokens():
    tokenizer = tokenizer_with(*CHANNELS)
    found = marks(tokenizer, "<|start|>assistant")
    assert split(found, reply(tokenizer, HARMONY)) == ("They greet.{}", "Hello.")


def test_the_response_template_of_a_tokenizer_names_the_tags():
    fields = {"reasoning_content": {"open": "<|channel>thought\n", "close": "<channel|>"}, "content": {}}
    tokenizer = tokenizer_with("<|channel>", "<channel|>", response_template={"fields": fields})
    found = marks(tokenizer, "Hello")
    assert split(found, reply(tokenizer, "<|channel>thought\nHm.<channel|>Yes.")) == ("Hm.", "Yes.")


@pytest.mark.parametrize(
    "template", [{}, {"fields": {"reasoning_content": {"open_pattern": "(a+)+$"}}}, {"fields": 1}, "text"]
)
def test_a_response_template_without_plain_tags_changes_nothing(template):
    assert marks(tokenizer_with(response_template=template), "Hello").tags == PLAIN.tags


@pytest.mark.parametrize(
    ("prompt", "closing"),
    [
        ("Hi<|end_of_text|>assistant\n<think>\n", "</think>"),
        ("Hi<|end_of_text|>assistant\n<think>\nFirst, ", "</think>"),
        ("Hi<|end_of_text|>assistant\n<thinking>", "</thinking>"),
        ("Hi<|end_of_text|>assistant\n<think>\n\n</think>\n\n", ""),
        ("What does <think> mean?<|end_of_text|>assistant\n", ""),
        ("Hi<|end_of_text|>assistant\n", ""),
    ],
)
def test_a_prompt_may_open_the_thinking(prompt, closing):
    assert marks(tokenizer_with(), prompt).closing == closing


# on the screen


class Clock:
    """A clock that goes on half a second at every look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.5
        return self.now


def shown(mode: str, *pieces: str, found: Marks = PLAIN) -> list[tuple[str, str]]:
    fold = Fold(found, mode, Clock())
    drawn = [one for piece in pieces for one in fold.feed(piece)] + fold.end()
    return [(one.kind, one.text) for one in drawn]


def texts(drawn: list[tuple[str, str]], kind: str) -> str:
    return "".join(text for found, text in drawn if found == kind)


PIECES = ("<think>", "\n", "Hm", ".\n", "</think>", "\n\n", "Yes", "\n\n", "sir.")


def test_shown_thinking_is_dim_and_a_blank_line_stands_before_the_answer():
    drawn = shown("show", *PIECES)
    assert texts(drawn, "dim") == "\nHm.\n\n"
    assert texts(drawn, "text") == "Yes\n\nsir."
    assert {kind for kind, _ in drawn} == {"dim", "text"}


def test_folded_thinking_is_a_counter_and_then_one_line():
    drawn = shown("fold", *PIECES)
    counters = [text for kind, text in drawn if kind == "status"]
    assert [text.split()[2] for text in counters] == ["1", "2", "3", "4"]
    assert counters[0] == "thinking · 1 token · 0.5 s"
    assert [text.rpartition(" · ")[0] for kind, text in drawn if kind == "line"] == ["thought for 5 tokens"]
    assert texts(drawn, "text") == "Yes\n\nsir."
    assert not texts(drawn, "dim")


def test_hidden_thinking_leaves_the_answer_alone():
    assert set(shown("hide", *PIECES)) == {("text", "Yes"), ("text", "\n\n"), ("text", "sir.")}


@pytest.mark.parametrize("mode", ["show", "fold", "hide"])
@pytest.mark.parametrize("text", ["Plain.", "\n\nPlain.\n", "  ", "", "<thin", "\n<think"])
def test_a_reply_without_thinking_is_drawn_as_it_is(mode, text):
    drawn = shown(mode, *text)
    assert texts(drawn, "text") == text
    assert {kind for kind, _ in drawn} <= {"text"}


def test_thinking_that_never_ends_is_closed_with_the_reply():
    assert shown("fold", "Hm", "...", found=OPENED)[-1][0] == "line"
    assert texts(shown("show", "Hm", "...", found=OPENED), "dim").startswith("Hm...")
    assert shown("hide", "Hm", "...", found=OPENED) == []


def test_parts_are_values():
    assert Spans(OPENED).feed("Hm") == [Part(THINKING, "Hm")]
    assert Spans(PLAIN).feed("Hm") == [Part(ANSWER, "Hm")]
