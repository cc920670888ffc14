"""A job as it runs: what is written where, in a pipe and as JSON lines, and how fast it goes."""

import io
import json
from collections.abc import Callable

import pytest
from driving import in_parts
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from repl.core.events import Beam, Beams, Event, Notice, Progress, PromptEcho, ReplyStarted, Token
from repl.core.reply import TakenBack
from repl.core.settings import View
from repl.terminal.live import LiveOutput, LoadProgress, StageLine, hypotheses, progress_figures
from repl.terminal.screen import THEME, Screen


def drawn(events: list[Event], view: View = View(), as_json: bool = False) -> tuple[str, str]:  # noqa: B008  # frozen
    """Return what stands on standard output and standard error after some events, in a pipe."""
    screen = Screen(as_json=as_json)
    screen.adapt(view.accessible)
    screen.out.file, screen.err.file = out, err = io.StringIO(), io.StringIO()
    with LiveOutput(screen, view) as pane:
        for event in events:
            pane.draw([event])
    return out.getvalue(), err.getvalue()


@given(st.lists(st.text("ab \n", max_size=4), min_size=1, max_size=12))
def test_a_pipe_gets_the_text_and_one_line_end(pieces: list[str]) -> None:
    """Law: what `print` of the whole text writes."""
    tokens = [Token(piece, number) for number, piece in enumerate(pieces)]
    assert drawn([*tokens]) == ("".join(pieces) + "\n", "")
    assert drawn(in_parts(*tokens), View(thinking="show")) == ("".join(pieces) + "\n", "")


def test_a_continuation_stands_behind_its_text() -> None:
    assert drawn([PromptEcho("Once upon"), Token(" a time", 1)])[0] == "Once upon a time\n"


def test_a_pipe_gets_the_same_text_for_a_screen_reader() -> None:
    """Who speaks is said at a prompt alone: a file or a program gets the answer."""
    assert drawn([ReplyStarted(), *in_parts(Token("yes", 1))], View(accessible=True)) == ("yes\n", "")


def test_nothing_said_is_nothing_written() -> None:
    assert drawn([Progress("loading weights", 1, 2, "tensors")]) == ("", "")


def test_notices_go_beside_the_answer() -> None:
    assert drawn([Notice("a thing"), Token("yes", 1)]) == ("yes\n", "a thing\n")


def test_a_notice_in_the_middle_waits_for_the_end_of_the_text() -> None:
    assert drawn([Token("ye", 1), Notice("a thing"), Token("s", 2)]) == ("yes\n", "a thing\n")


def test_thinking_stays_out_of_a_pipe_unless_it_is_to_be_shown() -> None:
    events = in_parts(Token("<think>hm", 1), Token("</think>", 2), Token("yes", 3))
    assert drawn(events)[0] == "yes\n"
    assert drawn(events, View(thinking="hide"))[0] == "yes\n"
    assert drawn(events, View(thinking="show"))[0] == "<think>hm</think>yes\n"


def test_no_control_character_of_a_reply_reaches_a_pipe() -> None:
    assert drawn([Token("a\x1b[31", 1), Token("mb\r", 2), Token("\nc", 3)])[0] == "a␛[31mb\nc\n"


def test_what_was_taken_back_reaches_no_pipe() -> None:
    events = [Token("The", 1), TakenBack(2, (3, 4), " end"), Token(" way", 5)]
    assert drawn(events) == ("The way\n", "")
    assert [json.loads(line)["id"] for line in drawn(events, as_json=True)[0].splitlines()] == [1, 5]


def test_json_has_every_token_exactly() -> None:
    out, err = drawn([ReplyStarted(), PromptEcho("x"), Token("a\x1b", 5), Token("", 6), Token("é", None)], as_json=True)
    records = [json.loads(line) for line in out.splitlines()]
    assert [(record["text"], record["id"]) for record in records] == [("a\x1b", 5), ("", 6), ("é", None)]
    assert err == ""


