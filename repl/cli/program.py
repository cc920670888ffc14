"""One run of the program: at a prompt, for one answer, over a script; the prompt is drawn before the rest is there."""

import argparse
import importlib
import os
import select
import shlex
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import closing, suppress
from types import FrameType
from typing import TYPE_CHECKING

from repl.core import paths, texts
from repl.core.jobs import Job, JobContext, Worker
from repl.core.sanitize import ascii_only, spinner
from repl.core.settings import Settings, short_id
from repl.session import config_file

if TYPE_CHECKING:
    from repl.cli.shell import Shell
    from repl.terminal.editor.prompt import Editor
    from repl.terminal.editor.settings_panel import Panel

HINT = "Type a message. /help lists commands, {} shows settings, Ctrl-D leaves."
HINTED_STARTS = 3  # starts of the program that show it
SIGN_S = 0.1  # seconds between two signs of life while the program starts
STDIN_NOTICE_S = 1.0  # seconds after which the user is told that standard input is waited for


class Program:
    """One run of the program."""

    def __init__(self, asked: argparse.Namespace, found: config_file.Config, chosen: Settings) -> None:
        self.asked = asked
        self.config = found
        self.chosen = chosen
        self.worker = Worker()
        self.typed = sys.stdin is not None and sys.stdin.isatty()
        written = bool(asked.prompt or asked.prompts or asked.json)
        self.interactive = self.typed and sys.stdout.isatty() and not written
        self._shell: Shell | None = None
        self._editor: Editor | None = None

    @property
    def shell(self) -> "Shell":
        """Return the shell; it is made when it is first needed."""
        if self._shell is None:
            from repl.cli.shell import make_shell

            one_shot = not (self.interactive or self._has_lines() or self.asked.resume is not None)
            saved = not (self.asked.no_save or one_shot)
            self._shell = make_shell(self.asked, self.config, self.chosen, self.worker, saved, self.interactive)
        return self._shell

    def run(self) -> int:
        """Run in the mode that was asked for; returns the exit code."""
        self._catch()
        try:
            good = self._interactive() if self.interactive else self._once()
        finally:
            if self._shell is not None:
                self._shell.session.close()
        interrupted = self._shell is not None and self._shell.interrupted
        return 130 if interrupted and not self.interactive else 0 if good else 1

    def _first_lines(self) -> list[str]:
        resumed = [] if self.asked.resume is None else [f"/resume {self.asked.resume}".strip()]
        return [*self.config.startup, *resumed]

    def _run_lines(self, lines: list[str], keep_going: bool) -> bool:
        """Run the first lines, then others; a session to go on with comes before the first load: it names the model."""
        self.shell.eager = self.asked.resume is None
        good = self.shell.script(self._first_lines(), keep_going)
        self.shell.eager = True
        if self.shell.interrupted or not (good or keep_going):
            return False
        return self.shell.script(lines, keep_going, 1 - len(self._connect_lines() + self.asked.commands)) and good

    def _lines(self) -> list[str]:
        script: list[str] = []
        if self.asked.script:
            text = texts.read_stdin() if self.asked.script == "-" else texts.read_text(self.asked.script, piped=True)
            script = text.split("\n")
        return [*self._connect_lines(), *self.asked.commands, *script, *self._batch()]

    def _batch(self) -> list[str]:
        """Return the line that answers a file of prompts; a terminal shows no results, they go into a file then."""
        asked = self.asked
        if asked.prompts is None:
            return []
        to_file = [asked.results] if asked.results else [] if sys.stdout.isatty() else ["-"]
        files = map(_quote, (asked.prompts, *to_file))
        others = {"template": asked.template, "parallel": asked.parallel}
        options = [f"--{name} {_quote(word)}" for name, word in others.items() if word is not None]
        return [" ".join(["/batch", *files, *options])]

    def _connect_lines(self) -> list[str]:
        if not self.asked.connect:
            return []
        chosen = f" --model {shlex.quote(self.asked.model)}" if self.asked.model else ""
        return [f"/connect {shlex.quote(self.asked.connect)}{chosen}"]

    # without a prompt

    def _once(self) -> bool:
        self.shell.print_notices()
        loads = self.asked.resume is None
        if loads:
            self.shell.open()
        lines = self._lines()
        prompt = self._prompt()
        if loads and not self.shell.settle_load():
            return False
        if not self._run_lines(lines, self.asked.keep_going):
            return False
        if prompt or not (self._first_lines() or self._has_lines()):
            return self.shell.message(prompt)
        return True

    def _prompt(self) -> str:
        """Return standard input and the words of the command line, a blank line between."""
        words = " ".join(self.asked.prompt)
        if self.asked.prompts or (self.typed and (words or self._has_lines())):
            return words
        piped = "" if self.asked.script == "-" else self._read_stdin()
        return "\n\n".join(part for part in (piped.strip("\n"), words) if part.strip())

    def _has_lines(self) -> bool:
        return bool(self.asked.commands or self.asked.script or self.asked.prompts)

    def _read_stdin(self) -> str:
        if sys.stdin is None:
            return ""
        if self.typed or _is_silent(STDIN_NOTICE_S):
            self.shell.screen.notice("reading standard input, Ctrl-D ends it (< /dev/null gives none)")
        return texts.read_stdin()

    # at a prompt

    def _interactive(self) -> bool:
        from repl.terminal.editor.prompt import dumb

        mark = "> " if ascii_only() else "❯ "
        settings, goes_on = self.chosen, True
        if is_new_user(not self.asked.no_save):
            hint = HINT.format("/settings" if dumb() or settings.view.accessible else "F2")
            sys.stdout.write(textwrap.fill(hint, shutil.get_terminal_size().columns - 1) + "\n")
        while goes_on:
            goes_on = self._serve_plainly(mark) if dumb() or settings.view.accessible else self._serve(mark)
            settings = self.shell.session.settings if goes_on else settings
        if self._shell is not None:
            self._shell.farewell()
        return True

    def _serve_plainly(self, mark: str) -> bool:
        """Serve lines as the terminal itself reads them; True where the editor is to go on."""
        from repl.terminal.editor.prompt import Plain

        if self._shell is None:
            self._before()
        shell = self.shell
        shell.editor = None
        spoken = shell.session.settings.view.accessible
        plain = Plain("You: " if spoken else mark, shell.settle_load, shell.complete if spoken else None)
        with closing(plain):
            return shell.interactive(plain.read)

    def _serve(self, mark: str) -> bool:
        """Serve lines of the editor; True where they are to be read plainly from now on."""
        from repl.terminal.editor.prompt import Editor

        self._editor = editor = Editor(
            paths.data_folder() / "history", StartingShell(self), mark, keep=not self.asked.no_save
        )
        with editor.own_terminal():
            asked, found = self.asked, self.config
            if self._shell is not None:
                self.take()
            elif self._has_lines() or asked.resume is not None or asked.connect or found.startup or found.wrong:
                self.take()
                self._before()
                if self.shell.session.settings.view.accessible:  # one of these lines said so
                    return True
            return self._serve_lines(editor)

    def take(self) -> None:
        """Put the shell behind the prompt."""
        assert self._editor is not None
        self._editor.backend = self.shell
        self.shell.editor = self._editor

    def _before(self) -> None:
        """Run the lines that were asked for; one that fails must not take the prompt away."""
        self.shell.print_notices()
        self._run_lines(self._lines(), keep_going=True)

    def _serve_lines(self, editor: "Editor") -> bool:
        """Serve lines; the first one may be typed before there is a shell to run it."""
        ahead: list[str] = []
        if self._shell is None:
            try:
                ahead.append(editor.read())
            except EOFError:
                return False
            if self._shell is None:  # it may have come while the line was typed
                self._wait_for_imports()
                self.take()
        return self.shell.interactive(lambda draft: ahead.pop() if ahead else editor.read(draft))

    def _wait_for_imports(self) -> None:
        """Show that the program starts while a line waits for it."""
        job, began = self.worker.start(import_program), time.monotonic()
        while not job.wait(SIGN_S):
            sys.stdout.write(f"\r{spinner(time.monotonic() - began)} starting")
            sys.stdout.flush()
        sys.stdout.write("\r\x1b[K")
        job.result()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._shell is None and self._editor is None:
            os._exit(130)  # nothing is done yet, and an exception could be lost in an import
        if not self.interactive and (self._shell is None or self._shell.running is None):
            raise KeyboardInterrupt
        if self._shell is not None:
            self._shell.interrupt()

    def _catch(self) -> None:
        deadly = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]

        def kill(number: int, frame: FrameType | None) -> None:
            for one in deadly:  # a window that closes says so twice: the second must not hit what saves and restores
                signal.signal(one, signal.SIG_IGN)
            death = SystemExit(128 + number)  # of a kind that an event loop lets through
            if self._editor is None or not self._editor.breaks(death):
                raise death

        signal.signal(signal.SIGINT, self._interrupt)
        for one in deadly:
            signal.signal(one, kill)


