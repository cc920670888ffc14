"""Folding of long pastes at the prompt: one private-use character stands for each, drawn as a short label."""

import re

MAX_LINES = 20  # longer pastes are folded
MAX_CHARACTERS = 10_000  # so are longer ones
MAX_HISTORY_CHARACTERS = 65_536  # longer history entries are folded after their first line
FIRST, LAST = 0x10F000, 0x10FFFD  # private-use characters of plane 16, which no text uses
MARK = re.compile(f"[{chr(FIRST)}-{chr(LAST)}]")


class Folds:
    """The folded texts, by the character that stands for each."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def fold(self, text: str) -> str:
        """Return a pasted text, or one character for a long one."""
        long = count_lines(text) > MAX_LINES or len(text) > MAX_CHARACTERS
        return self._mark(text) if long or MARK.search(text) else text

    def entry(self, text: str) -> str:
        """Return a text for editing again: pastes folded before, and very long texts, are folded."""
        if MARK.search(text):
            return self._mark(text)
        for mark, folded in self._texts.items():
            text = text if MARK.search(folded) else text.replace(folded, mark)
        if len(text) <= MAX_HISTORY_CHARACTERS:
            return text
        head, end, rest = text.partition("\n")
        if rest and len(head) < MAX_CHARACTERS:
            return head + end + self._mark(self.whole(rest))
        return self._mark(self.whole(text))

    def whole(self, text: str) -> str:
        """Return a text with its folded pastes expanded."""
        return MARK.sub(lambda found: self._texts.get(found[0], found[0]), text)

    def label(self, mark: str) -> str:
        """Return the label of a folded paste; any other character unchanged."""
        if mark not in self._texts:
            return mark
        text = self._texts[mark]
        lines = count_lines(text)
        return f"[pasted {lines} lines]" if lines > 1 else f"[pasted {len(text)} characters]"

    def _mark(self, text: str) -> str:
        for mark, folded in self._texts.items():
            if folded == text:
                return mark
        if len(self._texts) > LAST - FIRST:
            return text
        mark = chr(FIRST + len(self._texts))
        self._texts[mark] = text
        return mark


def count_lines(text: str) -> int:
    """Return the number of lines; a line feed at the end begins no new one."""
    return text.count("\n") + (not text.endswith("\n"))
