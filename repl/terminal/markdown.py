"""Streamed Markdown: markdown-it parses blocks, and each becomes lines once later text cannot change it.

In: cleaned text in any pieces. Out: finished lines, and the open ones as they look now. Nothing is drawn here. The text
is read as CommonMark with tables and strikethrough, except where that would change finished lines or hide text that a
model wrote: a line under a paragraph makes no heading, `[name]: address` defines nothing, line ends in a paragraph
stay, and HTML is shown as it was written.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from rich.cells import chop_cells
from rich.console import Console, ConsoleOptions
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from repl.core.sanitize import clean, clean_line
from repl.terminal.highlight import Highlighter

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token
    from markdown_it.tree import SyntaxTreeNode

StyledLine = list[Segment]

MAX_TABLE_ROWS = 40
"""Rows after which a table is finished and begins again with its head, so that redrawing stays cheap."""
MAX_PARAGRAPH_CHARACTERS = 2000
"""Characters after which a paragraph is finished at the end of a sentence, and continues as a new one."""
MIN_COLUMNS = 8
"""Minimum columns of a text, however deeply it is nested."""

_BLOCK = re.compile(r" {0,3}(?:[#>|<]|[-+*]\s|\d{1,9}[.)]|`{3}|~{3})| {4}|\t")
"""The beginning of a line that may not be a paragraph."""
_STYLES = {"strong_open": Style(bold=True), "em_open": Style(italic=True), "s_open": Style(strike=True)}


class Markdown:
    """Reads streamed Markdown; the lines do not depend on how the text is cut into pieces."""

    def __init__(self, console: Console) -> None:
        self.width = console.width
        self._render = Renderer(console)
        self._line = ""  # the last line, as far as it has come
        self._source = ""  # the complete lines of the open block
        self._code: CodeBlock | None = None  # an open block of code, read line by line in place of a source
        self._gap = False  # a blank line stands before the open block
        self._begun = False
        self._out: list[StyledLine] = []

    def feed(self, text: str) -> list[StyledLine]:
        """Add text and return the finished lines."""
        *whole, last = (self._line + text).split("\n")
        for line in whole:
            self._read(self._split(line) + "\n")
        self._line = self._split(last)
        lines, self._out = self._out, []
        return lines

    def rest(self) -> list[StyledLine]:
        """Return the open lines as they look now; open bold text and code are shown as closed."""
        if self._code is not None:
            return self._code.draft(self._line, self.width) if self._line else []
        return self._spaced(self._render.text(_balanced(self._source + self._line), self.width))

    def end(self) -> list[StyledLine]:
        """Finish the text and return its last lines; another text may begin."""
        if self._code is not None:
            lines = self._code.lines(self._line, self.width) if self._line else []
        else:
            lines = self._spaced(self._render.text(self._source + self._line, self.width))
        self.__init__(self._render.console)  # type: ignore[misc]
        return lines

    def _read(self, line: str) -> None:
        """Read a complete line; all blocks but the last are finished then."""
        if self._code is not None:
            closed = self._code.closes(line)
            self._out += [_quiet(line.strip())] if closed else self._code.lines(line.rstrip("\n"), self.width)
            self._code = None if closed else self._code
            return
        self._source += line
        lines, units = self._source.splitlines(keepends=True), _units(self._source)
        for unit, following in pairwise(units):
            self._emit(self._render.block(unit, self.width, lines))
            self._gap = not lines[_start(following) - 1].strip()
        if not units:
            self._gap, self._source = True, ""
            return
        start = _start(units[-1])
        self._source = "".join(lines[start:])
        if units[-1].type == "fence":
            self._open_code(units[-1], lines[start:])
        elif units[-1].type == "paragraph" and len(self._source) > MAX_PARAGRAPH_CHARACTERS:
            self._emit(self._render.block(units[-1], self.width, lines))
            self._source = ""
        elif units[-1].type == "table" and len(lines) - start > MAX_TABLE_ROWS:
            self._emit(self._render.block(units[-1], self.width, lines))
            self._source, self._gap = "".join(lines[start : start + 2]), True

    def _open_code(self, fence: "SyntaxTreeNode", lines: list[str]) -> None:
        if len(lines) > 1:  # closed already
            return
        self._emit(_folded(_quiet(lines[0].strip()), self.width))
        self._code, self._source = CodeBlock(fence.markup, fence.info, len(lines[0]) - len(lines[0].lstrip())), ""

    def _split(self, line: str) -> str:
        """Finish the beginning of a very long line, up to the end of a sentence; returns the rest of the line."""
        inside = self._source or self._code is not None or _BLOCK.match(line)
        while len(line) > MAX_PARAGRAPH_CHARACTERS and not inside:
            window = line[:MAX_PARAGRAPH_CHARACTERS]
            ends = (max(window.rfind(end) for end in (". ", "。")) + 1, window.rfind(" "), len(window))
            place = next(end for end in ends if end > 0)
            self._emit(self._render.text(line[:place], self.width))
            line = line[place:].lstrip(" ")
        return line

    def _emit(self, lines: list[StyledLine]) -> None:
        self._out += self._spaced(lines)
        self._begun, self._gap = self._begun or bool(lines), False

    def _spaced(self, lines: list[StyledLine]) -> list[StyledLine]:
        """Put a blank line before a block where the text has one."""
        return [[], *lines] if lines and self._gap and self._begun else lines


class WholeMarkdown:
    """A text that is all there, to be printed; in a window long lines of code are broken: rich would cut them off."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        reader = Markdown(console)
        for line in (*reader.feed(self._text), *reader.end()):
            for part in [line] if options.no_wrap else _folded(line, console.width):
                yield from (*part, Segment.line())


