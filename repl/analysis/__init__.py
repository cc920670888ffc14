"""Experiments on replies and models: what goes in is a session or a model, what comes out is a frozen value.
Nothing is drawn.
"""

from typing import TYPE_CHECKING

from repl.core.late import import_late

__all__ = ["logit_lens"]

if TYPE_CHECKING:
    from repl.analysis import logit_lens
else:
    __getattr__ = import_late(__name__, __all__)
