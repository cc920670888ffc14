"""The commands, a file for each family; a new view is a new file and a line here."""

from repl.commands import beams, files, help, history, models, options, rest, talk

__all__ = ["beams", "files", "help", "history", "models", "options", "rest", "talk"]
