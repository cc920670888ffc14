"""Colours of program text, line by line as it arrives."""

from functools import cache
from typing import Any

from rich.style import Style

from repl.prose import ACCENT, PLAIN, QUIET, Line

LONGEST = 1000
"""Characters of a line beyond which it gets no colours: patterns take their time."""
STEP = 16
"""Characters by which an open line grows before it is coloured again."""

_STRING = Style(color="green")
_STYLES = {
    "Comment": QUIET,
    "Keyword": ACCENT,
    "Literal.String": _STRING,
    "Literal.Number": Style(color="magenta"),
    "Name.Function": Style(bold=True),
    "Name.Class": Style(bold=True),
    "Generic.Deleted": Style(color="red"),
    "Generic.Inserted": Style(color="green"),
    "Generic.Heading": Style(bold=True),
}


class Highlighter:
    """Colours one block of code; knows after each line what is open, such as a string over several lines."""

    def __init__(self, language: str) -> None:
        self._lexer = _lexer(language.lower())
        self._stack = ["root"]
        self._remark = False  # inside of /* */, which most lexers know only as a whole
        self._drafted = ""
        self._draft: Line = []

    def line(self, text: str) -> Line:
        """Return the runs of the next line."""
        self._drafted = ""
        if self._lexer is None or len(text) > LONGEST:
            return [(text, PLAIN)]
        before, code = self._remarked(text)
        try:
            return before + (self._opening(code) or self._coloured(code))
        except Exception:  # a lexer is foreign code, and an answer is worth more than its colours
            return [(text, PLAIN)]

    def draft(self, text: str) -> Line:
        """Return the runs of a line that is not complete; its last characters may have no colours yet."""
        if not (self._drafted and text.startswith(self._drafted)):
            self._drafted, self._draft = "", []
        if len(text) - len(self._drafted) >= max(STEP, len(text) // 4):
            state = self._stack, self._remark
            self._draft, self._drafted = self.line(text), text
            self._stack, self._remark = state
        return [*self._draft, (text[len(self._drafted) :], PLAIN)]

    def _remarked(self, text: str) -> tuple[Line, str]:
        """Return what of a line belongs to a remark that was open, and the rest."""
        if not self._remark:
            return [], text
        head, end, rest = text.partition("*/")
        self._remark = not end
        return [(head + end, QUIET)], rest

    def _opening(self, text: str) -> Line:
        """Return the runs of a line that ends in an open remark, nothing where it does not."""
        at = text.rfind("/*")
        if at < 0 or "*/" in text[at:]:
            return []
        stack = self._stack
        if _style_at(self._coloured(text), at) is _STRING:
            self._stack = stack
            return []
        self._stack = stack
        *runs, last = self._coloured(text[:at] + "/**/")
        if last[1] is QUIET and last[0].endswith("/**/"):
            self._remark = True
            return [*runs, (last[0][:-4] + text[at:], QUIET)]
        self._stack = stack
        return []

    def _coloured(self, text: str) -> Line:
        from pygments.lexer import ExtendedRegexLexer, LexerContext, RegexLexer

        lexer, stack = self._lexer, list(self._stack)
        if isinstance(lexer, RegexLexer):
            # the only reader in the library that tells in which state it ends
            context = LexerContext(text + "\n", 0, stack)
            found = list(ExtendedRegexLexer.get_tokens_unprocessed(lexer, context=context))
            self._stack = context.stack
        else:
            found = list(lexer.get_tokens_unprocessed(text + "\n"))
        parts = [(part.rstrip("\n"), _style(kind)) for _, kind, part in found]
        return [(part, style) for part, style in parts if part]


def _style_at(runs: Line, place: int) -> Style:
    for text, style in runs:
        place -= len(text)
        if place < 0:
            return style
    return PLAIN


@cache
def _lexer(language: str) -> Any:
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        return get_lexer_by_name(language, stripnl=False) if language else None
    except ClassNotFound:
        return None


@cache
def _style(kind: Any) -> Style:
    name = str(kind).removeprefix("Token.")
    while name and name not in _STYLES:
        name = name.rpartition(".")[0]
    return _STYLES.get(name, PLAIN)
