"""Functions of one number that CuPy has under no ufunc's name."""

from __future__ import annotations

import functools
from typing import Any

from flamert import dtypes
from flamert.ops.functions import erf
from flamert.ops.op import kernel


@functools.cache
def _erf() -> Any:
    import cupy

    return cupy.ElementwiseKernel("T x", "T y", "y = erf(x)", "flamert_erf")


@kernel(erf, "cupy")
def _(xp: Any, out: Any, x: Any) -> None:
    if out.dtype in dtypes.HALF:
        out[...] = _erf()(x.astype(xp.float32))
    else:
        _erf()(x, out)
