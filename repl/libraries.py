"""torch and transformers: imported once without holding up the keyboard; their memory given back."""

import ctypes
import gc
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from repl import later, quiet
from repl.events import Progress
from repl.worker import Emit, apart

SERIAL = "HF_DEACTIVATE_ASYNC_LOAD"
"""The variable by which transformers is told to load without threads; it looks at it in every load."""


def bring(emit: Emit) -> None:
    """Import torch and transformers once; an import that is broken off cannot be made good."""
    if "transformers.generation.utils" in sys.modules:
        return
    emit(Progress("import torch and transformers"))
    with emit.shield():
        apart(_import)  # what is frozen below holds on to the frames it was made in, and what those came to hold


def _import() -> None:
    with uncollected():
        _preload()
        importlib.import_module("torch")
        later.spare()
        importlib.import_module("transformers.generation.utils")
        importlib.import_module("transformers.models.auto.modeling_auto")
        importlib.import_module("transformers.models.auto.tokenization_auto")
        quiet.hush()
        gc.freeze()  # what the imports made stays: leave it out of later collections


@contextmanager
def uncollected() -> Iterator[None]:
    """Import or load without garbage collections: they find nothing, and some block the keyboard meanwhile."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def unpooled(wanted: bool) -> Iterator[None]:
    """Let a load take tensor after tensor: handing one to a thread takes longer than mapping it into memory."""
    if not wanted or SERIAL in os.environ:
        yield
        return
    os.environ[SERIAL] = "1"
    try:
        yield
    finally:
        del os.environ[SERIAL]


def _preload() -> None:
    """Load torch's largest library through the C function, which lets other threads run; an import does not."""
    spec = importlib.util.find_spec("torch")
    if sys.platform != "linux" or spec is None or spec.origin is None:
        return
    with suppress(OSError, AttributeError):
        load = ctypes.CDLL(None).dlopen
        load.restype, load.argtypes = ctypes.c_void_p, (ctypes.c_char_p, ctypes.c_int)
        load(os.fsencode(Path(spec.origin).parent / "lib" / "libtorch_cpu.so"), os.RTLD_NOW)


def release() -> None:
    """Give freed memory back to the device and to the system."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):  # a C library other than glibc
            return
