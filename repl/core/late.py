"""Modules that are imported when they are first used: what computes with tensors, for torch takes seconds to import.

A package lists them in `__all__`; whoever needs one on the model thread writes `package.module.function(...)`.
"""

from collections.abc import Callable, Collection
from importlib import import_module
from types import ModuleType


def import_late(package: str, names: Collection[str]) -> Callable[[str], ModuleType]:
    """Return the `__getattr__` of a package that imports these of its modules when they are first asked for."""

    def find(name: str) -> ModuleType:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return import_module(f"{package}.{name}")

    return find
