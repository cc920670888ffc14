"""The commands, a file for each family; a new view is a new file and a line here."""

from repl.commands import (
    beams,
    bench,
    export,
    files,
    help,
    history,
    models,
    options,
    recipe,
    reproduce,
    rest,
    sessions,
    stats,
    talk,
    template,
)

__all__ = [
    "beams",
    "bench",
    "export",
    "files",
    "help",
    "history",
    "models",
    "options",
    "recipe",
    "reproduce",
    "rest",
    "sessions",
    "stats",
    "talk",
    "template",
]
