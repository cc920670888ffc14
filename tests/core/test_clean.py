import re
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from repl.core.sanitize import MAX_MARKS, Cleaner, clean, clean_line, repair

ESC = "\u241b"
SCOTLAND = "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"

PAYLOADS = {
    # escape sequences, seven bits
    "CSI colour": ("\x1b[31mred\x1b[0m", f"{ESC}[31mred{ESC}[0m"),
    "CSI clear": ("\x1b[2J\x1b[H", f"{ESC}[2J{ESC}[H"),
    "CSI alternate screen": ("\x1b[?1049h", f"{ESC}[?1049h"),
    "CSI bracketed paste": ("\x1b[201~rm -rf ~\n", f"{ESC}[201~rm -rf ~\n"),
    "CSI status report": ("\x1b[6n", f"{ESC}[6n"),
    "CSI window report": ("\x1b[21t", f"{ESC}[21t"),
    "OSC 0 title": ("\x1b]0;owned\x07", f"{ESC}]0;owned\u2407"),
    "OSC 8 link": (
        "\x1b]8;;http://evil.example\x1b\\x\x1b]8;;\x1b\\",
        f"{ESC}]8;;http://evil.example{ESC}\\x{ESC}]8;;{ESC}\\",
    ),
    "OSC 52 clipboard": ("\x1b]52;c;cm0=\x07", f"{ESC}]52;c;cm0=\u2407"),
    "DCS": ("\x1bPq#0\x1b\\", f"{ESC}Pq#0{ESC}\\"),
    "APC": ("\x1b_Gf=24;AAAA\x1b\\", f"{ESC}_Gf=24;AAAA{ESC}\\"),
    "PM": ("\x1b^private\x1b\\", f"{ESC}^private{ESC}\\"),
    "SOS": ("\x1bXstring\x1b\\", f"{ESC}Xstring{ESC}\\"),
    "RIS": ("\x1bc", f"{ESC}c"),
    "DECALN": ("\x1b#8", f"{ESC}#8"),
    "character set": ("\x1b(0lqqk", f"{ESC}(0lqqk"),
    "escape alone at the end": ("text\x1b", f"text{ESC}"),
    # the same with eight bits
    "C1 CSI": ("\x9b31m", "<9b>31m"),
    "C1 OSC": ("\x9d0;t\x9c", "<9d>0;t<9c>"),
    "C1 DCS": ("\x90q\x9c", "<90>q<9c>"),
    "C1 APC, PM, SOS": ("\x9f\x9e\x98", "<9f><9e><98>"),
    "C1 edges": ("\x80\x9f\xa0", "<80><9f>\xa0"),
    # single controls
    "NUL": ("a\0b", "a\u2400b"),
    "BEL": ("\a", "\u2407"),
    "BS overstrike": ("yes\b\b\bno ", "yes\u2408\u2408\u2408no "),
    "SO and SI": ("\x0e\x0f", "\u240e\u240f"),
    "DEL": ("a\x7f", "a\u2421"),
    "separators": ("\x1c\x1d\x1e\x1f", "\u241c\u241d\u241e\u241f"),
    "prompt_toolkit's own marks": ("\x01\x02", "\u2401\u2402"),
    # lines
    "CR overstrike": ("rm -rf /\rls       ", "rm -rf /\nls       "),
    "CR LF": ("a\r\nb\r\n", "a\nb\n"),
    "CR CR LF": ("a\r\r\nb", "a\n\nb"),
    "LF CR": ("a\n\rb", "a\n\nb"),
    "VT, FF, NEL, line and paragraph separator": ("\v\f\x85\u2028\u2029", "\n\n\n\n\n"),
    "LF and TAB": ("a\n\tb", "a\n\tb"),
    # direction
    "bidi override": ("a\u202egnp.exe", "a<202e>gnp.exe"),
    "bidi embeddings": ("\u202a\u202b\u202c\u202d", "<202a><202b><202c><202d>"),
    "bidi isolates": ("\u2066\u2067\u2068\u2069", "<2066><2067><2068><2069>"),
    "direction marks in body text": ("\u200e\u200f\u061c", "\u200e\u200f\u061c"),
    # hidden data
    "tag characters": ("hi\U000e0068\U000e0069\U000e0001", "hi"),
    "flag written with tags": (SCOTLAND, "\U0001f3f4"),
    "run of selectors": ("a\ufe0f\ufe01\U000e0101\U000e01ef", "a\ufe0f"),
    "selectors between joiners": ("a\ufe0f\u200d\ufe0f\u200d\ufe0f", "a\ufe0f\u200d\u200d"),
    "selectors between dropped tags": ("a\ufe0f\U000e0061\ufe0e", "a\ufe0f"),
    "a pile of marks": ("a" + "\u0301" * 40 + "b", "a" + "\u0301" * MAX_MARKS + "b"),
    "a pile beyond the first plane": ("\U0001e922" + "\U0001e944" * 20, "\U0001e922" + "\U0001e944" * MAX_MARKS),
    # no characters
    "byte order mark": ("\ufeffa\ufeffb", "ab"),
    "annotations": ("\ufff9a\ufffab\ufffb", "\ufffda\ufffdb\ufffd"),
    "lone surrogates": ("\ud800 \udfff \ud83d\ude00", "\ufffd \ufffd \ufffd\ufffd"),
    "noncharacters": ("\ufdd0\ufdef\ufffe\uffff\U0001fffe\U0010ffff", "\ufffd" * 6),
}
ORDINARY = [
    "",
    "plain text, twice\n\tindented",
    "naïve café n\u0303 don\u2019t soft\u00adhyphen \xa0",
    "你好，世界 𠀀 葛\U000e0100城 か\u3099",
    "👩‍👩‍👧‍👦 ❤️‍🔥 1️⃣ 🏴‍☠️ 🇪🇺 ✂︎",
    "नमस्ते क्‍ष ภาษาไทย می‌خواهم שָׁלוֹם \u200fעברית",
    "𝒽𝑒𝓁𝓁𝑜 \ufffd \ue000",
]
FORBIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)
ODD = [
    *"ab\n\t\r\x1b\x07\x9b\x85\u202e\u2028\u200e\ufeff\ufffe\ud83d\udc00\u0301\u0327\ufe0f\ufe01\u200d\u200c",
    "\r\n",
]
ODD += [
    "\U0001f3f4",
    *SCOTLAND[1:],
    SCOTLAND,
    "\U000e0101",
    "\u0301" * 15,
    "\U0001e944" * 9,
    "\U0001e922",
    "你",
    "𝒽",
    "\x7f",
]
hostile = st.lists(st.sampled_from(ODD) | st.characters(), max_size=60).map("".join)
few = settings(max_examples=200, deadline=None)


