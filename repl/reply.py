"""One chat reply as it is made: its thinking dim, folded or hidden, its answer as Markdown or as it comes."""

from rich.text import Text

from repl.clean import Cleaner, clean
from repl.events import Token
from repl.markdown import Stream
from repl.screen import Screen
from repl.settings import View
from repl.thinking import Fold, Marks, Shown

ERASE = "\r\x1b[2K"


class Reply:
    """Draws a reply; it begins on a fresh line, and `end` leaves the cursor on one."""

    def __init__(self, screen: Screen, marks: Marks, view: View) -> None:
        self._screen = screen
        self._fold = Fold(marks, view.thinking if screen.interactive else "show" if view.thinking == "show" else "hide")
        self._raw = not screen.interactive and view.thinking == "show"
        self._cleaner = Cleaner()
        drawn = (
            screen.interactive and view.markdown and view.probs == "off"
        )  # colours are those of tokens, or of Markdown
        self._stream = Stream(screen.out) if drawn else None
        self._words = ""  # style of the token that is being drawn
        self._line = ""  # what stands on the cursor's line, outside of Markdown
        self._status = False

    def echo(self, text: str) -> None:
        """Show what the reply was made to begin with."""
        self._answer(self._cleaner.feed(text))

    def feed(self, token: Token, words: str = "") -> None:
        """Draw one token, in a style where it has one."""
        self._words = words
        if self._raw:
            self._answer(self._cleaner.feed(token.text))
            return
        for shown in self._fold.feed(token.text, token.id):
            self._draw(shown)

    def rest(self) -> None:
        """Draw what waited for more: nothing comes just now."""
        if self._stream is not None:
            self._stream.draw()

    def end(self) -> None:
        """Draw what was held back, and end the line."""
        for shown in [] if self._raw else self._fold.end():
            self._draw(shown)
        self._answer(self._cleaner.end())
        self._erase()
        if self._stream is not None and not self._line:
            self._stream.end()
        else:
            self._screen.write("\n")

    def _draw(self, shown: Shown) -> None:
        match shown.kind:
            case "text":
                self._answer(self._cleaner.feed(shown.text))
            case "dim":
                self._dim(clean(shown.text))
            case "status":
                self._erase()
                self._dim(shown.text)
                self._status = True
            case "line":
                self._erase()
                self._dim(shown.text + "\n\n")

    def _answer(self, text: str) -> None:
        if not text:
            return
        self._erase()
        if self._stream is None:
            self._screen.write(text, self._words)
        else:
            self._line = ""
            self._stream.feed(text)

    def _dim(self, text: str) -> None:
        self._screen.out.print(Text(text, "quiet"), end="", soft_wrap=True)
        self._line = text.rpartition("\n")[2]

    def _erase(self) -> None:
        """Take the counter of a folded thought away."""
        if self._status and self._screen.out.is_terminal:
            self._screen.write(ERASE)
            self._line = ""
        self._status = False
