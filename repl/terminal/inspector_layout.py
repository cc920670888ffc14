"""A reply laid out on a page: where each token stands, how to move between them, and where a text occurs."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

from rich.cells import cell_len

from repl.core.sanitize import clean, clean_line
from repl.generation.measure.token_trace import Seen

Fragment = tuple[int, str]  # number of a token, and what of it stands in a row
EMPTY_TOKEN = "·"  # stands for a token that adds no text and has none by itself
EMOJI_PARTS = {  # each stands alone: terminals disagree on the width of emoji made of several
    **dict.fromkeys([0x200D, 0x20E3, *range(0xFE00, 0xFE10), *range(0xE0020, 0xE0080)]),  # joiners, keycap, selectors
    **dict.fromkeys(range(0x1F3FB, 0x1F400), "·"),  # skin tones
    **{0x1F1E6 + letter: chr(0xFF21 + letter) for letter in range(26)},  # the letters of flags, in full width
}


@dataclass(frozen=True, slots=True)
class Page:
    """Rows of fragments; for each token the row and column where it begins, and where in the text."""

    rows: list[list[Fragment]]
    places: list[tuple[int, int]]
    text: str
    """All that is shown, in small letters, to search in."""
    starts: list[int]

    def beside(self, token: int, rows: int) -> int:
        """Return the token that begins so many rows further down, nearest to the column of another.

        Where none begins in that row the next one that way is meant; past the ends it is the first or last token.
        """
        row, column = self.places[token]
        wanted, step = row + rows, -1 if rows < 0 else 1
        while 0 <= wanted < len(self.rows):
            begun = [one for one, _ in self.rows[wanted] if self.places[one][0] == wanted]
            if begun:
                return min(begun, key=lambda one: abs(self.places[one][1] - column))
            wanted += step
        return 0 if rows < 0 else len(self.places) - 1

    def find(self, words: str, after: int) -> int | None:
        """Return the next token in which a text begins, round the end; None where it is nowhere."""
        wanted = words.translate(EMOJI_PARTS).lower()
        if not wanted:
            return None
        behind = self.starts[after + 1] if after + 1 < len(self.starts) else len(self.text)
        found = self.text.find(wanted, behind)
        found = self.text.find(wanted) if found < 0 else found
        return None if found < 0 else bisect_right(self.starts, found) - 1


def lay_out(tokens: Sequence[Seen], width: int) -> Page:
    """Lay tokens out in rows of a width, broken between words where that can be."""
    shown = [visible(token) for token in tokens]
    rows = list(_rows(shown, max(width, 2)))
    places: dict[int, tuple[int, int]] = {}
    for number, row in enumerate(rows):
        column = 0
        for token, text in row:
            places.setdefault(token, (number, column))
            column += sum(map(cells, text))
    texts = [text.lower() for text in shown]
    starts = list(accumulate(map(len, texts), initial=0))[:-1]
    return Page(rows, [places[token] for token in range(len(shown))], "".join(texts), starts)


def _rows(shown: Sequence[str], width: int) -> list[list[Fragment]]:
    rows: list[list[Fragment]] = []
    row: list[tuple[int, str, int]] = []  # token, character, its columns
    used = gap = 0  # columns taken, and where the last word begins

    def end(cut: int) -> None:
        nonlocal row, used, gap
        parts = groupby(row[:cut], key=lambda cell: cell[0])
        rows.append([(token, "".join(cell[1] for cell in cells)) for token, cells in parts])
        row, gap = row[cut:], 0
        used = sum(cell[2] for cell in row)

    for token, text in enumerate(shown):
        for character in text:
            if character == "\n":
                end(len(row))
                continue
            wide = cells(character)
            while row and used + wide > width:
                end(gap or len(row))
            row.append((token, character, wide))
            used += wide
            gap = len(row) if character == " " else gap
    if row:
        end(len(row))
    return rows


def cells(character: str) -> int:
    """Return the columns of one character, which is how the screen counts them."""
    return 1 if character.isascii() else cell_len(character)


def visible(token: Seen) -> str:
    """Return what a page shows for a token, never nothing: the name of an end token, a dot for a part of a letter."""
    if token.text:
        return clean(token.text).translate(EMOJI_PARTS).replace("\n", "↵\n").replace("\t", "⇥   ") or EMPTY_TOKEN
    name = clean_line(token.name).translate(EMOJI_PARTS)
    return name if name.strip("\ufffd ") else EMPTY_TOKEN
