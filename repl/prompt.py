"""The line editor: completion, keys, history, toolbar, and the keyboard while something else owns the screen."""

import asyncio
import os
import select
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app, run_in_terminal
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import completion_is_selected, has_completions, is_searching
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import History
from prompt_toolkit.input import Input, create_input
from prompt_toolkit.input.typeahead import store_typeahead
from prompt_toolkit.key_binding import KeyBindings, KeyPress, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import Output, create_output
from prompt_toolkit.shortcuts import CompleteStyle
from prompt_toolkit.styles import Style
from prompt_toolkit.utils import is_dumb_terminal as dumb

from repl import history, registry
from repl.clean import clean_line

__all__ = ["Editor", "Keyboard", "Plain", "dumb", "restored"]
STYLE = Style.from_dict(
    {
        "prompt": "ansicyan",
        "bottom-toolbar": "noreverse #808080",
        "completion-menu": "noreverse bg:default #808080",
        "completion-menu.completion": "noreverse bg:default default",
        "completion-menu.completion.current": "noreverse bg:default ansicyan",
        "completion-menu.meta.completion": "noreverse bg:default #808080",
        "completion-menu.meta.completion.current": "noreverse bg:default #808080",
        "scrollbar.background": "bg:default",
        "scrollbar.button": "bg:#808080",
        "auto-suggestion": "#808080",
    }
)
ESCAPE_WAIT = 0.05  # seconds after which a lone escape byte is the Esc key


