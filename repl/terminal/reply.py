"""Draw a reply while it is generated: thinking dim, folded or hidden, the answer as Markdown or plain text."""

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment, Segments
from rich.style import Style
from rich.text import Text

from repl.core.conversation import ASKING, Turn
from repl.core.events import PromptEcho, Token
from repl.core.format import counted
from repl.core.parts import ANSWER, CALL, THINKING, Parts, Piece
from repl.core.sanitize import Cleaner, ascii_only, clean, clean_line
from repl.core.settings import View
from repl.core.tool_calls import describe, read_calls
from repl.generation.measure.token_trace import Trace, read_trace
from repl.terminal.export import said
from repl.terminal.markdown import Markdown, WholeMarkdown
from repl.terminal.redraw import Stream, WordWrap
from repl.terminal.screen import Screen, reply_figures
from repl.terminal.tables import fact_line
from repl.terminal.token_colours import colour_trace

ERASE = "\r\x1b[2K"
BLANK_LINES = re.compile(r"\A(?:[ \t]*\n)+")


@dataclass(frozen=True, slots=True)
class ShownPart:
    """A part to draw: plain `text`, `dim` text, a `status` to redraw in place, a `line` that stays, a `gap`."""

    kind: str
    text: str = ""


def fold_parts(parts: Parts, mode: str) -> Parts:
    """Return the parts of a finished reply with thinking shown, folded or hidden."""
    words = len(parts.thinking.split())
    line = f"{counted(words, 'word')} of thinking · /thinking show" if words else ""
    return replace(parts, thinking={"show": parts.thinking, "fold": line, "hide": ""}[mode])


