"""Converters of ONNX ops that pick or put elements by index, and of those whose results' shapes only data can tell."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnx import parser

from flamert import dtypes, limits, ops
from flamert import graph as g
from flamert.errors import InvalidModel, ShapeError
from flamert.graph import Value
from flamert.importers.onnx import dtype_of, inline_tensor, read_function
from flamert.importers.registry import Context, Enter, converter
from flamert.ops.cast import cast
from flamert.ops.rules import axis_in, dims_of

# -- reading ----------------------------------------------------------------------------------------------------------


@converter("Gather")
def _(ctx: Context, x: Value, indices: Value, *, axis: int = 0) -> Value:
    return ops.gather(x, indices, axis=axis_in(axis, x.rank))


@converter("GatherElements", 11)
def _(ctx: Context, x: Value, indices: Value, *, axis: int = 0) -> Value:
    return ops.gather_elements(x, indices, axis=axis_in(axis, x.rank))


@converter("GatherND", 11)
def _(ctx: Context, x: Value, indices: Value, *, batch_dims: int = 0) -> Value:
    return ops.gather_nd(x, indices, batch_dims=batch_dims)


@converter("ReverseSequence", 10)
def _(ctx: Context, x: Value, lengths: Value, *, batch_axis: int = 1, time_axis: int = 0) -> Value:
    if {batch_axis, time_axis} != {0, 1}:
        raise InvalidModel(f"batch_axis {batch_axis} and time_axis {time_axis} must be 0 and 1")
    return ops.reverse_sequence(x, lengths, time_axis=time_axis, batch_axis=batch_axis)


# -- writing ----------------------------------------------------------------------------------------------------------


@converter("ScatterElements", 11)
def _(ctx: Context, x: Value, indices: Value, updates: Value, *, axis: int = 0, reduction: str = "none") -> Value:
    return ops.scatter_elements(x, indices, updates, axis=axis_in(axis, x.rank), reduction=reduction)


@converter("Scatter", 9)
def _(ctx: Context, x: Value, indices: Value, updates: Value, *, axis: int = 0) -> Value:
    return ops.scatter_elements(x, indices, updates, axis=axis_in(axis, x.rank))


@converter("ScatterND", 11)
def _(ctx: Context, x: Value, indices: Value, updates: Value, *, reduction: str = "none") -> Value:
    return ops.scatter_nd(x, indices, updates, reduction=reduction)


@converter("TensorScatter", 24)
def _(
    ctx: Context, cache: Value, update: Value, write_indices: Value | None = None, *, axis: int = -2, mode: str = "linear"
) -> Value:
    if mode not in ("linear", "circular"):
        raise ctx.unsupported(f"mode {mode!r} is neither linear nor circular")
    axis = axis_in(axis, cache.rank)
    return ops.tensor_scatter(cache, update, write_indices, axis=axis, circular=mode == "circular")


# -- patterns by position ---------------------------------------------------------------------------------------------


@converter("Trilu", 14)
def _(ctx: Context, x: Value, k: Value | None = None, *, upper: int = 1) -> Value:
    (offset,) = ctx.ints(k) or (0,)
    return ops.trilu(x, k=max(min(offset, 1 << 31), -(1 << 31)), upper=bool(upper))


@converter("EyeLike", 9)
def _(ctx: Context, x: Value, *, dtype: int | None = None, k: int = 0) -> Value:
    if x.rank != 2:
        raise ShapeError(f"EyeLike takes a matrix, got {x.type}")
    kind = x.dtype if dtype is None else dtype_of(dtype)
    return g.constant(np.eye(x.shape[0], x.shape[1], k, kind))


@converter("OneHot", 9)
def _(ctx: Context, indices: Value, depth: Value, values: Value, *, axis: int = -1) -> Value:
    whole = cast(indices, to=dtypes.int64) if indices.dtype != dtypes.int64 else indices
    if values.shape != (2,):
        raise ShapeError(f"OneHot's values are [off, on], got {values.type}")
    (classes,) = dims_of(ctx.contents(depth).reshape(-1))  # rounded, so that no gradient is lost
    return ops.one_hot(whole, values, depth=classes, axis=axis_in(axis, indices.rank + 1))


@converter("Range", 11)
def _(ctx: Context, start: Value, limit: Value, delta: Value, *, stash_type: int = 1) -> Any:
    kind = start.dtype
    stash = dtype_of(stash_type) if kind in dtypes.HALF else kind

    def counted(start: np.ndarray, limit: np.ndarray, delta: np.ndarray) -> list[np.ndarray]:
        # Python's integers are exact and its floats are doubles: enough to count the elements of any type.
        first, last, step = (x.reshape(()).astype(stash).item() for x in (start, limit, delta))
        if not step or not all(map(math.isfinite, (first, last, step))):
            raise ShapeError(f"a range from {first} to {last} in steps of {step} has no length")
        integral = isinstance(first, int)
        count = max(-((first - last) // step) if integral else math.ceil((last - first) / step), 0)
        limits.require_memory(count * max(kind.itemsize, stash.itemsize), f"a range of {count} elements")
        i = np.arange(count).astype(stash, copy=False)
        return [(i * np.array(step, stash) + np.array(first, stash)).astype(kind, copy=False)]

    bounds = [ctx.given(v) for v in (start, limit, delta)] if kind in dtypes.STANDARD_FLOAT else [None]
    if any(b is None for b in bounds):
        return ctx.host(counted, start, limit, delta)
    # Only how many elements there are is fixed; what they are follows start and delta.
    (fixed,) = counted(*[b for b in bounds if b is not None])
    i = g.constant(np.arange(len(fixed)).astype(stash))
    first, step = (cast(ops.reshape(v, shape=()), to=stash) for v in (start, delta))
    return cast(i * step + first, to=kind)


# -- results whose shape only data can tell ---------------------------------------------------------------------------


@converter("NonZero", 9, strings=True)
def _(ctx: Context, x: Value) -> Any:
    def places(a: np.ndarray) -> list[np.ndarray]:
        a = np.asarray(a)
        return [np.array(np.nonzero(a), np.int64).reshape(a.ndim, -1) if a.ndim else np.zeros((0, int(bool(a))), np.int64)]

    found = None if x.dtype.hasobject else ctx.given(x)
    return ctx.host(places, x) if found is None else g.constant(places(found)[0])


_COMPRESS = read_function(
    parser.parse_function(
        """<domain: "flamert", opset_import: ["" : 13]>
        Compress <axis> (x, condition) => (y) {
            found = NonZero(condition)
            row = Constant <value_ints = [0]> ()
            indices = Squeeze(found, row)
            y = Gather <axis: int = @axis> (x, indices)
        }"""
    ),
    inline_tensor,
)


@converter("Compress", 9, strings=True)
def _(ctx: Context, x: Value, condition: Value, *, axis: int | None = None) -> Enter:
    if condition.rank != 1:
        raise ShapeError(f"Compress takes a vector of conditions, got {condition.type}")
    if axis is None and x.rank != 1:
        x = ops.reshape(x, shape=(x.type.size,))
    attributes = {"axis": axis_in(axis or 0, x.rank)}
    return Enter(_COMPRESS, {"x": x, "condition": condition}, lambda results, state: results, (), attributes)


@converter("Unique", 11, strings=True)
def _(ctx: Context, x: Value, *, axis: int | None = None, sorted: int = 1) -> Any:
    at = None if axis is None else axis_in(axis, x.rank)
    found = None if x.dtype.hasobject else ctx.given(x)
    if found is None or not x.rank:
        return ctx.host(lambda a: unique(a, at, bool(sorted)), x)
    # What varies smoothly is which elements these are, taken from where each first occurs.
    _, first, *counts = [g.constant(a) for a in unique(found, at, bool(sorted))]
    return ops.gather(ops.reshape(x, shape=(x.type.size,)) if at is None else x, first, axis=at or 0), first, *counts


def unique(x: np.ndarray, axis: int | None, in_order: bool) -> list[np.ndarray]:
    """Distinct elements, or slices along `axis`: [them, where each first occurs, which one each entry is, how often].

    in_order: ascending, slices compared element by element; otherwise by first occurrence. NaNs count as equal.
    """
    x = x.reshape(-1) if axis is None else x
    axis = axis or 0
    rows = np.moveaxis(x, axis, 0).reshape(x.shape[axis], math.prod(x.shape[:axis] + x.shape[axis + 1 :]))
    if rows.dtype.hasobject:
        rows = np.unique(rows, return_inverse=True)[1].reshape(rows.shape)
    elif rows.dtype not in _SORTABLE:
        rows = rows.astype(np.float64)
    # One more key, equal for all, because lexsort insists on having one.
    order = np.lexsort((np.zeros(len(rows)), *rows.T[::-1]))
    ordered = rows[order]
    same = ordered[1:] == ordered[:-1]
    if rows.dtype.kind in "fc":
        same |= np.isnan(ordered[1:]) & np.isnan(ordered[:-1])
    begins = np.flatnonzero(np.r_[np.ones(min(len(rows), 1), bool), ~same.all(axis=1)])
    first, counts = order[begins], np.diff(np.r_[begins, len(rows)])
    inverse = np.empty(len(rows), np.int64)
    inverse[order] = np.repeat(np.arange(len(begins)), counts)
    if not in_order:
        by_occurrence = np.argsort(first)
        first, counts = first[by_occurrence], counts[by_occurrence]
        inverse = np.argsort(by_occurrence)[inverse]
    return [np.take(x, first, axis), first.astype(np.int64), inverse, counts.astype(np.int64)]


_SORTABLE = frozenset(map(np.dtype, "?bhilqBHILQefdFD"))
"""Element types that NumPy sorts by itself; the narrower ones are exact in float64."""
