"""Markdown blocks, line by line as they arrive: what is finished comes out once, what is open can be looked at.

Differs from CommonMark where that would change what has been read long ago: a line under a paragraph does not make it a
heading, `[name]: address` lines define nothing, blank lines stand where the text has them, and a table row begins with
a bar. Line ends in a paragraph are kept, and HTML is text.
"""

import copy
import re
from dataclasses import dataclass, field

from repl.highlight import Highlighter
from repl.prose import PLAIN, QUIET, STRONG, Line, Prose, cells, cut, folds, stripped, wrap
from repl.tables import Table, begins

NARROW = 8
"""Cells that text has at least, however deep it is nested."""
TALL = 4
"""Rows beyond which a line of code gets no colours: what has scrolled away cannot be drawn again."""

_QUOTE = re.compile(r" {0,3}> ?")
_ITEM = re.compile(r"( {0,3})([-+*]|\d{1,9}[.)])( {1,4}(?! )(?=.)| (?= {4})| *$)")
_RULE = re.compile(r" {0,3}([-*_])(?: *\1){2,} *")
_HEADING = re.compile(r" {0,3}(#{1,6})(?: +(.*?))?(?: +#+)? *")
_FENCE = re.compile(r"( {0,3})(`{3,}(?=[^`]*$)|~{3,})(.*)")
_UNSURE = re.compile(r" *(?:#{1,6}(?: .*)?|[-+*_ ]*|\d{1,9}(?:[.)] *)?|>.*|`{1,2}|`{3,}[^`]*|~{1,2}|~{3,}.*|\|.*)")


@dataclass
class Box:
    """What holds other blocks: a quote, or an item of a list with its mark; `fresh` before its first line is out."""

    mark: str
    indent: int = 0  # columns that belong to an item's text; 0 marks a quote
    fresh: bool = True

    def rest(self, line: str) -> str | None:
        """Return what a line holds behind this box, None where it does not belong to it."""
        if not self.indent:
            found = _QUOTE.match(line)
            return line[found.end() :] if found else None
        return None if line[: self.indent].strip() else line[self.indent :]


@dataclass
class Code:
    """A fenced block."""

    mark: str
    indent: int
    colours: Highlighter

    def copy(self) -> "Code":
        """Return itself: a draft of a line changes nothing."""
        return self

    def closed(self, line: str) -> bool:
        """Tell whether a line ends the block."""
        body = line.strip()
        return len(line) - len(line.lstrip()) < 4 and len(body) >= len(self.mark) and not body.strip(self.mark[0])


@dataclass
class Reading:
    """What a line turned out to be: how many open boxes it belongs to, the boxes it opens, and what is in them."""

    kind: str
    text: str
    kept: int
    opened: list[Box] = field(default_factory=list)