def test_json_has_log_probabilities_where_they_were_asked_for() -> None:
    (line,) = drawn([Token("a", 5, -0.5, 1.5, ((5, "a", -0.5), (6, "b", -2.0)))], as_json=True)[0].splitlines()
    record = json.loads(line)
    assert (record["logprob"], record["entropy"], record["top"]) == (-0.5, 1.5, [[5, "a", -0.5], [6, "b", -2.0]])


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ((0, 0, "", 0.0), ""),
        ((93_000_000, 513_000_000, "B", 12_100_000), "93 of 513 MB · 12.1 MB/s · 35 s left"),
        ((5_000_000, 0, "B", 1_000_000), "5 MB · 1.0 MB/s"),
        ((3, 290, "tensors", 100.0), "3 of 290 tensors"),
        ((3, 290, "layers", 0.5), "3 of 290 layers · 10 min left"),
        ((1024, 50048, "tokens", 110.4), "1,024 of 50,048 tokens · 110 tokens/s · 7 min left"),
        ((0, 15_480_000_000, "B", 1_000_000), "0 of 15,480 MB · 1.0 MB/s · 4 h left"),
        ((7, 0, "tokens", 3.0), "7 tokens · 3 tokens/s"),
    ],
)
def test_progress_is_said_with_rate_and_time_left(step: tuple[int, int, str, float], said: str) -> None:
    assert " · ".join(progress_figures(*step)) == said


@pytest.mark.parametrize("width", [*range(20, 100), 140])
@pytest.mark.parametrize("speed", [0.0, 700_000.0, 120_000_000.0])
def test_a_bar_keeps_to_its_line(width: int, speed: float) -> None:
    """However narrow the window and however slow the download; how far it is stays to the last."""
    screen = Screen()
    screen.err = Console(width=width, theme=THEME)
    now = [0.0]
    line = StageLine(screen, clock=lambda: now[0])
    line.step(Progress("downloading", 1_234_000_000 - round(2 * speed), 12_345_000_000, "B"))
    now[0] = 2.0
    line.step(Progress("downloading", 1_234_000_000, 12_345_000_000, "B"))
    with screen.err.capture() as drawn:
        screen.err.print(line.drawn())
    assert drawn.get().count("\n") == 1
    assert cell_len(drawn.get().rstrip("\n")) <= width
    if width >= 60:
        assert "1,234 of 12,345 MB" in drawn.get()
        assert (" left" in drawn.get()) == (speed > 0)


def test_a_job_of_which_nothing_is_seen_gives_a_sign_of_life() -> None:
    """After a moment, with the toolbar below it; both leave."""
    screen, now = Screen(), [0.0]
    paper = io.StringIO()
    screen.err = Console(file=paper, width=60, theme=THEME, force_terminal=True)
    line = StageLine(screen, " the toolbar", lambda: now[0])
    line.wait()
    assert paper.getvalue() == ""
    now[0] = 0.2
    line.wait()
    assert all(words in paper.getvalue() for words in ("working", "Esc stops"))
    assert "the toolbar" in paper.getvalue()
    line.close()
    assert "\x1b[2K" in paper.getvalue().rpartition("the toolbar")[2]


def test_the_pace_is_that_of_the_stage_alone() -> None:
    now = [0.0]
    clock: Callable[[], float] = lambda: now[0]  # noqa: E731
    pace = LoadProgress(clock)
    pace.follow([Progress("resolve")])
    now[0] = 10.0
    pace.follow([Progress("downloading", 0, 100_000_000, "B")])
    now[0] = 15.0
    pace.follow([Progress("downloading", 50_000_000, 100_000_000, "B")])
    assert pace.said() == ["downloading", "50 of 100 MB", "10.0 MB/s", "5 s left"]


@given(st.integers(20, 200), st.integers(3, 40), st.lists(st.text(max_size=300), min_size=1, max_size=40))
def test_live_hypotheses_fit_the_screen(width: int, height: int, texts: list[str]) -> None:
    """Each is one line, and all of them are no higher than the window."""
    group = hypotheses(Beams(1, "common " * 40, tuple(Beam(text, -1.0) for text in texts)), width, height)
    assert len(group.renderables) - 1 <= max(1, height - 2)
    assert all("\n" not in str(row) for row in group.renderables)
