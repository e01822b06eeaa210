"""Resampling along axes: each result is a weighted sum of a few elements, the same ones for all lines of the tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from flamert import dtypes
from flamert import graph as g
from flamert.errors import ShapeError
from flamert.graph import TensorType, Value
from flamert.ops.elementwise import maximum
from flamert.ops.logic import where
from flamert.ops.op import kernel, op
from flamert.ops.reduce import reduce_sum
from flamert.ops.rules import axes_in, require
from flamert.ops.shape import reshape


@op
def resample(x: TensorType, *taps: TensorType, axes: tuple[int, ...]) -> TensorType:
    """y[…, o, …] = Σ_t weight[o, t] · x[…, index[o, t], …] along each of `axes`: a separable, linear change of size.

    x: floating. taps: index₀, weight₀, index₁, weight₁, …, one pair per axis; index int64 [size, taps] within the axis,
    weight likewise, floating. Returns x's type with `axes` of the new sizes. Half types are computed in float32 along all axes
    and rounded once. Source: ONNX Resize-19, modes linear and cubic.
    """
    require(x, dtypes.STANDARD_FLOAT, "floating")
    axes = axes_in(axes, x.rank)
    if len(taps) != 2 * len(axes):
        raise ShapeError(f"resample along {len(axes)} axes takes {2 * len(axes)} taps, got {len(taps)}")
    shape = list(x.shape)
    for axis, index, weight in zip(axes, taps[::2], taps[1::2], strict=True):
        if index.rank != 2 or index.shape != weight.shape:
            raise ShapeError(f"index {list(index.shape)} and weight {list(weight.shape)} must both be [size, taps]")
        require(index, {dtypes.int64}, "index")
        require(weight, dtypes.STANDARD_FLOAT, "weight")
        shape[axis] = index.shape[0]
    return TensorType(tuple(shape), x.dtype)


@kernel(resample)
def _(xp: Any, out: Any, x: Any, *taps: Any, axes: tuple[int, ...]) -> None:
    x = x.astype(dtypes.accumulator(out.dtype), copy=False)
    pairs = list(zip(axes, taps[::2], taps[1::2], strict=True))
    # Axes that shrink come first, so that the others have less to do.
    for axis, index, weight in sorted(pairs, key=lambda p: p[1].shape[0] / max(x.shape[p[0]], 1)):
        axis %= x.ndim
        shape = [-1 if i == axis else 1 for i in range(x.ndim)]
        y = xp.zeros((*x.shape[:axis], index.shape[0], *x.shape[axis + 1 :]), x.dtype)
        for t in range(index.shape[1] if y.size else 0):
            seen = xp.take(x, index[:, t], axis)
            seen *= weight[:, t].astype(x.dtype, copy=False).reshape(shape)
            y += seen
        x = y
    out[...] = x


def triangle(d: Value) -> Value:
    """The kernel of linear interpolation: 1 − |d| within a distance of 1."""
    return maximum(1 - abs(d), 0)


def cubic(a: float) -> Callable[[Value], Value]:
    """The kernel of cubic convolution with slope `a` at distance 1. Source: Keys 1981."""

    def weight(d: Value) -> Value:
        d = abs(d)
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        return where(d <= 1, near, where(d < 2, far, g.constant(np.zeros((), d.dtype))))

    return weight


def taps_at(
    at: Value,
    places: np.ndarray,
    size: int,
    shape: Callable[[Value], Value],
    reach: float,
    *,
    shrink: Value | float = 1.0,
    exclude_outside: bool = False,
) -> tuple[np.ndarray, Value]:
    """Index and weight [len(at), taps] that interpolate an axis of `size` elements at the coordinates `at`.

    places: what `at` holds: it decides which elements count, and `at` with which weight, so that gradients can flow to it.
    shape: weight by distance, zero beyond `reach`. shrink: other than 1, the kernel is that much wider, against aliasing, and
    `reach` with it. Elements outside are those at the border, or, with `exclude_outside`, do not count.
    """
    first = int(np.floor(-reach)) + 1
    index = np.floor(places).astype(np.int64)[:, None] + np.arange(first, 2 - first)
    distance = g.constant(index, at.dtype) - reshape(at, shape=(len(places), 1))
    widened = isinstance(shrink, Value) or shrink != 1
    weight = shape(distance * shrink if widened else distance)
    if exclude_outside:
        weight = where(g.constant((index >= 0) & (index < size)), weight, g.constant(np.zeros((), at.dtype)))
    if exclude_outside or widened:
        weight = weight / reduce_sum(weight, axes=(1,), keepdims=True)
    return np.clip(index, 0, size - 1), weight


def transposed(index: np.ndarray, weight: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The taps of the adjoint: those that lead from `len(index)` elements back to `size`. What `resample`'s gradient needs."""
    outputs = np.repeat(np.arange(index.shape[0]), index.shape[1])
    order = np.argsort(index.ravel(), kind="stable")
    target = index.ravel()[order]
    count = np.bincount(target, minlength=size)
    rank = np.arange(len(target)) - np.repeat(np.cumsum(count) - count, count)
    back = np.zeros((size, int(count.max(initial=0))), np.int64)
    factors = np.zeros(back.shape, weight.dtype)
    back[target, rank] = outputs[order]
    factors[target, rank] = weight.ravel()[order]
    return back, factors
