"""A reply as it is made: thinking dim, folded or hidden, the answer as Markdown or as it comes; a text that goes on."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from repl.core.conversation import ASKING, Turn
from repl.core.events import PromptEcho, Token
from repl.core.parts import Parts
from repl.core.sanitize import Cleaner, ascii_only, clean, clean_line
from repl.core.settings import View
from repl.generation.measure.token_trace import Trace, read_trace
from repl.terminal.export import said
from repl.terminal.markdown import Markdown, WholeMarkdown
from repl.terminal.redraw import LineReader, Stream, WordWrap
from repl.terminal.screen import Screen, reply_figures
from repl.terminal.tables import fact_line
from repl.terminal.thinking import Fold, ShownPart, fold_parts
from repl.terminal.token_colours import colour_trace

ERASE = "\r\x1b[2K"


class LiveReply:
    """Draws a reply, or a text that goes on; it begins on a fresh line, and `end` leaves the cursor on one."""

    def __init__(self, screen: Screen, view: View, chats: bool = True) -> None:
        self._screen, self._chats = screen, chats
        self._fold = Fold(view.thinking if screen.interactive else "show" if view.thinking == "show" else "hide")
        self._raw = not (chats and (screen.interactive or view.thinking != "show"))
        self._cleaner = Cleaner()
        self._stream = Stream(screen.out, reader(screen, view, chats))
        self._begun = False  # the stream has text that it may draw again
        self._words = ""  # style of the token that is being drawn
        self._line = ""  # what of a thought stands on the cursor's line
        self._status = False

    def echo(self, echo: PromptEcho) -> None:
        """Show what the reply was made to begin with, or what goes on: dim."""
        self._words = "" if self._chats or not self._screen.interactive else "quiet"
        self._draw(self._fold.feed(echo.pieces, counts=False), echo.text)

    def feed(self, token: Token, words: str = "") -> None:
        """Draw one token, in a style where it has one."""
        self._words = words
        self._draw(self._fold.feed(token.pieces), token.text)

    def strike(self, text: str) -> None:
        """Show for a moment what was taken back; not in the middle of a thought."""
        if not self._line and not self._status:
            self._begun = True
            self._stream.strike(clean_line(text))

    def rest(self) -> None:
        """Draw what waited for more: nothing comes just now."""
        self._stream.draw()

    def end(self) -> None:
        """Draw what was held back, and end the line."""
        self._draw(self._fold.end(), "")
        self._erase()
        if self._line:
            self._screen.out.print()
        else:
            self._stream.end()

    def _draw(self, shown: list[ShownPart], text: str) -> None:
        """Draw what a setting makes of a text, or the text itself."""
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
        """Take the counter of a folded thought away."""
        if self._status and self._screen.out.is_terminal:
            self._screen.out.file.write(ERASE)
            self._line = ""
        self._status = False


def reader(screen: Screen, view: View, chats: bool) -> LineReader | None:
    """Return what makes lines of a text, which can be drawn again: colours are those of tokens or Markdown.

    Without either the text is written just as it comes.
    """
    coloured = view.probs != "off"
    if not screen.interactive or not (view.markdown or coloured):
        return None
    return Markdown(screen.out) if chats and not coloured else WordWrap(screen.out)


@dataclass(frozen=True, slots=True)
class PastExchange:
    """A question and its answer of before, drawn as they looked: parts and colours as the settings have them."""

    number: int
    question: str
    reply: Parts
    """What it shows: a thought may be folded or left out."""
    completes: bool
    foot: str
    """Its figures, or how it ended."""
    markdown: bool
    by: str
    """What colours its tokens: probability (`on`), entropy, or nothing (`off`)."""
    tokens: Trace | None

    @classmethod
    def of(cls, turns: Sequence[Turn], view: View) -> "PastExchange":
        """Return an exchange as the settings show it."""
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
