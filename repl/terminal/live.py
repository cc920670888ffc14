"""Draw a job while it runs: streamed text, live beams or columns, one progress line; or JSON lines."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from repl.core.events import Beams, ColumnEvent, Event, Notice, PromptEcho, ReplyStarted, SideBySide, Token
from repl.core.events import Progress as Step
from repl.core.format import join_facts
from repl.core.reply import TakenBack
from repl.core.sanitize import ascii_signs, clean_line, spinner
from repl.core.settings import View
from repl.terminal.columns import Board
from repl.terminal.reply import LiveReply
from repl.terminal.screen import Screen
from repl.terminal.token_colours import bar, caption, certainty, style

MIN_TIME_LEFT_S = 5.0  # seconds: a shorter time left is not shown, except for downloads
MIN_BAR, MAX_BAR = 8, 24  # columns of a bar
SIGN_OF_LIFE_S = 0.12  # seconds without output after which a job shows its stage


class LiveOutput:
    """Draws the events of one job; a context manager."""

    def __init__(self, screen: Screen, view: View, toolbar: str = "") -> None:
        self._screen = screen
        self._view = view
        self._reply = LiveReply(screen, view, chats=False)
        self._bar = StageLine(screen, toolbar)
        self._live: Live | None = None  # beams or columns, redrawn in place
        self._board: Board | None = None
        self._column = False  # the cursor is after text
        self._begins: list[PromptEcho] = []  # the beginning of the text, drawn with its first token
        self._shaded = ""  # how tokens were coloured, for the legend
        self._later: list[str] = []  # notices that arrived inside a text

    def __enter__(self) -> "LiveOutput":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._quiet()
        self._begin()
        self._end_line()
        if self._shaded:
            self._screen.explain_once(caption(self._shaded))
        for text in self._later:
            self._screen.notice(text)

    def draw(self, events: list[Event]) -> None:
        """Draw some events and flush the output; without events, draw text that was held back."""
        if not events:
            self._reply.rest()
        if not (self._column or self._live):
            self._bar.wait()
        for event in events:
            self._draw(event)
        if self._board is not None and (drawn := self._board.drawn()) is not None:
            self._redraw(drawn)
        self._screen.out.file.flush()

    def _draw(self, event: Event) -> None:
        match event:
            case Token() | TakenBack():
                self._token(event)
            case ReplyStarted():
                self._reply = LiveReply(self._screen, self._view)
            case PromptEcho():
                self._begins.append(event)
            case Step():
                self._bar.step(event)
            case Beams():
                self._search(event)
            case SideBySide() | ColumnEvent():
                self._beside(event)
            case Notice(text=text):
                self._quiet()
                self._notice(text)

    def _notice(self, text: str) -> None:
        if self._column:
            self._later.append(text)
        else:
            self._screen.notice(text)

    def _token(self, token: Token | TakenBack) -> None:
        self._quiet()
        if isinstance(token, TakenBack):
            if not self._screen.as_json:
                self._begin()
                self._reply.strike(token.text)
        elif self._screen.as_json:
            if token.text or token.id is not None:  # others only carry pieces
                self._screen.record(token_record(token))
        else:
            if self._screen.accessible and self._screen.interactive and not self._column:
                self._screen.out.print("Model: ", end="")
            self._begin()
            self._reply.feed(token, self._shade(token))
            self._column = True  # a reply ends its line even when it is empty

    def _shade(self, token: Token) -> str:
        if self._view.probs == "off" or self._screen.out.color_system is None or token.logprob is None:
            return ""
        self._shaded = "on" if token.entropy is None else self._view.probs
        return style(certainty(token.logprob, token.entropy, self._view.probs))

    def _begin(self) -> None:
        for echo in [] if self._screen.as_json else self._begins:
            self._reply.echo(echo)
            self._column = True
        self._begins.clear()

    def _beside(self, event: SideBySide | ColumnEvent) -> None:
        if isinstance(event, ColumnEvent):
            if self._board is not None:
                self._board.take(event)
            elif isinstance(event.event, Step | Notice):  # texts are shown when all are done
                self._draw(event.event)
        elif self._redraws():
            self._quiet()
            self._board = Board(self._screen.out, event, self._view.thinking)

    def _redraws(self) -> bool:
        return self._screen.interactive and self._screen.out.is_terminal and not self._screen.as_json

    def _search(self, beams: Beams) -> None:
        if self._redraws():
            self._redraw(hypotheses(beams, self._screen.out.width, self._screen.out.height - 3))

    def _redraw(self, drawn: RenderableType) -> None:
        if self._live is None:
            self._bar.close()
            self._end_line()
            self._live = Live(console=self._screen.out, transient=True, auto_refresh=False)
            self._live.start()
        self._live.update(drawn, refresh=True)

    def _end_line(self) -> None:
        if self._column:
            self._reply.end()
            self._column = False
        self._screen.out.file.flush()

    def _quiet(self) -> None:
        """Remove what is redrawn in place: it would erase an unfinished line."""
        self._bar.close()
        if self._live is not None:
            self._live.stop()
        self._live = self._board = None


def token_record(token: Token) -> dict[str, Any]:
    """Return the JSON object of a token."""
    record: dict[str, Any] = {"event": "token", "text": token.text, "id": token.id}
    if token.top:  # with `/logprobs` only; the record always has them
        record.update(logprob=token.logprob, entropy=token.entropy, top=[list(entry) for entry in token.top])
    return record


def hypotheses(beams: Beams, width: int, height: int) -> Group:
    """Return the live beams, best first: their common beginning dim, then the score and end of each on a line."""
    unit = "" if beams.branches[0].score is None else "summed log-probability"
    common = Text(join_facts(unit, _tail(beams.common, 2 * width - 20)), "quiet", overflow="fold")
    shown = beams.branches[: max(1, height - 2)]
    scores = ["       " if branch.score is None else f"{branch.score:7.2f} " for branch in shown]
    ends = [_tail(branch.text, width - 10) for branch in shown]
    return Group(common, *(Text.assemble((score, "quiet"), end) for score, end in zip(scores, ends, strict=True)))


def _tail(text: str, width: int) -> str:
    line = clean_line(text)
    return line if len(line) <= width else "…" + line[-(width - 1) :]


def progress_figures(done: int, total: int, unit: str, speed: float) -> list[str]:
    """Return `93 of 513 MB`, `12.1 MB/s`, `35 s left`, as far as known; `speed` is per second."""
    if not (done or total):
        return []
    scale, sign = (10**6, "MB") if unit == "B" else (1, unit)
    of = f"{done / scale:,.0f}" + (f" of {total / scale:,.0f}" if total else "")
    rates = {"B": f"{speed / scale:.1f}", "tokens": f"{speed:.0f}", "prompts": f"{speed:.2g}"}
    rate = f"{rates[unit]} {sign}/s" if speed and unit in rates else ""
    left = max(0.0, total - done) / speed if total and speed else -1.0
    size, time_unit = (1, "s") if left < 100 else (60, "min") if left < 6000 else (3600, "h")
    shown = left >= (0 if unit == "B" else MIN_TIME_LEFT_S)
    return [f"{of} {sign}", *([rate] if rate else []), *([f"{left / size:.0f} {time_unit} left"] if shown else [])]


class LoadProgress:
    """The last progress of a job, and the speed of its stage."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.step = Step("")
        self._clock = clock
        self._began = (0.0, 0)  # start of the stage: time, and steps done

    def follow(self, events: list[Event]) -> None:
        """Note the last progress among some events."""
        for step in (event for event in events if isinstance(event, Step)):
            if step.stage != self.step.stage:
                self._began = (self._clock(), step.done)
            self.step = step

    def said(self) -> list[str]:
        """Return the stage and its figures: `downloading`, `93 of 513 MB`, `12.1 MB/s`, `35 s left`."""
        began, before = self._began
        seconds = self._clock() - began
        speed = (self.step.done - before) / seconds if seconds > 1 else 0.0
        return [self.step.stage, *progress_figures(self.step.done, self.step.total, self.step.unit, speed)]