@pytest.mark.parametrize("name", PAYLOADS)
def test_payloads(name):
    foreign, shown = PAYLOADS[name]
    assert clean(foreign) == shown


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_stays_as_it_is(text):
    assert clean(text) == text
    assert clean(text * 50) == text * 50


@pytest.mark.slow
@few
@given(hostile)
@example("\U0001f3f4\ufeff\U000e0067")
def test_nothing_that_steers_or_hides_comes_out(text):
    """No control but LF and TAB, no direction override, no surrogate or noncharacter, no tag."""
    found = clean(text)
    assert not FORBIDDEN.search(found)
    assert not any(ord(character) & 0xFFFE == 0xFFFE for character in found)
    assert not any(0xE0000 <= ord(character) < 0xE0080 for character in found)


@pytest.mark.slow
@few
@given(hostile)
def test_no_base_carries_a_pile(text):
    """At most `MAX_MARKS` combining marks and one variation selector follow a base; joiners do not start a new one."""
    marks = selectors = 0
    for character in clean(text):
        if unicodedata.name(character, "").startswith(("VARIATION SELECTOR", "MONGOLIAN FREE VARIATION")):
            selectors += 1
        elif unicodedata.category(character)[0] == "M":
            marks += 1
        elif character not in "\u200c\u200d":
            marks = selectors = 0
        assert marks <= MAX_MARKS
        assert selectors <= 1


@pytest.mark.slow
@few
@given(hostile)
def test_cleaning_twice_changes_nothing(text):
    assert clean(clean(text)) == clean(text)
    assert clean_line(clean_line(text)) == clean_line(text)
    assert clean_line(clean(text)) == clean_line(text)


def streamed(cleaner, pieces):
    return "".join(map(cleaner.feed, pieces))


@pytest.mark.slow
@few
@given(hostile, st.data())
def test_a_stream_comes_out_as_the_whole(text, data):
    """Wherever a text is cut, its cleaned pieces joined are the cleaned text."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert streamed(Cleaner(), pieces) == streamed(Cleaner(), text) == clean(text)


@pytest.mark.parametrize("name", PAYLOADS)
def test_payloads_character_by_character(name):
    foreign, shown = PAYLOADS[name]
    assert streamed(Cleaner(), foreign) == shown


def test_nothing_is_held_back():
    """All is certain at once, a carriage return and a base that may get marks included."""
    cleaner = Cleaner()
    assert [cleaner.feed(piece) for piece in ("a", "\r", "\n", "e", "\u0301")] == ["a", "\n", "", "e", "\u0301"]


def test_a_line_is_one_line():
    assert clean_line("a\r\nb\tc\vd\u2028e") == "a b c d e"
    assert clean_line("model\u200e\u200f\u061c\x1b\u202e") == f"model<200e><200f><61c>{ESC}<202e>"


@pytest.mark.slow
@few
@given(hostile)
def test_a_line_has_no_line_end_tab_or_direction_mark(text):
    assert not set(clean_line(text)) & set("\n\t\r\u200e\u200f\u061c")
    assert len(clean_line(text).splitlines()) <= 1


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ("plain é", "plain é"),
        ("\udcc3\udca9t\udcc3\udca9", "été"),  # a terminal whose encoding is not that of what it sends
        ("a\udcffb", "a\ufffdb"),
        ("half \ud83d of it", "half \ufffd of it"),
        ("\ud83d\ude00", "😀"),
    ],
)
def test_typed_text_has_no_lone_surrogates(typed: str, text: str) -> None:
    """No tokenizer takes them, and SQLite neither."""
    assert repair(typed) == text


@given(st.text())
def test_whole_text_is_left_alone(text: str) -> None:
    assert repair(text) == text


def test_signs_keep_their_width_where_there_is_ascii_alone() -> None:
    """The program's own have a stand-in of one column, everything else can be told by its number."""
    signs = "a · b … – ❯ │"
    assert signs.encode("ascii", "hub-repl") == b"a - b ~ - > |"
    assert len(signs.encode("ascii", "hub-repl")) == len(signs)
    assert "é 你".encode("ascii", "hub-repl") == rb"\xe9 \u4f60"
