"""The prompt as the library's chat template makes it, and the reply read the way the model writes it."""

from typing import TYPE_CHECKING

from repl.core.late import import_late

__all__ = ["template_source"]

if TYPE_CHECKING:
    from repl.generation.prompt import template_source
else:
    __getattr__ = import_late(__name__, __all__)
