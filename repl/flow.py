"""Text that is shown as it comes, each piece in a style of its own: only its lines are broken, between words."""

from repl.prose import PLAIN, Line, stripped, wrap

TAB = 8


class Flow:
    """Breaks text into lines; which pieces it comes in changes nothing in the lines that come out."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.style = PLAIN  # of what is read next
        self._open: Line = []
        self._column = 0  # in the line as it was written

    def feed(self, text: str) -> list[Line]:
        """Read on, and return the lines that are finished."""
        if not text:
            return []
        if "\t" in text:
            before = " " * (self._column % TAB)
            text = (before + text).expandtabs(TAB)[len(before) :]
        _, ended, last = text.rpartition("\n")
        self._column = len(last) + (0 if ended else self._column)
        *finished, self._open = wrap([*self._open, (text, self.style)], self.width)
        return [stripped(line) for line in finished]

    def rest(self) -> list[Line]:
        """Return the line that is open, as it looks now."""
        return [stripped(self._open)] if any(text for text, _ in self._open) else []

    def end(self) -> list[Line]:
        """Return the line that was open; another text may follow."""
        lines, self._open, self._column = self.rest(), [], 0
        return lines
