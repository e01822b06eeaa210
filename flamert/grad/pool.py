"""Gradients of pooling: back to where each maximum was found, evenly over each window, or by each element's part in a norm."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flamert import dtypes, ops
from flamert import graph as g
from flamert.grad.registry import Missing, gradient
from flamert.graph import Value
from flamert.ops.pool import divisors
from flamert.ops.windows import extent


def to_places(dy: Value, places: Value, shape: tuple[int, ...], overlapping: bool = True) -> Value:
    """Zeros of `shape` with dy's elements added at `places` of the flattened result."""
    if not overlapping:
        return ops.max_unpool(dy, places, shape=shape)
    size = math.prod(shape)
    zeros = ops.expand(g.constant(np.zeros(1, dy.dtype)), shape=(size,))
    count = (dy.type.size,)
    updates, at = ops.reshape(dy, shape=count), ops.reshape(places, shape=count)
    return ops.reshape(ops.scatter_elements(zeros, at, updates, axis=0, reduction="add"), shape=shape)


def _to_maxima(dy: Value, places: Value, x: Value, windows: dict[str, Any], column_major: bool) -> Value | Missing:
    counts = dy.shape[2:]
    if any((inside == 0).any() for inside in divisors(x.shape[2:], counts, **windows, counted=(0,) * 2 * len(counts))):
        return Missing("some windows lie in the padding altogether")
    reach = extent(windows["kernel"], windows["dilations"])
    overlapping = any(s < e for s, e in zip(windows["strides"], reach, strict=True))
    if not column_major:
        return to_places(dy, places, x.shape, overlapping)
    turned = to_places(dy, places, (*x.shape[:2], *x.shape[:1:-1]), overlapping)
    return ops.transpose(turned, perm=(0, 1, *range(x.rank - 1, 1, -1)))


@gradient(ops.max_pool)
def _(dy: Any, y: Any, x: Any, **windows: Any) -> Any:
    """dx[place of y[o]] += dy[o]; the first of equals takes all."""
    _, places = ops.max_pool_with_indices(x, **windows)
    return _to_maxima(dy, places, x, windows, column_major=False)


@gradient(ops.max_pool_with_indices)
def _(dy: Any, y: Any, x: Any, *, column_major: bool, **windows: Any) -> Any:
    """dx[place of y[o]] += dy[o]; the first of equals takes all."""
    return _to_maxima(dy[0], y[1], x, windows, column_major)


@gradient(ops.max_unpool)
def _(dy: Any, y: Any, x: Any, places: Any, *, shape: Any) -> Any:
    """dx[i] = dy[places[i]]"""
    return ops.gather(ops.reshape(dy, shape=(math.prod(shape),)), places, axis=0), None


@gradient(ops.average_pool)
def _(dy: Any, y: Any, x: Any, **windows: Any) -> Any:
    """dx[i] = Σ dy[o] / (elements of window o that count) over the windows that i lies in"""
    return ops.average_pool_gradient(dy, spatial=x.shape[2:], **windows)


@gradient(ops.average_pool_gradient)
def _(dv: Any, v: Any, dy: Any, *, spatial: Any, **windows: Any) -> Any:
    """The adjoint of the adjoint: average_pool(dv)"""
    return ops.average_pool(dv, **windows)


def _per_norm(dy: Value, y: Value, p: float) -> Value:
    """dy / yᵖ⁻¹ in the accumulating type, 0 where the norm is: what every element's power is multiplied with."""
    wide = dtypes.accumulator(y.dtype)
    dy, y = ops.cast(dy, to=wide), ops.cast(y, to=wide)
    if p == 1:
        return dy
    zero, one = (g.constant(np.full((), v, wide)) for v in (0, 1))
    some = y > 0
    y = ops.where(some, y, one)
    return ops.where(some, dy / (y if p == 2 else y ** (p - 1)), zero)


def _power(x: Value, p: float) -> Value:
    """The derivative of |x|ᵖ / p, in the accumulating type: sign(x) · |x|ᵖ⁻¹"""
    x = ops.cast(x, to=dtypes.accumulator(x.dtype))
    if p == 2:
        return x
    return ops.sign(x) if p == 1 else ops.sign(x) * abs(x) ** (p - 1)


@gradient(ops.lp_pool)
def _(dy: Any, y: Any, x: Any, *, p: float, **windows: Any) -> Any:
    """dx = sign(x) · |x|ᵖ⁻¹ · Σ dy / yᵖ⁻¹ over the windows, 0 for windows of zeros"""
    size = math.prod(windows["kernel"])
    shares = _per_norm(dy, y, p) * float(size)
    sums = ops.average_pool_gradient(shares, spatial=x.shape[2:], **windows, counted=windows["pads"])
    return sums * _power(x, p)


@gradient(ops.global_lp_pool)
def _(dy: Any, y: Any, x: Any, *, p: float) -> Any:
    """dx = sign(x) · |x|ᵖ⁻¹ · dy / yᵖ⁻¹, 0 where all are zeros"""
    return _per_norm(dy, y, p) * _power(x, p)
