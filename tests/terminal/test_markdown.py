"""The live Markdown stream: how an answer is cut into pieces changes nothing on the screen."""

import io
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segment
from rich.theme import Theme
from window import Window

from repl.core.sanitize import clean
from repl.core.settings import View
from repl.terminal.markdown import MAX_PARAGRAPH_CHARACTERS, MAX_TABLE_ROWS, Markdown, StyledLine, WholeMarkdown
from repl.terminal.redraw import MIN_REDRAW_S, Region
from repl.terminal.reply import open_stream
from repl.terminal.screen import Screen

FRAGMENTS = [
    "Plain words that go on until the line has to break somewhere. ",
    "**bold words** and *emphasis*, ***both***, ~~gone~~ and `code *x*`",
    "snake_case_name, 2 * 3 * 4, f(a[0], b), [0, 1), **never closed",
    "a [link *text*](http://evil.example/a_b_c) and ![image](x.png) and <https://a.b> and [a](b c) and [x] [y][z]",
    "你好，世界。这是一个很长的句子，没有空格，所以必须在字之间换行。**粗体**和`代码`。",
    "emoji 👩 🎉 é",
    "x" * 70,
    "\n",
    "\n\n",
    "\n# Heading *one* #\n",
    "\n###### six\n####### seven\n#no\n",
    "\n- item\n- second\n  goes on\n\n  a paragraph in it\n    - nested\n      1. deep\n\n- loose\n",
    "\n* * *\n---\n***\n- - -\n",
    "\n1. one\n2) two\n10. ten\n1984. That was\n",
    "\n> quote\n> > deeper\nlazy\n>\n> - item in it\n",
    "\n```python\ndef f(x):\n    '''over some and more\n\tlines''' + 'x' '''y'''\n    return x  # why\n\n\n```\n",
    "\n~~~~ weird `info`\n~~~\nlong " + "line " * 30 + "\n长" * 3 + "长" * 40 + "\n~~~~\n",
    "\n- code:\n  ```json\n  {\"a\": [1, null]}\n  ```\n- ```\n  open",
    "\n| a | b |\n|---|:-:|\n| 1 | **two** |\n| 你好 | a \\| b | extra |\n| only\n",
    "\n| not | a table\nbut text\n| a |\n|---|---|\n",
    "\n|" + "c|" * 12 + "\n|" + "-|" * 12 + "\n|" + "long cell|" * 12 + "\n",
    "\n    indented code\n\n\ttab\tstops\n",
    "Title\n=====\nTitle\n-----\n[name]: http://x.y 'z'\n[name]\n",
    "<b>tag</b> <br> &amp; &#27; &#x202e; \\* \\\\ line\\\nbreak  \nbreak",
    "`` ` `` ` `` ``` ",
    "x" * 14 + " `` ` `` ` `` ``` ",
    "*", "**", "_", "`", "~~", "[", "](", ")", "|", "#", "- ", "> ", "1. ", "```", "\\", "\t", " ", "!", "=", "a", "é",
]  # fmt: skip

documents = st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=8).map("".join)
widths = st.integers(20, 400)


@st.composite
def pieces(draw: Any) -> list[str]:
    """Return a document in pieces."""
    text = draw(documents)
    kind = draw(st.integers(0, 2))
    if kind == 0:
        return list(text)
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=30)))
    return [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]


def reader(width: int) -> Markdown:
    return Markdown(Console(width=width, force_terminal=True))


def lines(document: Markdown, parts: list[str]) -> list[StyledLine]:
    return [*(line for part in parts for line in document.feed(part)), *document.end()]


def plain(found: list[StyledLine]) -> list[str]:
    return ["".join(part.text for part in line) for line in found]


def shown(text: str, width: int = 60) -> list[str]:
    return plain(lines(reader(width), [text]))


# the law


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(pieces(), widths)
def test_every_split_gives_the_same_lines(parts: list[str], width: int) -> None:
    """What is finished in the middle is what reading the whole at once gives."""
    document = reader(width)
    found: list[StyledLine] = []
    for part in parts:
        found += document.feed(part)
        document.rest()  # looking changes nothing
    assert [*found, *document.end()] == lines(reader(width), ["".join(parts)])


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(pieces(), widths, st.integers(5, 40))
def test_every_split_gives_the_same_screen(parts: list[str], width: int, height: int) -> None:
    """The final screen and all that scrolled away, colours included, do not depend on the pieces."""
    assert Window(width, height).say(*parts).drawn() == Window(width, height).say("".join(parts)).drawn()


