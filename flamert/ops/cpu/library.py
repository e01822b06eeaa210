"""The native library: finding it, binding kernel calls to arrays, running many calls at once. No op is defined here."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

ADDRESS = ctypes.c_void_p


class Arguments(ctypes.Structure):
    """`args` of native.h."""

    _fields_ = (("p", ADDRESS * 12), ("i", ctypes.c_int64 * 28), ("f", ctypes.c_float * 12))


class _Entry(ctypes.Structure):
    _fields_ = (("fn", ADDRESS), ("arguments", ADDRESS))


class Library:
    """The loaded library. `panel` is how many columns of weights are packed side by side on this processor."""

    def __init__(self, path: str) -> None:
        self._dll = ctypes.CDLL(path)
        self._dll.flamert_kernel.restype = ADDRESS
        self._dll.flamert_panel.restype = ctypes.c_int64
        self._dll.flamert_run.argtypes = (ADDRESS, ctypes.c_int64)
        self.run = self._dll.flamert_run
        self.panel: int = self._dll.flamert_panel()
        self.set_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)

    @functools.cache  # noqa: B019 (the library lives as long as the process)
    def kernel(self, name: str) -> int:
        """Address of the kernel of this name for this processor."""
        address = self._dll.flamert_kernel(name.encode())
        if not address:
            raise LookupError(f"the native library has no kernel {name!r}")
        return address

    def set_threads(self, n: int) -> None:
        """Threads that one kernel may use."""
        self.threads = max(1, min(n, 64))
        self._dll.flamert_set_threads(self.threads)

    def call(self, name: str, pointers: Sequence[Any], integers: Sequence[int], floats: Sequence[float] = ()) -> NativeCall:
        """A kernel bound to arrays (None: absent) and numbers, in the order that the kernel's comment gives."""
        arguments = Arguments()
        for k, array in enumerate(pointers):
            arguments.p[k] = None if array is None else address(array)
        arguments.i[: len(integers)] = integers
        arguments.f[: len(floats)] = floats
        return NativeCall(self, [self.kernel(name)], [arguments], pointers)


def address(array: np.ndarray) -> int:
    """Where a C-contiguous array's first element lies."""
    if not array.flags.c_contiguous:
        raise ValueError("native kernels take C-contiguous arrays")
    return array.__array_interface__["data"][0]


class NativeCall:
    """Kernel calls, one or several in a row; calling it runs them without coming back to Python in between."""

    __slots__ = ("arguments", "entries", "fns", "kept", "library", "where")

    def __init__(self, library: Library, fns: Sequence[int], arguments: Sequence[Arguments], kept: Any) -> None:
        self.library, self.fns, self.arguments, self.kept = library, fns, arguments, kept
        pairs = [_Entry(fn, ctypes.addressof(a)) for fn, a in zip(fns, arguments, strict=True)]
        self.entries = (_Entry * len(pairs))(*pairs)
        self.where = ctypes.addressof(self.entries)

    def __call__(self) -> None:
        self.library.run(self.where, len(self.fns))

    @staticmethod
    def chain(calls: Sequence[NativeCall]) -> NativeCall:
        """What all these do, in turn, as one call."""
        fns = [fn for c in calls for fn in c.fns]
        return NativeCall(calls[0].library, fns, [a for c in calls for a in c.arguments], [c.kept for c in calls])


@functools.cache
def library() -> Library | None:
    """The native library, or None where it was not built or FLAMERT_NATIVE=0 forbids it."""
    if os.environ.get("FLAMERT_NATIVE") == "0":
        return None
    spec = importlib.util.find_spec("flamert.ops.cpu._native")
    if spec is None or spec.origin is None:
        return None
    return Library(spec.origin)


def native(condition: Callable[[Any], bool] | None = None) -> Callable[[Any], bool]:
    """A `when=` for native kernels: the library is there, everything is float32, and `condition` holds for the node."""

    def when(node: Any) -> bool:
        if any(t.dtype != np.float32 for t in node.types) or any(v is not None and v.dtype != np.float32 for v in node.inputs):
            return False
        return (condition is None or condition(node)) and library() is not None

    return when