class Document:
    """Reads Markdown; which pieces it comes in changes nothing in the lines that come out."""

    def __init__(self, width: int, ascii_only: bool = False) -> None:
        self.width = width
        self._bullet, self._bar, self._rule = ("-", "|", "-") if ascii_only else ("•", "│", "─")
        self._boxes: list[Box] = []
        self._leaf: Prose | Code | Table | None = None
        self._held = ""  # a line that is text, or the head of a table
        self._line = ""  # of the last line what is not read yet
        self._inside = False  # the last line is text, and the paragraph has the beginning of it
        self._column = 0  # in that line
        self._gap = self._begun = False
        self._out: list[Line] = []
        self._drafting = False

    def feed(self, text: str) -> list[Line]:
        """Read on, and return the lines that are finished."""
        *whole, last = text.split("\n")
        for part in whole:
            self._part(part)
            if not self._inside:
                self._read(self._line)
            self._line, self._inside, self._column = "", False, 0
        self._part(last)
        self._settle()
        return self._taken()

    def rest(self) -> list[Line]:
        """Return the lines that are open, as they look now."""
        if self._inside and isinstance(self._leaf, Prose):
            return [stripped(line) for line in self._dressed(self._leaf.draft(self._room()))]
        return self._fork().end()

    def end(self) -> list[Line]:
        """Return the lines that were open, now that nothing follows."""
        if self._line:
            self._read(self._line)
        self._close(0)
        return self._taken()

    def _taken(self) -> list[Line]:
        lines, self._out = [stripped(line) for line in self._out], []
        return lines

    def _fork(self) -> "Document":
        other = copy.copy(self)
        other._boxes = [copy.copy(box) for box in self._boxes]
        other._leaf = None if self._leaf is None else self._leaf.copy()
        other._out, other._drafting = [], True
        return other

    # reading

    def _part(self, text: str) -> None:
        if "\t" in text:
            before = " " * (self._column % 4)
            text = (before + text).expandtabs(4)[len(before) :]
        self._column += len(text)
        if self._inside and isinstance(self._leaf, Prose):
            self._leaf.feed(text)
            return
        self._line += text
        if not self._line.strip():
            return
        reading = self._look(self._line)
        if reading.kind == "text" and not _UNSURE.fullmatch(reading.text):
            self._apply(reading)
            self._inside, self._line = True, ""

    def _read(self, line: str) -> None:
        self._apply(self._look(line))

    def _look(self, line: str) -> Reading:
        kept = 0
        for box in self._boxes:
            inner = box.rest(line)
            if inner is None:
                break
            line, kept = inner, kept + 1
        if isinstance(self._leaf, Code) and kept == len(self._boxes):
            return Reading("code", line, kept)
        reading = Reading("", line, kept)
        while not reading.kind:
            self._step(reading)
        return reading

    def _step(self, reading: Reading) -> None:
        """Take one box off a line, or tell what kind of line it is."""
        line = reading.text
        prose = isinstance(self._leaf, Prose) and not reading.opened
        within = prose and reading.kept == len(self._boxes)
        if not line.strip():
            reading.kind = "blank"
        elif line.startswith("    "):
            reading.kind = "text" if prose else "indented"
        elif found := _QUOTE.match(line):
            reading.opened.append(Box(self._bar + " "))
            reading.text = line[found.end() :]
        elif _RULE.fullmatch(line):
            reading.kind = "rule"
        elif (found := _ITEM.match(line)) and not (within and not _interrupts(found[2], line[found.end() :])):
            size = found.end() if line[found.end() :] else found.end(2) + 1
            mark = self._bullet if found[2] in "-+*" else found[2]
            reading.opened.append(Box(mark + " ", size))
            reading.text = line[found.end() :]
        else:
            reading.kind = _kind(line)

    def _apply(self, reading: Reading) -> None:
        """Let a line have its effect."""
        kind, text = reading.kind, reading.text
        apart = reading.opened or reading.kept < len(self._boxes)
        if self._held and kind == "pipe" and not apart and begins(self._held, text.strip()):
            self._head(text.strip())
            return
        self._free()
        if isinstance(self._leaf, Prose) and kind in ("text", "pipe") and not reading.opened:
            self._paragraph("\n" + text.lstrip(), kind)  # also where the marks of its boxes are missing
            return
        if isinstance(self._leaf, Table) and kind == "pipe" and not apart:
            self._leaf.add(text.strip())
            return
        if kind == "code" and isinstance(self._leaf, Code):
            self._code(self._leaf, text)
            return
        self._close(reading.kept)
        self._boxes += reading.opened
        self._begin(kind, text)

    def _begin(self, kind: str, text: str) -> None:
        match kind:
            case "blank":
                self._gap = self._gap or not any(box.fresh for box in self._boxes)
            case "rule":
                self._emit([[(self._rule * min(self._room(), 24), QUIET)]])
            case "indented":
                self._emit(self._fitted(text, [(text, PLAIN)]))
            case "heading" if found := _HEADING.fullmatch(text):
                title = Prose(STRONG)
                title.feed(found[2] or "")
                self._emit(title.rest(self._room()))
            case "fence" if found := _FENCE.fullmatch(text):
                self._emit(wrap([(text.strip(), QUIET)], self._room()))
                self._leaf = Code(found[2], len(found[1]), Highlighter((found[3].split() or [""])[0]))
            case _:
                self._leaf = Prose()
                self._paragraph(text.lstrip(), kind)

    def _paragraph(self, text: str, kind: str) -> None:
        if kind == "pipe":
            self._held = text
        elif isinstance(self._leaf, Prose):
            self._leaf.feed(text)

    def _free(self) -> None:
        """Let a held line be text."""
        if self._held and isinstance(self._leaf, Prose):
            self._leaf.feed(self._held)
        self._held = ""

    def _head(self, rule: str) -> None:
        head, self._held = self._held.strip(), ""
        if self._leaf:
            self._close(len(self._boxes))
        self._leaf = Table(head, rule, self._rule)

    def _code(self, code: Code, text: str) -> None:
        if code.closed(text):
            self._emit(wrap([(text.strip(), QUIET)], self._room()))
            self._leaf = None
            return
        text = text[min(code.indent, len(text) - len(text.lstrip())) :]
        self._emit(self._fitted(text, (code.colours.draft if self._drafting else code.colours.line)(text)))

    def _fitted(self, text: str, runs: Line) -> list[Line]:
        """Leave a long line of code to the terminal, which copies it whole, unless its width is a guess."""
        room = self._room()
        if cells(text) <= room or text.isascii():
            return [runs if len(text) <= TALL * room else [(text, PLAIN)]]
        return cut([(text, PLAIN)], folds(text, room))

    # writing

    def _settle(self) -> None:
        """Put out what of the open block is finished."""
        if isinstance(self._leaf, Prose | Table) and (lines := self._leaf.take(self._room())):
            self._emit(lines)

    def _close(self, kept: int) -> None:
        """End the open block, and the boxes that a line does not belong to."""
        self._free()
        if isinstance(self._leaf, Prose | Table):
            self._emit(self._leaf.take(self._room()))
            self._emit(self._leaf.rest(self._room()))
        self._leaf = None
        if any(box.fresh for box in self._boxes[kept:]):
            self._emit([[]])  # an item without text
        del self._boxes[kept:]

    def _emit(self, lines: list[Line]) -> None:
        if lines:
            self._out += self._dressed(lines)
            self._gap, self._begun = False, True
            for box in self._boxes:
                box.fresh = False

    def _room(self) -> int:
        return max(NARROW, self.width - sum(cells(box.mark) for box in self._shown()))

    def _shown(self) -> list[Box]:
        """Return the boxes that are drawn: where they would leave no room only the inner ones."""
        room = self.width - NARROW
        for start, _ in enumerate(self._boxes):
            if sum(cells(box.mark) for box in self._boxes[start:]) <= room:
                return self._boxes[start:]
        return []

    def _dressed(self, lines: list[Line]) -> list[Line]:
        """Put the marks of the boxes before lines, and a blank line before them where there is one."""
        boxes = self._shown()
        later = [(" " * cells(box.mark), PLAIN) if box.indent else (box.mark, QUIET) for box in boxes]
        first = [(box.mark, PLAIN) if box.fresh and box.indent else run for box, run in zip(boxes, later, strict=True)]
        result = [[*(later if number else first), *line] for number, line in enumerate(lines)]
        if self._gap and self._begun and lines:
            held = [run for box, run in zip(boxes, later, strict=True) if not box.fresh]
            result.insert(0, list(held))
        return result


def _interrupts(mark: str, text: str) -> bool:
    """Tell whether a list may begin in the middle of a paragraph: no `1984. That was` at the beginning of a line."""
    return bool(text.strip()) and (mark in "-+*" or mark[:-1] == "1")


def _kind(line: str) -> str:
    if _HEADING.fullmatch(line):
        return "heading"
    if _FENCE.fullmatch(line):
        return "fence"
    return "pipe" if line.lstrip().startswith("|") else "text"
