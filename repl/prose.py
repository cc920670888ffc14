"""Markdown prose as it grows: styled runs, lines that fit, and how much of a paragraph can no longer change."""

import re
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.style import Style

from repl.clean import clean_line

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

Run = tuple[str, Style]
Line = list[Run]

PLAIN, QUIET, ACCENT, STRONG = Style.null(), Style(dim=True), Style(color="cyan"), Style(bold=True)
SPAN = 1000
"""Characters over which emphasis, code or a link may stay open; then its mark counts as text."""

_STYLES = {"strong": STRONG, "em": Style(italic=True), "s": Style(strike=True)}
_HIDDEN = (
    "autolink",
    "html_inline",
    "entity",
)  # what a model writes is shown: no tag vanishes, no code point is decoded
_WIDE = "\u2e80-\u2fff\u3040-\u3098\u309b-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003fffd"
_MARK = r"\\`*_~\[\]()!"
_WORD = re.compile(rf"\n|[^\S\n]+|(?:[{_WIDE}][^\x00-\xa0{_WIDE}\w\s]*|[^\s{_WIDE}]+)[^\S\n]*")
_ELEMENT = re.compile(rf"(?P<space>\s+)|(?P<mark>[{_MARK}]+)|[{_WIDE}]|[^\s{_MARK}{_WIDE}]{{1,64}}")
_OPENER = re.compile(r"[\\`*_~\[]")
_FLAG, _TONE = "\U0001f1e6-\U0001f1ff", "\U0001f3fb-\U0001f3ff"
_UNIT = re.compile(rf"(?:[{_FLAG}]{{2}}|[^\u200d\ufe0f])?[\u200d\ufe0f{_TONE}]*")
_PART = re.compile(rf"[{_FLAG}{_TONE}]")


def cells(text: str) -> int:
    """Return the cells a text takes at most: terminals differ on joined emoji, so parts are counted one by one."""
    if text.isascii():
        return len(text)
    apart = sum(1 if part < "\U0001f3fb" else 2 for part in _PART.findall(text))  # half flags and skin tones
    return cell_len(text.replace("\u200d", "")) + apart


def wrap(runs: Line, width: int) -> list[Line]:
    """Break runs into lines of at most `width` cells; the first lines do not change when text is added to the last."""
    text = "".join(part for part, _ in runs)
    return cut(runs, _breaks(text, width)) if "\n" in text or cells(text) > width else [runs]


def _breaks(text: str, width: int) -> list[int]:
    found, column = [], 0
    for match in _WORD.finditer(text):
        start, word = match.start(), match[0]
        if word == "\n":
            found.append(match.end())
            column = 0
            continue
        size = cells(word.rstrip())
        if column and column + size > width:
            found.append(start)
            column = 0
        if size > width:
            inner = folds(word, width)
            found += [start + at for at in inner]
            word = word[inner[-1] :] if inner else word
        column += cells(word)
    return found


def folds(word: str, width: int) -> list[int]:
    """Return where to break a word that does not fit a line."""
    found, column, joined = [], 0, False
    for match in _UNIT.finditer(word.rstrip()):
        size = cells(match[0])
        if column + size > width and column and size and not joined:
            found.append(match.start())
            column = 0
        column += size
        joined = match[0].endswith("\u200d") and column + 2 <= width
    return found


def cut(runs: Line, places: Iterable[int]) -> list[Line]:
    """Cut runs where lines begin."""
    lines: list[Line] = [[]]
    places, offset = iter(places), 0
    place = next(places, -1)
    for text, style in runs:
        done = 0
        while 0 <= place <= offset + len(text):
            _add(lines[-1], text[done : place - offset], style)
            lines.append([])
            done, place = place - offset, next(places, -1)
        _add(lines[-1], text[done:], style)
        offset += len(text)
    return lines


def stripped(line: Line) -> Line:
    """Take the space off the end of a line, and join neighbours of one style."""
    result: Line = []
    for text, style in line:
        _add(result, text, style)
    while result:
        text, style = result.pop()
        if kept := text.rstrip():
            return [*result, (kept, style)]
    return result


def _add(line: Line, text: str, style: Style) -> None:
    if line and line[-1][1] == style:
        line[-1] = (line[-1][0] + text, style)
    elif text:
        line.append((text, style))


@cache
def _parser() -> "MarkdownIt":
    from markdown_it import MarkdownIt  # takes a while to import

    class Parser(MarkdownIt):
        def normalizeLink(self, url: str) -> str:
            return url

        def validateLink(self, url: str) -> bool:
            return True  # nothing can be clicked: text and address are both shown

    return Parser("commonmark").enable("strikethrough").disable(list(_HIDDEN))


