"""Full-screen view of a reply: coloured tokens, and the alternatives at the token under the cursor."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, groupby
from math import exp

from prompt_toolkit.application import Application
from prompt_toolkit.data_structures import Point
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout import FormattedTextControl, HSplit, Layout, UIContent, UIControl, VSplit, Window
from prompt_toolkit.layout.containers import ScrollOffsets
from prompt_toolkit.output import ColorDepth, Output
from prompt_toolkit.styles import Style
from rich.cells import cell_len

from repl.core.format import join_facts
from repl.core.sanitize import ascii_signs, clean, clean_line
from repl.generation.measure.token_text import quote
from repl.generation.measure.token_trace import Inspection, Seen
from repl.terminal.editor.prompt import EDITOR_ACCENTS, ESCAPE_WAIT_S
from repl.terminal.screen import palette, shown_theme
from repl.terminal.token_colours import SHADES, bar, caption, percent, shade

Fragment = tuple[int, str]  # number of a token, and what of it stands in a row
EMPTY_TOKEN = "·"  # shown for a token without text
EMOJI_PARTS = {  # each stands alone: terminals disagree on the width of emoji made of several
    **dict.fromkeys([0x200D, 0x20E3, *range(0xFE00, 0xFE10), *range(0xE0020, 0xE0080)]),  # joiners, keycap, selectors
    **dict.fromkeys(range(0x1F3FB, 0x1F400), "·"),  # skin tones
    **{0x1F1E6 + letter: chr(0xFF21 + letter) for letter in range(26)},  # the letters of flags, in full width
}
SIDE_COLUMNS = (26, 48)  # columns of the table, at least and at most
INSPECTOR_KEYS = (
    "arrows move · 1-5 or Tab choose, Enter takes · p e colours · / n search · q leaves",
    "arrows · 1-5 choose · Enter takes · p e · / n · q leaves",
)
LOOKING = ("arrows move · / searches · n finds the next · q leaves", "arrows · / · n · q leaves")
"""Keys where alternatives cannot be taken."""


@dataclass(frozen=True, slots=True)
class Page:
    """The text laid out in rows; for each token the row and column where it begins, and its offset in `text`."""

    rows: list[list[Fragment]]
    places: list[tuple[int, int]]
    text: str
    """The whole text in lower case, for searching."""
    starts: list[int]

    def beside(self, token: int, rows: int) -> int:
        """Return the token that begins so many rows below another, nearest to its column.

        Rows in which no token begins are skipped; beyond the ends it is the first or last token.
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
        """Return the next token in which a text begins, wrapping around; None where it does not occur."""
        wanted = words.translate(EMOJI_PARTS).lower()
        if not wanted:
            return None
        behind = self.starts[after + 1] if after + 1 < len(self.starts) else len(self.text)
        found = self.text.find(wanted, behind)
        found = self.text.find(wanted) if found < 0 else found
        return None if found < 0 else bisect_right(self.starts, found) - 1


def lay_out(tokens: Sequence[Seen], width: int) -> Page:
    """Lay tokens out in rows of a width, broken between words where possible."""
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
    """Return the columns of one character on the screen."""
    return 1 if character.isascii() else cell_len(character)


def visible(token: Seen) -> str:
    """Return the visible text of a token, never empty: the name of a special token, a dot for part of a character."""
    if token.text:
        return clean(token.text).translate(EMOJI_PARTS).replace("\n", "↵\n").replace("\t", "⇥   ") or EMPTY_TOKEN
    name = clean_line(token.name).translate(EMOJI_PARTS)
    return name if name.strip("\ufffd ") else EMPTY_TOKEN


