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
from flamert.ops.pool_gradient import overlap, to_places


def _some_empty(x: Value, counts: tuple[int, ...], windows: dict[str, Any]) -> bool:
    """Whether a window lies in the padding altogether."""
    inside = divisors(x.shape[2:], counts, **windows, counted=(0,) * 2 * len(counts))
    return any((n == 0).any() for n in inside)


EMPTY = Missing("some windows lie in the padding altogether")


@gradient(ops.max_pool)
def _(dy: Any, y: Any, x: Any, **windows: Any) -> Any:
    """dx[place of y[o]] += dy[o]; the first of equals takes all."""
    return EMPTY if _some_empty(x, y.shape[2:], windows) else ops.max_pool_gradient(dy, x, **windows)


@gradient(ops.max_pool_with_indices)
def _(dy: Any, y: Any, x: Any, *, column_major: bool, **windows: Any) -> Any:
    """dx[place of y[o]] += dy[o]; the first of equals takes all."""
    if _some_empty(x, y[0].shape[2:], windows):
        return EMPTY
    overlapping = overlap(windows["kernel"], windows["strides"], windows["dilations"])
    if not column_major:
        return to_places(dy[0], y[1], x.shape, overlapping)
    turned = to_places(dy[0], y[1], (*x.shape[:2], *x.shape[:1:-1]), overlapping)
    return ops.transpose(turned, perm=(0, 1, *range(x.rank - 1, 1, -1)))


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
