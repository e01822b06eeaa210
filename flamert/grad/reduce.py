"""Gradients of reductions: each element gets what its result got, times its part in it."""

from __future__ import annotations

import math
from typing import Any

from flamert import ops
from flamert.grad.elementwise import wide, widened
from flamert.grad.registry import gradient
from flamert.graph import Value
from flamert.ops.rules import axes_in


def unreduced(y: Value, x: Value, axes: tuple[int, ...]) -> Value:
    """A result of reducing x over `axes` with length 1 there, so that it broadcasts to x."""
    gone = {a % x.rank for a in axes}
    return ops.reshape(y, shape=tuple(1 if i in gone else d for i, d in enumerate(x.shape)))


def _count(x: Value, axes: tuple[int, ...]) -> int:
    return math.prod(x.shape[a] for a in axes)


@gradient(ops.reduce_sum)
def _(dy: Any, y: Any, x: Any, *, axes: Any, keepdims: bool) -> Any:
    """dx = dy"""
    return ops.expand(unreduced(dy, x, axes), shape=x.shape)


@gradient(ops.reduce_mean)
def _(dy: Any, y: Any, x: Any, *, axes: Any, keepdims: bool) -> Any:
    """dx = dy / n"""
    return ops.expand(unreduced(wide(dy) / max(1, _count(x, axes)), x, axes), shape=x.shape)


@gradient(ops.reduce_prod)
@widened
def _(dy: Any, y: Any, x: Any, *, axes: Any, keepdims: bool) -> Any:
    """dx = dy · Π of the elements before · Π of those behind: a quotient would fail where one is 0"""
    axes = axes_in(axes, x.rank)
    order = (*[i for i in range(x.rank) if i not in axes], *axes)
    front = ops.transpose(x, perm=order)
    rows = ops.reshape(front, shape=(*front.shape[: x.rank - len(axes)], _count(x, axes)))
    last = rows.rank - 1
    others = ops.cumprod(rows, axis=last, exclusive=True) * ops.cumprod(rows, axis=last, exclusive=True, reverse=True)
    back = ops.transpose(ops.reshape(others, shape=front.shape), perm=tuple(order.index(i) for i in range(x.rank)))
    return unreduced(dy, x, axes) * back


def _to_extrema(dy: Any, y: Any, x: Any, *, axes: Any, keepdims: bool) -> Any:
    """dx = dy evenly to all that equal the extremum, 0 to the others"""
    there = ops.equal(x, unreduced(y, x, axes))
    dy = unreduced(wide(dy), x, axes)
    count = ops.reduce_sum(ops.cast(there, to=dy.dtype), axes=axes, keepdims=True)
    return ops.where(there, dy / count, 0)


gradient(ops.reduce_max)(_to_extrema)
gradient(ops.reduce_min)(_to_extrema)


@gradient(ops.reduce_log_sum_exp)
@widened
def _(dy: Any, y: Any, x: Any, *, axes: Any, keepdims: bool) -> Any:
    """dx = dy · exp(x − y); 0 where all is −∞, and y with it"""
    finite = ops.where(ops.equal(y, -math.inf), 0, y)
    return unreduced(dy, x, axes) * ops.exp(x - unreduced(finite, x, axes))


@gradient(ops.reduce_sum_square)
@widened
def _(dy: Any, y: Any, x: Any, *, axes: Any, keepdims: bool) -> Any:
    """dx = 2 x · dy"""
    return unreduced(dy * 2, x, axes) * x


@gradient(ops.reduce_l2)
@widened
def _(dy: Any, y: Any, x: Any, *, axes: Any, keepdims: bool) -> Any:
    """dx = x · dy / y; 0 where the norm is 0"""
    none = ops.equal(y, 0)
    return unreduced(ops.where(none, 0, dy / ops.where(none, 1, y)), x, axes) * x


@gradient(ops.moments)
def _(dy: Any, y: Any, x: Any, *, axes: Any) -> Any:
    """dx = dmean / n + 2 (x − mean) · dvar / n"""
    (dmean, dvar), (mean, _), n = dy, y, max(1, _count(x, axes))
    flat = None if dmean is None else ops.expand(dmean / n, shape=x.shape)
    if dvar is None:
        return flat
    bent = (wide(x) - mean) * (dvar * (2 / n))
    return bent if flat is None else bent + flat
