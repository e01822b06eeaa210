"""Gradients of quantization: straight through, as if nothing were rounded. Where codes saturate, they are flat.

A gradient on its way through integer or narrow Values stays in the floating type that it came in.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from flamert import dtypes, ops
from flamert.grad.registry import gradient


@gradient(ops.to_code)
def _(dy: Any, code: Any, y: Any, zero: Any = None, *, to: np.dtype, saturate: bool) -> Any:
    """dy = dcode where y + zero lies within what `to` can hold, else 0"""
    info = ml_dtypes.iinfo(to) if to in dtypes.INTEGER else ml_dtypes.finfo(to)
    y = ops.cast(y, to=dtypes.accumulator(y.dtype))
    if to in dtypes.INTEGER:
        y = ops.round(y)
    if zero is not None:
        y = y + ops.cast(zero, to=y.dtype)
    within = (y >= float(info.min)) & (y <= float(info.max))
    return ops.where(within, dy, 0)


@gradient(ops.from_code)
def _(dy: Any, y: Any, code: Any, zero: Any = None, *, to: np.dtype) -> Any:
    """dcode = dy"""
    return dy


@gradient(ops.whole)
def _(dy: Any, y: Any, x: Any, *, wraps: bool) -> Any:
    """dx = dy"""
    return dy
