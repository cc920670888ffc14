"""A chat-style terminal REPL for exploring language models from the Hugging Face Hub.

For notebooks and scripts: `open_session` gives a session that runs lines and returns their results. For packages that
bring commands of their own: `command` makes a function a command, `render` says how its result is drawn.

The house, from top to bottom; imports point down only:

    cli         argument parsing, run modes, the loop; wires everything together
    commands    the slash commands: a function, its frozen result, its view
    analysis    experiments on replies and models        terminal    what is typed and drawn
    session     one user's state: conversation, archive, config file
    remote      the engine over a server
    generation  from a request to a reply: prompt, decode loop, measurements
    models      from a folder to a model in memory
    hub         from a name to a folder of checked files
    core        values every part uses; no model, no terminal
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from repl.cli.embed import OpenSession, open_session
    from repl.commands.registry import command
    from repl.terminal.screen import render

__version__ = "0.1.0"
__all__ = ["OpenSession", "command", "open_session", "render"]

_HOMES = {
    "OpenSession": "repl.cli.embed",
    "open_session": "repl.cli.embed",
    "command": "repl.commands.registry",
    "render": "repl.terminal.screen",
}
"""Where the public names lie: they are imported when somebody asks for one, so that `--help` stays quick."""


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
