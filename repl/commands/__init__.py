"""The commands, a file for each family; a new view is a new file and a line here."""

from repl.commands import (
    arch,
    beams,
    export,
    files,
    help,
    history,
    lens,
    models,
    options,
    rest,
    sessions,
    talk,
    template,
)

__all__ = [
    "arch", "beams", "export", "files", "help", "history", "lens", "models", "options", "rest", "sessions", "talk",
    "template",
]  # fmt: skip
