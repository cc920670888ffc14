"""The commands, a file for each family; a new view is a new file and a line here."""

from repl.commands import beams, help, models, options, rest, talk

__all__ = ["beams", "help", "models", "options", "rest", "talk"]
