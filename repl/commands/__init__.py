"""The commands, a file for each family; a new view is a new file and a line here."""

from repl.commands import (
    beams,
    catalog,
    doctor,
    export,
    files,
    help,
    history,
    memory,
    models,
    options,
    rest,
    sessions,
    talk,
    template,
)

__all__ = [
    "beams",
    "catalog",
    "doctor",
    "export",
    "files",
    "help",
    "history",
    "memory",
    "models",
    "options",
    "rest",
    "sessions",
    "talk",
    "template",
]
