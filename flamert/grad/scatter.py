"""Gradients of writing by index: to the updates from where they were written, to the tensor from where it was not.

Written for scatter_nd and scatter_elements at once, each with the gather that reads where it writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flamert import dtypes, ops
from flamert import graph as g
from flamert.grad.elementwise import widened
from flamert.grad.registry import gradient
from flamert.grad.shape import filled, zeros_like
from flamert.graph import Value

Scatter = Callable[[Value, Value, str], Value]
"""tensor, updates, reduction → result, at the indices in question."""

Gather = Callable[[Value], Value]


@gradient(ops.scatter_elements)
@widened
def _(dy: Any, y: Any, x: Any, indices: Any, updates: Any, *, axis: int, reduction: str) -> Any:
    """dupdates = dy there, dx = dy elsewhere; reduced: dx = dy there too, times the other factors, or to the extremum only"""

    def scatter(x: Value, updates: Value, reduction: str) -> Value:
        return ops.scatter_elements(x, indices, updates, axis=axis, reduction=reduction)

    dx, dupdates = RULES[reduction](dy, y, x, updates, scatter, lambda v: ops.gather_elements(v, indices, axis=axis))
    return dx, None, dupdates


@gradient(ops.scatter_nd)
@widened
def _(dy: Any, y: Any, x: Any, indices: Any, updates: Any, *, reduction: str) -> Any:
    """As for scatter_elements"""

    def scatter(x: Value, updates: Value, reduction: str) -> Value:
        return ops.scatter_nd(x, indices, updates, reduction=reduction)

    dx, dupdates = RULES[reduction](dy, y, x, updates, scatter, lambda v: ops.gather_nd(v, indices))
    return dx, None, dupdates


def _of_none(dy: Value, y: Value, x: Value, updates: Value, scatter: Scatter, gather: Gather) -> Sequence[Value]:
    """Where an index occurs twice, one update has been overwritten; scattering their numbers tells which one stayed."""
    numbers = g.constant(np.arange(updates.type.size).reshape(updates.shape))
    stayed = ops.equal(gather(scatter(filled(0, x.shape, dtypes.int64), numbers, "none")), numbers)
    return scatter(dy, zeros_like(updates), "none"), ops.where(stayed, gather(dy), 0)


def _of_add(dy: Value, y: Value, x: Value, updates: Value, scatter: Scatter, gather: Gather) -> Sequence[Value]:
    return dy, gather(dy)


def _of_mul(dy: Value, y: Value, x: Value, updates: Value, scatter: Scatter, gather: Gather) -> Sequence[Value]:
    """dx = dy · Π updates; dupdates = dy · x · Π of the other updates: the product without zeros / own, 0 where others are 0.

    A single other zero enters as itself, so that second derivatives are exact too; third ones leave out pairs of zeros.
    """
    zero = ops.equal(updates, 0)
    own, zeros, nothing = ops.where(zero, 1, updates), ops.cast(zero, to=updates.dtype), zeros_like(x)
    vanishing = ops.where(zero, updates, 0)
    count = gather(scatter(nothing, zeros, "add")) - zeros
    other_zero = gather(scatter(nothing, vanishing, "add")) - vanishing
    others = ops.where(ops.equal(count, 0), 1, ops.where(ops.equal(count, 1), other_zero, 0))
    others = others * (gather(scatter(x, own, "mul")) / own)
    return dy * scatter(filled(1, x.shape, x.dtype), updates, "mul"), gather(dy) * others


def _of_extremum(dy: Value, y: Value, x: Value, updates: Value, scatter: Scatter, gather: Gather) -> Sequence[Value]:
    """dy evenly to all that equal the result."""
    kept, taken = ops.equal(x, y), ops.equal(updates, gather(y))
    count = scatter(ops.cast(kept, to=dy.dtype), ops.cast(taken, to=dy.dtype), "add")
    share = dy / count
    return ops.where(kept, share, 0), ops.where(taken, gather(share), 0)


RULES = {"none": _of_none, "add": _of_add, "mul": _of_mul, "min": _of_extremum, "max": _of_extremum}


@gradient(ops.tensor_scatter)
def _(dy: Any, y: Any, cache: Any, update: Any, write_indices: Any = None, *, axis: int, circular: bool) -> Any:
    """dupdate = dy where it was written, dcache = dy elsewhere"""
    dcache = ops.tensor_scatter(dy, zeros_like(update), write_indices, axis=axis, circular=circular)
    steps = np.arange(update.shape[axis])
    if write_indices is None:
        return dcache, ops.slice(dy, starts=(0,) * dy.rank, sizes=update.shape, steps=(1,) * dy.rank)
    at = ops.reshape(write_indices, shape=(cache.shape[0], 1)) + g.constant(steps, write_indices.dtype)
    if circular:
        at = ops.mod(at, cache.shape[axis])
    turn = (0, axis, *[i for i in range(1, dy.rank) if i != axis])
    rows = ops.gather_nd(ops.transpose(dy, perm=turn), ops.reshape(at, shape=(*at.shape, 1)), batch_dims=1)
    return dcache, ops.transpose(rows, perm=tuple(turn.index(i) for i in range(dy.rank)))
