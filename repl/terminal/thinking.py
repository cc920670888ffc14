"""A reply as a setting shows it: what was thought dim, as one line with a counter, or not at all."""

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from repl.core.format import counted
from repl.core.parts import ANSWER, CALL, THINKING, Parts, Piece
from repl.core.tool_calls import describe, read_calls

BLANK_LINES = re.compile(r"\A(?:[ \t]*\n)+")


@dataclass(frozen=True, slots=True)
class ShownPart:
    """What to draw: `text` as it stands, `dim` text, a `status` to redraw in place, a `line` that stays, a `gap`."""

    kind: str
    text: str = ""


def fold_parts(parts: Parts, mode: str) -> Parts:
    """Return the parts of a reply that was made before, as a setting shows them."""
    words = len(parts.thinking.split())
    line = f"{counted(words, 'word')} of thinking · /thinking show" if words else ""
    return replace(parts, thinking={"show": parts.thinking, "fold": line, "hide": ""}[mode])


class Fold:
    """Makes of the pieces of a reply what is drawn: `show`, `fold` or `hide` what was thought; calls of tools are dim.

    A call is drawn when it is whole, on one line. A gap stands between a part and the next; a reply without thoughts
    and calls is drawn as it is.
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
        """Return what to draw for the pieces of one token; those of a beginning that was given do not count."""
        pieces = tuple(pieces)
        if counts and THINKING in (self._kind, *(piece.kind for piece in pieces)):
            self._began = self._clock() if self._began is None else self._began
            self._tokens += 1
        drawn = [shown for piece in pieces for shown in self._piece(piece)]
        if self._mode == "fold" and self._kind == THINKING and self._tokens:
            drawn.append(ShownPart("status", f"thinking · {self._figures()}"))
        return drawn

    def end(self) -> list[ShownPart]:
        """Return what is left to draw when the reply has ended, in the middle of its thinking or not."""
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
        """Return the call that is whole now, or its text where that is none."""
        text, self._call = "\n".join(map(describe, read_calls(self._call))) or self._call.strip(), ""
        gap = [ShownPart("gap")] if text and self._above else []
        self._above = self._above or bool(text)
        return [*gap, ShownPart("dim", text)] if text else []

    def _figures(self) -> str:
        seconds = self._clock() - (self._began or 0.0)
        return f"{counted(self._tokens, 'token')} · {seconds:.1f} s"
