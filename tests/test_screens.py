"""Screens: the real program in a pseudo-terminal, read through a terminal emulator."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import models
import pytest
from fakehub import FakeHub, Fault
from terminal import LOADED, Terminal
from typed_lines import kept_lines

ENTER, ESCAPE, CLEAR, LEAVE, TAB, RIGHT = "\r", "\x1b", "\x03", "\x04", "\t", "\x1b[C"
HELLO = "Hello there."
LONG = "word " * 300
PAYLOADS = [
    b"\x1b]0;owned\x07title",
    b"\x1b]2;owned\x1b\\title",
    b"\x1b[2J\x1b[Hgone",
    b"\x1b[?1049hother screen",
    b"\x1b[?1000h\x1b[?1006hmouse",
    b"\x1b[31;5mred",
    b"\x1b]8;;http://evil.example\x07link\x1b]8;;\x07",
    b"\x1b]52;c;b3duZWQ=\x07clip",
    b'\x1bP$q"p\x1b\\dcs',
    b"\x1b_apc\x1b\\",
    b"\x1b^pm\x1b\\",
    b"\x1b[6nreport",
    b"\x1b[c\x1b[>cwho",
    b"\x1b[5idprint",
    b"\x1bcreset",
    b"\x1b(0lqk\x0e\x0f",
    "\x9b2J\x9d0;owned\x9cc1".encode(),
    b"over\rwritten\x08\x08\x08\x7f\x00\x0b\x0c",
    "\u202eright to left\u2066\u2069\u202c".encode(),
    b"[link=http://evil.example]markup[/link][/x][red]",
]


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that greets, then talks for long."""
    folder = tmp_path_factory.mktemp("models") / "talker"
    return models.scripted(folder, HELLO.encode(), LONG.encode(), LONG.encode())


