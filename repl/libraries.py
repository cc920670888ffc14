"""torch and transformers: imported once without holding up the keyboard; their memory given back."""

import ctypes
import gc
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from repl import later, quiet
from repl.events import Progress
from repl.worker import Emit, apart

SERIAL = "HF_DEACTIVATE_ASYNC_LOAD"
"""The variable by which transformers is told to load without threads; it looks at it in every load."""
TRIM, ALONE = -1, -3
"""What `mallopt` of glibc calls the free bytes a heap may end in, and those from which a block is mapped on its own."""
LOADED, REPLIED = 1 << 17, 1 << 25
"""Bytes of such a block while a model is loaded, and otherwise: where glibc begins by itself, and where it ends."""


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


@contextmanager
def returnable() -> Iterator[None]:
    """Have a model's tensors mapped each on its own: among others in a heap they leave holes that nothing fills."""
    options = _glibc("mallopt")
    if options is None:
        yield
        return
    options(ALONE, LOADED)
    try:
        yield
    finally:
        options(ALONE, REPLIED)  # what replies take and free again is quicker from a heap
        options(TRIM, 2 * REPLIED)


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
    if trim := _glibc("malloc_trim"):
        trim(0)


def _glibc(name: str) -> Callable[..., int] | None:
    """Return a function of the C library; None where it is another one than glibc."""
    if sys.platform != "linux":
        return None
    try:
        found: Callable[..., int] = getattr(ctypes.CDLL("libc.so.6"), name)
    except (OSError, AttributeError):
        return None
    return found
