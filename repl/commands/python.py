"""/python: a Python prompt with the loaded model, its tokenizer and the last reply.

Its output is not sanitized. The KV cache is dropped afterwards, and later replies record that the model may have been
changed.
"""

import builtins
import code
import importlib.util
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from repl.commands.registry import command
from repl.core import streams
from repl.core.errors import UsageError
from repl.generation import measure
from repl.session.results import Message
from repl.session.session import Session

BANNER = "model, tokenizer; ids and reply of the last exchange · Ctrl-D returns"
BACK = "replies now record that the model may have been changed · /reload loads it again"


@dataclass(frozen=True, slots=True)
class PythonPrompt:
    """A Python prompt, to be opened on the main thread; `open` returns the message to show afterwards."""

    open: Callable[[], Message]


@command("other", "/python", "/reload", see="arch recipe", needs_model=True)
def python(session: Session) -> PythonPrompt:
    """Open a Python prompt with the loaded model.

    It has model, tokenizer, ids (of the last exchange) and reply (its record). Ctrl-D returns, Ctrl-C ends a line
    of Python. ptpython is used if it is installed. Later replies of the model record that it was open there, and
    /recipe and /info say so, until it is loaded again.
    """
    session.require_local_model()
    if session.loading is not None:
        raise UsageError("a model is loading: /python opens when it is ready")
    if not (sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("/python needs a terminal; in a script or a notebook use `from repl import open_session`")
    return PythonPrompt(lambda: visit(session))


def visit(session: Session) -> Message:
    """Run the Python prompt to its end; on the main thread, while the model thread is idle."""
    resident, record = session.store.touch(), session.last.record if session.last else None
    model, leave = resident.model, Leave()
    ids = measure.forward.input_ids(model, [*record.prompt_ids, *record.token_ids]) if record else None
    names = {"model": model, "tokenizer": resident.tokenizer, "ids": ids, "reply": record, "exit": leave, "quit": leave}
    try:
        with interruptible():
            interact(names)
    finally:
        for each in session.store.residents():  # they may share weights
            each.runtime.forget()
        measure.forward.BLOCKS.clear()
    return Message(BACK)


class Leave:
    """The `exit` of the Python prompt; the built-in one would close standard input."""

    def __repr__(self) -> str:
        return "exit() or Ctrl-D returns to hub-repl"

    def __call__(self, code: object = None) -> NoReturn:
        """Return to hub-repl."""
        raise SystemExit


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C end a line of Python and `exit` the prompt; a signal still ends the program."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except SystemExit as end:
        if isinstance(end.code, int) and end.code > 128:
            raise
    finally:
        signal.signal(signal.SIGINT, before)
        vars(builtins).pop("_", None)  # the last value, which would keep a model in memory


def interact(names: dict[str, Any]) -> None:
    """Open ptpython, or the prompt of the standard library, with readline if there is one."""
    if importlib.util.find_spec("ptpython"):
        from ptpython.repl import embed

        sys.stdout.write(BANNER + "\n")
        embed(globals=names, configure=lambda shell: setattr(shell, "confirm_exit", False))
        return
    completer = None
    with suppress(ImportError):
        import readline

        completer = readline.get_completer()
        import rlcompleter  # sets another one

        readline.set_startup_hook(None)
        readline.set_completer(rlcompleter.Completer(names).complete)
        streams.bind_tab(readline)
    try:
        code.interact(BANNER, local=names, exitmsg="")
    finally:
        if completer is not None:
            readline.set_completer(completer)