class Inspector:
    """Shows one reply; `run` returns a `/take` line for a chosen alternative, or ''."""

    def __init__(
        self, found: Inspection, theme: str = "dark", source: Input | None = None, target: Output | None = None
    ) -> None:
        self.found = found
        self.at = 0
        self.chosen: int | None = None  # among the alternatives at this place
        self.by = found.by
        self.words: str | None = None  # being typed to search for
        self.sought = ""
        self.said = ""
        self._height = 10  # rows of the text
        self._width = 0
        self._pages = lru_cache(2)(lambda width: lay_out(found.tokens, width))
        text = Window(TokenText(self), wrap_lines=False, scroll_offsets=ScrollOffsets(top=1, bottom=1))
        side = Window(FormattedTextControl(self._side), width=self._side_width, wrap_lines=False)
        head = Window(FormattedTextControl(self._head), height=1)
        foot = Window(FormattedTextControl(self._foot), height=2)
        self.app: Application[str] = Application(
            layout=Layout(HSplit([head, Window(height=1), VSplit([text, side], padding=2), Window(height=1), foot])),
            key_bindings=self._keys(),
            style=styles(shown_theme(theme)),
            full_screen=True,
            input=source,
            output=target,
            color_depth=ColorDepth.DEPTH_1_BIT if shown_theme(theme) == "mono" else None,
        )
        self.app.ttimeoutlen = self.app.timeoutlen = ESCAPE_WAIT_S

    def run(self) -> str:
        """Run until a key leaves the view."""
        return self.app.run()

    # state

    @property
    def token(self) -> Seen:
        """Return the token under the cursor."""
        return self.found.tokens[self.at]

    def page(self, width: int = 0, height: int = 0) -> Page:
        """Return the text laid out in a width, by default that of the last drawing."""
        self._width, self._height = width or self._width, height or self._height
        found: Page = self._pages(self._width)
        return found

    # actions of keys

    def go(self, token: int | None) -> None:
        """Move the cursor to a token; None shows that the search found nothing."""
        self.said = "" if token is not None else f"{quote(self.sought)} is not in this reply"
        if token is not None:
            self.at, self.chosen = min(max(token, 0), len(self.found.tokens) - 1), None

    def down(self, rows: int) -> None:
        """Move the cursor by rows."""
        self.go(self.page().beside(self.at, rows))

    def turn(self, step: int) -> None:
        """Choose the next or previous alternative, wrapping around."""
        count = len(self.token.top)
        start = -1 if step > 0 else 0
        self.choose(((start if self.chosen is None else self.chosen) + step) % count if count else 0)

    def choose(self, number: int) -> None:
        """Choose an alternative by its place in the table."""
        self.said = ""
        self.chosen = number if number < len(self.token.top) else self.chosen

    def colour(self, by: str) -> None:
        """Colour by probability (`on`), or by `entropy` where it is known."""
        if by == "entropy" and self.found.server:
            self.said = f"entropy is not known: {self.found.server} returns the most likely only"
        else:
            self.by, self.said = by, ""

    def take(self, event: KeyPressEvent) -> None:
        """Leave with the `/take` line of the chosen alternative."""
        if self.chosen is None:
            self.said = "a digit or Tab chooses an alternative first"
        elif self.token.top[self.chosen][0] < 0:
            self.said = f"{self.found.server} does not say the id of this token"
        elif self.token.top[self.chosen][0] == self.token.id:
            self.said = "this is the token that was taken"
        else:
            token, exchange = self.token.top[self.chosen][0], self.found.exchange
            event.app.exit(result=f"/take {self.at + 1} {token} --exchange {exchange}")

    def seek(self, words: str | None) -> None:
        """Edit the search text; None cancels the search."""
        self.words, self.said = words, ""

    def search(self, words: str) -> None:
        """Go to the next occurrence of a text, by default of the last one searched for."""
        self.words, self.sought = None, words or self.sought
        self.go(self.page().find(self.sought, self.at) if self.sought else self.at)

    def _keys(self) -> KeyBindings:
        keys, typing = KeyBindings(), Condition(lambda: self.words is not None)
        acts: dict[str, Callable[[], object]] = {
            "left": lambda: self.go(self.at - 1),
            "right": lambda: self.go(self.at + 1),
            "up": lambda: self.down(-1),
            "down": lambda: self.down(1),
            "pageup": lambda: self.down(1 - self._height),
            "pagedown": lambda: self.down(self._height - 1),
            "home": lambda: self.go(0),
            "end": lambda: self.go(len(self.found.tokens) - 1),
            "tab": lambda: self.turn(1),
            "s-tab": lambda: self.turn(-1),
            "p": lambda: self.colour("on"),
            "e": lambda: self.colour("entropy"),
            "/": lambda: self.seek(""),
            "n": lambda: self.search(""),
        }
        acts |= {str(digit): lambda digit=digit: self.choose(digit - 1) for digit in range(1, 10)}  # type: ignore[misc]
        for name, act in acts.items():
            keys.add(name, filter=~typing)(lambda event, act=act: act())
        keys.add("enter", filter=~typing)(self.take)
        for name in ("q", "escape", "c-c", "c-d", "<sigint>"):
            keys.add(name, filter=~typing, eager=True)(lambda event: event.app.exit(result=""))
        for key in (Keys.Any, Keys.BracketedPaste):
            keys.add(key, filter=typing)(lambda event: self.seek((self.words or "") + clean_line(event.data)))
        keys.add("backspace", filter=typing)(lambda event: self.seek((self.words or "")[:-1]))
        keys.add("enter", filter=typing)(lambda event: self.search(self.words or ""))
        for name in ("escape", "c-c", "<sigint>"):
            keys.add(name, filter=typing, eager=True)(lambda event: self.seek(None))
        return keys

    # drawing

    def _columns(self) -> int:
        return self.app.output.get_size().columns

    def _side_width(self) -> int:
        return min(max(self._columns() * 2 // 5, SIDE_COLUMNS[0]), SIDE_COLUMNS[1])

    def _head(self) -> StyleAndTextTuples:
        place = f"token {self.at + 1} of {len(self.found.tokens)}"
        by = f"coloured by {'entropy' if self.by == 'entropy' else 'probability'}"
        about = clean_line(f"top {self.found.limit} of {self.found.server}") if self.found.server else by
        return [
            ("class:accent", f"exchange {self.found.exchange}"),
            ("class:quiet", ascii_signs(" · " + join_facts(place, about))),
        ]

    def _foot(self) -> StyleAndTextTuples:
        scale = caption(self.by, self.found.tokens)
        spans = [(scale.plain[span.start : span.end], str(span.style)) for span in scale.spans]
        lines = LOOKING if self.found.server else INSPECTOR_KEYS
        keys = next((line for line in lines if len(line) < self._columns()), lines[-1])
        below = f"/{self.words}_" if self.words is not None else self.said or keys
        return [*((f"class:{words}", text) for text, words in spans), ("class:quiet", ascii_signs("\n" + below))]

    def _side(self) -> StyleAndTextTuples:
        token, width = self.token, self._side_width()
        one = "" if self.found.server else f"id {token.id}"
        rank = f"{token.rank:,}" if token.rank else token.place
        drawn: StyleAndTextTuples = [
            ("class:accent", quote(token.text or token.name, width) + "\n"),
            ("class:quiet", ascii_signs(join_facts(one, f"rank {rank}")) + "\n\n"),
            ("", f"probability {percent(exp(token.logprob)):>8}\n"),
            ("", f"logprob     {token.logprob:8.4f} nats\n"),
            ("", "\n" if token.entropy is None else f"entropy     {token.entropy:8.2f} nats\n\n"),
        ]
        for number, (other, name, value) in enumerate(token.top):
            drawn += self._row(number, other, name, exp(value), width)
        if token.id not in [one for one, _, _ in token.top]:
            drawn.append(("class:quiet", f"{ascii_signs('•')}{token.place:>6} {percent(exp(token.logprob)):>8}\n"))
        return drawn

    def _row(self, number: int, token: int, name: str, share: float, width: int) -> StyleAndTextTuples:
        mark = ">" if number == self.chosen else ascii_signs("•") if token == self.token.id else " "
        long = max(2, width // 2 - 10)
        fitting = quote(name, max(4, width - 14 - long))
        words = "class:accent" if number == self.chosen else ""
        return [
            (words, f"{mark}{number + 1:>2} {percent(share):>8} "),
            ("class:accent", f"{bar(share, long):<{long}}"),
            (words, f" {fitting}\n"),
        ]


class TokenText(UIControl):
    """The text of the reply; only visible rows are drawn."""

    def __init__(self, inspector: Inspector) -> None:
        self._inspector = inspector

    def create_content(self, width: int, height: int) -> UIContent:
        """Return the rows in a width, with the cursor at the start of the current token."""
        page = self._inspector.page(width, height)
        row, column = page.places[self._inspector.at]
        return UIContent(lambda number: self._line(page, number), len(page.rows), Point(column, row), show_cursor=True)

    def is_focusable(self) -> bool:
        """Allow the cursor here."""
        return True

    def _line(self, page: Page, number: int) -> StyleAndTextTuples:
        return [(self._style(token), text) for token, text in page.rows[number]]

    def _style(self, token: int) -> str:
        seen = self._inspector.found.tokens[token]
        if token == self._inspector.at:
            return "class:here"
        if not seen.text:
            return "class:quiet"
        words = shade(seen, self._inspector.by)
        return f"class:{words}" if words else ""


def styles(theme: str) -> Style:
    """Return the styles of a theme for prompt_toolkit."""
    found: dict[str, str] = {}
    for name, look in ((name, palette(theme).styles[name]) for name in SHADES):
        on = [word for word in ("bold", "underline", "reverse", "italic") if getattr(look, word)]
        found[name] = " ".join([*on, *([look.color.get_truecolor().hex] if look.color else [])])
    accent = EDITOR_ACCENTS[theme]
    ink = "white" if theme == "light" else "black"
    here = "reverse bold" if theme == "mono" else f"bg:{accent} fg:ansi{ink} bold"
    return Style.from_dict({**found, "accent": accent, "quiet": "#808080", "here": here, "none": ""})