class StageLine:
    """The stage of a job on one line, with the toolbar below it, while nothing else is drawn; only on a terminal."""

    def __init__(self, screen: Screen, toolbar: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self._screen, self._console = screen, screen.err
        self._on = (screen.err.is_terminal or screen.accessible) and not screen.as_json
        self._toolbar = clean_line(toolbar)
        self._live: Live | None = None
        self._pace = LoadProgress(clock)
        self._clock = clock
        self._began = clock()

    def step(self, step: Step) -> None:
        """Show a stage."""
        self._pace.follow([step])
        self._show()

    def wait(self) -> None:
        """Show the line once there was no output for `SIGN_OF_LIFE_S`."""
        if self._clock() - self._began > SIGN_OF_LIFE_S and not self._screen.accessible:
            self._show()

    def _show(self) -> None:
        if self._on and self._screen.accessible:
            self._screen.progress(join_facts(clean_line(self._pace.step.stage), *self._pace.said()[1:]))
        elif self._on and self._live is None:
            self._live = Live(get_renderable=self.drawn, console=self._console, transient=True, refresh_per_second=8)
            self._live.start(refresh=True)

    def drawn(self) -> RenderableType:
        """Return the line with its current figures."""
        width, step, spent = self._console.width, self._pace.step, self._clock() - self._began
        stage = f"{spinner(spent)} {clean_line(step.stage) or 'working'}"
        parts = self._pace.said()[1:]
        if spent >= 1 and not any(part.endswith("left") for part in parts):
            parts.append(f"{spent:.0f} s")
        parts += ["Esc stops"] if self._toolbar else []
        while len(parts) > 1 and MIN_BAR + len(join_facts(*parts)) > width - cell_len(stage) - 2:
            parts = parts[:1] + parts[2:]  # the rate goes first, how far it is last
        said = join_facts(*parts)
        room = min(MAX_BAR, width - cell_len(stage) - len(said) - 5)
        line = Text(stage, no_wrap=True, overflow="ellipsis")
        if step.total and room >= MIN_BAR:
            done = bar(step.done / step.total, room)
            line.append(f" {done}", "accent").append(ascii_signs("─" * (room - len(done)) + f" {said}"), "quiet")
        elif said:
            line.append(ascii_signs(f" · {said}"), "quiet")
        below = [Text(self._toolbar, "#808080", no_wrap=True, overflow="ellipsis")] if self._toolbar else []
        return Group(line, *below)

    def close(self) -> None:
        """Remove the line; it returns after another `SIGN_OF_LIFE_S` without output."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._began = self._clock()
