"""Ops that change a tensor's shape and move its elements, and compute nothing: reshape, transpose, slice, concat, …"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flamert.errors import ShapeError
from flamert.graph import TensorType
from flamert.ops.op import kernel, op
from flamert.ops.rules import axes_in, axis_in, dims_of


def _reshaped(x: Any, *, shape: tuple[int, ...]) -> Any:
    return x.reshape(shape, copy=False) if isinstance(x, np.ndarray) else x.reshape(shape)


@op(view=_reshaped)
def reshape(x: TensorType, *, shape: tuple[int, ...]) -> TensorType:
    """The same elements in C order under another shape (all dimensions given). Any type. Source: ONNX Reshape-25.

    Raises ShapeError where the number of elements differs.
    """
    shape = dims_of(shape)
    if math.prod(shape) != x.size:
        raise ShapeError(f"cannot reshape {x.size} elements of {list(x.shape)} to {list(shape)}")
    return TensorType(shape, x.dtype)


@op(view=lambda x, *, perm: x.transpose(perm))
def transpose(x: TensorType, *, perm: tuple[int, ...]) -> TensorType:
    """Axis i of the result is axis perm[i] of x. Any type. Source: ONNX Transpose-25."""
    if len(axes_in(perm, x.rank)) != x.rank:
        raise ShapeError(f"perm {list(perm)} does not fit rank {x.rank}")
    return TensorType(tuple(x.shape[p] for p in perm), x.dtype)


@op(moves=True)
def concat(*xs: TensorType, axis: int) -> TensorType:
    """The operands one after the other along `axis`. Any type, one for all; other dimensions equal. Source: ONNX Concat-13."""
    axis = axis_in(axis, xs[0].rank)
    for x in xs[1:]:
        if x.dtype != xs[0].dtype or x.shape[:axis] + x.shape[axis + 1 :] != xs[0].shape[:axis] + xs[0].shape[axis + 1 :]:
            raise ShapeError(f"{x} and {xs[0]} do not fit together along axis {axis}")
    return TensorType((*xs[0].shape[:axis], sum(x.shape[axis] for x in xs), *xs[0].shape[axis + 1 :]), xs[0].dtype)


@kernel(concat)
def _(xp: Any, out: Any, *xs: Any, axis: int) -> None:
    at = 0
    where = [slice(None)] * out.ndim
    for x in xs:
        where[axis] = slice(at, at + x.shape[axis])
        out[tuple(where)] = x
        at += x.shape[axis]
