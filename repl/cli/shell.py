"""Read, dispatch, show: one loop for the keyboard, one for scripts."""

import argparse
import os
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from types import NoneType
from typing import TYPE_CHECKING, Any

from repl import commands
from repl.commands import extensions, registry
from repl.commands.python import PythonPrompt
from repl.core import decoding, log, paths, streams
from repl.core.errors import Cancelled, Quit, ReplError, UsageError, sentence
from repl.core.events import Notice
from repl.core.format import counted, join_facts, rate, shortened
from repl.core.jobs import Worker
from repl.core.reply import Reply
from repl.core.sanitize import repair
from repl.core.settings import Load, Settings, short_id
from repl.generation.interface import Runtime
from repl.generation.measure.token_trace import Inspection
from repl.hub import catalog, consent
from repl.models.store import Store
from repl.remote.engine import Connected
from repl.session.config_file import Config
from repl.session.results import Draft, Lines, Message, NotAView
from repl.session.session import ARCHIVE_FILE, Loaded, Session, ShownView, Task
from repl.terminal.editor.settings_panel import Panel
from repl.terminal.live import LiveOutput, LoadProgress
from repl.terminal.screen import Screen

if TYPE_CHECKING:
    from repl.terminal.editor.prompt import Editor

NO_VIEW = (NoneType, Message, Draft, Lines, Reply, Loaded, Connected, NotAView)
"""Results that /export leaves out when it writes the last view."""
BARE = {"help": "/help", "?": "/help", "exit": "/quit", "quit": "/quit"}
WAIT_FOR_LOAD_S = 0.2  # seconds that a load may take before the prompt comes back without it
MIN_FAREWELL_COLUMNS = 70  # columns of a window in which the number of answers is said at the end
MAX_MODELS_OFFERED = 4  # models to load instead of one that failed
END_OF_JOB_S = 1.0  # seconds that a job may take to end when the program is told to


assert commands  # importing them registers them


