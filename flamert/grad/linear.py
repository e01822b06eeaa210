"""Gradients of matrix products, determinants and inverses."""

from __future__ import annotations

import math
from typing import Any

from flamert import ops
from flamert.grad.elementwise import widened
from flamert.grad.registry import gradient
from flamert.graph import Value


def turned(x: Value) -> Value:
    """Each matrix transposed."""
    return ops.transpose(x, perm=(*range(x.rank - 2), x.rank - 1, x.rank - 2))


@gradient(ops.matmul)
def _(dy: Any, y: Any, a: Any, b: Any) -> Any:
    """da = dy @ bᵀ, db = aᵀ @ dy, vectors taken as matrices of one row (a) or column (b)"""
    rows = a if a.rank > 1 else ops.reshape(a, shape=(1, *a.shape))
    columns = b if b.rank > 1 else ops.reshape(b, shape=(*b.shape, 1))
    batch = dy.shape[: dy.rank - (a.rank > 1) - (b.rank > 1)]
    dy = ops.reshape(dy, shape=(*batch, rows.shape[-2], columns.shape[-1]))
    da = ops.matmul(dy, turned(columns))
    if all(d == 1 for d in columns.shape[:-2]) and rows.shape[:-2] == batch:
        # One matrix for the whole batch: one product over all rows instead of one for each, to be summed.
        return da, ops.reshape(ops.matmul(turned(_stacked(rows)), _stacked(dy)), shape=b.shape)
    db = ops.matmul(turned(rows), dy)
    return da, db if b.rank > 1 else ops.reshape(db, shape=db.shape[:-1])


def _stacked(x: Value) -> Value:
    """The matrices of a batch on top of each other, as one."""
    return ops.reshape(x, shape=(math.prod(x.shape[:-1]), x.shape[-1]))


@gradient(ops.det)
@widened
def _(dy: Any, y: Any, x: Any) -> Any:
    """dx = dy · the matrix of cofactors, which singular matrices have too"""
    return ops.reshape(dy, shape=(*dy.shape, 1, 1)) * ops.cofactors(x)


@gradient(ops.cofactors)
def _(dy: Any, y: Any, x: Any) -> Any:
    """dx = the slopes along dy: second derivatives of det x come in either order"""
    return ops.cofactor_slopes(x, dy)


@gradient(ops.inverse)
@widened
def _(dy: Any, y: Any, x: Any) -> Any:
    """dx = −yᵀ dy yᵀ"""
    return -ops.matmul(ops.matmul(turned(y), dy), turned(y))
