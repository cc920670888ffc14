"""The command line: options made from the settings; interactive, one shot, pipe, script, JSON."""

import argparse
import errno
import os
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from repl import __version__, settings
from repl.clean import clean_line
from repl.errors import UsageError
from repl.settings import Settings

GRACE = 1.0  # seconds after which the user is told that standard input is waited for


class Killed(SystemExit):
    """A signal asked the program to end; of a kind that an event loop lets through."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Line(argparse.ArgumentParser):
    """Usage errors in our own words."""

    def error(self, message: str) -> NoReturn:
        """Say it in one line and end with 2."""
        unknown = message.removeprefix("unrecognized arguments: ").split()[0]
        if message.startswith("unrecognized") and unknown.startswith("--"):
            message = self._unknown(unknown)
        self.exit(2, f"hub-repl: {clean_line(message)} · hub-repl --help\n")

    def _unknown(self, word: str) -> str:
        from repl.kinds import nearest

        known = [option for action in self._actions for option in action.option_strings]
        close = nearest(word.partition("=")[0], known)
        return f"no option {word}" + (f", did you mean {close}?" if close else "")


def parser() -> Line:
    """Return the parser: what is about this run, then one option for each setting."""
    line = Line(
        prog="hub-repl",
        usage='hub-repl [MODEL] [PROMPT ...] [--SETTING VALUE ...] [-c "/command"]... [--script FILE] [--json]',
        description="Explore language models from the Hugging Face Hub: load, prompt, turn a knob, prompt again.",
        epilog="A PROMPT, or text on standard input, is answered once; without either a prompt opens.",
        allow_abbrev=False,
    )
    line.add_argument("model", nargs="?", metavar="MODEL", help="Hub id, id@revision, folder, .gguf file, or builtin")
    line.add_argument("prompt", nargs="*", metavar="PROMPT", help="answer this and exit")
    line.add_argument("-c", dest="commands", action="append", default=[], metavar="LINE", help="run this line first")
    line.add_argument("--script", metavar="FILE", help="run the lines of a file (- for standard input)")
    line.add_argument("--keep-going", action="store_true", help="go on after a line of a script that failed")
    line.add_argument("--json", action="store_true", help="one JSON object per line on standard output")
    line.add_argument(
        "--resume", nargs="?", const="", metavar="SESSION", help="go on with the last session, or this one"
    )
    line.add_argument("--no-save", action="store_true", help="leave nothing of this session on disk")
    line.add_argument("--offline", action="store_true", help="never touch the network")
    line.add_argument("--version", action="version", version=f"hub-repl {__version__}")
    for part in settings.SPECS:
        group = line.add_argument_group(f"{part} settings")
        for name in (name for name, home in settings.places().items() if home == part and name != "model"):
            spellings = dict.fromkeys(("--" + name.replace("_", "-"), "--" + name))
            help_text = settings.help_of(name).replace("%", "%%")
            group.add_argument(*spellings, dest=f"set_{name}", metavar="VALUE", help=help_text)
    return line


def chosen(asked: argparse.Namespace, found: Settings) -> Settings:
    """Return the settings of the config file with those of the command line over them; raises `UsageError`."""
    given = {name: word for name in settings.places() if (word := getattr(asked, f"set_{name}", None)) is not None}
    if {"max_new_tokens", "max_length"} <= set(given):
        raise UsageError("max_new_tokens and max_length exclude each other: give one")
    if asked.model:
        from repl.change import words

        given |= {name: word for name, word in words(asked.model) if word != "default"}
    for name, word in given.items():
        found = found.put(name, settings.read(name, word), "you")
    return found


def main() -> None:
    """Run the program and end with its exit code."""
    asked = parser().parse_intermixed_args()
    with suppress(AttributeError, ValueError):
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a text stream here
        sys.stderr.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    leave(_guarded(lambda: Program(asked).run()))


def _guarded(run: Callable[[], int]) -> int:
    """Run the program; what ends it early becomes an exit code."""
    try:
        return run()
    except UsageError as error:
        sys.stderr.write("hub-repl: " + clean_line(" · ".join([error.message, *error.hints])) + "\n")
        return 2
    except KeyboardInterrupt:
        return 130
    except Killed as death:
        return 128 + death.number
    except BrokenPipeError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return 129  # the terminal is gone, and the signal that says so comes too late


def _silent(seconds: float) -> bool:
    """Tell whether nothing comes from standard input in that time: it may be one that nobody will ever close."""
    try:
        return not select.select([sys.stdin], [], [], seconds)[0]
    except (OSError, ValueError):  # Windows: only sockets can be waited for
        return False


def leave(code: int) -> NoReturn:
    """End at once: a thread that is still inside a library must not take the interpreter down."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