class Shell:
    """Runs lines in a session and shows their results."""

    def __init__(self, session: Session, screen: Screen) -> None:
        self.session = session
        self.screen = screen
        self.editor: Editor | None = None  # whose keys stop what runs; None: nobody is at the keyboard
        self.running: Task[Any] | None = None
        self.interrupted = False
        self.offered: tuple[list[str], str] = ([], "")  # lines that a number stands for, and the line to repeat then
        self.default = ""  # the line that an empty one stands for
        self.draft = ""  # a message that could not be sent goes back to the prompt
        self._theme = "dark"
        self.apply_theme()
        self.unopened = True
        self.line = 1  # of a script: the one that runs
        self.eager = True  # the first line begins the first load, also where it needs no model
        self.saves = False
        self._pace = LoadProgress()

    # one line

    def run(self, line: str) -> bool:
        """Run one line; False if it failed. A number takes up what the result or the failure before offered."""
        line = repair(line)
        (choices, failed), self.offered, self.default = self.offered, ([], ""), ""
        if line.strip().isdecimal() and 0 < int(line) <= len(choices):
            good = self._run(choices[int(line) - 1]) and (not failed or (self.settle_load() and self._run(failed)))
        else:
            good = self._run(line)
        self.session.save_head()
        self.apply_theme()
        self.print_notices()
        return good

    def offer(self, choices: Iterable[tuple[str, str]], failed: str = "", default: str = "") -> None:
        """Let numbers stand for lines, from 1 on; the line that failed is run again after one of them."""
        self.offered, self.default = ([line for line, _ in choices], failed), default

    def apply_theme(self) -> None:
        """Take over a change of the theme, and of `accessible`, which begins with new consoles."""
        view, before = self.session.settings.view, self._theme
        if self.screen.accessible != view.accessible:
            self.screen.adapt(view.accessible)
            before = "dark"
        if before != view.theme:
            self.screen.paint(view.theme)
        self._theme = view.theme

    def print_notices(self) -> None:
        """Show the notices of the session."""
        for said in self.session.take_notices():
            self.screen.notice(said)

    def _run(self, line: str) -> bool:
        if self.eager:
            self.open()
        try:
            if self.screen.interactive:
                offer_command(line)
            return self._attempt(line)
        except ReplError as error:
            if not isinstance(error, UsageError):
                log.log.warning("%s\n%s", error, error.__dict__.get("trace", ""))
            self.screen.error(error, line=line, model=self._chosen_model())
            self.offer(error.choices, line if error.again else "")
        except Cancelled as stopped:
            self.screen.notice(join_facts("stopped", str(stopped)))
        except Exception as error:  # a bug of ours: its traceback goes to the log, the session goes on
            if isinstance(error, OSError) and streams.is_lost(error):
                raise
            log.log.exception("a bug")
            self.screen.error(ReplError(f"a bug in hub-repl: {sentence(error)}; hub-repl.log has the details"))
        self.screen.space()
        return False

    def _attempt(self, line: str) -> bool:
        parsed = registry.parse_line(line)
        if self.session.remote is None and parsed.command.needs_model and not self.settle_load():
            self._keep_message(line)
            return False
        outcome = parsed.run(self.session)
        if isinstance(outcome, Task) and outcome.background and self.screen.interactive:
            return self._wait_briefly(outcome)
        outcome = self.follow(outcome)
        if not isinstance(outcome, NO_VIEW):
            self.session.keep_view(ShownView(line, parsed.command.name, outcome))
        if isinstance(outcome, Inspection) and self.editor is not None:
            if next_line := self._inspect(outcome, self.editor):
                self.screen.notice(next_line)
                return self._attempt(next_line)
        elif outcome is not None:
            self._show(parsed.command.name, outcome)
        self.screen.space()
        return True

    def _inspect(self, found: Inspection, editor: "Editor") -> str:
        """Show the tokens of a reply on a screen of their own; returns the line to run afterwards, if any."""
        from repl.terminal.inspector import Inspector

        return editor.run(Inspector(found, self.session.settings.view.theme, editor.input, editor.output).run)

    def _keep_message(self, line: str) -> None:
        """Send a message that found no model once a choice has loaded one; without choices it is back at the prompt."""
        if not self.screen.interactive or line.startswith("/"):
            return
        if self.offered[0]:
            self.offered = (self.offered[0], line)
            self.screen.notice("a number also sends your message; Up brings it back")
        else:
            self.draft = line
            self.screen.notice("your message is back at the prompt")

    def _show(self, command: str, outcome: Any) -> None:
        if isinstance(outcome, Lines):
            self.script(outcome.lines)
            return
        self.draft = getattr(outcome, "draft", self.draft)
        self.offer(getattr(outcome, "choices", ()), default=getattr(outcome, "default", ""))
        wanted = self.session.settings.view.stats or self.screen.as_json or not isinstance(outcome, Reply)
        if wanted:
            self.screen.show(command, outcome, self._describe_question(outcome) if self.screen.as_json else {})

    def _describe_question(self, outcome: Any) -> dict[str, Any]:
        """Return the fields that --json adds to a reply: its prompt and line, and with /logprobs its tokens."""
        if not isinstance(outcome, Reply) or (last := self.session.last) is None:
            return {}
        listed = self.session.settings.view.logprobs
        asked = {"prompt": self.session.conversation.question(last).text, "line": self.line}
        return {**asked, **({"logprobs": outcome.logprobs(listed)} if listed else {})}

    def follow(self, outcome: Any) -> Any:
        """Return the result to show: a job is drawn while it runs, a Python prompt is open until it is left."""
        if isinstance(outcome, PythonPrompt):
            if self.editor is None:
                return outcome.open()
            self.editor.forget_keys()  # they were typed for Python, where they cannot be put
            with self.editor.input.cooked_mode():
                return outcome.open()
        if isinstance(outcome, Task):
            self._wait(outcome)
            return outcome.settle()
        return outcome

    def _wait(self, task: Task[Any]) -> None:
        self.running, self.interrupted = task, False
        try:
            loads = task is self.session.loading  # then that line itself says how far it is
            bar = ""
            if self.screen.interactive:
                bar = _fit_toolbar(self._loading()[:1] if loads else self._state(), self.screen.err.width)
            keyboard = self.editor.keyboard() if self.editor else nullcontext()
            with LiveOutput(self.screen, self.session.settings.view, bar) as pane, keyboard as keys:
                pane.draw([self._pace.step] if loads and self._pace.step.stage else [])  # where it was at the prompt
                while not task.job.finished():
                    pane.draw(task.job.poll(0.02))
                    if keys is not None and keys.cancelled():
                        self.interrupt()
        except (SystemExit, OSError):  # a signal, a window that is gone: what there is of a reply is saved
            self._end_job(task)
            raise
        finally:
            self.running = None

    def _end_job(self, task: Task[Any]) -> None:
        """End a job as a cancel would, waiting a moment for it."""
        task.job.cancel()
        deadline = time.monotonic() + END_OF_JOB_S
        while not task.job.finished() and time.monotonic() < deadline:
            task.job.poll(0.02)
        with suppress(ReplError, Cancelled):
            task.settle()

    def interrupt(self) -> None:
        """Stop what runs: called for Esc, Ctrl-C and SIGINT."""
        self.interrupted = True
        if self.running is not None:
            self.running.job.cancel()

    # loading beside the prompt

    def open(self) -> None:
        """Begin the first load: once the prompt is on the screen, or when something needs the model."""
        if self.unopened:
            self.unopened = False
            self.session.load(self.session.settings)

    def settle_load(self) -> bool:
        """Wait for a load that is on its way; False if it failed or was stopped."""
        self.open()
        if self.session.loading is not None:
            self._wait(self.session.loading)
            return self.end_load()
        return True

    def _wait_briefly(self, task: Task[Any]) -> bool:
        """Give a load a moment to end before the prompt is drawn, which takes as long; False if it has failed."""
        task.job.wait(WAIT_FOR_LOAD_S)
        good = True
        while tell := self.poll_load():
            good = tell() is not False
        return good

    def end_load(self) -> bool:
        """Settle a load that has ended, and show the model or the error."""
        assert self.session.loading is not None
        wanted = self.session.pending().load.model
        try:
            self.screen.show("model", self.session.loading.settle())
        except ReplError as error:
            if not (error.choices or self.session.store.facts()):
                error.choices = loadable(wanted)
            self.screen.error(error, repeats=False, model=self._chosen_model())
            self.offer(error.choices)
            return False
        except Cancelled:
            facts = self.session.store.facts()
            left = f"{facts.name} stays loaded" if facts else "/model builtin loads the built-in"
            self.screen.notice(join_facts("loading stopped", left))
            return False
        finally:
            self._pace = LoadProgress()
            self.screen.space()
        return True

    def _chosen_model(self) -> str:
        """Return the model that a line in a shell has to name: not the one that is taken without a name."""
        model = self.session.settings.load.model
        return "" if model == Load().model else model

    def watch(self, wake: Callable[[], object]) -> None:
        """Have `wake` called when the load that runs beside the prompt ends."""
        if self.session.loading is not None:
            self.session.loading.job.on_done(wake)

    def stop_load(self) -> bool:
        """Stop a load that runs beside the prompt; False where there is none."""
        if self.session.loading is not None:
            self.session.loading.job.cancel()
        return self.session.loading is not None

    def poll_load(self) -> Callable[[], object] | None:
        """Poll a background load; returns a function that prints its news above the prompt, if there are any."""
        self.open()
        task = self.session.loading
        if task is None:
            return None
        events = task.job.poll()
        self._pace.follow(events)
        if said := "\n".join(event.text for event in events if isinstance(event, Notice)):
            return lambda: self.screen.notice(said)
        return self.end_load if task.job.finished() else None

    def toolbar(self, width: int) -> str:
        """Return the line under the prompt, without what does not fit."""
        loads = self.session.remote is None and (self.session.loading or self.unopened)
        return _fit_toolbar(self._loading() if loads else self._state(), width)

    def _loading(self) -> list[str]:
        return [part for part in (f"loading {short_id(self.session.pending().load.model)}", *self._pace.said()) if part]

    def _state(self) -> list[str]:
        session, engine = self.session, self.session.engine
        if session.remote is None and session.store.facts() is None:
            return ["no model", "/model ID loads one"]
        used = session.context_used
        context = f"context {used} of {engine.context}" if engine.context else f"context {used}"
        return [
            engine.name,
            *engine.traits,
            "chat" if session.uses_template() else "complete",
            decoding.phrase(session.decoding()),
            context,
            rate(session.speed) if session.speed else "",
        ]

    def settings(self) -> Settings:
        """Return the current settings."""
        return self.session.settings

    def complete(self, line: str) -> list[tuple[str, str]]:
        """Return completions of a line, for the model that is loaded."""
        return registry.complete_line(line, self.session)

    def panel(self, changed: Callable[[], object]) -> Panel:
        """Return the settings view."""
        return Panel(self.session, changed)

    def farewell(self) -> None:
        """Show the title that the session is saved under, and how to resume it."""
        turns = self.session.conversation.turns.values()
        answers = sum(1 for turn in turns if turn.record and not turn.record.continued)
        if answers and self.saves:
            wide = self.screen.err.width >= MIN_FAREWELL_COLUMNS
            ending = join_facts(counted(answers, "answer") if wide else "", "hub-repl --resume continues")
            title = shortened(self.session.archive.title, max(1, self.screen.err.width - len(ending) - 15))
            self.screen.notice(join_facts(f'Saved as "{title}"', ending))

    # many lines

    def message(self, text: str) -> bool:
        """Send a text as a message, whatever it begins with; False if it failed or was stopped."""
        return self.run("/" + text if text.startswith("/") else text) and not self.interrupted

    def interactive(self, read: Callable[[str], str]) -> bool:
        """Serve lines from the keyboard until `/quit` or the end of input; True where another editor is to go on."""
        accessible = self.session.settings.view.accessible
        while self.session.settings.view.accessible == accessible:
            draft, self.draft = self.draft, ""
            try:
                line = read(draft)
                if line.strip() or self.default:
                    self.run(line.strip("\n") if line.strip() else self.default)
            except (EOFError, Quit):
                return False
        return True

    def script(self, lines: Iterable[str], keep_going: bool = False, first: int = 1) -> bool:
        """Run lines, leaving out blank ones and `#` comments; False as soon as one failed, unless told to go on.

        `first` is the number of the first; what stands before the lines of a file has none.
        """
        good = True
        for self.line, line in enumerate(lines, first):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            good = self.run(line.rstrip("\n")) and good
            if self.interrupted or not (good or keep_going):
                return False
        return good