class CodeBlock:
    """A fenced code block that grows line by line."""

    def __init__(self, mark: str, info: str, indent: int = 0) -> None:
        self._mark, self._indent = mark, indent
        self._colours = Highlighter((info.split() or [""])[0])

    def closes(self, line: str) -> bool:
        """Tell whether a line ends the block."""
        body = line.strip()
        return len(line) - len(line.lstrip()) < 4 and len(body) >= len(self._mark) and not body.strip(self._mark[0])

    def lines(self, line: str, width: int, whole: bool = True) -> list[StyledLine]:
        """Return the next line, highlighted; the terminal wraps a long one, so that it is copied as one line.

        It is wrapped here where its width is uncertain (not ASCII), or where `whole` is off.
        """
        return self._fitted(self._colours.line(self._bare(line)), width, whole)

    def draft(self, line: str, width: int) -> list[StyledLine]:
        """Return an incomplete line, highlighted."""
        return self._fitted(self._colours.draft(self._bare(line)), width, True)

    def _fitted(self, line: StyledLine, width: int, whole: bool) -> list[StyledLine]:
        line = trimmed(line)
        return [line] if whole and all(part.text.isascii() for part in line) else _folded(line, width)

    def _bare(self, line: str) -> str:
        return line[min(self._indent, len(line) - len(line.lstrip())) :].expandtabs(4)


