"""The commands, a file for each family; a new view is a new file and a line here."""

from repl.commands import (
    beams,
    export,
    files,
    help,
    history,
    models,
    options,
    plan,
    rest,
    sessions,
    talk,
    template,
    trust,
)

__all__ = [
    "beams",
    "export",
    "files",
    "help",
    "history",
    "models",
    "options",
    "plan",
    "rest",
    "sessions",
    "talk",
    "template",
    "trust",
]
