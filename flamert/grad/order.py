"""Gradients of ops that follow the order of elements along an axis. Where elements lie does not change with them."""

from __future__ import annotations

from typing import Any

from flamert import ops
from flamert.grad.elementwise import widened
from flamert.grad.registry import flat, gradient
from flamert.grad.shape import zeros_like
from flamert.graph import Value
from flamert.ops.shape import narrow

flat(ops.argmax, ops.argmin, ops.hardmax)


@gradient(ops.top_k)
def _(dy: Any, y: Any, x: Any, *, k: int, axis: int, largest: bool) -> Any:
    """dx = dy where the values were found"""
    return ops.scatter_elements(zeros_like(x), y[1], dy[0], axis=axis % x.rank, reduction="add")


@gradient(ops.cumsum)
def _(dy: Any, y: Any, x: Any, *, axis: int, exclusive: bool, reverse: bool) -> Any:
    """dx[i] = Σ dy[k] over the k that x[i] counts in: the sum from the other end"""
    return ops.cumsum(dy, axis=axis, exclusive=exclusive, reverse=not reverse)


@gradient(ops.cumprod)
@widened
def _(dy: Any, y: Any, x: Any, *, axis: int, exclusive: bool, reverse: bool) -> Any:
    """dx[i] = Π x[j] over j < i · Σ dy[k] · Π x[j] over i < j ≤ k, over k ≥ i: no quotients, so that zeros do no harm

    (`exclusive`: j < k and k > i; `reverse`: all the other way round).
    """
    before = ops.cumprod(x, axis=axis, exclusive=True, reverse=reverse)
    factors = shifted(x, axis, not reverse)
    terms = shifted(dy, axis, not reverse) if exclusive else dy
    return before * ops.linear_scan(factors, terms, axis=axis, reverse=not reverse)


@gradient(ops.linear_scan)
@widened
def _(dy: Any, y: Any, a: Any, b: Any, *, axis: int, reverse: bool) -> Any:
    """db[i] = dy[i] + a[i+1] · db[i+1], da[i] = db[i] · y[i−1]"""
    db = ops.linear_scan(shifted(a, axis, not reverse), dy, axis=axis, reverse=not reverse)
    return db * shifted(y, axis, reverse), db


def shifted(x: Value, axis: int, down: bool) -> Value:
    """y[i] = x[i−1] along the axis, or x[i+1] with `down`; 0 comes in at the end."""
    axis %= x.rank
    size = x.shape[axis]
    if not size:
        return x
    pads = [0] * 2 * x.rank
    pads[axis + (x.rank if down else 0)] = 1
    return ops.pad(narrow(x, axis, int(down), size - 1), pads=tuple(pads))