def _fit_toolbar(parts: list[str], width: int) -> str:
    """Join as many parts of a toolbar as fit: the last goes first, then the second, where the lesser ones stand."""
    gone = -1
    while len(parts) > 1 and len(join_facts(*parts)) > width - 2:
        parts, gone = [part for part in parts if part is not parts[gone]], 1
    return (" " + join_facts(*parts))[: max(1, width - 1)]


def loadable(failed: str) -> tuple[tuple[str, str], ...]:
    """Return lines that load another model than the one that failed: the built-in one, then cached ones."""
    names = [name for name in catalog.names.here() if name != failed][:MAX_MODELS_OFFERED]
    return tuple((f"/model {name}", f"loads {short_id(name)}") for name in names)


def make_shell(
    asked: argparse.Namespace, config: Config, chosen: Settings, worker: Worker, saved: bool, interactive: bool
) -> Shell:
    """Return a shell with a new session, which is written to disk only if `saved`."""
    log.install(paths.data_folder())
    offline = asked.offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
    store = Store(Runtime, offline, consents=consent.Consents(paths.data_folder() / consent.FILE))
    session = Session(chosen, store, worker, paths.data_folder() / ARCHIVE_FILE if saved else None)
    session.configure(config.presets, config.engines)
    session.notify(*config.wrong, *extensions.problems(), *registry.alias(config.aliases))
    shell = Shell(session, Screen(asked.json, interactive))
    shell.saves = saved
    shell.unopened = not asked.connect  # where a server answers, no model is loaded
    return shell


def offer_command(line: str) -> None:
    """Raise `UsageError` for a line that is only a word with which people ask for help or leave."""
    if command := BARE.get(line.strip().lower()):
        said = f"{line.strip()!r} is not sent to the model: commands start with a slash"
        ways = (command, "lists the commands" if command == "/help" else "leaves"), (f"/say {line.strip()}", "sends it")
        raise UsageError(said, choices=ways, again=False)
