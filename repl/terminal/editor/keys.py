"""Key bindings of the prompt: sending, new lines, folded pastes, an external editor, the settings view."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from prompt_toolkit.application import get_app, run_in_terminal
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.data_structures import Point
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition, completion_is_selected, has_completions, is_done, is_searching
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.key_binding import ConditionalKeyBindings, KeyBindings, KeyBindingsBase, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout import ConditionalContainer, Dimension, FormattedTextControl, HSplit, ScrollbarMargin, Window
from prompt_toolkit.layout.processors import Processor, Transformation, TransformationInput

from repl.core import children
from repl.core.sanitize import clean_line
from repl.terminal.editor.paste import MARK, Folds

if TYPE_CHECKING:
    from repl.terminal.editor.settings_panel import Panel

DIRECTION = re.compile("[\u202a-\u202e\u2066-\u2069]")
PAGE_ROWS = 10  # settings that Page Up and Page Down move by
FOOT_ROWS = 4  # of the settings view, in a window of at least 12 rows


def menu(rows: int, shown: bool = False) -> int:
    """Return the rows reserved for the line and its completions, in a window of so many rows."""
    return max(1, min(13, rows // 2 + 1) if shown else min(6, rows // 3))


def bindings(stop: Callable[[], object], folds: Folds) -> KeyBindings:
    """Return the keys: Enter sends, Alt-Enter, Ctrl-J or a trailing backslash make a new line, Ctrl-O an editor.

    Ctrl-C clears the line; where there is nothing to clear it calls `stop`. A long paste is folded.
    """
    keys = KeyBindings()

    @keys.add("enter", filter=~completion_is_selected & ~is_searching)
    def _(event: KeyPressEvent) -> None:
        _enter(event.current_buffer)

    @keys.add("enter", filter=completion_is_selected & ~is_searching)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.complete_state = None

    @keys.add("c-j")
    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-o")
    async def _(event: KeyPressEvent) -> None:
        await _edit(event.current_buffer, folds)

    @keys.add("c-c", filter=~is_searching)
    @keys.add("<sigint>")
    def _(event: KeyPressEvent) -> None:
        _clear(event.current_buffer, stop)

    @keys.add("escape", filter=has_completions, eager=True)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.cancel_completion()

    @keys.add(Keys.BracketedPaste, filter=~is_searching)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text(folds.fold(event.data.replace("\r\n", "\n").replace("\r", "\n")))

    return keys


def _enter(line: Buffer) -> None:
    if line.document.text_before_cursor.endswith("\\") and line.document.is_cursor_at_the_end:
        line.delete_before_cursor()
        line.insert_text("\n")
    else:
        line.validate_and_handle()


def _clear(line: Buffer, stop: Callable[[], object]) -> None:
    if not line.text:
        stop()
    line.reset()


async def _edit(line: Buffer, folds: Folds) -> None:
    """Open the whole text in `$EDITOR`; unchanged folded pastes are folded again."""
    whole = folds.whole(line.text)
    edited = await run_in_terminal(lambda: children.edit_text(whole), in_executor=True)
    text = folds.entry(whole if edited is None else edited)
    line.document = Document(text, len(text))


class Folded(Processor):
    """Draws a label for each folded paste, which is one character for the cursor.

    Bidirectional controls are drawn as code points: the terminal would obey them.
    """

    def __init__(self, folds: Folds) -> None:
        self._folds = folds

    def apply_transformation(self, transformation_input: TransformationInput) -> Transformation:
        """Replace the characters of a line by their labels, and map cursor positions to and from them."""
        line = transformation_input.fragments
        if not any(MARK.search(piece[1]) or DIRECTION.search(piece[1]) for piece in line):
            return Transformation(line)
        letters = [(piece[0], letter) for piece in line for letter in piece[1]]
        drawn: StyleAndTextTuples = []
        places = [0]
        for style, letter in letters:
            label = clean_line(letter) if DIRECTION.match(letter) else self._folds.label(letter)
            drawn.append((style if label == letter else f"{style} class:folded", label))
            places.append(places[-1] + len(label))
        return Transformation(
            drawn,
            lambda at: places[min(at, len(places) - 1)],
            lambda at: max(number for number, place in enumerate(places) if place <= at),
        )


class SideView:
    """The settings view under the prompt, opened by F2; the line being typed is kept."""

    def __init__(self, panel: Callable[[], "Panel"], line: Buffer) -> None:
        self._make = panel
        self._panel: Panel | None = None  # while it is open
        self._line = line
        self.shown = Condition(lambda: self._panel is not None)
        self._list = FormattedTextControl(
            self._rows,
            focusable=True,
            key_bindings=self._keys(),
            show_cursor=False,
            get_cursor_position=lambda: Point(0, self._panel.cursor if self._panel else 0),
        )
        rows = Window(self._list, dont_extend_height=True, right_margins=[ScrollbarMargin(display_arrows=True)])
        foot = Window(FormattedTextControl(self._foot), self._foot_height, dont_extend_height=True)
        self.container = ConditionalContainer(HSplit([rows, foot]), filter=self.shown & ~is_done)

    def keys(self, others: KeyBindings) -> KeyBindingsBase:
        """Return the prompt's keys with F2 added; they are off while the view is open."""
        others.add("f2", filter=~is_searching)(lambda event: self.open())
        return ConditionalKeyBindings(others, ~self.shown)

    def open(self) -> None:
        """Show the settings and give them the keyboard focus."""
        self._line.cancel_completion()
        self._panel = self._make()
        self._panel.open()
        get_app().layout.focus(self._list)

    def close(self) -> None:
        """Hide the settings and focus the line again."""
        self._panel = None
        get_app().layout.focus(self._line)

    def _foot_height(self) -> Dimension:
        rows = FOOT_ROWS if get_app().output.get_size().rows >= 3 * FOOT_ROWS else 2
        return Dimension(min=rows, max=rows)

    def _rows(self) -> StyleAndTextTuples:
        columns = get_app().output.get_size().columns
        return [(style, line + "\n") for style, line in self._panel.lines(columns)] if self._panel else []

    def _foot(self) -> StyleAndTextTuples:
        lines = self._panel.foot(get_app().output.get_size().columns) if self._panel else []
        return [("class:panel.foot", "\n".join(lines))]

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()
        moves = {"pageup": -PAGE_ROWS, "pagedown": PAGE_ROWS}
        moves |= dict.fromkeys(("up", "c-p", "s-tab"), -1) | dict.fromkeys(("down", "c-n", "tab"), 1)
        for name, step in moves.items():
            keys.add(name)(lambda event, step=step: self.panel.move(step))
        for name, step in {"left": -1, "right": 1}.items():
            keys.add(name)(lambda event, step=step: self.panel.turn(step))
        for name in ("escape", "f2", "c-c", "c-d", "<sigint>"):
            keys.add(name, eager=True)(lambda event: self.close())
        keys.add("enter")(lambda event: self.panel.enter())
        for name in ("backspace", "delete"):
            keys.add(name)(lambda event: self.panel.erase())
        for name in (Keys.Any, Keys.BracketedPaste):
            keys.add(name)(lambda event: self.panel.type(event.data))
        return keys

    @property
    def panel(self) -> "Panel":
        """Return the settings; only while they are shown."""
        assert self._panel is not None
        return self._panel
