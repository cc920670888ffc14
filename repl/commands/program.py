"""The program: its version, and leaving it."""

import platform
from dataclasses import dataclass
from importlib.metadata import version as installed
from typing import Annotated

from rich.text import Text

from repl import __version__
from repl.commands.registry import command
from repl.core.errors import Quit
from repl.core.values import Choice
from repl.session.session import Session
from repl.terminal.screen import render


@dataclass(frozen=True, slots=True)
class Version:
    """Versions of this program, of Python, transformers and torch."""

    hub_repl: str
    python: str
    transformers: str
    torch: str


@command("other", "/version", "/doctor", see="doctor")
def version(session: Session) -> Version:
    """Show the versions of this program and its libraries."""
    return Version(__version__, platform.python_version(), installed("transformers"), installed("torch"))


@render.register
def _(result: Version) -> Text:
    programs = f"hub-repl {result.hub_repl} · python {result.python}"
    return Text(f"{programs} · transformers {result.transformers} · torch {result.torch}")


@command("other", "/quit", "/quit now", see="clear sessions", aliases=("exit", "bye", "q"))
def quit_(session: Session, now: Annotated[str, Choice(("now",))] = "") -> None:
    """Leave; Ctrl-D on an empty line does the same."""
    raise Quit
