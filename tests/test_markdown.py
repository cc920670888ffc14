"""The live Markdown stream: how an answer is cut into pieces changes nothing on the screen."""

import io
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.theme import Theme
from window import Window

from repl.blocks import Document
from repl.markdown import Region, Stream
from repl.prose import PLAIN, SPAN, Line, Prose, cells, inline, stripped, wrap
from repl.tables import SAMPLE

FRAGMENTS = [
    "Plain words that go on until the line has to break somewhere. ",
    "**bold words** and *emphasis*, ***both***, ~~gone~~ and `code *x*`",
    "snake_case_name, 2 * 3 * 4, f(a[0], b), [0, 1), **never closed",
    "a [link *text*](http://evil.example/a_b_c) and ![image](x.png) and <https://a.b> and [a](b c) and [x] [y][z]",
    "你好，世界。这是一个很长的句子，没有空格，所以必须在字之间换行。**粗体**和`代码`。",
    "emoji 👩‍💻👨‍👩‍👧‍👦 ❤️ 🇩🇪 👍🏽 é",
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


def lines(document: Document, parts: list[str]) -> list[Line]:
    return [*(line for part in parts for line in document.feed(part)), *document.end()]


def plain(found: list[Line]) -> list[str]:
    return ["".join(text for text, _ in line) for line in found]


def shown(text: str, width: int = 60) -> list[str]:
    return plain(lines(Document(width), [text]))


# the law


@settings(max_examples=300, deadline=None)
@given(pieces(), widths)
def test_every_split_gives_the_same_lines(parts: list[str], width: int) -> None:
    """What is finished in the middle is what reading the whole at once gives."""
    document = Document(width)
    found: list[Line] = []
    for part in parts:
        found += document.feed(part)
        document.rest()  # looking changes nothing
    assert [*found, *document.end()] == lines(Document(width), ["".join(parts)])


@settings(max_examples=60, deadline=None)
@given(pieces(), widths, st.integers(5, 40))
def test_every_split_gives_the_same_screen(parts: list[str], width: int, height: int) -> None:
    """The final screen and all that scrolled away, colours included, do not depend on the pieces."""
    assert Window(width, height).say(*parts).looks() == Window(width, height).say("".join(parts)).looks()


@settings(max_examples=60, deadline=None)
@given(pieces(), widths)
def test_the_screen_shows_the_lines(parts: list[str], width: int) -> None:
    """Nothing is lost, doubled or left behind by drawing again."""
    window = Window(width, 12).say(*parts)
    text = "".join(parts)
    assert squeezed("".join(window.rows())) == squeezed("".join(shown(text, width)))
    assert window.screen.cursor.x == 0


def squeezed(text: str) -> str:
    return re.sub("[\u200d\ufe0f]", "", "".join(text.split()))


@settings(max_examples=300, deadline=None)
@given(pieces().filter(lambda parts: sum(map(len, parts)) < SPAN), st.integers(20, 100))
def test_a_paragraph_in_parts_is_the_paragraph_parsed_at_once(parts: list[str], width: int) -> None:
    """What is settled early is what the library makes of the whole."""
    text = re.sub(r"[^\S\n]*\n\s*", "\n", "".join(parts)).strip()
    prose, found = Prose(), list[Line]()
    for part in re.findall(r"(?s).{1,3}", text):
        prose.feed(part)
        found += prose.take(width)
    assert normal(found + prose.rest(width)) == normal(wrap(inline(text)[0], width))


def normal(found: list[Line]) -> list[Line]:
    return [stripped(line) for line in found]


@settings(max_examples=200, deadline=None)
@given(documents, widths)
def test_no_line_is_wider_than_the_window_and_none_ends_in_space(text: str, width: int) -> None:
    """Lines fit, but for long lines of code, which the terminal breaks and copies whole."""
    for line in shown(text, width):
        assert line == line.rstrip()
        assert cells(line) <= width or line.isascii() or "│" in line or "•" in line


# what it looks like


def test_blocks_are_drawn_calmly() -> None:
    """No box, no centring, no panel; lists, quotes and rules are plain."""
    assert shown("# Title\n\ntext\n\n\n- a\n- b\n  1. c\n\n> q\n\n---\n\n") == [
        "Title", "", "text", "", "• a", "• b", "  1. c", "", "│ q", "", "─" * 24,
    ]  # fmt: skip


def test_a_table_has_no_borders() -> None:
    """Columns are aligned with spaces; one thin line stands under the head."""
    assert shown("| a | b |\n|--:|---|\n| 1 | two words |\n| 22 | x |\nend") == [
        " a  b", "──  ─────────", " 1  two words", "22  x", "end",
    ]  # fmt: skip


def test_a_table_fits_the_window() -> None:
    """Wide columns give way; where all are too narrow the cells flow."""
    assert max(map(cells, shown("|a|b|\n|-|-|\n|" + "word " * 20 + "|x|\n", 30))) <= 30
    flowing = shown("|" + "abcd|" * 9 + "\n|" + "-|" * 9 + "\n", 20)
    assert " ".join(flowing) == " | ".join(["abcd"] * 9)


def test_a_long_table_is_finished_row_by_row() -> None:
    """The first rows decide the widths; later rows come out as they are complete."""
    document = Document(40)
    head = document.feed("|a|b|\n|-|-|\n" + "|1|2|\n" * SAMPLE)
    assert len(head) == SAMPLE + 2
    later = plain(document.feed("|one that is much longer|x|\n|"))
    assert later[0].endswith("x")
    assert squeezed("".join(later)).replace("x", "") == "onethatismuchlonger"
    assert len(document.rest()) <= 1


def test_code_is_copied_as_it_was_written() -> None:
    """Code stands at the left edge without borders, its long lines whole."""
    code = ["def f():", "    return " + "1 + " * 40 + "1", "", "    # end"]
    window = Window(200).say("```python\n" + "\n".join(code) + "\n```\n")
    assert window.rows()[1:5] == code
    assert "".join(Window(50).say("```\n" + code[1] + "\n```\n").rows()[1:-1]).startswith(code[1])


def test_code_over_several_lines_keeps_its_colour() -> None:
    """A string that is open at the end of a line is a string on the next one."""
    found = lines(Document(60), ['```python\nx = """for\nin for\n"""\nfor\n```'])
    assert found[2] == [("in for", found[1][-1][1])]
    assert found[4] != [("for", found[1][-1][1])]
    remark = lines(Document(60), ["```js\na = 1 /* for\nfor\n*/ for\ns = '/* x'\nfor\n```"])
    assert remark[2] == [("for", remark[1][-1][1])]
    assert remark[5] == [remark[3][-1]]


def test_links_show_their_address_and_cannot_be_clicked() -> None:
    """Text and address are both visible; no OSC 8."""
    window = Window().say("[google.com](http://evil.example) ![pic](javascript:x)")
    assert window.rows()[0] == "google.com (http://evil.example) pic (javascript:x)"
    assert "\x1b]" not in window.raw


@settings(max_examples=100, deadline=None)
@given(pieces())
def test_every_control_sequence_is_ours(parts: list[str]) -> None:
    """Colours, and moves up, to the left and down; nothing that a text says."""
    window = Window().say(*parts)
    assert re.fullmatch(r"(?:[^\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]|\r(?:\x1b\[\d+A)?\x1b\[J|\x1b\[[\d;]*m)*", window.raw)


def test_what_looks_like_html_or_an_entity_is_text() -> None:
    """A model's tags do not vanish, and its code points are not decoded behind the back of `clean`."""
    text = "<b>x</b> &amp; &#27;[2J &#x202e; <!-- y -->"
    assert shown(text) == [text]
    assert "\x1b" not in "".join(shown("[a](http://x/&#27;&#13;y) ![&#x202e;](z)"))


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


def test_an_emphasis_that_never_closes_holds_back_only_so_much() -> None:
    """Long after its mark, text is finished all the same, and the mark is a mark."""
    document = Document(80)
    found = document.feed("**open " + "word " * 2 * SPAN)
    assert plain(found)[0].startswith("**open word")
    assert sum(map(cells, plain(document.rest()))) < 2 * SPAN


def test_bold_is_bold_while_it_is_open() -> None:
    """The marks of bold text do not flash up before it is closed."""
    document = Document(60)
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


@settings(max_examples=40, deadline=None)
@given(pieces(), widths, st.integers(5, 12))
def test_never_more_than_the_screen_is_drawn_again(parts: list[str], width: int, height: int) -> None:
    """The cursor never goes up beyond the screen, so nothing is drawn twice."""
    window = Window(width, height).say(*parts)
    assert all(int(rows) < height for rows in re.findall(r"\x1b\[(\d+)A", window.raw))


def test_an_open_line_may_go_away() -> None:
    """Where a mark closes, text gets shorter: nothing is left of the longer one, and what follows is in its place."""
    window = Window()
    one, two, three = ([(word, PLAIN)] for word in ("one", "two", "three"))
    region = Region(window.console)
    for open_lines in ([one, two, three], [one], [one, three], [], [two], [two, three]):
        region.draw([], open_lines)
    region.draw([two], [])
    region.draw([], [one])
    window.show()
    assert window.rows()[:3] == ["two", "one", ""]


def test_an_open_block_taller_than_the_screen_is_drawn_once() -> None:
    """What does not fit is not shown before it is finished, and then it stands there once."""
    text = "start\n\n| a | b |\n|---|---|\n" + "".join(f"| {n} | {'x' * n} |\n" for n in range(SAMPLE - 2))
    window = Window(60, 8).say(*text)
    assert [row for row in window.rows() if row] == [line for line in shown(text) if line]


def test_drawing_waits_in_proportion_to_its_cost() -> None:
    """Where drawing takes a second, ten pass before the next."""

    class Slow(io.StringIO):
        def write(self, text: str) -> int:
            window.now += 1.0
            return super().write(text)

    window = Window()
    window.file = window.console.file = Slow()
    for part in ("one", " two", " three"):
        window.stream.feed(part)
    assert window.file.getvalue() == "one"
    window.now += 10.0
    window.stream.feed(" four")
    assert window.file.getvalue() == "one two three four"
    window.stream.feed(" five")
    window.stream.draw()
    assert window.file.getvalue() == "one two three four five"


@pytest.mark.parametrize("looks", [{"force_terminal": False}, {"_environ": {"TERM": "dumb"}}])
def test_without_a_terminal_text_comes_as_it_is(looks: dict[str, Any]) -> None:
    """Not a byte is added but the end of the last line."""
    file = io.StringIO()
    stream = Stream(Console(**{"file": file, "force_terminal": True, "width": 20, **looks}))
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
    assert all(cells(row) <= 40 for row in rows)


def test_a_region_that_is_not_reflowed_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a terminal cuts rows off, one line stays one row."""
    monkeypatch.setenv("TERM", "linux")
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=40, height=20)
    region = Region(console)
    region.draw([], [[("x" * 30, PLAIN)]])
    region.resize(10, 20)
    region.draw([], [[("y", PLAIN)]])
    assert "A" not in file.getvalue()
