"""The line editor, with completion, keys, history and toolbar; and the keyboard while a job owns the screen."""

import asyncio
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app, run_in_terminal
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.enums import EditingMode
from prompt_toolkit.filters import Always
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.input import Input, create_input
from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
from prompt_toolkit.key_binding import KeyPress
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout import CompletionsMenu, HSplit, Window, walk
from prompt_toolkit.output import ColorDepth, Output, create_output
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.shortcuts import CompleteStyle
from prompt_toolkit.styles import DynamicStyle, Style
from prompt_toolkit.utils import is_dumb_terminal as dumb

from repl.core import streams
from repl.core.format import join_facts
from repl.core.sanitize import ascii_signs, clean_line
from repl.core.settings import Settings
from repl.terminal.editor.completion import SlashCompleter
from repl.terminal.editor.history import Past
from repl.terminal.editor.keys import Folded, SideView, bindings, menu
from repl.terminal.editor.paste import Folds

if TYPE_CHECKING:
    from repl.terminal.editor.settings_panel import Panel

__all__ = ["Editor", "Keyboard", "Plain", "dumb"]
EDITOR_ACCENTS = {"dark": "ansicyan", "light": "ansiblue", "mono": "bold"}
Complete = Callable[[str], list[tuple[str, str]]]
"""Returns the completions of a line, each with its help."""
PROMPT_POLL_S = 0.1  # seconds between polls of background work: each takes time from a load
ESCAPE_WAIT_S = 0.05  # seconds after which a lone escape byte is the Esc key
RESTORED = b"\x1b[?7h\x1b[?2004l\x1b[?25h\x1b[0m"  # wrap lines, no bracketed paste, show the cursor, no colours
PASTES = "\x1b[?2004h"  # bracketed paste on
DRAWING = ContextVar("DRAWING", default=False)  # whether a line is being drawn above the prompt


def prompt_style(accent: str) -> Style:
    """Return the editor's styles for an accent colour."""
    return Style.from_dict(
        {
            "prompt": accent,
            "bottom-toolbar": "noreverse #808080",
            "completion-menu": "noreverse bg:default #808080",
            "completion-menu.completion": "noreverse bg:default default",
            "completion-menu.completion.current": f"reverse bg:default {accent}",
            "completion-menu.meta.completion": "noreverse bg:default #808080",
            "completion-menu.meta.completion.current": f"reverse bg:default {accent}",
            "scrollbar.background": "bg:default",
            "scrollbar.button": "bg:#808080",
            "auto-suggestion": "#808080",
            "folded": accent,
            "panel.chosen": accent,
            "panel.changed": "bold",
            "panel.foot": "#808080",
            "panel.group": "#808080",
        }
    )


class PromptBackend(Protocol):
    """What the prompt needs of the program behind it."""

    def toolbar(self, width: int) -> str:
        """Return the line under the prompt."""

    def poll_load(self) -> Callable[[], object] | None:
        """Advance background work; returns a function that prints above the prompt, or None."""

    def watch(self, wake: Callable[[], object]) -> None:
        """Have `wake` called, on any thread, when a background load ends."""

    def stop_load(self) -> bool:
        """Stop a background load; False where there is none."""

    def settings(self) -> Settings:
        """Return the current settings."""

    def complete(self, line: str) -> list[tuple[str, str]]:
        """Return the completions of a line, each with its help."""

    def panel(self, changed: Callable[[], object]) -> "Panel":
        """Return the settings view; `changed` is called after a change."""


def terminal_input(stdin: TextIO) -> Input:
    """Return the input of a terminal that stays in raw mode while lines are drawn above the prompt.

    In the cooked mode of `run_in_terminal` the terminal would turn Enter into Ctrl-J, a new line in the draft. Drawing
    does not need cooked mode; a program that reads lines, such as an editor, does.
    """
    if sys.platform == "win32":
        return create_input(stdin)
    from prompt_toolkit.input.vt100 import Vt100Input

    class TerminalInput(Vt100Input):
        def cooked_mode(self) -> AbstractContextManager[None]:
            return self.raw_mode() if DRAWING.get() else super().cooked_mode()

    return TerminalInput(stdin)