def test_a_table_that_was_taller_on_its_way_leaves_empty_rows_below_alone() -> None:
    """The example that the law above once found."""
    row = "|long cell" * 12 + "|\n"
    text = "words\n" * 11 + "\n" + "|c" * 12 + "|\n" + "|-" * 12 + "|\n" + row
    assert Window(20, 20).say(*text).drawn() == Window(20, 20).say(text).drawn()


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(pieces(), widths)
def test_the_screen_shows_the_lines(parts: list[str], width: int) -> None:
    """Nothing is lost, doubled or left behind by drawing again."""
    window = Window(width, 12).say(*parts)
    text = "".join(parts)
    assert squeezed("".join(window.rows())) == squeezed("".join(shown(text, width)))
    assert window.screen.cursor.x == 0


def squeezed(text: str) -> str:
    return re.sub("[\u200d\ufe0f]", "", "".join(text.split()))


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(documents, widths)
def test_no_line_is_wider_than_the_window_and_none_ends_in_space(text: str, width: int) -> None:
    """Lines fit, but for long lines of code, which the terminal breaks and copies whole."""
    for line in shown(text, width):
        assert line == line.rstrip()
        assert cell_len(line) <= width or line.isascii() or "│" in line or "•" in line


# what it looks like


def test_blocks_are_drawn_calmly() -> None:
    """No box, no centring, no panel; lists, quotes and rules are plain."""
    assert shown("# Title\n\ntext\n\n\n- a\n- b\n  1. c\n\n> q\n\n---\n\n") == [
        "Title", "", "text", "", "• a", "• b", "  1. c", "", "│ q", "", "─" * 24,
    ]  # fmt: skip


def test_a_table_has_no_borders() -> None:
    """Columns are aligned with spaces; the head is underlined."""
    assert shown("| a | b |\n|--:|---|\n| 1 | two words |\n| 22 | x |\n\nend") == [
        " a  b", " 1  two words", "22  x", "", "end",
    ]  # fmt: skip


def test_a_table_fits_the_window() -> None:
    """Wide columns give way, and no letter is lost."""
    assert max(map(cell_len, shown("|a|b|\n|-|-|\n|" + "word " * 20 + "|x|\n", 30))) <= 30
    narrow = shown("|" + "abcd|" * 9 + "\n|" + "-|" * 9 + "\n|" + "word|" * 9 + "\n", 40)
    assert all(cell_len(line) <= 40 for line in narrow)


def test_a_table_follows_its_introduction() -> None:
    """No blank line is needed between a paragraph and a table."""
    assert shown("Here it is:\n| a | b |\n|---|---|\n| 1 | 2 |\n") == ["Here it is:", "a  b", "1  2"]


def test_a_long_table_is_finished_in_parts() -> None:
    """What is taller than any screen is not drawn again with each row; the head stands over each part."""
    document = reader(40)
    rows = "".join(f"|{n}|x|\n" for n in range(3 * MAX_TABLE_ROWS))
    found = plain(lines(document, ["|a|b|\n|-|-|\n" + rows]))
    assert [line.split()[0] for line in found if line and line[0] != "a"] == [str(n) for n in range(3 * MAX_TABLE_ROWS)]
    document.feed("|a|b|\n|-|-|\n" + rows)
    assert len(document.rest()) <= MAX_TABLE_ROWS + 1


def test_code_is_copied_as_it_was_written() -> None:
    """Code stands at the left edge without borders, its long lines whole."""
    code = ["def f():", "    return " + "1 + " * 40 + "1", "", "    # end"]
    window = Window(200).say("```python\n" + "\n".join(code) + "\n```\n")
    assert window.rows()[1:5] == code
    assert "".join(Window(50).say("```\n" + code[1] + "\n```\n").rows()[1:-1]).startswith(code[1])


def test_a_text_that_is_printed_loses_no_end_of_a_line_of_code() -> None:
    """What fits is drawn as while it arrives; rich would cut the rest off."""
    paper = io.StringIO()
    Console(file=paper, width=50).print(WholeMarkdown("# Title\n\n```\n" + "1 + " * 40 + "1\n```\n"))
    assert "".join(paper.getvalue().splitlines()[3:-1]).replace(" ", "") == "1+" * 40 + "1"


def test_code_over_several_lines_keeps_its_colour() -> None:
    """A string that is open at the end of a line is a string on the next one."""
    found = lines(reader(60), ['```python\nx = """for\nin for\n"""\nfor\n```'])
    assert found[2] == [Segment("in for", found[1][-1].style)]
    assert found[4] != [Segment("for", found[1][-1].style)]


