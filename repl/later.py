"""What torch and transformers import and a chat seldom needs: brought when something asks for it.

The compiler of torch takes a thousand modules with it, sympy among them: 80 MB, and most of the time of a first load.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from functools import partial, wraps
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType
from typing import Any

COMPILER = "torch._dynamo"
INDEXING = f"{COMPILER}._trace_wrapped_higher_order_op"
DECORATORS = ("disable", "allow_in_graph", "assume_constant_result")


class Later(ModuleType):
    """Stands where a module would be; what it does not have brings the module itself."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # whoever looks through all modules wants nothing of this one
            raise AttributeError(name)
        bring()
        return getattr(sys.modules[self.__name__], name)


class Finder(MetaPathFinder, Loader):
    """Brings the compiler before a part of it, which the import then finds done."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return nothing for all but parts of the compiler."""
        if not name.startswith(f"{COMPILER}."):
            return None
        bring()
        return ModuleSpec(name, self) if name in sys.modules else importlib.util.find_spec(name)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the part that is there already."""
        self._own = sys.modules[spec.name].__spec__
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        """Leave it as it is."""
        module.__spec__ = self._own


_left: list[tuple[Any, str, Callable[[Any], Any]]] = []  # functions whose decorators wait for the compiler
_before: list[tuple[ModuleType, str, Any]] = []  # what was set aside in modules


def spare() -> None:
    """Let torch and transformers do without, from their import on; where they have it already nothing happens.

    To be called between the import of torch and the one of transformers' models.
    """
    import torch
    from transformers import utils

    if COMPILER in sys.modules:
        return
    stands, indexing = Later(COMPILER), Later(INDEXING)
    stands.__path__ = []
    for name in DECORATORS:
        setattr(stands, name, partial(_decorate, name))
    indexing.__dict__["TransformGetItemToIndex"] = _indexing
    sys.modules |= {COMPILER: stands, INDEXING: indexing}
    sys.meta_path.insert(0, Finder())
    if checked := getattr(torch, "_check_with", None):
        _put(torch, "_check_with", _holding(checked))
    for module in (utils, utils.import_utils):
        module.is_torch_distributed_available = lambda: False  # this process is alone
    torch.distributed.__dict__.setdefault("__getattr__", _shared)


def bring() -> None:
    """Import the compiler after all, and do what was left for it."""
    if not isinstance(sys.modules.get(COMPILER), Later):
        return
    for name in (COMPILER, INDEXING):
        sys.modules.pop(name)
    sys.meta_path[:] = [each for each in sys.meta_path if not isinstance(each, Finder)]
    while _before:
        setattr(*_before.pop())
    real = importlib.import_module(COMPILER)
    while _left:
        function, name, apply = _left.pop()
        function.__wrapped__ = apply(getattr(real, name))


def _indexing() -> Any:
    bring()
    return importlib.import_module(INDEXING).TransformGetItemToIndex()


def _shared(name: str) -> Any:
    """Import a part of torch's ways to share work that somebody takes to be there, as transformers would have."""
    try:
        if not name.startswith("__"):
            return importlib.import_module(f"torch.distributed.{name}")
    except ImportError as error:  # no such part, or a torch that was built without them
        raise AttributeError(f"module 'torch.distributed' has no attribute {name!r}") from error
    raise AttributeError(name)


def _put(module: ModuleType, name: str, value: Any) -> None:
    _before.append((module, name, getattr(module, name)))
    setattr(module, name, value)


def _holding(checked: Callable[..., None]) -> Callable[..., None]:
    """Return torch's check of a condition, without its import of sympy for one that plainly holds."""
    return lambda error, condition, message: None if condition is True else checked(error, condition, message)


def _decorate(decorator: str, function: Any = None, *words: Any, **options: Any) -> Any:
    """Stand in for a decorator that only the compiler heeds."""
    if function is None:
        return partial(_decorate, decorator, **options)
    if not isinstance(function, FunctionType):
        bring()
        return getattr(sys.modules[COMPILER], decorator)(function, *words, **options)

    @wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        return call.__wrapped__(*arguments, **named)

    _left.append((call, decorator, lambda real: real(function, *words, **options)))
    return call
