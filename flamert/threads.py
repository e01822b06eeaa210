"""How many threads one computation on the CPU may use: those of the native kernels and those of NumPy's BLAS."""

from __future__ import annotations

import ctypes
import functools
import importlib
import logging
from collections.abc import Callable
from typing import Any

log = logging.getLogger("flamert")

_SETTERS = (
    "scipy_openblas_set_num_threads64_",
    "openblas_set_num_threads64_",
    "openblas_set_num_threads",
    "MKL_Set_Num_Threads",
    "bli_thread_set_num_threads",
)
"""What the BLAS libraries that NumPy is built with call it."""


def set_threads(n: int) -> None:
    """Use at most `n` threads for one computation on the CPU, in this process and from now on.

    By default it is one for each core that the process may run on. Plans that were made for fewer threads keep to those.
    Raises ValueError for n < 1.
    """
    if n < 1:
        raise ValueError(f"{n} threads cannot compute anything")
    from flamert.ops.cpu.library import library

    native = library()
    if native is not None:
        native.set_threads(n)
    setter = _blas_setter()
    if setter is not None:
        setter(n)
    else:
        log.info("NumPy's BLAS keeps its threads: it offers no way to set them that is known here")


@functools.cache
def _blas_setter() -> Callable[[int], Any] | None:
    """BLAS's function, which the loader finds among the dependencies of NumPy's own extension module."""
    core = ctypes.CDLL(importlib.import_module("numpy._core._multiarray_umath").__file__)
    return next((getattr(core, name) for name in _SETTERS if hasattr(core, name)), None)