def test_links_show_their_address_and_cannot_be_clicked() -> None:
    """Text and address are both visible; no OSC 8."""
    window = Window().say("[google.com](http://evil.example) ![pic](http://x)")
    assert window.rows()[0] == "google.com (http://evil.example) pic (http://x)"
    assert "\x1b]" not in window.raw


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(pieces())
def test_every_control_sequence_is_ours(parts: list[str]) -> None:
    """Colours, and moves up, to the left and down; nothing that a text says."""
    window = Window().say(*parts)
    assert re.fullmatch(r"(?:[^\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]|\r(?:\x1b\[\d+A)?\x1b\[J|\x1b\[[\d;]*m)*", window.raw)


def test_html_is_shown_and_entities_are_read() -> None:
    """No tag of a model vanishes, Markdown in a block of HTML is text, and no code point comes in by its number."""
    assert shown("<b>x</b> &amp; &lt; &copy; <!-- y --> <http://a.b>") == ["<b>x</b> & < © <!-- y --> http://a.b"]
    assert shown("<textarea>\n\n*x*\n</textarea>\n*y*") == ["<textarea>", "", "*x*", "</textarea>", "y"]
    for hidden in ("&#27;[2J", "&#x202e;", "[a](http://x/&#27;&#13;y)", "![&#x202e;](z)", "`&#27;`"):
        assert [clean(line) for line in shown(hidden)] == shown(hidden)


def test_lines_of_a_paragraph_stay_lines() -> None:
    """A poem is a poem, and no space gets between two lines of Chinese."""
    assert shown("Roses are red,\nviolets are blue  \n你好\n世界") == [
        "Roses are red,",
        "violets are blue",
        "你好",
        "世界",
    ]


def test_a_line_under_a_paragraph_makes_no_heading() -> None:
    """What has been read as text stays text."""
    assert shown("text\n---\nmore\n===") == ["text", "─" * 24, "more", "==="]


def test_tabs_become_spaces() -> None:
    """Columns stand where they stood."""
    assert shown("```\n\ta\tb\n```")[1] == "    a   b"


def test_a_long_paragraph_is_finished_in_parts() -> None:
    """However long it grows, what is drawn again is bounded, and no word is lost."""
    for text in ("**open " + "word. " * 2000, "Word " + "word. " * 2000, "你好世界，这是一个句子。" * 500):
        document = reader(80)
        found = document.feed(text)
        assert sum(map(cell_len, plain(document.rest()))) <= 2 * MAX_PARAGRAPH_CHARACTERS
        assert squeezed("".join(plain([*found, *document.end()]))) == squeezed(text)


def test_bold_is_bold_while_it_is_open() -> None:
    """The marks of bold text do not flash up before it is closed."""
    document = reader(60)
    document.feed("so **very imp")
    assert plain(document.rest()) == ["so very imp"]


# drawing


def test_text_is_on_the_screen_at_once() -> None:
    """No piece waits for its block to end."""
    window = Window()
    for part in ("One", " two", " **thr", "ee**", "\n\n- it", "em", "\n\n```py\nx =", " 1"):
        window.stream.feed(part)
        window.show()
        assert part.strip("* \n`-").split("\n")[-1] in window.screen.display[window.screen.cursor.y].rstrip() + "*"


def test_plain_text_is_only_added() -> None:
    """What stands is not written again."""
    window = Window(80)
    parts = ["word "] * 300
    window.say(*parts)
    assert "\x1b" not in window.raw.replace("\r\x1b[J", "")
    assert len(window.raw) < 2 * len("".join(parts))


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(pieces(), widths, st.integers(5, 12))
def test_never_more_than_the_screen_is_drawn_again(parts: list[str], width: int, height: int) -> None:
    """The cursor never goes up beyond the screen, so nothing is drawn twice."""
    window = Window(width, height).say(*parts)
    assert all(int(rows) < height for rows in re.findall(r"\x1b\[(\d+)A", window.raw))


def test_an_open_line_may_go_away() -> None:
    """Where a mark closes, text gets shorter: nothing is left of the longer one, and what follows is in its place."""
    window = Window()
    one, two, three = ([Segment(word)] for word in ("one", "two", "three"))
    region = Region(window.console)
    for open_lines in ([one, two, three], [one], [one, three], [], [two], [two, three]):
        region.draw([], open_lines)
    region.draw([two], [])
    region.draw([], [one])
    window.show()
    assert window.rows()[:3] == ["two", "one", ""]


