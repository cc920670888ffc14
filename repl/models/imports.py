"""torch and transformers: imported once without holding up the keyboard; their memory given back."""

import gc
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from repl.core import log
from repl.core.events import Progress
from repl.core.jobs import JobContext, run_isolated


def import_libraries(emit: JobContext) -> None:
    """Import torch and transformers once; an import that is broken off cannot be made good."""
    if "transformers.generation.utils" in sys.modules:
        return
    emit(Progress("importing torch and transformers"))
    with emit.uninterruptible():
        run_isolated(_import)  # what is frozen below holds on to the frames it was made in, and what those came to hold


def _import() -> None:
    _share_processors()
    with no_gc():
        importlib.import_module("transformers.generation.utils")
        importlib.import_module("transformers.models.auto.modeling_auto")
        importlib.import_module("transformers.models.auto.tokenization_auto")
        log.silence_transformers()
        gc.freeze()  # what the imports made stays: leave it out of later collections


def _share_processors() -> None:
    """Let torch's threads sleep soon while they wait for each other: spinning ones starve beside a busy process.

    GNU OpenMP reads this variable when torch is imported; what the user set comes first. On two cores with one of
    them busy, decoding keeps 0.6 of its quiet speed, by default 0.35; on quiet ones nothing is lost.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


@contextmanager
def no_gc() -> Iterator[None]:
    """Import or load without garbage collections: they find nothing, and some block the keyboard meanwhile."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def release_memory() -> None:
    """Give freed memory back to the device."""
    gc.collect()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