@pytest.fixture(scope="module")
def program(talker: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """One running program with the talker loaded, shared by the tests that leave it as it was."""
    with Terminal(str(talker), "--max-new-tokens", "1500", home=tmp_path_factory.mktemp("shared")) as terminal:
        terminal.see(LOADED)
        yield terminal


@pytest.fixture
def screen(program: Terminal) -> Terminal:
    """That program at an empty prompt and the beginning of a conversation."""
    program.clear()
    program.ask("/clear")
    return program


@pytest.mark.slow
def test_a_line_sent_before_anything_is_imported_is_answered(talker: Path, tmp_path: Path) -> None:
    """The first prompt takes lines at once."""
    with Terminal(str(talker), home=tmp_path) as terminal:
        terminal.wait(terminal.ready)
        terminal.keys("hi" + ENTER + "/version" + ENTER)
        terminal.see(HELLO)
        terminal.see(r"hub-repl\s+\d")


@pytest.mark.slow
def test_a_line_typed_during_the_first_load_does_not_wait_for_it(talker: Path, tmp_path: Path) -> None:
    """Only a message does."""
    with FakeHub() as hub:
        hub.add("acme/talker", talker)
        hub.fault = Fault(on="safetensors", silent=True)
        with Terminal("acme/talker", home=tmp_path, environment=hub.environment()) as screen:
            screen.wait(lambda: bool(hub.asked("", "safetensors")))
            screen.line("/version")
            screen.see(r"hub-repl\s+\d")
            assert "starting" not in screen.text()


def test_leaving_before_anything_is_imported_is_no_error(talker: Path, tmp_path: Path) -> None:
    """Ctrl-D at the first prompt ends the program."""
    with Terminal(str(talker), home=tmp_path) as terminal:
        terminal.wait(terminal.ready)
        terminal.keys(LEAVE)
        terminal.child.wait()
        assert terminal.child.exitstatus == 0


def stream(screen: Terminal) -> None:
    """Let the model begin its long reply."""
    assert HELLO in screen.ask("hi")
    screen.line("more")
    screen.wait(lambda: "word word" in screen.tail())


def reply(screen: Terminal) -> tuple[str, str]:
    """Wait for the end of the long reply, and return it with the figures under it."""
    screen.wait(lambda: re.search(r"tokens? · [^\n]*\n", screen.text().rpartition("❯ more\n")[2]) is not None)
    screen.wait(lambda: screen.prompt() >= 0)
    below = screen.text().rpartition("❯ more\n")[2].partition("❯")[0].strip()
    words, _, figures = below.rpartition("\n")
    return words, figures


def said(screen: Terminal) -> list[str]:
    """Return the lines the program has kept as typed."""
    return kept_lines(screen.home / "data" / "history")


# a reply


@pytest.mark.slow
@pytest.mark.parametrize("key", [ESCAPE, CLEAR], ids=["Esc", "Ctrl-C"])
def test_a_key_stops_a_reply_and_others_wait_for_the_prompt(screen: Terminal, key: str) -> None:
    """The partial text stays, its line is ended, nothing typed meanwhile is echoed into it."""
    stream(screen)
    screen.keys("later")
    screen.keys(key)
    words, figures = reply(screen)
    assert set(words.split()) - {"word"} <= {"wor", "wo", "w", "rd", "d", "ord"}  # rows break anywhere
    assert re.match(r"\d+ tokens ", figures)
    assert figures.endswith("stopped by you · /continue goes on")
    screen.wait(lambda: screen.draft() == "❯ later")
    screen.clear()
    assert screen.ask("/version")[0].startswith("hub-repl")


@pytest.mark.slow
def test_a_paste_during_a_reply_is_one_message_at_the_next_prompt(screen: Terminal) -> None:
    stream(screen)
    pasted = "\n".join(["/quit", *(f"row {number}" for number in range(200))])
    screen.paste(pasted.replace("\n", "\r"))
    time.sleep(0.3)  # the reply goes on while the paste arrives
    screen.keys(ESCAPE)
    words, _ = reply(screen)
    assert "row" not in words
    screen.wait(lambda: "[pasted 201 lines]" in screen.rows()[screen.screen.cursor.y])
    screen.keys(ENTER)
    screen.wait(screen.ready)
    assert said(screen)[-1] == pasted


@pytest.mark.slow
def test_a_paste_at_the_prompt_is_one_message(screen: Terminal) -> None:
    pasted = "\n".join(f"row {number}" for number in range(200))
    screen.paste(pasted)
    screen.wait(lambda: "[pasted 200 lines]" in screen.rows()[screen.screen.cursor.y])
    screen.keys(ENTER)
    screen.wait(screen.ready)
    assert said(screen)[-1] == pasted
    assert HELLO in screen.text()


@pytest.mark.slow
def test_another_size_during_a_reply_leaves_no_garbage(screen: Terminal) -> None:
    """What was there stays readable, and the prompt comes back once."""
    stream(screen)
    screen.resize(20, 60)
    screen.wait(lambda: screen.tail().count("word") > 60)
    screen.resize(30, 100)
    screen.keys(ESCAPE)
    screen.wait(screen.ready)
    rows = [row for row in screen.rows() if row]
    assert sum(row.startswith("❯") and row == "❯" for row in rows) == 1
    assert re.search(r"talker · float32 · cpu · chat · greedy", screen.bar())
    assert screen.ask("/version")[0].startswith("hub-repl")


@pytest.mark.slow
def test_beams_are_shown_in_place_and_the_winner_once(screen: Terminal) -> None:
    """The live hypotheses are gone afterwards."""
    screen.ask("/beams 3 max_new_tokens=60")
    try:
        screen.ask("hi")
        screen.line("more")
        live = re.compile(r"(?m)^ *-?\d+\.\d\d .*word")
        screen.wait(lambda: live.search(screen.tail()) is not None)
        screen.wait(screen.ready)
        rows = [row for row in (screen.below("more") or []) if row]
        assert rows[0].startswith("word word")
        assert sum(row.startswith("word word") for row in rows) == 1
        assert rows[1].startswith("mean log-probability")
        assert [row[:3].strip() for row in rows[2:5]] == ["1", "2", "3"]
        assert rows[5].startswith("/pick N")
        assert len(rows) == 7
    finally:
        screen.clear()
        screen.ask("/greedy")
        screen.ask("/max 1500")


# the prompt


@pytest.mark.slow
def test_the_popup_offers_commands_values_and_paths(screen: Terminal, tmp_path: Path) -> None:
    (tmp_path / "some-model").mkdir()
    offers = {"/dt": "/dtype", "/dtype b": "bfloat16", "/model b": "builtin", f"/model {tmp_path}/so": "some-model"}
    for keys, offer in offers.items():
        screen.keys(keys)
        screen.wait(lambda offer=offer: any(row.strip().startswith(offer) for row in screen.tail().splitlines()))  # type: ignore[misc]
        screen.clear()
    screen.keys("/dtype b")
    screen.wait(lambda: "bfloat16" in screen.tail())
    screen.keys(TAB)
    screen.wait(lambda: screen.draft() == "❯ /dtype bfloat16")
    screen.clear()


@pytest.mark.slow
def test_a_suggestion_is_accepted_with_right(screen: Terminal) -> None:
    screen.ask("/help dtype")
    screen.keys("/help dt")
    screen.wait(lambda: "/help dtype" in screen.text().rpartition("❯")[2])
    screen.keys(RIGHT)
    screen.wait(lambda: screen.draft() == "❯ /help dtype" and screen.screen.cursor.x == len("❯ /help dtype"))
    screen.clear()


# beginning and end


@pytest.mark.slow
def test_the_first_start(talker: Path, tmp_path: Path) -> None:
    """The prompt is there before the model; what is typed meanwhile is neither lost nor disturbed."""
    with Terminal(str(talker), home=tmp_path, answers=True) as screen:
        screen.wait(screen.ready)
        screen.wait(lambda: "loading" in screen.bar() and "importing torch" in screen.bar())
        assert not re.search(LOADED, screen.text())
        screen.keys("half a")
        screen.wait(lambda: screen.draft() == "❯ half a")
        assert not re.search(LOADED, screen.text())
        screen.see(LOADED)
        screen.settle()
        assert screen.draft() == "❯ half a"
        assert re.search(LOADED, screen.text().partition("❯")[0])
        assert screen.bar().strip().startswith("talker · float32 · cpu · chat · greedy · context 0 of")
        screen.keys(" message" + ENTER)
        screen.wait(lambda: HELLO in screen.text() and screen.ready())
        screen.ask("/retry")
        screen.ask("/continue")  # is the same answer
        screen.keys(LEAVE)
        assert screen.end() == 0
        restored, _, farewell = screen.raw.rpartition(b"\x1b[?2004l\x1b[?25h\x1b[0m")
        assert restored
        assert re.search(rb'^\S*Saved as "half a message" \S+ 2 answers', farewell)


@pytest.mark.slow
def test_a_message_waits_for_the_first_load_and_is_kept_when_it_fails(talker: Path, tmp_path: Path) -> None:
    """Nothing typed is lost, and nothing has to be started again."""
    with Terminal(str(tmp_path / "nowhere"), home=tmp_path, size=(20, 60)) as screen:
        screen.line("precious words")
        screen.wait(lambda: "a number also sends your message" in screen.text() and screen.ready())
        assert "Traceback" not in screen.text()
        screen.line(f"/model {talker}")
        screen.line("precious words")
        screen.wait(lambda: HELLO in screen.tail() or (HELLO in screen.text() and screen.ready()))
        screen.wait(screen.ready)
        assert all(len(row) <= 60 for row in screen.past())


@pytest.mark.slow
def test_leaving_while_a_reply_streams(talker: Path, tmp_path: Path) -> None:
    """A `/quit` that was typed ahead; the terminal is as it was, and nobody sees a traceback."""
    with Terminal(str(talker), "--max-new-tokens", "1500", home=tmp_path) as screen:
        before = screen.modes()
        screen.see(LOADED)
        assert screen.modes() != before
        stream(screen)
        screen.keys("/quit" + ENTER + ESCAPE)
        assert screen.end() == 0
        assert "terminate called" not in screen.text()
        assert "Traceback" not in screen.text()
        assert screen.modes() == before
        assert screen.raw.rindex(b"\x1b[?2004l") > screen.raw.rindex(b"\x1b[?2004h")
        assert screen.raw.rindex(b"\x1b[?25h") > screen.raw.rfind(b"\x1b[?25l")


# whatever the world brings


@pytest.mark.slow
def test_nothing_a_model_or_a_folder_says_acts_on_the_terminal(tmp_path: Path) -> None:
    """Of every payload no control byte arrives; its plain words do."""
    folder = models.scripted(tmp_path / "m\x1b]0;owned\x07\x1b[2J", *PAYLOADS)
    with Terminal(str(folder), home=tmp_path / "home", size=(24, 80)) as screen:
        screen.see(LOADED)
        for number, payload in enumerate(PAYLOADS):
            screen.ask(f"turn {number}")
            assert payload not in screen.raw or payload.decode().isprintable()
        screen.ask("/info")
        screen.settle()
        assert_harmless(screen)
        assert "evil.example" in screen.text()
        assert "[link=http://evil.example]markup[/link][/x][red]" in screen.text()


def assert_harmless(screen: Terminal) -> None:
    """Check that beside what the editor itself draws with nothing of a terminal's language is there."""
    own = rb"\x1b\[\??[0-9;]*[A-Kmhl]|\x1b\[\?(7|12|25|2004)[hl]"
    modes = set(re.findall(rb"\x1b\[(\?\d+)[hl]", screen.raw))
    assert modes <= {b"?7", b"?12", b"?25", b"?2004", b"?1"}
    plain = re.sub(own, b"", screen.raw).decode()
    assert not re.search(r"[\x00-\x07\x0b-\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", plain)
    assert screen.screen.title == screen.screen.icon_name == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "mark"),
    [
        ({"TERM": "dumb"}, "❯"),
        ({"NO_COLOR": "1", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, ">"),
    ],
    ids=["dumb", "ASCII without colour"],
)
def test_poor_terminals_chat_as_well(talker: Path, tmp_path: Path, environment: dict[str, str], mark: str) -> None:
    with Terminal(str(talker), home=tmp_path, environment=environment, mark=mark) as screen:
        screen.see(LOADED)
        screen.wait(screen.ready)
        screen.keys("hi" + ENTER)
        screen.wait(lambda: HELLO in screen.text() and screen.ready())
        if "NO_COLOR" in environment:
            assert not re.search(rb"\x1b\[[0-9;]*3[0-8][;m]", screen.raw)
            assert screen.raw.isascii()
            assert " - chat - " in screen.bar()  # its own signs as ASCII has them
        else:
            assert b"\x1b" not in screen.raw
        screen.keys("/quit" + ENTER)
        assert screen.end() == 0