@pytest.mark.slow
def test_an_open_block_taller_than_the_screen_is_drawn_once() -> None:
    """What does not fit is not shown before it is finished, and then it stands there once."""
    text = "start\n\n| a | b |\n|---|---|\n" + "".join(f"| {n} | {'x' * n} |\n" for n in range(18))
    window = Window(60, 8).say(*text)
    assert [row for row in window.rows() if row] == [line for line in shown(text) if line]


@pytest.mark.parametrize("took", [0.0, 1.0])
def test_drawing_waits_in_proportion_to_its_cost(took: float) -> None:
    """A moment passes between two drawings; where drawing takes long, ten times as long."""

    class Slow(io.StringIO):
        def write(self, text: str) -> int:
            window.now += took
            return super().write(text)

    window = Window(pause=MIN_REDRAW_S)
    window.file = window.console.file = Slow()
    began = window.now
    for part in ("one", " two", " three"):
        window.stream.feed(part)
        window.stream.draw()
    assert window.file.getvalue() == "one"
    pause = max(MIN_REDRAW_S, 10 * (window.now - began))
    window.now += pause - 0.001
    window.stream.draw()
    assert window.file.getvalue() == "one"
    window.now += 0.002
    window.stream.draw()
    assert window.file.getvalue() == "one two three"


@pytest.mark.parametrize("looks", [{"force_terminal": False}, {"_environ": {"TERM": "dumb"}}])
def test_without_a_terminal_text_comes_as_it_is(looks: dict[str, Any]) -> None:
    """Not a byte is added but the end of the last line."""
    file = io.StringIO()
    screen = Screen(interactive=True)
    screen.out = Console(**{"file": file, "force_terminal": True, "width": 20, **looks})
    stream = open_stream(screen, View(), chats=True)
    for part in ("# a\n", "**b", "** " + "word " * 20):
        stream.feed(part)
    stream.end()
    assert file.getvalue() == "# a\n**b** " + "word " * 20 + "\n"


def test_no_colour_means_no_colour() -> None:
    """Bold and dim stay, as they are no colours."""
    raw = Window(no_color=True).say("`code` **bold**\n```py\n'x'\n```").raw
    assert set(re.findall(r"\x1b\[([\d;]*)m", raw)) <= {"0", "1", "2"}
    assert "\x1b" not in Window(color_system=None).say("`code` **bold**").raw


def test_accents_follow_the_theme() -> None:
    """What stands out in a text has the colour that the rest of the screen has."""
    raw = Window(theme=Theme({"accent": "blue"})).say("`code`").raw
    assert "\x1b[34mcode" in raw
    assert "\x1b[36m" not in raw


def test_a_stream_serves_one_text_after_another() -> None:
    """After its end nothing of a text is left."""
    window = Window()
    window.say("```\nopen")
    window.say("**next**")
    assert window.rows()[:3] == ["```", "open", "next"]
    assert Window().say().raw == ""


WORDS = ["word ", "longer-word ", "**bold words** ", "`code` ", "你好，世界", "x" * 25 + " ", "[a](http://b.c) ", "so "]
words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=40)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(words, words, st.integers(20, 100), st.integers(20, 100))
def test_a_resize_in_the_middle_leaves_no_garbage(before: list[str], after: list[str], width: int, other: int) -> None:
    """Every word stands on the screen once, however the window changes in between."""
    window = Window(width, 30)
    for part in before:
        window.stream.feed(part)
    window.resize(other, 30)
    window.say(*after)
    assert squeezed("".join(window.rows())) == squeezed("".join(shown("".join([*before, *after]))))


def test_a_table_is_drawn_again_for_a_narrower_window() -> None:
    """The open block takes the new width, and nothing of the old drawing is left."""
    window = Window(80, 30)
    window.stream.feed("text\n\n|a|b|\n|-|-|\n|" + "word " * 12 + "|x|\n|next")
    window.resize(40, 30)
    window.say("|y|\n")
    rows = [row for row in window.rows() if row]
    assert rows[:2] == ["text", "a" + " " * 38 + "b"]
    assert sum("word" in row for row in rows) == 2
    assert all(cell_len(row) <= 40 for row in rows)


def test_a_region_that_is_not_reflowed_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a terminal cuts rows off, one line stays one row."""
    monkeypatch.setenv("TERM", "linux")
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=40, height=20)
    region = Region(console)
    region.draw([], [[Segment("x" * 30)]])
    region.resize(10, 20)
    region.draw([], [[Segment("y")]])
    assert "A" not in file.getvalue()
