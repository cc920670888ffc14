"""From a request to a reply: a prompt goes in, events and a record come out. Only the model thread runs it."""

from typing import TYPE_CHECKING

from repl.core.late import import_late

__all__ = ["engine"]

if TYPE_CHECKING:
    from repl.generation import engine
else:
    __getattr__ = import_late(__name__, __all__)
