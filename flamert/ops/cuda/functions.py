"""Functions of one number that CuPy has under no ufunc's name."""

from __future__ import annotations

import functools
from typing import Any

from flamert import dtypes
from flamert.graph import Node
from flamert.ops.elementwise import mod
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


@functools.cache
def _floored_mod() -> Any:
    import cupy

    body = "y = fmod(a, b); if (y != 0 && (y < 0) != (b < 0)) y += b; else if (y == 0) y = copysign((T)0, b);"
    return cupy.ElementwiseKernel("T a, T b", "T y", body, "flamert_mod")


def _floating(node: Node) -> bool:
    return node.types[0].dtype in dtypes.STANDARD_FLOAT


@kernel(mod, "cupy", when=_floating)
def _(xp: Any, out: Any, a: Any, b: Any) -> None:
    """As NumPy does it for infinite divisors too, where CuPy's remainder is NaN."""
    if out.dtype in dtypes.HALF:
        out[...] = _floored_mod()(a.astype(xp.float32), b.astype(xp.float32))
    else:
        _floored_mod()(a, b, out)
