"""The settings beside the prompt: what the F2 view lists, and what its keys do; drawing it is the line editor's."""

from collections.abc import Callable

from repl.core import settings
from repl.core.errors import ReplError
from repl.core.sanitize import ascii_signs, clean_line
from repl.session import change_settings
from repl.session.change_settings import Setting
from repl.session.session import Session

PANEL_KEYS = "arrows choose and change · type a value, Enter takes it · Backspace default · Esc closes"
VALUE = 24  # columns of a value


class Panel:
    """Decoding and view settings in rows, one of them chosen, a value for it half typed."""

    def __init__(self, session: Session, changed: Callable[[], object] = lambda: None) -> None:
        self._session = session
        self._changed = changed
        self._names = [*change_settings.settings_of("decode"), *change_settings.settings_of("view")]
        self.at = 0
        self.typed = ""
        self.said = ""
        self.rows: list[Setting] = []

    def open(self) -> None:
        """Look at all settings as they stand."""
        self.typed = self.said = ""
        self.rows = [change_settings.describe(self._session, name) for name in self._names]

    @property
    def chosen(self) -> Setting:
        """Return the setting in the chosen row."""
        return self.rows[self.at]

    def move(self, step: int) -> None:
        """Choose the row so many further down, round the ends; a value that was half typed is dropped."""
        self.at = (self.at + step) % len(self.rows)
        self.typed = self.said = ""

    def type(self, text: str) -> None:
        """Add to the value being typed."""
        self.typed += "".join(letter for letter in text if letter.isprintable())

    def erase(self) -> None:
        """Take back the last letter; where none is typed, put the setting back to its default."""
        if self.typed:
            self.typed = self.typed[:-1]
        else:
            self._apply("default")

    def turn(self, step: int) -> None:
        """Take the next or the one before of the values that there are."""
        kind = settings.setting_kind(self.chosen.name)
        if options := list(kind.complete()):
            shown = settings.show_setting(self.chosen.name, self.chosen.value)
            start = options.index(shown) if shown in options else -1 if step > 0 else 0
            self._apply(options[(start + step) % len(options)])
        else:
            self.said = f"{self.chosen.name} takes {kind.phrase}: type one"

    def enter(self) -> None:
        """Take the value that was typed, or the next one."""
        if self.typed.strip():
            self._apply(self.typed)
        else:
            self.turn(1)

    def _apply(self, word: str) -> None:
        """Change the setting as the command of its name would, and keep what that says."""
        try:
            said = change_settings.apply(self._session, [(self.chosen.name, word)]).text
        except ReplError as error:
            self.said = " · ".join([error.message, *error.hints])
            return
        self.open()
        self.said = said
        self._changed()

    def lines(self) -> list[str]:
        """Return one line for each row: name, value, origin."""
        width = max(len(name) for name in self._names)
        marks = [" >" if at == self.at else "  " for at in range(len(self.rows))]
        return [f"{marks[at]} {row.name:<{width}}  {self._value(at)}" for at, row in enumerate(self.rows)]

    def _value(self, at: int) -> str:
        row = self.rows[at]
        if at == self.at and self.typed:
            return f"{clean_line(self.typed)}_"
        shown = clean_line(settings.show_setting(row.name, row.value)) or "not set"
        return ascii_signs(f"{shown if len(shown) <= VALUE else shown[: VALUE - 1] + '…':<{VALUE}}  {row.origin}")

    def foot(self) -> list[str]:
        """Return what the chosen setting does, and what was said last or the keys there are."""
        return [f"  {self.chosen.help}", ascii_signs(f"  {clean_line(self.said) or PANEL_KEYS}")]