class Fold:
    """Turns streamed pieces into parts to draw, with thinking shown, folded or hidden; tool calls are dim.

    A complete call is drawn on one line. Parts are separated by gaps; a reply without thoughts
    and calls is drawn unchanged.
    """

    def __init__(self, mode: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._mode = mode
        self._clock = clock
        self._began: float | None = None
        self._tokens = 0
        self._kind = ANSWER  # of the part that is being drawn
        self._fresh = True  # nothing of it is drawn yet
        self._parted = False  # something was thought or called
        self._above = False  # something is drawn that wants a gap below it
        self._call = ""  # the call of a tool that is on its way
        self._blank = ""  # blanks that are drawn once more of their part follows

    def feed(self, pieces: Iterable[Piece], counts: bool = True) -> list[ShownPart]:
        """Return the parts to draw for the pieces of one token; those of a prefill do not count as tokens."""
        pieces = tuple(pieces)
        if counts and THINKING in (self._kind, *(piece.kind for piece in pieces)):
            self._began = self._clock() if self._began is None else self._began
            self._tokens += 1
        drawn = [shown for piece in pieces for shown in self._piece(piece)]
        if self._mode == "fold" and self._kind == THINKING and self._tokens:
            drawn.append(ShownPart("status", f"thinking · {self._figures()}"))
        return drawn

    def end(self) -> list[ShownPart]:
        """Return the last parts to draw, even if the reply ended inside a thought."""
        rest = [ShownPart("text", self._blank)] if self._blank and not self._parted else []
        return [*self._closed(), *rest]

    def _piece(self, piece: Piece) -> list[ShownPart]:
        closed: list[ShownPart] = []
        if piece.kind != self._kind or not piece.text:
            closed = self._closed() if piece.kind != THINKING else self._called()
            self._kind, self._fresh, self._blank = piece.kind, True, ""
            self._parted = self._parted or piece.kind != ANSWER
        if piece.kind == CALL:
            self._call += piece.text
            return [*closed, *([ShownPart("status", "calling a tool")] if self._mode == "fold" else [])]
        if piece.kind != THINKING or self._mode == "show":
            return [*closed, *self._part(piece.text)]
        gap = self._above and self._mode == "fold"
        self._above = self._above and not gap
        return [ShownPart("gap")] if gap else []

    def _part(self, text: str) -> list[ShownPart]:
        text = self._blank + text
        if self._fresh:
            text = BLANK_LINES.sub("", text) if self._parted else text
            if not text.strip():
                self._blank = text
                return []
        gap = [ShownPart("gap")] if self._fresh and self._above else []
        self._fresh, self._above = False, True
        body = text if self._kind == ANSWER else text.rstrip()
        self._blank = text[len(body) :]
        return [*gap, ShownPart("text" if self._kind == ANSWER else "dim", body)] if body else gap

    def _closed(self) -> list[ShownPart]:
        if self._kind != THINKING or self._mode != "fold" or not self._tokens:
            return self._called()
        self._above = False  # a line ends with a gap
        return [ShownPart("line", f"thought for {self._figures()}")]

    def _called(self) -> list[ShownPart]:
        """Return the finished call, or its text where it cannot be read."""
        if not self._call:
            return []
        text, self._call = "\n".join(map(describe, read_calls(self._call))) or self._call.strip(), ""
        gap = [ShownPart("gap")] if text and self._above else []
        self._above = self._above or bool(text)
        return [*gap, ShownPart("dim", text)] if text else []

    def _figures(self) -> str:
        seconds = self._clock() - (self._began or 0.0)
        return f"{counted(self._tokens, 'token')} · {seconds:.1f} s"


class PlainStream:
    """Writes streamed text once, for consoles that cannot redraw."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def feed(self, text: str, style: Style | None = None) -> None:
        """Write text."""
        if text:
            self._console.print(Segments([Segment(text, style)]), end="", crop=False)
            self._console.file.flush()

    def draw(self) -> None:
        """Do nothing: all text is written already."""

    def strike(self, text: str) -> None:
        """Do nothing: struck text could not be removed."""

    def end(self) -> None:
        """End the line."""
        self._console.file.write("\n")
        self._console.file.flush()


class LiveReply:
    """Draws a reply or a completion; it begins on a fresh line, and `end` leaves the cursor on one."""

    def __init__(self, screen: Screen, view: View, chats: bool = True) -> None:
        self._screen, self._chats = screen, chats
        self._fold = Fold(view.thinking if screen.interactive else "show" if view.thinking == "show" else "hide")
        self._raw = not (chats and (screen.interactive or view.thinking != "show"))
        self._cleaner = Cleaner()
        self._stream = open_stream(screen, view, chats)
        self._begun = False  # the stream has text that it may draw again
        self._words = ""  # style of the token that is being drawn
        self._line = ""  # what of a thought stands on the cursor's line
        self._status = False

    def echo(self, echo: PromptEcho) -> None:
        """Show the prefill of a reply, or the prompt of a completion, dim."""
        self._words = "" if self._chats or not self._screen.interactive else "quiet"
        self._draw(self._fold.feed(echo.pieces, counts=False), echo.text)

    def feed(self, token: Token, words: str = "") -> None:
        """Draw a token, in a style if one is given."""
        self._words = words
        self._draw(self._fold.feed(token.pieces), token.text)

    def strike(self, text: str) -> None:
        """Show text that was taken back for a moment; not inside a thought."""
        if not self._line and not self._status:
            self._begun = True
            self._stream.strike(clean_line(text))

    def rest(self) -> None:
        """Draw text that was held back, as no event arrived."""
        self._stream.draw()

    def end(self) -> None:
        """Draw the rest, and end the line."""
        self._draw(self._fold.end(), "")
        self._erase()
        if self._line:
            self._screen.out.print()
        else:
            self._stream.end()

    def _draw(self, shown: list[ShownPart], text: str) -> None:
        """Draw the folded parts, or the raw text."""
        if self._raw:
            self._answer(self._cleaner.feed(text))
            return
        for one in shown:
            self._show(one)

    def _show(self, shown: ShownPart) -> None:
        if shown.kind not in ("text", "dim"):
            self._erase()
        match shown.kind:
            case "text":
                self._answer(self._cleaner.feed(shown.text))
            case "dim":
                self._dim(clean(shown.text))
            case "status" if self._screen.accessible:
                pass  # it would be said with every token
            case "status":
                self._dim(shown.text)
                self._status = True
            case "line":
                self._dim(shown.text + "\n\n")
            case "gap":
                self._dim("\n\n" if self._line else "\n")

    def _answer(self, text: str) -> None:
        if text:
            self._erase()
            self._line, self._begun = "", True
            self._stream.feed(text, self._screen.out.get_style(self._words or "none"))

    def _dim(self, text: str) -> None:
        if self._begun:
            self._stream.end()
            self._begun = False
        self._screen.out.print(Text(text, "quiet"), end="", soft_wrap=True)
        self._line = text.rpartition("\n")[2]

    def _erase(self) -> None:
        """Remove the counter of a folded thought."""
        if self._status and self._screen.out.is_terminal:
            self._screen.out.file.write(ERASE)
            self._line = ""
        self._status = False


def open_stream(screen: Screen, view: View, chats: bool) -> Stream | PlainStream:
    """Return the stream for a reply: token colours, Markdown, or plain text."""
    console, coloured = screen.out, view.probs != "off"
    moves = console.is_terminal and not console.is_dumb_terminal and not console.legacy_windows
    if not (moves and screen.interactive and (view.markdown or coloured)):
        return PlainStream(console)
    return Stream(console, Markdown(console) if chats and not coloured else WordWrap(console))


@dataclass(frozen=True, slots=True)
class PastExchange:
    """An earlier question with its answer, drawn with the current settings for thinking, Markdown and colours."""

    number: int
    question: str
    reply: Parts
    """Its parts, with thinking folded or left out as the setting says."""
    completes: bool
    foot: str
    """Its statistics, or its state."""
    markdown: bool
    by: str
    """How its tokens are coloured: by probability (`on`), `entropy`, or `off`."""
    tokens: Trace | None

    @classmethod
    def of(cls, turns: Sequence[Turn], view: View) -> "PastExchange":
        """Return an exchange with the settings applied."""
        asked, answer = (turns[0] if turns[0].role in ASKING else None), turns[-1]
        record = answer.record
        return cls(
            answer.exchange,
            asked.text if asked else "",
            fold_parts(answer.parts, view.thinking) if answer is not asked else Parts(),
            answer.role == "completion",
            reply_figures(record) if record and view.stats else answer.state.replace("complete", ""),
            view.markdown and view.probs == "off",
            view.probs,
            read_trace(answer) if view.probs != "off" else None,
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        question = clean(self.question)
        if question:
            yield Text.assemble(("> " if ascii_only() else "❯ ", "accent"), question)
        if self.reply.thinking:
            yield Text(clean(self.reply.thinking) + "\n", "quiet")
        answer = clean(self.reply.answer)
        if self.tokens is not None:
            yield colour_trace(self.tokens, "on" if self.tokens.server else self.by)
        elif self.completes or not (self.markdown and console.is_terminal):
            yield Text.assemble((question, "quiet") if self.completes else "", answer)
        else:
            yield WholeMarkdown(answer)
        if self.reply.tool_calls:
            yield said(Parts(tool_calls=self.reply.tool_calls))
        if self.foot:
            yield fact_line(self.foot)