def inline(text: str, style: Style = PLAIN) -> tuple[Line, bool]:
    """Return the runs of inline Markdown, and whether nothing in it is open for what follows after a space."""
    if not _OPENER.search(text):
        return [(text, style)], True
    from markdown_it.rules_inline import StateInline

    parser, tokens = _parser(), list["Token"]()
    state = StateInline(text, parser, {}, tokens)
    parser.inline.tokenize(state)
    for rule in parser.inline.ruler2.getRules(""):
        rule(state)
    literal = "\0".join(token.content for token in tokens if token.type == "text")
    waiting = any(mark.open and mark.end < 0 for mark in state.delimiters)
    return _runs(tokens, style), not (waiting or "`" in literal or "](" in literal or _bracket(literal))


def _bracket(text: str) -> bool:
    depth = 0
    for sign in re.findall(r"[\[\]]", text):
        depth = depth + 1 if sign == "[" else max(0, depth - 1)
    return depth > 0


def _runs(tokens: "list[Token]", style: Style) -> Line:
    runs: Line = []
    styles = [style]
    links: list[tuple[str, int]] = []
    for token in tokens:
        match token.type:
            case "softbreak" | "hardbreak":
                runs.append(("\n", style))
            case "code_inline":
                runs.append((token.content, styles[-1] + ACCENT))
            case "link_open":
                links.append((clean_line(str(token.attrs["href"])), len(runs)))
            case "link_close":
                _address(runs, *links.pop())
            case "image":
                runs.append((clean_line(token.content), styles[-1]))
                _address(runs, clean_line(str(token.attrs["src"])), len(runs) - 1)
            case _ if token.nesting:
                styles = [*styles, styles[-1] + _STYLES[token.tag]] if token.nesting > 0 else styles[:-1]
            case _:
                runs.append((token.content, styles[-1]))
    return runs


def _address(runs: Line, address: str, start: int) -> None:
    label = "".join(text for text, _ in runs[start:])
    if address and address != label:
        runs.append((f" ({address})" if label else address, QUIET))


class Prose:
    """A paragraph as it grows, read once from left to right: how its text is cut into pieces changes nothing."""

    def __init__(self, style: Style = PLAIN) -> None:
        self._style = style
        self._settled: Line = []  # what follows can neither change its style nor, but for the last line, its place
        self._tail = ""
        self._next = 0  # where in the tail reading goes on
        self._before = ""  # the kind of element before that: a space, a mark, or a word
        self._fresh = False  # marks that nobody has judged yet

    def __bool__(self) -> bool:
        return bool(self._settled or self._tail)

    def copy(self) -> "Prose":
        """Return one that can grow without this one."""
        other = Prose()
        other.__dict__.update(self.__dict__)
        other._settled = list(self._settled)
        return other

    def feed(self, text: str) -> None:
        """Add text."""
        self._tail += text
        start = 0
        for match in _ELEMENT.finditer(self._tail, self._next):
            kind, at = match.lastgroup or "word", match.start()
            if at > start and self._closes(kind, at) and self._judge(start, at):
                start = at
            if match.end() == len(self._tail):
                self._next = at
                break
            self._before, self._next = kind, match.end()
            self._fresh |= kind == "mark"
        self._tail, self._next = self._tail[start:], self._next - start

    def _closes(self, kind: str, at: int) -> bool:
        """Tell whether the text before a place can be parsed for itself."""
        if kind == "space":
            return self._tail[at - 1] != "\\"
        return kind == self._before == "word"

    def _judge(self, start: int, at: int) -> bool:
        text = self._tail[start:at]
        if not self._fresh and at - start <= SPAN and _OPENER.search(text):
            return False
        self._fresh = False
        runs, settled = inline(text, self._style)
        if settled or at - start > SPAN:
            self._settled += runs
            return True
        return False

    def take(self, width: int) -> list[Line]:
        """Return the lines that are finished, once."""
        *lines, self._settled = wrap(self._settled, width)
        return lines

    def rest(self, width: int) -> list[Line]:
        """Return the lines that may still change, as if the text ended here."""
        return wrap(self._settled + inline(self._tail, self._style)[0], width)

    def draft(self, width: int) -> list[Line]:
        """Return the same lines, but for an open bold or code that is shown as if it were closed."""
        runs, settled = inline(self._tail, self._style)
        body = self._tail.rstrip("*` \n")
        for mark in () if settled else ("**", "`"):
            if mark in body and inline(body + mark)[1]:
                runs = inline(body + mark, self._style)[0]
                break
        return wrap(self._settled + runs, width)
