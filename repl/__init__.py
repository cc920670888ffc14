"""A chat-style terminal REPL for exploring language models from the Hugging Face Hub.

For notebooks and scripts: `open_session` gives a session that runs lines and returns their results. For packages that
bring commands of their own: `command` makes a function a command, `view` says how its result is drawn.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repl.embed import OpenSession, open_session
    from repl.registry import command
    from repl.screen import view

__version__ = "0.1.0"
__all__ = ["OpenSession", "command", "open_session", "view"]

_HOMES = {"OpenSession": "repl.embed", "open_session": "repl.embed", "command": "repl.registry", "view": "repl.screen"}
"""Where the public names lie: they are imported when somebody asks for one, so that `--help` stays quick."""


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
