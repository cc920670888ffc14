"""The REPL without a screen, for notebooks and scripts: lines in, results out.

from repl import open_session

with open_session("gpt2", dtype="float32") as session:
    reply = session.run("Once upon a time")
    print(reply.text, session.run("/next 5"))
"""

from collections.abc import Callable
from types import TracebackType
from typing import Any

from repl import commands
from repl.commands import extensions, registry
from repl.commands.python import PythonPrompt
from repl.core import settings
from repl.core.events import Event
from repl.core.jobs import Worker
from repl.core.settings import Settings
from repl.generation.interface import Runtime
from repl.models.store import Store
from repl.session.config_file import typed_word
from repl.session.session import Session, Task

assert commands  # importing them registers them
EVENT_POLL_S = 0.05


class OpenSession:
    """A session that runs lines and returns their results; use it as a context manager, or `close` it."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def run(self, line: str, on_event: Callable[[Event], object] = lambda event: None) -> Any:
        """Run one line, a command or a message, to its end, and return its result: a frozen dataclass, or None.

        A message returns a `Reply` with `text`, `token_ids`, `prompt_ids` and the whole record. `on_event` is called
        with each event, such as a `Token`. KeyboardInterrupt cancels, and the partial reply is returned. Raises a
        `repl.core.errors.ReplError`, whose `hints` are lines to type instead.
        """
        parsed = registry.parse_line(line)
        if self._session.loading is not None and parsed.command.needs_model:
            self._finish(self._session.loading, on_event)
        result = parsed.run(self._session)
        if isinstance(result, PythonPrompt):
            return result.open()
        return self._finish(result, on_event) if isinstance(result, Task) else result

    @property
    def settings(self) -> Settings:
        """Return the settings in effect, frozen; `run("/temperature 0.7")` changes one."""
        return self._session.settings

    def close(self) -> None:
        """Free the models and stop the threads."""
        self._session.close()

    def __enter__(self) -> "OpenSession":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @staticmethod
    def _finish(task: Task[Any], on_event: Callable[[Event], object]) -> Any:
        while not task.job.finished():
            try:
                for event in task.job.poll(EVENT_POLL_S):
                    on_event(event)
            except KeyboardInterrupt:
                task.job.cancel()
        return task.settle()


def open_session(model: str = "builtin", *, offline: bool = False, **chosen: object) -> OpenSession:
    """Load a model and return a session with it, which is not saved on disk.

    `chosen` are settings by name, as on the command line: `dtype="bfloat16"`, `num_beams=4`. Raises a
    `repl.core.errors.ReplError` if the model does not load or a value is refused.
    """
    extensions.load_extensions()
    wanted = Settings()
    for name, value in [*settings.address(model), *chosen.items()]:
        full, word = settings.find_setting(name), typed_word(value)
        wanted = wanted if word == "default" else wanted.put(full, settings.read_setting(full, word), "you")
    session = OpenSession(Session(wanted, Store(Runtime, offline), Worker()))
    try:
        session._finish(session._session.load(wanted), lambda event: None)
    except BaseException:
        session.close()
        raise
    return session
