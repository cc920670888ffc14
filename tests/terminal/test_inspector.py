"""A reply on a screen of its own: laid out whole, quick, and its keys do what they say."""

import signal
from collections.abc import Iterator

import models
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from prompt_toolkit.utils import get_cwidth
from rich.cells import cell_len
from terminal import LOADED, Terminal

from repl.generation.measure.token_trace import Inspection, Seen
from repl.terminal.inspector import EMPTY_TOKEN, Inspector, TokenText, lay_out, styles, visible

UP, DOWN, RIGHT, LEFT, END, HOME, PAGE = "\x1b[A", "\x1b[B", "\x1b[C", "\x1b[D", "\x1b[F", "\x1b[H", "\x1b[6~"


def seen(text: str, number: int = 0, name: str = "") -> Seen:
    """A token with two alternatives, the first of which was taken."""
    return Seen(number, text, name or text, -0.7, 1.0, 1, ((number, text, -0.7), (number + 1000, " other", -1.5)))


def reply(*texts: str) -> Inspection:
    return Inspection(4, "", tuple(seen(text, number) for number, text in enumerate(texts)), "on")


def pressed(found: Inspection, keys: str) -> tuple[str, Inspector]:
    """Press keys; returns the line to run and the view as they left it."""
    with create_pipe_input() as pipe:
        pipe.send_text(keys)
        inspector = Inspector(found, "dark", pipe, DummyOutput())
        return inspector.run(), inspector


WORDS = reply("Paris", " is", " a", " city", " of", " light", ".\n", "It", " is", " old", ".")


# the page

TEXTS = st.lists(st.text("ab \n\té好\u0301\ufffd", max_size=9), min_size=1, max_size=40)


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.integers(2, 30))
def test_a_page_shows_every_token_in_its_order_and_within_its_width(texts: list[str], width: int) -> None:
    """Law: rows joined are what the tokens show, each token has a place, and no row is wider than the page."""
    tokens = reply(*texts).tokens
    page = lay_out(tokens, width)
    joined = "".join(text for row in page.rows for _, text in row)
    assert joined == "".join(visible(token) for token in tokens).replace("\n", "")
    assert all(sum(cell_len(text) for _, text in row) <= width for row in page.rows)
    order = [token for row in page.rows for token, _ in row]
    assert order == sorted(order)
    assert set(order) == set(range(len(tokens)))
    for token, (row, column) in enumerate(page.places):
        before = [text for one, text in page.rows[row] if one < token]
        assert column == sum(map(cell_len, before))
        assert page.beside(token, 0) in order


def test_words_are_not_broken_where_they_need_not_be() -> None:
    rows = ["".join(text for _, text in row) for row in lay_out(WORDS.tokens, 12).rows]
    assert rows == ["Paris is a ", "city of ", "light.↵", "It is old."]


def test_what_adds_no_text_is_seen_all_the_same() -> None:
    assert [visible(seen("", 1, name)) for name in ("<|end|>", "\ufffd", "")] == ["<|end|>", EMPTY_TOKEN, EMPTY_TOKEN]


EMOJI = ["👨\u200d👩\u200d👧", "🇩🇪", "👍🏽", "❤\ufe0f", "1\ufe0f\u20e3", "🏳\ufe0f\u200d🌈", "e\u0301", "한"]


@pytest.mark.parametrize("text", EMOJI)
def test_every_row_is_as_wide_as_the_screen_counts_it(text: str) -> None:
    """Terminals join code points that the screen counts one by one: none of those is drawn."""
    page = lay_out([seen(text, 1), seen("x", 2)], 20)
    drawn = "".join(part for _, part in page.rows[0])
    assert page.places[1][1] == cell_len(drawn[:-1]) == sum(map(get_cwidth, drawn[:-1]))
    assert page.find(text, 1) == 0


def test_only_the_rows_that_are_seen_are_drawn() -> None:
    """A reply of 4000 tokens costs no more at a key press than one that fits the screen."""
    found = reply(*(" word" for _ in range(4000)))
    with create_pipe_input() as pipe:
        inspector = Inspector(found, "dark", pipe, DummyOutput())
        asked: list[int] = []
        text = TokenText(inspector)
        text._line = lambda page, number: asked.append(number) or []  # type: ignore[method-assign,func-returns-value]
        content = text.create_content(46, 20)
        assert inspector.page() is inspector.page(46)  # laid out once
        assert content.line_count > 400
        assert asked == []
        inspector.down(150)
        assert inspector.page().places[inspector.at][0] == 150
        assert any("rank" in part[1] for part in inspector._side())  # the whole screen is drawn in slow tests only


# keys


def test_enter_takes_the_alternative_that_was_chosen() -> None:
    assert pressed(WORDS, RIGHT + RIGHT + "2\r")[0] == "/take 3 1002 --exchange 4"
    assert pressed(WORDS, RIGHT + "\t\t\r")[0] == "/take 2 1001 --exchange 4"
    assert pressed(WORDS, END + "2\r")[0] == "/take 11 1010 --exchange 4"


