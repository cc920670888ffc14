"""Log-probabilities and what processors make of them, held against the library's own numbers."""

from typing import TYPE_CHECKING

from repl.core.late import import_late

__all__ = ["continuations", "forward", "processors", "scoring"]

if TYPE_CHECKING:
    from repl.generation.measure import continuations, forward, processors, scoring
else:
    __getattr__ = import_late(__name__, __all__)