def _quote(word: str) -> str:
    """Return a word as a line takes it."""
    return word if word and not any(sign in word for sign in " \t\"'") else f"'{word}'" if '"' in word else f'"{word}"'


class StartingShell:
    """Stands behind the prompt until the rest of the program is imported beside it, then puts the shell there."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._job: Job[None] | None = None

    def toolbar(self, width: int) -> str:
        """Return the line under the prompt."""
        return f" loading {short_id(self._program.chosen.load.model)}"[: max(1, width - 1)]

    def poll_load(self) -> Callable[[], object] | None:
        """Begin the imports once the prompt is drawn; hand over when they are done."""
        if self._job is None:
            self._job = self._program.worker.start(import_program)
        self._job.poll()
        if not self._job.finished():
            return None
        self._program.take()
        return self._program.shell.print_notices if self._program.shell.session.notices else None

    def watch(self, wake: Callable[[], object]) -> None:
        """Nothing is loading yet: imports do not end sooner for being watched."""

    def stop_load(self) -> bool:
        """Nothing is loading yet."""
        return False

    def settings(self) -> Settings:
        """Return the settings of the config file and the command line."""
        return self._program.chosen

    def complete(self, line: str) -> list[tuple[str, str]]:
        """Offer nothing: to ask for a command would hold the keys up until all of them are imported."""
        return []

    def panel(self, changed: Callable[[], object]) -> "Panel":
        """Return the settings view, which needs the rest of the program at once."""
        return self._program.shell.panel(changed)


def is_new_user(noted: bool) -> bool:
    """Tell whether this is one of the first starts; each is noted in a file, where that is allowed."""
    marks = paths.data_folder() / "starts"
    with suppress(OSError):
        count = marks.stat().st_size if marks.exists() else 0
        if noted and count < HINTED_STARTS:
            with marks.open("a", encoding="ascii") as file:
                file.write(".")
        return count < HINTED_STARTS
    return False


def import_program(emit: JobContext) -> None:
    """Import what serves a line."""
    with emit.uninterruptible():
        importlib.import_module("repl.cli.shell")


def _is_silent(seconds: float) -> bool:
    """Tell whether nothing comes from standard input in that time: it may be one that nobody will ever close."""
    try:
        return not select.select([sys.stdin], [], [], seconds)[0]
    except (OSError, ValueError):  # Windows: only sockets can be waited for
        return False