class TerminalOutput(Vt100_Output):
    """An output that draws the toolbar even if the terminal does not report its cursor position."""

    def get_rows_below_cursor_position(self) -> int:
        """Return the minimum, 1; raises `NotImplementedError` where the terminal reports the position."""
        return super().get_rows_below_cursor_position() if self.responds_to_cpr else 1


def terminal_output() -> Output:
    """Return the output of the terminal."""
    if sys.platform == "win32":
        return create_output()
    return TerminalOutput.from_pty(sys.stdout, os.environ.get("TERM"), ColorDepth.from_env())


class Editor:
    """Reads lines; between them it reads the keyboard for the job that owns the screen."""

    def __init__(
        self,
        past: Path,
        backend: PromptBackend,
        mark: str = "❯ ",
        source: Input | None = None,
        target: Output | None = None,
        keep: bool = True,
    ) -> None:
        self.input = source or terminal_input(sys.stdin)
        self.output = target or terminal_output()
        self.backend = backend
        self._styles = {theme: prompt_style(accent) for theme, accent in EDITOR_ACCENTS.items()}
        self._folds = Folds()
        self._says_how_to_leave = False  # Ctrl-C was pressed with nothing to stop
        self._end: SystemExit | None = None  # the exit that a signal requested while keys were read
        keys = bindings(self._stop, self._folds)
        self._prompt: PromptSession[str] = PromptSession(
            message=[("class:prompt", mark)],
            input=self.input,
            output=self.output,
            style=DynamicStyle(lambda: self._styles[self.backend.settings().view.theme]),
            multiline=True,
            prompt_continuation=lambda width, number, wrapped: " " * width,
            completer=SlashCompleter(lambda line: self.backend.complete(line)),
            complete_while_typing=True,
            complete_style=CompleteStyle.COLUMN,
            search_ignore_case=True,
            auto_suggest=AutoSuggestFromHistory(),
            history=Past(past, self._folds, keep),
            input_processors=[Folded(self._folds)],
            key_bindings=keys,
            bottom_toolbar=self._bar,
            enable_suspend=True,
        )
        # as an option of the session it would turn completion while typing off
        self._prompt.default_buffer.enable_history_search = Always()
        view = SideView(lambda: self.backend.panel(self._adapt), self._prompt.default_buffer)
        self._prompt.key_bindings = view.keys(keys)
        self._prompt.complete_while_typing = ~view.shown  # else rows would be reserved for completions
        self._prompt.default_buffer.on_completions_changed += self._keep_rows
        layout = self._prompt.layout.container
        assert isinstance(layout, HSplit)
        layout.children.insert(-1, view.container)  # above the toolbar

    def _adapt(self) -> None:
        """Apply the settings `editing_mode` and `theme`."""
        vi = self.backend.settings().view.editing_mode == "vi"
        self._prompt.editing_mode = EditingMode.VI if vi else EditingMode.EMACS
        self._prompt.color_depth = ColorDepth.DEPTH_1_BIT if self.backend.settings().view.theme == "mono" else None
        self._prompt.app.timeoutlen = ESCAPE_WAIT_S if vi else 1.0  # after Esc, for the key of an Alt sequence

    def read(self, draft: str = "") -> str:
        """Return the next line with its pastes expanded; raises `EOFError` on Ctrl-D in an empty one."""
        self._says_how_to_leave = False
        typed_ahead = get_typeahead(self.input)
        store_typeahead(self.input, typed_ahead)
        if draft and typed_ahead and not typed_ahead[0].data[:1].isspace():
            draft += "\n"  # keep keys typed meanwhile apart from its last word
        self._adapt()
        self._keep_rows(self._prompt.default_buffer)
        line = self.run(lambda: self._prompt.prompt(default=self._folds.entry(draft), pre_run=self._watch))
        return self._folds.whole(line)

    def forget_keys(self) -> None:
        """Drop the keys typed ahead."""
        get_typeahead(self.input)

    def run(self, read: Callable[[], str]) -> str:
        """Read keys; raises the exit that a signal requested meanwhile, even if reading had just ended."""
        try:
            return read()
        finally:
            if self._end is not None:
                raise self._end

    def breaks(self, error: SystemExit) -> bool:
        """Have an error raised between two steps of the event loop; False where no keys are read.

        Inside a step it could skip restoring the terminal.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return False
        self._end = error
        loop.call_soon_threadsafe(_raise, error)
        return True

    @contextmanager
    def own_terminal(self) -> Iterator[None]:
        """Keep the terminal in raw mode between prompts too; restore it at the end."""
        try:
            with self.input.raw_mode():
                early = [KeyPress(Keys.Enter) if key.key == Keys.ControlJ else key for key in self.input.read_keys()]
                store_typeahead(self.input, early)  # before raw mode the terminal turned Enter into a line feed
                yield
        finally:
            with suppress(OSError):
                os.write(sys.stdout.fileno(), RESTORED)

    @contextmanager
    def keyboard(self) -> Iterator["Keyboard"]:
        """Read keys without echo while a job owns the screen."""
        keys = Keyboard(self.input)
        with self.input.raw_mode():
            self.output.enable_bracketed_paste()
            self.output.flush()
            try:
                yield keys
            finally:
                keys.keep()
                self.output.disable_bracketed_paste()
                self.output.flush()

    def _keep_rows(self, line: Buffer) -> None:
        self._prompt.reserve_space_for_menu = menu(self.output.get_size().rows, line.complete_state is not None)

    def _offered(self, count: int, chosen: int | None) -> str:
        """Return which completions are visible, or which one is chosen, of how many."""
        if chosen is not None:
            return f"{chosen + 1} of {count}"
        found = [each.content for each in walk(self._prompt.layout.container) if isinstance(each, CompletionsMenu)]
        drawn = [each.render_info for each in found if isinstance(each, Window) and each.render_info]
        return f"1-{min(count, drawn[0].window_height)} of {count}" if drawn else f"{count} to choose from"

    def _stop(self) -> None:
        self._says_how_to_leave = not self.backend.stop_load()

    def _watch(self) -> None:
        get_app().create_background_task(self._ticking())

    def _bar(self) -> StyleAndTextTuples:
        width = get_app().output.get_size().columns
        buffer, lead = self._prompt.default_buffer, ""
        if self._says_how_to_leave and not buffer.text:
            lead = "Ctrl-D leaves"
        if (offered := buffer.complete_state) and (count := len(offered.completions)):
            lead = self._offered(count, offered.complete_index)
        if self._prompt.editing_mode == EditingMode.VI:
            mode = get_app().vi_state.input_mode.removeprefix("vi-").replace("navigation", "normal")
            lead = join_facts(lead, mode)
        said = clean_line(self.backend.toolbar(width - len(lead) - 3 * bool(lead)))
        line = join_facts(f" {lead}" if lead else "", said.lstrip() if lead else said)
        return [("class:bottom-toolbar", ascii_signs(line))]

    async def _ticking(self) -> None:
        """Poll background work, print its results above the prompt, and keep the toolbar current."""
        shown, ended, loop = self._bar(), asyncio.Event(), asyncio.get_running_loop()
        while True:
            ended.clear()
            said = self.backend.poll_load()
            if said is not None:
                drawing = DRAWING.set(True)
                await run_in_terminal(said)
                DRAWING.reset(drawing)
            self._find_cursor()
            if shown != (shown := self._bar()):  # needless redraws make the cursor flicker
                get_app().invalidate()
            self.backend.watch(lambda: loop.call_soon_threadsafe(ended.set))
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(ended.wait(), PROMPT_POLL_S)

    def _find_cursor(self) -> None:
        """Request the cursor position again if the answer was lost among keys: without it no toolbar is drawn."""
        app = get_app()
        busy = app.key_processor.input_queue or app.renderer.waiting_for_cpr or app.is_done
        if not (busy or app.renderer.height_is_known):
            app.renderer.erase()
            app.renderer.request_absolute_cursor_position()
            app.invalidate()


def _raise(error: BaseException) -> None:
    raise error


class Plain:
    """Reads lines on a dumb terminal, or for screen readers, then with readline's editing.

    Nothing is written between Enter and the next prompt: bracketed paste is switched on once.
    """

    def __init__(self, mark: str, settle: Callable[[], object], complete: Complete | None = None) -> None:
        self._mark = mark
        self._settle = settle
        self._readline = import_readline(complete) if complete else None

    def read(self, draft: str = "") -> str:
        """Return the next line; raises `EOFError` at the end of input. Background work is finished first."""
        self._settle()
        drafts, editor = [draft], self._readline  # for the first line only; Ctrl-C drops it
        if editor is not None:
            editor.set_startup_hook(lambda: editor.insert_text(drafts.pop() if drafts else ""))
        while True:
            before = signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                line = input(self._mark)
                while line.endswith("\\"):
                    line = line[:-1] + "\n" + input()
                return line
            except KeyboardInterrupt:
                sys.stdout.write("\nCtrl-D leaves\n")
            finally:
                signal.signal(signal.SIGINT, before)

    def close(self) -> None:
        """Restore the terminal."""
        if self._readline is not None:
            with suppress(OSError):
                sys.stdout.write(RESTORED.decode())
                sys.stdout.flush()


def import_readline(complete: Complete) -> Any:
    """Return Python's readline module with completion set up, None on Windows, whose console edits lines itself."""

    def word(text: str, number: int) -> str | None:
        line = Document(readline.get_line_buffer())
        found = SlashCompleter(complete).get_completions(line, CompleteEvent())
        words = [text[: len(text) + each.start_position] + clean_line(each.text) for each in found]
        words = [word for word in words if word.startswith(text) or not text.startswith("/")]
        return words[number] if number < len(words) else None

    with suppress(ImportError):
        import readline

        readline.set_completer_delims(" ")
        readline.set_completer(word)
        if streams.bind_tab(readline) == "readline":
            readline.parse_and_bind("set enable-bracketed-paste off")  # else it is set and reset around each line
            readline.parse_and_bind('"\\e[200~": bracketed-paste-begin')
            sys.stdout.write(PASTES)
        return readline
    return None


