"""A thought is drawn as the setting says, and everything else of a reply as it is."""

import pytest

from repl.core.parts import PartsReader
from repl.terminal.reply import Fold


class Clock:
    """A clock that goes on half a second at every look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.5
        return self.now


def shown(mode: str, *pieces: str, closing: str = "", lead: str = "") -> list[tuple[str, str]]:
    fold, reader = Fold(mode, Clock()), PartsReader(closing=closing)
    drawn = fold.feed(reader.feed(lead), counts=False)
    for piece in pieces:
        drawn += fold.feed(reader.feed(piece))
    drawn += fold.feed(reader.end(), counts=False) + fold.end()
    return [(one.kind, one.text) for one in drawn]


def texts(drawn: list[tuple[str, str]], kind: str) -> str:
    return "".join(text for found, text in drawn if found == kind)


def kinds(drawn: list[tuple[str, str]]) -> list[str]:
    """The kinds in their order, neighbours as one."""
    return [one for place, (one, _) in enumerate(drawn) if not place or drawn[place - 1][0] != one]


PIECES = ("<think>", "\n", "Hm", ".\n", "</think>", "\n\n", "Yes", "\n\n", "sir.")
CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "sky"}}\n</tool_call>'


def test_shown_thinking_is_dim_and_a_gap_stands_before_the_answer():
    drawn = shown("show", *PIECES)
    assert (texts(drawn, "dim"), texts(drawn, "text")) == ("Hm.", "Yes\n\nsir.")
    assert kinds(drawn) == ["dim", "gap", "text"]


def test_folded_thinking_is_a_counter_and_then_one_line():
    drawn = shown("fold", *PIECES)
    counters = [text for kind, text in drawn if kind == "status"]
    assert [text.split()[2] for text in counters] == ["1", "2", "3", "4"]
    assert counters[0] == "thinking · 1 token · 0.5 s"
    assert [text.rpartition(" · ")[0] for kind, text in drawn if kind == "line"] == ["thought for 5 tokens"]
    assert texts(drawn, "text") == "Yes\n\nsir."
    assert kinds(drawn) == ["status", "line", "text"]


def test_hidden_thinking_leaves_the_answer_alone():
    assert shown("hide", *PIECES) == [("text", "Yes"), ("text", "\n\n"), ("text", "sir.")]


@pytest.mark.parametrize("mode", ["show", "fold", "hide"])
@pytest.mark.parametrize("text", ["Plain.", "\n\nPlain.\n", "  ", "", "<thin", "\n<think"])
def test_a_reply_without_thinking_is_drawn_as_it_is(mode, text):
    drawn = shown(mode, *text)
    assert texts(drawn, "text") == text
    assert {kind for kind, _ in drawn} <= {"text"}


def test_thinking_that_never_ends_is_closed_with_the_reply():
    assert shown("fold", "Hm", "...", closing="</think>")[-1][0] == "line"
    assert texts(shown("show", "Hm", "...", closing="</think>"), "dim") == "Hm..."
    assert shown("hide", "Hm", "...", closing="</think>") == []


def test_a_thought_that_is_gone_on_with_is_still_one():
    """What was given of it is not counted: it was not made now."""
    drawn = shown("fold", " Second", ".</think>", "Yes.", lead="<think>First.")
    assert (texts(drawn, "text"), texts(drawn, "dim")) == ("Yes.", "")
    assert [text.rpartition(" · ")[0] for kind, text in drawn if kind == "line"] == ["thought for 2 tokens"]
    assert texts(shown("show", " Second", ".</think>", "Yes.", lead="<think>First."), "dim") == "First. Second."


@pytest.mark.parametrize("mode", ["show", "fold", "hide"])
def test_calls_of_tools_are_dim_on_one_line_whatever_becomes_of_thoughts(mode):
    pieces = ("<think>Hm.</think>\n\n", "I look.\n", *CALL, "\n", *CALL)
    drawn = [one for one in shown(mode, *pieces) if one[0] != "status"]
    assert texts(drawn, "dim").removeprefix("Hm.") == 'look({"at": "sky"})' * 2
    assert texts(drawn, "text") == "I look.\n"
    assert kinds(drawn)[-4:] == ["gap", "dim", "gap", "dim"]


def test_a_call_that_was_cut_off_is_drawn_as_it_came():
    assert texts(shown("hide", '<tool_call>{"name": "lo'), "dim") == '{"name": "lo'