def test_enter_takes_nothing_that_is_not_another_token() -> None:
    line, inspector = pressed(WORDS, "\rq")
    assert (line, inspector.said) == ("", "a digit or Tab chooses an alternative first")
    line, inspector = pressed(WORDS, "1\rq")
    assert (line, inspector.said) == ("", "this is the token that was taken")
    assert pressed(WORDS, "9\rq")[1].chosen is None


@pytest.mark.parametrize("leave", ["q", "\x1b", "\x03", "\x04"])
def test_leaving_runs_nothing(leave: str) -> None:
    assert pressed(WORDS, "2" + leave)[0] == ""


def test_arrows_stay_on_the_page() -> None:
    assert pressed(WORDS, LEFT + "q")[1].at == 0
    assert pressed(WORDS, RIGHT * 50 + "q")[1].at == 10
    assert pressed(WORDS, END + HOME + "q")[1].at == 0
    assert pressed(WORDS, RIGHT + DOWN + "q")[1].at == 9  # " old" stands under " is"
    assert pressed(WORDS, RIGHT + DOWN + UP + "q")[1].at in (0, 1)
    assert pressed(WORDS, PAGE + "q")[1].at == 10


def test_another_place_has_other_alternatives() -> None:
    assert pressed(WORDS, "2" + RIGHT + "q")[1].chosen is None


def test_a_search_goes_from_place_to_place() -> None:
    assert pressed(WORDS, "/IS\rq")[1].at == 1  # behind the cursor, which stands on "Paris"
    assert pressed(WORDS, "/is\rnq")[1].at == 8
    assert pressed(WORDS, "/is\rnnq")[1].at == 0
    assert pressed(WORDS, "/a cit\rq")[1].at == 2
    assert pressed(WORDS, "/xq\x7f\x7fold\rq")[1].at == 9
    _, inspector = pressed(WORDS, "/nowhere\rq")
    assert (inspector.at, inspector.said) == (0, '"nowhere" is not in this reply')
    assert pressed(WORDS, "/is\x1b\x1bq")[0] == ""


def test_p_and_e_change_what_is_coloured() -> None:
    assert pressed(WORDS, "eq")[1].by == "entropy"
    assert pressed(WORDS, "epq")[1].by == "on"


@pytest.mark.parametrize("theme", ["dark", "light", "mono"])
def test_every_theme_has_its_styles(theme: str) -> None:
    assert {"shade1", "shade2", "shade3", "here"} <= {name for name, _ in styles(theme).style_rules}


# the real program


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    folder = models.llama(tmp_path_factory.mktemp("models") / "llama")
    with Terminal(
        str(folder), "--max-new-tokens", "40", home=tmp_path_factory.mktemp("home"), size=(24, 80)
    ) as terminal:
        terminal.see(LOADED)
        yield terminal


@pytest.mark.slow
def test_a_reply_is_looked_into_at_80_by_24_and_gone_on_from(program: Terminal) -> None:
    """The text, the table and the keys are there; Enter streams a new reply below the prompt that is back."""
    program.ask("hello there")
    program.line("/inspect")
    program.wait(lambda: "token 1 of 40" in program.rows()[0])
    program.keys(RIGHT + RIGHT + "2")
    program.wait(
        lambda: (
            "token 3 of 40" in program.rows()[0] and any(row.find("> 2 ") > 0 and "%" in row for row in program.rows())
        )
    )
    rows = program.rows()
    assert rows[0].startswith("exchange 1 · token 3 of 40 · coloured by probability")
    assert any("entropy" in row and "nats" in row for row in rows)
    assert "Enter takes" in rows[-1]
    assert "50 % or more" in rows[-2]
    assert all(cell_len(row) <= 80 for row in rows)
    program.keys("\r")
    program.see(r"/take 3 \d+ --exchange 1")
    program.wait(program.ready)
    opened, left = program.raw.rindex(b"\x1b[?1049h"), program.raw.rindex(b"\x1b[?1049l")
    assert opened < left < program.raw.rindex(b"tokens")  # what was said before is on the screen again


@pytest.mark.slow
def test_a_narrow_window_and_a_resize_are_survived(program: Terminal) -> None:
    program.line("/inspect 1")
    program.wait(lambda: "token 1 of" in program.rows()[0])
    program.resize(20, 60)
    program.wait(lambda: "q leaves" in program.rows()[-1])
    assert all(cell_len(row) <= 60 for row in program.rows())
    program.keys("\x1b")
    program.wait(program.ready)
    program.resize(24, 80)


@pytest.mark.slow
def test_a_kill_leaves_the_terminal_as_it_was(program: Terminal) -> None:
    """The last test of this program: it ends while the view is open."""
    program.line("/inspect 1")
    program.wait(lambda: "token 1 of" in program.rows()[0])
    program.child.kill(signal.SIGTERM)
    program.wait(lambda: b"\x1b[?1049l" in program.raw.rpartition(b"\x1b[?1049h")[2])
