"""Syntax highlighting of code, line by line as it arrives."""

import copy
from functools import cache
from typing import Any

from rich.segment import Segment
from rich.style import Style

MAX_COLOURED_CHARACTERS = 1000
"""Longer lines are not highlighted: regular expressions would take too long."""

_STYLES = {
    "Comment": Style(dim=True),
    "Keyword": Style(color="cyan"),
    "Literal.String": Style(color="green"),
    "Literal.Number": Style(color="magenta"),
    "Name.Function": Style(bold=True),
    "Name.Class": Style(bold=True),
    "Generic.Deleted": Style(color="red"),
    "Generic.Inserted": Style(color="green"),
    "Generic.Heading": Style(bold=True),
}


class Highlighter:
    """Highlights one block of code; keeps the lexer's state between lines, for strings over several lines."""

    def __init__(self, language: str) -> None:
        self._lexer = _lexer(language.lower())
        self._stack = ["root"]

    def line(self, text: str) -> list[Segment]:
        """Return the next line, highlighted."""
        if self._lexer is None or len(text) > MAX_COLOURED_CHARACTERS:
            return [Segment(text)]
        try:
            found = self._tokens(text + "\n")
        except Exception:  # a lexer may fail on any text, which is then shown without colours
            return [Segment(text)]
        return [Segment(part.rstrip("\n"), _style(kind)) for _, kind, part in found if part.rstrip("\n")]

    def draft(self, text: str) -> list[Segment]:
        """Return an incomplete line, highlighted; the state is unchanged."""
        return copy.copy(self).line(text)

    def _tokens(self, line: str) -> list[Any]:
        from pygments.lexer import ExtendedRegexLexer, LexerContext, RegexLexer

        if not isinstance(self._lexer, RegexLexer):
            return list(self._lexer.get_tokens_unprocessed(line))
        context = LexerContext(line, 0, list(self._stack))  # the only method that returns the lexer's final state
        found = list(ExtendedRegexLexer.get_tokens_unprocessed(self._lexer, context=context))
        self._stack = context.stack
        return found


@cache
def _lexer(language: str) -> Any:
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        return get_lexer_by_name(language, stripnl=False) if language else None
    except ClassNotFound:
        return None


@cache
def _style(kind: Any) -> Style | None:
    name = str(kind).removeprefix("Token.")
    while name and name not in _STYLES:
        name = name.rpartition(".")[0]
    return _STYLES.get(name)
