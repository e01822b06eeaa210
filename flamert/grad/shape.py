"""Gradients of ops that move elements: they move back, and sum up where one element went to several places."""

from __future__ import annotations

from typing import Any

import numpy as np

from flamert import graph as g
from flamert import ops
from flamert.grad.registry import gradient
from flamert.graph import Value
from flamert.ops.shape import narrow


def filled(value: float, shape: tuple[int, ...], dtype: np.dtype) -> Value:
    """A Value of this type that is `value` everywhere, and takes no memory of its own."""
    one = g.constant(np.full((), value, dtype))
    return ops.expand(one, shape=shape) if shape else one


def zeros_like(x: Value) -> Value:
    """Zeros of x's type."""
    return filled(0, x.shape, x.dtype)


@gradient(ops.reshape)
def _(dy: Any, y: Any, x: Any, *, shape: Any) -> Any:
    """dx = dy in x's shape"""
    return ops.reshape(dy, shape=x.shape)


@gradient(ops.expand)
def _(dy: Any, y: Any, x: Any, *, shape: Any) -> Any:
    """dx = Σ dy over the axes that were broadcast: the sweep's work"""
    return dy


@gradient(ops.transpose)
def _(dy: Any, y: Any, x: Any, *, perm: Any) -> Any:
    """dx = dy with its axes put back"""
    return ops.transpose(dy, perm=tuple(perm.index(i) for i in range(x.rank)))


@gradient(ops.slice)
def _(dy: Any, y: Any, x: Any, *, starts: Any, sizes: Any, steps: Any) -> Any:
    """dx = dy where it was taken from, 0 elsewhere"""
    return ops.unslice(dy, shape=x.shape, starts=starts, steps=steps)


@gradient(ops.unslice)
def _(dy: Any, y: Any, x: Any, *, shape: Any, starts: Any, steps: Any) -> Any:
    """dx = dy where x was put"""
    return ops.slice(dy, starts=starts, sizes=x.shape, steps=steps)


@gradient(ops.concat)
def _(dy: Any, y: Any, *xs: Any, axis: int) -> Any:
    """Each operand gets its part of dy"""
    at, parts = 0, []
    for x in xs:
        parts.append(narrow(dy, axis, at, x.shape[axis]))
        at += x.shape[axis]
    return parts


@gradient(ops.pad)
def _(dy: Any, y: Any, x: Any, value: Any = None, *, pads: Any) -> Any:
    """dx = dy without the border; dvalue = Σ dy over the border, slab by slab, since a difference of sums would cancel"""
    inner, slabs = dy, []
    for axis, size in enumerate(x.shape):
        before, after = pads[axis], pads[x.rank + axis]
        if value is not None:
            ends = ((0, before), (before + size, after))
            slabs += [narrow(inner, axis, start, length) for start, length in ends if length]
        inner = narrow(inner, axis, before, size)
    if not slabs:
        return inner
    first, *others = [ops.reduce_sum(s, axes=tuple(range(s.rank))) for s in slabs]
    return inner, ops.reshape(sum(others, first), shape=value.shape)
