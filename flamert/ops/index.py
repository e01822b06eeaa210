"""Ops that read elements by computed indices: gather, reversal by length; and masks by index: trilu, one-hot.

Negative indices count from the end. An index outside its dimension is a ShapeError, on a GPU a late one (runtime/faults.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from flamert import dtypes
from flamert import graph as g
from flamert.errors import ShapeError
from flamert.graph import TensorType
from flamert.ops.logic import equal, less, where
from flamert.ops.op import Site, composite, kernel, op
from flamert.ops.rules import axis_in, require
from flamert.ops.shape import narrow, reshape


def check_range(xp: Any, indices: Any, size: int) -> None:
    """Raise ShapeError for an index outside [-size, size). Asking a GPU would stall it: its kernels note such indices."""
    if xp is not np or not indices.size:
        return
    low, high = indices.min(), indices.max()
    if low < -size or high >= size:
        raise outside(low, high, size)


def outside(low: int, high: int, size: int) -> ShapeError:
    """What is wrong with indices from `low` to `high`."""
    return ShapeError(f"index {low if low < -size else high} is outside a dimension of {size}")


@op(moves=True)
def gather(x: TensorType, indices: TensorType, *, axis: int) -> TensorType:
    """y[a, i, b] = x[a, indices[i], b]: entries of x along `axis`; i runs over all of indices' axes. Any type.

    indices: integer, any shape. Result: x's shape with `axis` replaced by indices' shape. Source: ONNX Gather-13.
    """
    axis = axis_in(axis, x.rank)
    require(indices, dtypes.INTEGER, "integer")
    return TensorType((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]), x.dtype)


@kernel(gather, bind=True)
def _(site: Site, out: Any, x: Any, indices: Any, *, axis: int) -> Callable[[], Any]:
    xp, size = site.xp, x.shape[axis]
    if xp is not np:
        return functools.partial(xp.take, x, indices, axis, out)

    def copy() -> None:
        # np.take would copy all of a strided x first.
        if x.flags.c_contiguous and out.flags.c_contiguous:
            np.take(x, indices, axis, out, "wrap")
        else:
            out[...] = x[(slice(None),) * axis + (indices,)]

    def checked() -> None:
        check_range(np, indices, size)
        copy()

    if not site.is_constant(1):
        return checked
    check_range(np, indices, size)
    return copy


def grid(xp: Any, shape: tuple[int, ...], skip: int) -> list[Any]:
    """Index arrays that together address every element of `shape`; the one for axis `skip` is left None."""
    rank = len(shape)
    return [None if d == skip else xp.arange(n).reshape((n,) + (1,) * (rank - 1 - d)) for d, n in enumerate(shape)]


def check_beside(x: TensorType, indices: TensorType, axis: int) -> None:
    """Raise ShapeError unless indices lie within x off `axis`, so that each one has its place beside x's elements."""
    if x.rank != indices.rank or any(i > n for d, (i, n) in enumerate(zip(indices.shape, x.shape, strict=True)) if d != axis):
        raise ShapeError(f"indices {list(indices.shape)} must fit inside {list(x.shape)}, axis {axis} aside")
    require(indices, dtypes.INTEGER, "integer")


@op(moves=True)
def gather_elements(x: TensorType, indices: TensorType, *, axis: int) -> TensorType:
    """y[i, j, k] = x[i, indices[i, j, k], k] for axis 1, and so on: one element of x per index. Any type.

    indices: integer, of x's rank, no longer than x off `axis`. Result: indices' shape. Source: ONNX GatherElements-13.
    """
    axis = axis_in(axis, x.rank)
    check_beside(x, indices, axis)
    return TensorType(indices.shape, x.dtype)


@kernel(gather_elements)
def _(xp: Any, out: Any, x: Any, indices: Any, *, axis: int) -> None:
    check_range(xp, indices, x.shape[axis])
    where = grid(xp, indices.shape, axis % x.ndim)
    where[axis] = indices
    out[...] = x[tuple(where)]