class Keyboard:
    """Keys typed while a job runs: Esc and Ctrl-C cancel it, all others wait for the next prompt."""

    def __init__(self, source: Input) -> None:
        self._input = source
        self._keys: list[KeyPress] = []
        self._heard_at = 0.0

    def cancelled(self) -> bool:
        """Read the keys typed so far; True if Esc or Ctrl-C is among them."""
        arriving, now = self._arriving(), time.monotonic()
        pressed = self._input.read_keys()
        if arriving:
            self._heard_at = now
        elif now - self._heard_at > ESCAPE_WAIT_S:
            pressed += self._input.flush_keys()
        stop = [key for key in pressed if key.key in (Keys.ControlC, Keys.SIGINT)]
        if pressed and pressed[-1].key == Keys.Escape:  # before another key it is Alt
            stop.append(pressed[-1])
        self._keys += [key for key in pressed if key not in stop and key.key != Keys.CPRResponse]
        return bool(stop)

    def _arriving(self) -> bool:
        """Tell whether bytes wait to be read: the parser does not tell when it holds back an escape."""
        try:
            return bool(select.select([self._input.fileno()], [], [], 0)[0])
        except (OSError, ValueError, NotImplementedError):  # Windows: its console reports whole keys
            return False

    def keep(self) -> None:
        """Pass the keys to the next prompt."""
        with suppress(EOFError, OSError):
            self.cancelled()
        store_typeahead(self._input, self._keys)
        self._keys = []