@pytest.mark.slow
def test_a_screen_reader_hears_whole_lines(talker: Path, tmp_path: Path) -> None:
    """Between Enter and the next prompt the cursor never moves, roles are words, tables lines, errors begin so.

    The next line is read in the other way when the setting changes.
    """
    lines = (
        "hi",
        "/next 2 hi",
        "/beams 2",
        "/retry",
        "/compare greedy temperature=2 -- hi",
        "/frob",
        "/dtype bfloat16",
    )
    with Terminal(str(talker), "--max", "80", home=tmp_path, environment={"ACCESSIBLE": "1"}, mark="You:") as screen:
        screen.wait(screen.ready)
        heard = []
        for line in lines:
            before = len(screen.raw)
            screen.ask(line)
            heard.append(screen.raw[before:].partition(b"\r\n")[2].rpartition(b"You: ")[0].decode())
        screen.line("/python")
        screen.see(">>>$")
        screen.keys("exit()\r")
        screen.wait(screen.ready)
        screen.keys(f"/model {str(talker)[:-2]}\t")
        screen.see(f"You: /model {talker}$")  # also paths are completed
        screen.keys("\x03")
        screen.keys("/sweep tem\t" + "\x03")
        screen.see("\nCtrl-D leaves")
        screen.paste("one\ntwo")
        screen.keys(ENTER)
        screen.see("You: one\ntwo\n(reading .*\n)?Model: ")
        screen.wait(screen.ready)
        screen.line("/edit")
        screen.see("You: one\n?two$")
        screen.keys("\\" + ENTER)
        screen.keys("three" + ENTER)
        screen.see(r"You: one\ntwo\\\nthree\n(reading .*\n)?Model: ")
        screen.wait(screen.ready)
        screen.line("/accessible off")
        screen.mark = "❯"
        screen.wait(lambda: screen.ready() and "chat" in screen.bar())
        screen.line("/accessible on")
        screen.mark = "You:"
        screen.wait(screen.ready)
        screen.keys("\x04")
        assert screen.end() == 0
        assert screen.raw.rindex(b"\x1b[?2004l") > screen.raw.rindex(b"\x1b[?2004h")  # also where the reader ends
    assert b"/settings shows settings" in screen.raw  # there is no F2
    assert "\x1b" not in "".join(heard)  # not even colours
    assert re.match(rf"(reading [^\n]*\n)?Model: {HELLO}", heard[0])
    assert re.search(r'^1, "[^"]*", model: \S+ %, sum: \S+ %\r$', heard[1], re.M)
    assert heard[5].startswith("error: no command /frob")
    assert LOADED.split("\\")[0] in heard[6]


@pytest.mark.slow
def test_python_is_a_prompt_within_the_prompt(screen: Terminal) -> None:
    """Ctrl-C ends a line of Python, Ctrl-D returns; the terminal is then as it was."""
    before = screen.modes()

    def waits() -> bool:
        return screen.rows()[screen.screen.cursor.y] == ">>>"

    screen.line("/python")
    screen.wait(waits)
    screen.keys("import time; time.sleep(60)" + ENTER)
    time.sleep(0.5)
    screen.keys("\x03")
    screen.see("KeyboardInterrupt")
    screen.wait(waits)
    screen.keys("6 * 7, type(model).__name__\r")
    screen.see(r"\(42, 'GPT2LMHeadModel'\)")
    screen.keys("\x04")
    screen.see("may have been changed")
    screen.wait(screen.ready)
    assert screen.modes() == before
    screen.keys("/python" + ENTER + "1 + 1")  # in one piece: what follows is for Python, and no message
    screen.wait(waits)
    screen.keys("\x04")
    screen.see("may have been changed(.|\n)*may have been changed")
    screen.wait(screen.ready)
    assert screen.ask("/version")[0].startswith("hub-repl")
