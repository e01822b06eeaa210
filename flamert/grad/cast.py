"""Gradients of changes of element type."""

from __future__ import annotations

from typing import Any

import numpy as np

from flamert import dtypes, ops
from flamert.grad.registry import Missing, gradient

SUMS_OF_CODES = ("matmul_integer", "conv_integer")
"""Ops whose int32 results stand for real numbers, as quantized ones do: gradients pass them straight through."""


@gradient(ops.cast)
def _(dy: Any, y: Any, x: Any, *, to: np.dtype, **rounding: Any) -> Any:
    """dx = dy between floating types, rounding overlooked; nothing flows from or to integers and bool, which count or choose"""
    if x.dtype in dtypes.FLOAT and y.dtype in dtypes.FLOAT:
        return dy
    if x.dtype == y.dtype or (x.dtype in dtypes.COMPLEX and y.dtype in dtypes.COMPLEX):
        return dy
    if x.dtype in dtypes.FLOAT and y.dtype in dtypes.COMPLEX:
        return Missing("the real part of a complex gradient is not written")
    return dy if x.node.op.name in SUMS_OF_CODES and y.dtype in dtypes.FLOAT else None


@gradient(ops.bit_cast)
def _(dy: Any, y: Any, x: Any, *, to: np.dtype) -> Any:
    """dx = dy where the type stays the same; the bits of a number are no smooth function of it"""
    return dy if x.dtype == y.dtype else None
