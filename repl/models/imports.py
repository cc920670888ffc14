"""Import torch and transformers once without delaying key presses; release their memory."""

import gc
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from repl.core import log
from repl.core.events import Progress
from repl.core.jobs import JobContext, run_isolated


def import_libraries(emit: JobContext) -> None:
    """Import torch and transformers once; it cannot be cancelled, since an interrupted import cannot be repeated."""
    if "transformers.generation.utils" in sys.modules:
        return
    emit(Progress("importing torch and transformers"))
    with emit.uninterruptible():
        run_isolated(_import)  # gc.freeze keeps the frames that are alive, and all that they hold


def _import() -> None:
    if "OMP_WAIT_POLICY" not in os.environ:
        # GNU OpenMP reads it when torch is imported: threads that wait sleep soon instead of spinning. On two cores
        # with one of them busy decoding keeps 0.6 of its quiet speed, by default 0.35; on quiet ones nothing is lost
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    with no_gc():
        for name in ("generation.utils", "models.auto.modeling_auto", "models.auto.tokenization_auto"):
            importlib.import_module(f"transformers.{name}")
        log.silence_transformers()
        gc.freeze()  # objects of the imports stay: exclude them from later collections


def is_installed(package: str) -> bool:
    """Tell whether a package, or a module inside one, is installed."""
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # the package around it
        return False


@contextmanager
def no_gc() -> Iterator[None]:
    """Turn garbage collection off while importing or loading: it finds nothing, and can delay key presses."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def release_memory() -> None:
    """Collect garbage and return cached CUDA memory to the device."""
    gc.collect()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
