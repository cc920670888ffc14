"""The settings view (F2): its rows and the actions of its keys; the line editor draws it."""

import re
import textwrap
from collections.abc import Callable

from repl.core import settings
from repl.core.errors import ReplError
from repl.core.sanitize import ascii_signs, clean_line
from repl.session import change_settings
from repl.session.change_settings import ORIGINS, Setting
from repl.session.session import Session

PANEL_KEYS = "arrows, or type a value · Backspace resets · Esc closes"
VALUE_COLUMNS = 14  # at least for a value that needs them
RANGE = re.compile("^(?:a whole number(?: of)?|a number|one of) ")  # removed from the start of a setting's range


class Panel:
    """The settings that need no load, in groups; one is chosen, and a value for it may be partly typed."""

    def __init__(self, session: Session, changed: Callable[[], object] = lambda: None) -> None:
        self._session = session
        self._changed = changed
        shown = {title: names for title, names in settings.GROUPS.items() if settings.places()[names[0]] != "load"}
        self._lines = [line for title, names in shown.items() for line in (title, *names)]
        self._names = [name for names in shown.values() for name in names]
        self.at = 0
        self.typed = ""
        self.said = ""
        self.rows: list[Setting] = []

    def open(self) -> None:
        """Read the current settings."""
        self.typed = self.said = ""
        self.rows = [change_settings.describe_setting(self._session, name) for name in self._names]

    @property
    def chosen(self) -> Setting:
        """Return the setting in the chosen row."""
        return self.rows[self.at]

    def move(self, step: int) -> None:
        """Choose the row `step` further down, wrapping around; a partly typed value is dropped."""
        self.at = (self.at + step) % len(self.rows)
        self.typed = self.said = ""

    def type(self, text: str) -> None:
        """Add to the value being typed."""
        self.typed += "".join(letter for letter in text if letter.isprintable())

    def erase(self) -> None:
        """Delete the last letter; if none is typed, reset the setting to its default."""
        if self.typed:
            self.typed = self.typed[:-1]
        else:
            self._apply("default")

    def turn(self, step: int) -> None:
        """Set the next or previous of the possible values."""
        kind = settings.setting_kind(self.chosen.name)
        if options := list(kind.complete()):
            shown = settings.show_setting(self.chosen.name, self.chosen.value)
            start = options.index(shown) if shown in options else -1 if step > 0 else 0
            self._apply(options[(start + step) % len(options)])
        else:
            self.said = f"{self.chosen.name} takes {kind.phrase}: type one"

    def enter(self) -> None:
        """Set the typed value, or the next possible one."""
        if self.typed.strip():
            self._apply(self.typed)
        else:
            self.turn(1)

    def _apply(self, word: str) -> None:
        """Change the setting as its command would, and keep the message."""
        try:
            said = change_settings.apply(self._session, [(self.chosen.name, word)]).text
        except ReplError as error:
            self.said = " · ".join([error.message, *error.hints])
            return
        self.open()
        self.said = said
        self._changed()

    @property
    def cursor(self) -> int:
        """Return the line number of the chosen setting."""
        return self._lines.index(self.chosen.name)

    def lines(self, columns: int) -> list[tuple[str, str]]:
        """Return the style and text of each line: the headings, and for each setting its name, value and range."""
        rows = {row.name: row for row in self.rows}
        width = min(max(VALUE_COLUMNS, columns // 4), max([len(self.typed) + 1, *(len(row.text) for row in self.rows)]))
        drawn = [self._row(rows[line], width) if line in rows else ("class:panel.group", line) for line in self._lines]
        return [
            (style, ascii_signs(f"{line[: columns - 4]}…") if len(line) >= columns else line) for style, line in drawn
        ]

    def _row(self, row: Setting, width: int) -> tuple[str, str]:
        chosen = row is self.chosen
        value = f"{clean_line(self.typed)}_" if chosen and self.typed else row.text
        value = value if len(value) <= width else value[: width - 1] + "…"
        style = "class:panel.chosen" if chosen else "" if row.origin in ORIGINS else "class:panel.changed"
        name, takes = row.name.ljust(max(map(len, self._names))), RANGE.sub("", row.takes)
        return style, ascii_signs(f"{' >' if chosen else '  '} {name} {value:<{width}}  {takes}")

    def foot(self, columns: int) -> list[str]:
        """Return help, values and origin of the chosen setting, and the last message or the keys."""
        row, place = self.chosen, f"{self.at + 1} of {len(self.rows)}"
        about = f"{row.help} · takes {row.takes} · {row.text} ({row.source})"
        texts = ascii_signs(about), ascii_signs(clean_line(self.said) or f"{place} · {PANEL_KEYS}")
        return [f"  {line}" for text in texts for line in textwrap.wrap(text, columns - 3)]