class SlashCompleter(Completer):
    """Commands and their values, paths where a value looks like one."""

    def __init__(self) -> None:
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Yield what could stand at the cursor."""
        line = document.text_before_cursor
        last = line.rpartition(" ")[2]
        if line.startswith("/") and " " in line and last[:1] in ("/", ".", "~"):
            yield from self._paths.get_completions(Document(last), complete_event)
            return
        for word, help_text in registry.complete(line):
            yield Completion(word, -len(last), display=clean_line(word), display_meta=clean_line(help_text))


class Past(History):
    """The history file as the editor wants it."""

    def __init__(self, path: Path, keep: bool) -> None:
        super().__init__()
        self._path = path
        self._keep = keep

    def load_history_strings(self) -> Iterable[str]:
        """Yield entries, newest first."""
        return reversed(history.entries(self._path))

    def store_string(self, string: str) -> None:
        """Keep an entry; a disk that refuses must not stop the talk."""
        with suppress(OSError):
            if self._keep:
                history.append(self._path, string)


def bindings(stop: Callable[[], object]) -> KeyBindings:
    """Return the keys: Enter sends, Alt-Enter, Ctrl-J or a trailing backslash make a new line, Ctrl-O an editor.

    Ctrl-C clears the line; where there is nothing to clear it calls `stop`.
    """
    keys = KeyBindings()

    @keys.add("enter", filter=~completion_is_selected & ~is_searching)
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\") and buffer.document.is_cursor_at_the_end:
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("enter", filter=completion_is_selected & ~is_searching)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.complete_state = None

    @keys.add("c-j")
    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-o")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.open_in_editor(validate_and_handle=False)

    @keys.add("c-c", filter=~is_searching)
    @keys.add("<sigint>")
    def _(event: KeyPressEvent) -> None:
        _clear(event.current_buffer, stop)

    @keys.add("escape", filter=has_completions, eager=True)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.cancel_completion()

    return keys


def _clear(line: Buffer, stop: Callable[[], object]) -> None:
    if not line.text:
        stop()
    line.reset()


class Editor:
    """Reads lines; between them it watches the keyboard for whoever owns the screen."""

    def __init__(
        self,
        past: Path,
        toolbar: Callable[[int], str],
        tick: Callable[[], Callable[[], object] | None],
        mark: str = "❯ ",
        stop: Callable[[], object] = lambda: None,
        source: Input | None = None,
        target: Output | None = None,
        keep: bool = True,
    ) -> None:
        self.input = source or create_input()
        self.output = sighted(target or create_output())
        self._toolbar = toolbar
        self._tick = tick
        self._session: PromptSession[str] = PromptSession(
            message=[("class:prompt", mark)],
            input=self.input,
            output=self.output,
            style=STYLE,
            multiline=True,
            prompt_continuation=self._continuation,
            completer=SlashCompleter(),
            complete_while_typing=True,
            complete_style=CompleteStyle.COLUMN,
            auto_suggest=AutoSuggestFromHistory(),
            history=Past(past, keep),
            key_bindings=bindings(stop),
            bottom_toolbar=self._bar,
            reserve_space_for_menu=6,
            tempfile_suffix=".md",
        )

    def read(self, draft: str = "") -> str:
        """Return the next line; raises `EOFError` on Ctrl-D in an empty one."""
        return self._session.prompt(default=draft, pre_run=self._watch)

    def held(self) -> AbstractContextManager[None]:
        """Keep echo and the keys that send signals off, also between the prompts."""
        return self.input.raw_mode()

    @contextmanager
    def keyboard(self) -> Iterator["Keyboard"]:
        """Turn echo off while something else owns the screen."""
        keys = Keyboard(self.input)
        with self.held():
            self.output.enable_bracketed_paste()
            self.output.flush()
            try:
                yield keys
            finally:
                keys.keep()
                self.output.disable_bracketed_paste()
                self.output.flush()

    def _continuation(self, width: int, number: int, wrapped: int) -> str:
        return " " * width

    def _bar(self) -> StyleAndTextTuples:
        return [("class:bottom-toolbar", clean_line(self._toolbar(get_app().output.get_size().columns)))]

    def _watch(self) -> None:
        get_app().create_background_task(self._ticking())

    async def _ticking(self) -> None:
        """Let the shell finish background work: it says what to print above the prompt."""
        shown = self._bar()
        while True:
            said = self._tick()
            if said is not None:
                await run_in_terminal(said)
            if shown != (shown := self._bar()):  # a redraw without need would make the cursor flicker
                get_app().invalidate()
            await asyncio.sleep(0.1)


class Plain:
    """Reads lines where the terminal can neither move its cursor nor tell keys apart."""

    def __init__(self, mark: str, settle: Callable[[], object]) -> None:
        self._mark = mark
        self._settle = settle

    def read(self, draft: str = "") -> str:
        """Return the next line; raises `EOFError` at the end of input. Work begun beside the prompt is waited for."""
        self._settle()
        sys.stdout.write(self._mark)
        sys.stdout.flush()
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.removesuffix("\n")


class Keyboard:
    """Keys typed while a reply streams: Esc and Ctrl-C cancel, the rest waits for the next prompt."""

    def __init__(self, source: Input) -> None:
        self._input = source
        self._keys: list[KeyPress] = []
        self._heard_at = 0.0

    def cancelled(self) -> bool:
        """Read what was typed; True once for Esc or Ctrl-C."""
        arriving, now = self._arriving(), time.monotonic()
        pressed = self._input.read_keys()
        if arriving:
            self._heard_at = now
        elif now - self._heard_at > ESCAPE_WAIT:
            pressed += self._input.flush_keys()
        stop = [key for key in pressed if key.key in (Keys.ControlC, Keys.SIGINT)]
        if pressed and pressed[-1].key == Keys.Escape:  # in front of another key it is the Alt of that key
            stop.append(pressed[-1])
        self._keys += [key for key in pressed if key not in stop and key.key != Keys.CPRResponse]
        return bool(stop)

    def _arriving(self) -> bool:
        """Tell whether bytes wait to be read: the parser does not say when it holds an escape back."""
        try:
            return bool(select.select([self._input.fileno()], [], [], 0)[0])
        except (OSError, ValueError, NotImplementedError):  # Windows: its console gives whole keys
            return False

    def keep(self) -> None:
        """Hand the keys to the next prompt."""
        with suppress(EOFError, OSError):
            self.cancelled()
        store_typeahead(self._input, self._keys)
        self._keys = []


def sighted(output: Output) -> Output:
    """Let an output that cannot ask where its cursor is draw the toolbar all the same."""
    if not output.responds_to_cpr:
        with suppress(AttributeError):
            output.get_rows_below_cursor_position = lambda: 1  # type: ignore[method-assign]  # "unknown" hides it
    return output


@contextmanager
def restored() -> Iterator[None]:
    """Leave the terminal as it was found, whatever ends the program."""
    try:
        import termios
    except ImportError:  # Windows restores its console by itself
        yield
        return
    descriptor = sys.stdin.fileno() if sys.stdin and sys.stdin.isatty() else -1
    before: Any = termios.tcgetattr(descriptor) if descriptor >= 0 else None
    try:
        yield
    finally:
        if before is not None:
            with suppress(termios.error, OSError):
                termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
                os.write(sys.stdout.fileno(), b"\x1b[?2004l\x1b[?25h\x1b[0m")