@op(moves=True)
def gather_nd(x: TensorType, indices: TensorType, *, batch_dims: int = 0) -> TensorType:
    """y[b, i] = x[b, indices[b, i, 0], indices[b, i, 1], …]: blocks of x by coordinates, batch by batch. Any type.

    The last axis of indices holds k coordinates. Result: indices.shape[:-1] + x.shape[batch_dims + k:].
    Source: ONNX GatherND-13.
    """
    require(indices, dtypes.INTEGER, "integer")
    if not indices.rank or not x.rank or not 0 <= batch_dims < min(x.rank, indices.rank):
        raise ShapeError(f"batch_dims {batch_dims} does not fit x {list(x.shape)} and indices {list(indices.shape)}")
    k = indices.shape[-1]
    if x.shape[:batch_dims] != indices.shape[:batch_dims] or not 1 <= k <= x.rank - batch_dims:
        raise ShapeError(f"indices {list(indices.shape)} do not address x {list(x.shape)} with {batch_dims} batch axes")
    return TensorType((*indices.shape[:-1], *x.shape[batch_dims + k :]), x.dtype)


@kernel(gather_nd)
def _(xp: Any, out: Any, x: Any, indices: Any, *, batch_dims: int) -> None:
    where = grid(xp, indices.shape[:-1], -1)[:batch_dims]
    for k in range(indices.shape[-1]):
        check_range(xp, indices[..., k], x.shape[batch_dims + k])
        where.append(indices[..., k])
    out[...] = x[tuple(where)]


@op(moves=True)
def reverse_sequence(x: TensorType, lengths: TensorType, *, time_axis: int, batch_axis: int) -> TensorType:
    """y[t, b] = x[lengths[b] − 1 − t, b] for t < lengths[b], and x[t, b] behind: every sequence reversed by itself. Any type.

    x: rank ≥ 2; lengths: integers in [0, x.shape[time_axis]], one per batch entry. Returns x's type.
    Source: ONNX ReverseSequence-10.
    """
    time_axis, batch_axis = axis_in(time_axis, x.rank), axis_in(batch_axis, x.rank)
    require(lengths, dtypes.INTEGER, "integer")
    if time_axis == batch_axis or lengths.shape != (x.shape[batch_axis],):
        raise ShapeError(f"lengths {lengths} and axes {time_axis} (time), {batch_axis} (batch) do not fit x {x}")
    return x


@kernel(reverse_sequence)
def _(xp: Any, out: Any, x: Any, lengths: Any, *, time_axis: int, batch_axis: int) -> None:
    steps, batch = x.shape[time_axis], x.shape[batch_axis]
    if xp is np and lengths.size and (lengths.min() < 0 or lengths.max() > steps):
        raise ShapeError(f"sequence lengths {lengths.min()} … {lengths.max()} are outside [0, {steps}]")
    t = xp.arange(steps)[:, None]
    at = xp.where(t < lengths, lengths - 1 - t, t)
    axes = (time_axis, batch_axis)
    xp.moveaxis(out, axes, (0, 1))[...] = xp.moveaxis(x, axes, (0, 1))[at, xp.arange(batch)]


@op(inplace=(0,), moves=True)
def trilu(x: TensorType, *, k: int = 0, upper: bool = True) -> TensorType:
    """The upper (column − row ≥ k) or lower (column − row ≤ k) triangle of the last two axes, zero elsewhere.

    Any type, rank ≥ 2; returns x's type. Source: ONNX Trilu-14.
    """
    if x.rank < 2:
        raise ShapeError(f"a triangle needs two axes, got {x}")
    return x


@kernel(trilu, bind=True)
def _(site: Site, out: Any, x: Any, *, k: int, upper: bool) -> Callable[[], Any]:
    xp, (rows, columns) = site.xp, x.shape[-2:]
    offset = xp.arange(columns) - xp.arange(rows)[:, None]
    rest = xp.broadcast_to(offset < k if upper else offset > k, x.shape)
    same = xp.may_share_memory(out, x)

    def run() -> None:
        if not same:
            xp.copyto(out, x)
        xp.copyto(out, out.dtype.type(0), where=rest)

    return run


@composite
def one_hot(indices: Any, values: Any, *, depth: int, axis: int) -> Any:
    """values[1] where the position along a new axis of `depth` at `axis` equals the index, values[0] elsewhere.

    indices: int64, any shape; those outside [-depth, depth) are hot nowhere. values: two elements of any type, which is
    the result's. Source: ONNX OneHot-11.
    """
    axis = axis_in(axis, indices.rank + 1)
    shape = (*indices.shape[:axis], 1, *indices.shape[axis:])
    index = reshape(where(less(indices, 0), indices + depth, indices), shape=shape)
    positions = g.constant(np.arange(depth).reshape((depth,) + (1,) * (indices.rank - axis)), indices.dtype)
    off, on = (reshape(narrow(values, 0, i, 1), shape=()) for i in (0, 1))
    return where(equal(index, positions), on, off)
