"""Experiments on replies and models: in comes a session or a model, out comes a frozen value; nothing is drawn."""

from typing import TYPE_CHECKING

from repl.core.late import import_late

__all__ = ["logit_lens"]

if TYPE_CHECKING:
    from repl.analysis import logit_lens
else:
    __getattr__ = import_late(__name__, __all__)
