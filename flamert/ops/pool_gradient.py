"""Gradients of pooling: what reached each window, back to where its maximum lies, or evenly to all of its elements."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flamert import dtypes
from flamert import graph as g
from flamert.errors import ShapeError
from flamert.graph import TensorType, Value
from flamert.ops.op import composite, kernel, op
from flamert.ops.pool import divisors, lowest, max_pool_with_indices, max_unpool, pooled
from flamert.ops.rules import dims_of, require
from flamert.ops.scatter import scatter_elements
from flamert.ops.shape import expand, reshape
from flamert.ops.windows import extent, fold, padded, taps


def to_places(dy: Value, places: Value, shape: tuple[int, ...], overlapping: bool = True) -> Value:
    """Zeros of `shape` with dy's elements added at `places` of the flattened result."""
    if not overlapping:
        return max_unpool(dy, places, shape=shape)
    zeros = expand(g.constant(np.zeros(1, dy.dtype)), shape=(math.prod(shape),))
    count = (dy.type.size,)
    updates, at = reshape(dy, shape=count), reshape(places, shape=count)
    return reshape(scatter_elements(zeros, at, updates, axis=0, reduction="add"), shape=shape)


def overlap(kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...]) -> bool:
    """Whether windows share elements."""
    return any(s < e for s, e in zip(strides, extent(kernel, dilations), strict=True))


@composite
def max_pool_gradient(
    dy: Any, x: Any, *, kernel: tuple[int, ...], strides: tuple[int, ...], pads: tuple[int, ...], dilations: tuple[int, ...]
) -> Any:
    """Each window's element of dy, added where in x the window has its maximum: at the first of equals, or the first NaN.

    dy: [N, C, *windows], x: [N, C, *spatial], of one floating type, which is the result's; no window may lie in the padding
    altogether. Half types accumulate in float32. Source: ONNX MaxPool-22 differentiated.
    """
    y, places = max_pool_with_indices(x, kernel=kernel, strides=strides, pads=pads, dilations=dilations)
    if dy.type != y.type:
        raise ShapeError(f"{dy.type} has not one element for each of the windows {list(y.shape)}")
    return to_places(dy, places, x.shape, overlap(kernel, strides, dilations))


@kernel(max_pool_gradient)
def _(xp: Any, out: Any, dy: Any, x: Any, *, kernel: Any, strides: Any, pads: Any, dilations: Any) -> None:
    """Tap by tap: windows that have their maximum under it, and under no earlier one, give there."""
    counts, inside = dy.shape[2:], padded(xp, xp.ones(x.shape[2:], bool), pads, False)
    filled = padded(xp, x, pads, lowest(x.dtype))
    best = xp.full(dy.shape, lowest(x.dtype), x.dtype)
    for _, where in taps(kernel, counts, strides, dilations):
        xp.maximum(best, filled[where], out=best)
    columns = xp.zeros((*dy.shape[:2], *kernel, *counts), dtypes.accumulator(out.dtype))
    open_ = xp.ones(dy.shape, bool)
    for tap, where in taps(kernel, counts, strides, dilations):
        seen = filled[where]
        found = ((seen == best) | ((seen != seen) & (best != best))) & inside[where] & open_
        columns[(slice(None), slice(None), *tap)] = xp.where(found, dy, 0)
        open_ &= ~found
    fold(xp, out, columns, kernel, strides, pads, dilations)


@op
def average_pool_gradient(
    dy: TensorType,
    *,
    spatial: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
    counted: tuple[int, ...],
) -> TensorType:
    """The adjoint of `average_pool`: dy / (elements that count) of every window, added to all elements of the window.

    dy: [N, C, *windows], floating. Returns [N, C, *spatial] of its type. Half types accumulate in float32.
    Source: ONNX AveragePool-22 transposed.
    """
    require(dy, dtypes.STANDARD_FLOAT, "floating")
    x = TensorType((*dy.shape[:2], *dims_of(spatial)), dy.dtype)
    if pooled(x, kernel, strides, pads, dilations).shape != dy.shape or len(counted) != len(pads):
        raise ShapeError(f"{dy} has not one element per window over {list(spatial)}")
    return x


@kernel(average_pool_gradient)
def _(
    xp: Any,
    out: Any,
    dy: Any,
    *,
    spatial: Any,
    kernel: Any,
    strides: Any,
    pads: Any,
    dilations: Any,
    counted: Any,
) -> None:
    shares = dy.astype(dtypes.accumulator(out.dtype))
    for i, count in enumerate(divisors(spatial, dy.shape[2:], kernel, strides, pads, dilations, counted)):
        shares /= xp.asarray(count, shares.dtype).reshape([-1 if j == i else 1 for j in range(len(kernel))])
    columns = shares.reshape(*dy.shape[:2], *[1] * len(kernel), *dy.shape[2:])
    fold(xp, out, xp.broadcast_to(columns, (*dy.shape[:2], *kernel, *dy.shape[2:])), kernel, strides, pads, dilations)
