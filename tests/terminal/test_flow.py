"""Text that is shown as it comes: words stay whole, every letter keeps its style, and a token costs what it is."""

import pytest
from driving import in_parts
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.style import Style
from window import Window

from repl.core.events import Beam, Beams, Event, PromptEcho, Token
from repl.core.settings import View
from repl.terminal.live import LiveOutput
from repl.terminal.markdown import StyledLine
from repl.terminal.redraw import STRUCK_S, WordWrap
from repl.terminal.screen import THEME, Screen

PLAIN = Style.null()
STYLES = [PLAIN, Style(underline=True), Style(bold=True, underline=True), Style(reverse=True)]
PIECES = [
    *(" word", " logar", "ithm", "s", ",", ".\n", "\n\n", " ", "   ", "\t", "    return x"),
    *("x" * 30, "你好，世界。", " 👍", "é", " a-longer-word", "`code` **bold**", ""),
]
texts = st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from(STYLES)), max_size=40)


def lines(parts: list[tuple[str, Style]], width: int) -> list[StyledLine]:
    flow, found = WordWrap(Console(width=width, force_terminal=True)), list[StyledLine]()
    for text, style in parts:
        flow.style = style
        found += flow.feed(text)
        flow.rest()  # looking changes nothing
    return found + flow.end()


def letters(parts: list[tuple[str, Style]]) -> list[tuple[str, Style]]:
    return [(letter, style) for text, style in parts for letter in text if not letter.isspace()]


def plain(found: list[StyledLine]) -> list[str]:
    return ["".join(part.text for part in line) for line in found]


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(texts, st.integers(4, 100))
def test_every_letter_stays_in_its_style_and_in_the_window(parts: list[tuple[str, Style]], width: int) -> None:
    """How a text is cut into tokens changes no line; no line is wider than the window."""
    found = lines(parts, width)
    assert letters([(part.text, part.style or PLAIN) for line in found for part in line]) == letters(parts)
    assert plain(found) == plain(lines([("".join(text for text, _ in parts), PLAIN)], width))
    assert all(cell_len(line) <= width for line in plain(found))


@settings(max_examples=200, deadline=None)
@given(texts, st.integers(30, 100))
def test_no_word_is_broken_that_a_line_can_hold(parts: list[tuple[str, Style]], width: int) -> None:
    """The words of the rows are those of the text."""
    text = "".join(text for text, _ in parts if text.isascii()).replace("x" * 30, " long ")
    short = " ".join(word for word in text.split() if len(word) <= width)
    assert " ".join(plain(lines([(short, PLAIN)], width))).split() == short.split()


def test_indentation_stays() -> None:
    assert plain(lines([("def f():\n    return 1\n\n\ty", PLAIN)], 40)) == ["def f():", "    return 1", "", "    y"]


def coloured(width: int, pieces: list[tuple[str, Style]]) -> Window:
    window = Window(width, 12, WordWrap)
    for text, style in pieces:
        window.stream.feed(text, style)
        window.stream.draw()
    window.stream.end()
    window.show()
    return window


def test_a_growing_word_moves_to_the_next_line_as_a_whole() -> None:
    """Its beginning was drawn at the right edge before the rest of it came."""
    window = coloured(20, [("the inverse of ", PLAIN), ("expo", STYLES[3]), ("nentiation", PLAIN), (" is", STYLES[1])])
    assert window.rows()[:3] == ["the inverse of", "exponentiation is", ""]
    cell = window.screen.buffer[1]
    assert [cell[column].reverse for column in (3, 4)] == [True, False]
    assert [cell[column].underscore for column in (12, 16)] == [False, True]
    assert not any(window.screen.buffer[0][column].reverse for column in range(20))


@pytest.mark.slow
@pytest.mark.parametrize("width", [20, 60, 140])
def test_a_token_costs_what_it_is(width: int) -> None:
    """Law: bytes written per token do not grow with the text, and stay below two of its lines."""
    window = Window(width, 24, WordWrap)
    sizes = []
    for number in range(1500):
        window.stream.feed(f" word{number % 7}", STYLES[number % 4])
        window.stream.draw()
        sizes.append(len(window.file.getvalue()))
        window.file.seek(0)
        window.file.truncate()
    assert max(sizes[1000:]) <= max(sizes[:500])
    assert sum(sizes) / len(sizes) < 60


def drawn(events: list[Event], view: View, width: int = 24) -> Window:
    """Return a window after some events, at a terminal where one types."""
    window = Window(width, 12)
    screen = Screen(interactive=True)
    screen.out = screen.err = window.console
    screen.out.push_theme(THEME)
    with LiveOutput(screen, view) as pane:
        for event in events:
            pane.draw([event])
            pane.draw([])  # nothing more comes just now
    window.show()
    return window


UNLIKELY = [
    Token("Plain words and", 1, 0.0),
    Token(" loga", 2, -5.0),
    Token("rithm", 3, -0.1),
    Token("ically", 4, -0.1),
]


@pytest.mark.parametrize("events", [in_parts(*UNLIKELY), [PromptEcho("So, "), *UNLIKELY], UNLIKELY])
def test_coloured_replies_keep_their_words_whole(events: list[Event]) -> None:
    """Those of a chat, and those that go on from a text."""
    rows = drawn([*events], View(probs="on")).rows()
    text = "".join(event.text for event in events if isinstance(event, PromptEcho)) + "Plain words and"
    assert rows[:2] == [text, "logarithmically"]


def test_colours_move_with_their_word() -> None:
    row = drawn(in_parts(*UNLIKELY), View(probs="on")).screen.buffer[1]
    assert [row[column].italics for column in range(6)] == [True] * 4 + [False] * 2


def test_text_as_it_comes_is_broken_by_the_terminal() -> None:
    """Without Markdown and colours nothing is added, so that it can be copied as it was written."""
    window = drawn(in_parts(*UNLIKELY), View(markdown=False))
    assert window.raw == "Plain words and logarithmically\n"


def test_thinking_that_is_shown_stands_before_the_answer() -> None:
    """A dim line, then the coloured words on lines of their own."""
    said = [Token("<think>why", 1, 0.0), Token("</think>", 2, 0.0), *UNLIKELY]
    rows = drawn(in_parts(*said), View(probs="on", thinking="show")).rows()
    assert rows[:4] == ["why", "", "Plain words and", "logarithmically"]


def test_a_search_goes_on_from_its_text_on_the_same_line() -> None:
    """The live hypotheses are gone when it has ended, and what it goes on from stands in front of the winner."""
    search = [Beams(1, "", (Beam(" a time", -1.0), Beam(" a dog", -2.0)))]
    rows = drawn([PromptEcho("Once upon"), *search, Token(" a time", 1)], View()).rows()
    assert rows[:2] == ["Once upon a time", ""]


def test_what_was_taken_back_is_struck_through_for_a_moment() -> None:
    """It stands behind the text that stays, and is gone when more is drawn; in a pipe it is never seen."""
    window = Window(40, 12, WordWrap)
    window.stream.feed("The")
    window.stream.strike(" end of it")
    window.show()
    assert window.screen.display[0].rstrip() == "The end of it"
    assert [window.screen.buffer[0][column].strikethrough for column in (2, 4)] == [False, True]
    window.stream.feed(" way")
    window.now += STRUCK_S
    window.stream.draw()
    window.show()
    assert window.screen.display[0].rstrip() == "The way"
    assert not any(window.screen.buffer[0][column].strikethrough for column in range(20))
