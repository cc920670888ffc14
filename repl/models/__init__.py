"""From a folder to a model in memory: loader, device map, quantization, adapters, and the store of models that are
loaded.
"""

from typing import TYPE_CHECKING

from repl.core.late import import_late

__all__ = ["device_map", "from_files", "loader", "packed_linear", "quantization", "reference"]

if TYPE_CHECKING:
    from repl.models import device_map, from_files, loader, packed_linear, quantization, reference
else:
    __getattr__ = import_late(__name__, __all__)