class Renderer:
    """Turns nodes of the syntax tree into lines; `source` are the lines that a node's `map` counts."""

    def __init__(self, console: Console) -> None:
        self.console = console
        ascii_only = console.options.ascii_only
        self._bullet, self._bar, self._rule = ("-", "|", "-") if ascii_only else ("•", "│", "─")

    def text(self, text: str, width: int) -> list[StyledLine]:
        """Return the lines of a text."""
        from markdown_it.tree import SyntaxTreeNode

        return self._blocks(SyntaxTreeNode(_parser().parse(text)).children, width, text.splitlines())

    def _blocks(self, nodes: Sequence["SyntaxTreeNode"], width: int, source: list[str]) -> list[StyledLine]:
        lines: list[StyledLine] = []
        for node in nodes:
            above = source[_start(node) - 1] if lines and _start(node) else "text"
            lines += [[]] if not above.strip(" \t>\n") else []
            lines += self.block(node, width, source)
        return lines

    def block(self, node: "SyntaxTreeNode", width: int, source: list[str]) -> list[StyledLine]:
        """Return the lines of one block."""
        width = max(MIN_COLUMNS, width)
        match node.type:
            case "bullet_list" | "ordered_list":
                return self._blocks(node.children, width, source)
            case "list_item":
                mark = f"{node.info}{node.markup} " if node.info else f"{self._bullet} "
                inner = self._blocks(node.children, width - len(mark), source)
                return _marked(inner, Segment(mark), Segment(" " * len(mark)))
            case "blockquote":
                bar = Segment(f"{self._bar} ", Style(dim=True))
                return _marked(self._blocks(node.children, width - 2, source), bar, bar)
            case "hr":
                return [[Segment(self._rule * min(width, 24), Style(dim=True))]]
            case "table":
                return self._table(node, width)
            case "fence":
                return self._fence(node, width, source)
            case "code_block" | "html_block":
                text = Text(clean(node.content.rstrip("\n")))
                return [self.line(line) for line in self.wrap(text, width)]
            case _:
                text = self.inline(node.children[0].content if node.children else "")
                text.stylize(Style(bold=True) if node.type == "heading" else "")
                return [self.line(line) for line in self.wrap(text, width)]

    def _fence(self, node: "SyntaxTreeNode", width: int, source: list[str]) -> list[StyledLine]:
        code = CodeBlock(node.markup, node.info)
        lines = [part for line in node.content.splitlines() for part in code.lines(line, width, whole=False)]
        written = [line.strip(" \t>") for line in source[slice(*node.map or ())]]
        closed = len(written) > 1 + node.content.count("\n") and code.closes(written[-1])
        head = _folded(_quiet(node.markup + node.info), width)
        return [*head, *lines, *([_quiet(node.markup)] if closed else [])]

    def _table(self, node: "SyntaxTreeNode", width: int) -> list[StyledLine]:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style=Style(underline=True))
        head, *bodies = node.children
        for cell in head.children[0].children:
            align = str(cell.attrs.get("style", "")).removeprefix("text-align:")
            justify: Any = align if align in ("right", "center") else "left"
            table.add_column(self.inline(cell.children[0].content), justify=justify, overflow="fold")
        for row in bodies[0].children if bodies else ():
            table.add_row(*(self.inline(cell.children[0].content) for cell in row.children))
        options = self.console.options.update(width=width)
        return [trimmed(line) for line in self.console.render_lines(table, options, pad=False)]

    # text

    def inline(self, source: str) -> Text:
        """Return the styled text of inline Markdown; links show their text and address, and are not clickable."""
        text, styles, links = Text(), [Style.null()], [("", 0)]
        for token in (token for block in _parser().parseInline(source) for token in block.children or ()):
            match token.type:
                case "strong_open" | "em_open" | "s_open":
                    styles.append(_STYLES[token.type])
                case "strong_close" | "em_close" | "s_close":
                    styles.pop()
                case "link_open":
                    links.append((_address(token, "href"), len(text)))
                case "link_close":
                    address, start = links.pop()
                    text.append(f" ({address})" if address != text.plain[start:] else "", Style(dim=True))
                case _:
                    text.append_text(self._leaf(token, Style.combine(styles)))
        return text

    def _leaf(self, token: "Token", style: Style) -> Text:
        match token.type:
            case "softbreak" | "hardbreak":
                return Text("\n")
            case "code_inline":
                return Text(clean(token.content), style + self.console.get_style("accent", default="cyan"))
            case "image":
                return Text(clean(token.content), style).append(f" ({_address(token, 'src')})", Style(dim=True))
            case _:
                return Text(clean(token.content), style)

    def wrap(self, text: Text, width: int) -> Sequence[Text]:
        """Wrap a text between words; finished lines do not change when the last one grows."""
        return list(text.wrap(self.console, width, overflow="fold", tab_size=4)) if text.plain else [text]

    def line(self, text: Text) -> StyledLine:
        """Return one line of text as segments."""
        return trimmed(text.render(self.console))


def _balanced(source: str) -> str:
    """Close bold text or code that is open at the end, so that its marks do not flash up."""
    last = source.rpartition("\n\n")[2]
    if source[-1:].isspace() or source.endswith(("*", "`")):
        return source
    return source + ("`" if last.count("`") % 2 else "**" if last.count("**") % 2 else "")


def _address(token: "Token", name: str) -> str:
    """Return the address of a link, decoded where the result is printable."""
    found = str(token.attrs.get(name, ""))
    written = unquote(found)
    return clean_line(written if written.isprintable() else found)


def _units(source: str) -> list["SyntaxTreeNode"]:
    """Return the blocks of a text, and of lists their items."""
    from markdown_it.tree import SyntaxTreeNode

    blocks = SyntaxTreeNode(_parser().parse(source)).children
    return [unit for block in blocks for unit in (block.children if block.type.endswith("_list") else [block])]


def _start(node: "SyntaxTreeNode") -> int:
    return node.map[0] if node.map else 0


def _quiet(text: str) -> StyledLine:
    return [Segment(text, Style(dim=True))]


def _marked(lines: list[StyledLine], first: Segment, later: Segment) -> list[StyledLine]:
    return [trimmed([later if number else first, *line]) for number, line in enumerate(lines or [[]])]


def _folded(line: StyledLine, width: int) -> list[StyledLine]:
    """Break a line at the width, between any two characters."""
    letters = [Segment(letter, part.style) for part in line for letter in part.text]
    ends = accumulate(map(len, chop_cells("".join(part.text for part in line), width)), initial=0)
    return [trimmed(list(Segment.simplify(letters[start:end]))) for start, end in pairwise(ends)] or [[]]


def trimmed(line: Iterable[Segment]) -> StyledLine:
    """Return a line without trailing spaces and empty segments."""
    kept = [Segment(part.text, part.style or None) for part in line if part.text]  # a null style is none
    while kept and not kept[-1].text.strip(" "):
        kept.pop()
    if kept:
        kept[-1] = Segment(kept[-1].text.rstrip(" "), kept[-1].style)
    return kept


@cache
def _parser() -> "MarkdownIt":
    from markdown_it import MarkdownIt  # takes a while to import

    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).disable(["lheading", "reference"])