class Program:
    """One run of the program."""

    def __init__(self, asked: argparse.Namespace) -> None:
        from repl import commands, config, paths, quiet, registry
        from repl.screen import Screen
        from repl.session import FILE, Session
        from repl.shell import Shell
        from repl.store import Store
        from repl.trust import FILE as TRUSTED
        from repl.trust import Consents
        from repl.worker import Worker

        assert commands  # importing them registers them
        self.asked = asked
        self.config = config.read(paths.config() / "config.toml")
        quiet.install(paths.data())
        self.typed = sys.stdin is not None and sys.stdin.isatty()
        self.interactive = self.typed and sys.stdout.isatty() and not asked.prompt and not asked.json
        offline = asked.offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
        saved = None if asked.no_save else paths.data() / FILE
        store = Store(offline, consents=Consents(paths.data() / TRUSTED))
        self.session = Session(chosen(asked, self.config.settings), store, Worker(), saved)
        self.session.presets = dict(self.config.presets)
        self.wrong = [*self.config.wrong, *registry.alias(self.config.aliases)]
        self.shell = Shell(self.session, Screen(asked.json, self.interactive))

    def run(self) -> int:
        """Serve what was asked for; returns the exit code."""
        self._catch()
        for sentence in self.wrong:
            self.shell.screen.notice(sentence)
        try:
            good = self._interactive() if self.interactive else self._once()
        finally:
            self.session.close()
        return 130 if self.shell.interrupted and not self.interactive else 0 if good else 1

    def _lines(self) -> list[str]:
        script: list[str] = []
        if self.asked.script == "-":
            script = sys.stdin.read().split("\n")
        elif self.asked.script:
            try:
                with open(self.asked.script, encoding="utf-8") as file:
                    script = file.read().split("\n")
            except (OSError, UnicodeDecodeError) as error:
                raise UsageError(f"cannot read the script {self.asked.script!r}: {error}") from error
        resumed = [] if self.asked.resume is None else [f"/resume {self.asked.resume}".strip()]
        return [*self.config.startup, *resumed, *self.asked.commands, *script]

    def _once(self) -> bool:
        self.shell.open()
        lines = self._lines()
        prompt = self._prompt()
        if not self.shell.settle_load():
            return False
        if not self.shell.script(lines, self.asked.keep_going):
            return False
        if prompt or not lines:
            return self.shell.message(prompt)
        return True

    def _prompt(self) -> str:
        """Return standard input and the words of the command line, a blank line between."""
        words = " ".join(self.asked.prompt)
        if self.typed and (words or self._has_lines()):
            return words
        piped = "" if self.asked.script == "-" or sys.stdin is None else self._piped()
        return "\n\n".join(part for part in (piped.strip("\n"), words) if part.strip())

    def _has_lines(self) -> bool:
        return bool(self.asked.commands or self.asked.script)

    def _piped(self) -> str:
        if self.typed or _silent(GRACE):
            self.shell.screen.notice("reading standard input, Ctrl-D ends it (< /dev/null gives none)")
        return sys.stdin.read()

    def _interactive(self) -> bool:
        from repl import paths
        from repl.prompt import Editor, Plain, dumb, restored
        from repl.screen import ascii_only

        shell, mark = self.shell, "> " if ascii_only() else "❯ "
        if dumb():
            return self._serve(Plain(mark, shell.settle_load).read)
        editor = Editor(
            paths.data() / "history",
            shell.toolbar,
            shell.tick,
            mark,
            shell.stop_load,
            keep=not self.asked.no_save,
            session=self.session,
        )
        shell.keyboard = editor.keyboard
        with restored(), editor.held():
            return self._serve(editor.read)

    def _serve(self, read: Callable[[str], str]) -> bool:
        lines = self._lines()
        self.shell.script(lines, keep_going=True)  # a line that fails must not take the prompt away
        self.shell.interactive(read)
        return True

    def _catch(self) -> None:
        def interrupt(number: int, frame: FrameType | None) -> None:
            if self.shell.running is None and not self.interactive:
                raise KeyboardInterrupt
            self.shell.interrupt()

        deadly = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]

        def kill(number: int, frame: FrameType | None) -> None:
            for one in deadly:  # a window that closes says so twice: the second must not hit what saves and restores
                signal.signal(one, signal.SIG_IGN)
            raise Killed(number)

        signal.signal(signal.SIGINT, interrupt)
        for one in deadly:
            signal.signal(one, kill)


if __name__ == "__main__":
    main()
