"""Gradients of reading by index: what was read is added up where it came from."""

from __future__ import annotations

from typing import Any

import numpy as np

from flamert import graph as g
from flamert import ops
from flamert.grad.registry import gradient
from flamert.grad.shape import filled, zeros_like
from flamert.graph import Value


@gradient(ops.gather)
def _(dy: Any, y: Any, x: Any, indices: Any, *, axis: int) -> Any:
    """dx[a, j, b] = Σ dy[a, i, b] over the i with indices[i] = j, summed with `axis` in front"""
    axis %= x.rank
    inner = range(axis, axis + indices.rank)
    rest = [i for i in range(dy.rank) if i not in inner]
    updates = ops.transpose(dy, perm=(*inner, *rest))
    zeros = filled(0, (x.shape[axis], *[d for i, d in enumerate(x.shape) if i != axis]), dy.dtype)
    at = ops.reshape(indices, shape=(*indices.shape, 1))
    sums = ops.scatter_nd(zeros, at, updates, reduction="add")
    return ops.transpose(sums, perm=(*range(1, axis + 1), 0, *range(axis + 1, x.rank)))


@gradient(ops.gather_elements)
def _(dy: Any, y: Any, x: Any, indices: Any, *, axis: int) -> Any:
    """dx[indices[i], k] = Σ dy[i, k], for axis 0"""
    return ops.scatter_elements(zeros_like(x), indices, dy, axis=axis, reduction="add")


@gradient(ops.gather_nd)
def _(dy: Any, y: Any, x: Any, indices: Any, *, batch_dims: int) -> Any:
    """dx[b, indices[b, i]] = Σ dy[b, i], the batch's coordinates put before the others"""
    return ops.scatter_nd(zeros_like(x), with_batch(indices, batch_dims), dy, reduction="add")


def with_batch(indices: Value, batch_dims: int) -> Value:
    """Coordinates within each entry of a batch as coordinates of the whole: the entry's own come first."""
    if not batch_dims:
        return indices
    shape = indices.shape[:-1]
    own = np.stack(np.meshgrid(*map(np.arange, shape[:batch_dims]), indexing="ij"), -1).astype(indices.dtype)
    own = own.reshape(*shape[:batch_dims], *[1] * (len(shape) - batch_dims), batch_dims)
    return ops.concat(g.constant(np.broadcast_to(own, (*shape, batch_dims))), indices, axis=len(shape))


@gradient(ops.reverse_sequence)
def _(dy: Any, y: Any, x: Any, lengths: Any, **axes: int) -> Any:
    """dx = dy reversed likewise: reversing twice changes nothing"""
    return ops.reverse_sequence(dy, lengths, **axes)


@gradient(ops.trilu)
def _(dy: Any, y: Any, x: Any, **triangle: Any) -> Any:
    """dx = the same triangle of dy"""
    return ops.trilu(dy, **triangle)
