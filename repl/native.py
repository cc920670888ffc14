"""Runs a compiled step: a shared library with the C interface that torch gives what it compiles ahead of time.

Through ctypes: torch's own runner keeps the interpreter to itself until a step is done, and with it the keyboard.
"""

import ctypes
from collections.abc import Mapping, Sequence
from ctypes import byref, c_char_p, c_int32, c_size_t, c_void_p
from pathlib import Path
from typing import Any

PREFIX = "AOTInductorModelContainer"


class Pair(ctypes.Structure):
    """A constant's name and tensor, as the library takes them."""

    _fields_ = (("name", c_char_p), ("tensor", c_void_p))


class Native:
    """One compiled function of tensors. The thread that made it uses it; raises `OSError` where the file does not load.

    Its weights are lent, not copied: they must stay where they are as long as it lives.
    """

    def __init__(self, library: Path) -> None:
        import torch

        self._library = ctypes.CDLL(str(library))
        self._lent: list[Any] = []  # what it computes with
        self._taken = torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs  # its singular frees no handle
        self._container = c_void_p()
        self._call("CreateWithDevice", byref(self._container), c_size_t(1), c_char_p(b"cpu"), None)
        self._outputs = self._count("GetNumOutputs")

    def __del__(self) -> None:
        if getattr(self, "_container", None):
            self._library[PREFIX + "Delete"](self._container)

    def names(self) -> dict[str, str]:
        """Return the constants it wants, by the names it has for them: where they stood in the module."""
        found = {}
        for place in range(self._count("GetNumConstants")):
            name, origin = c_char_p(), c_char_p()
            self._call("GetConstantName", c_size_t(place), byref(name))
            self._call("GetConstantOriginalFQN", c_size_t(place), byref(origin))
            found[(name.value or b"").decode()] = (origin.value or b"").decode()
        return found

    def lend(self, constants: Mapping[str, Any]) -> None:
        """Let it use these tensors, all that it wants, by its own names."""
        capsules = handles(list(map(borrowed, constants.values())))
        pairs = [Pair(name.encode(), pointer(each)) for name, each in zip(constants, capsules, strict=True)]
        listed = (Pair * len(pairs))(*pairs)
        self._call("UpdateUserManagedConstantBufferPairs", listed, c_size_t(len(pairs)), c_int32(0), c_int32(1))
        self._taken(capsules)
        self._lent += constants.values()

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        """Run it on tensors; other threads go on meanwhile. Raises `RuntimeError`."""
        given = (c_void_p * len(inputs))(*map(pointer, handles(list(inputs))))
        made = (c_void_p * self._outputs)()
        try:
            self._call("Run", given, c_size_t(len(inputs)), made, c_size_t(self._outputs), None, None)
        finally:  # a cancel arrives right behind the call
            outputs = list(self._taken([capsule(each) for each in made if each]))
        return outputs

    def _count(self, name: str) -> int:
        count = c_size_t()
        self._call(name, byref(count))
        return count.value

    def _call(self, name: str, *words: Any) -> None:
        words = words if name.startswith("Create") else (self._container, *words)
        if self._library[PREFIX + name](*words):
            raise RuntimeError(self._complaint())

    def _complaint(self) -> str:
        words = c_char_p()
        self._library.AOTInductorGetLastError(byref(words))
        return (words.value or b"").decode("utf-8", "replace") or "the compiled step failed"


# tensors as the library hands them around: pointers, each owned by whoever holds it


def handles(tensors: list[Any]) -> list[Any]:
    """Return a pointer to each tensor, in a capsule; what takes one over frees it."""
    import torch

    return list(torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(tensors))


def borrowed(tensor: Any) -> Any:
    """Return a tensor over the same memory that does not hold it: what the library is lent it never lets go of."""
    import torch

    if not tensor.numel():
        return tensor.clone()
    count = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    memory = (ctypes.c_char * (count * tensor.element_size())).from_address(tensor.data_ptr())
    return torch.frombuffer(memory, dtype=tensor.dtype).as_strided(tensor.shape, tensor.stride())


def pointer(capsule: Any) -> int:
    """Return what a capsule holds."""
    return int(_open(capsule, None))


def capsule(address: int) -> Any:
    """Put a pointer into a capsule."""
    return _close(address, None, None)


_open = ctypes.pythonapi.PyCapsule_GetPointer
_open.argtypes, _open.restype = [ctypes.py_object, c_char_p], c_void_p
_close = ctypes.pythonapi.PyCapsule_New
_close.argtypes, _close.restype = [c_void_p, c_char_p, c_void_p], ctypes.py_object
