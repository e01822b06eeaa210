"""Ops that write elements at computed indices into a copy of a tensor. Reading by index is in index.py.

Negative indices count from the end. An index outside its dimension is a ShapeError, on a GPU a late one (runtime/faults.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from flamert import dtypes
from flamert.errors import ShapeError, UnsupportedType
from flamert.graph import TensorType
from flamert.ops.index import check_beside, check_range, grid
from flamert.ops.op import Site, kernel, op
from flamert.ops.rules import axis_in, require

REDUCTIONS = {"add": "add", "mul": "multiply", "min": "minimum", "max": "maximum"}
"""How a written element meets the one already there, by name → NumPy's ufunc; "none" overwrites."""


def _check_updates(x: TensorType, updates: TensorType, shape: tuple[int, ...], reduction: str) -> None:
    if updates.shape != shape or updates.dtype != x.dtype:
        raise ShapeError(f"updates are {updates}, they must be {TensorType(shape, x.dtype)}")
    if reduction != "none" and reduction not in REDUCTIONS:
        raise ShapeError(f"reduction {reduction!r} is none of none, {', '.join(REDUCTIONS)}")
    if reduction != "none" and x.dtype in dtypes.COMPLEX | {dtypes.string}:
        raise UnsupportedType(f"reduction {reduction!r} of {x.dtype.name}")


def _start(site: Site, out: Any, x: Any) -> Callable[[], Any]:
    """Fill `out` with x, which may be `out` itself when the planner lets the op work in place."""
    if site.xp.may_share_memory(out, x):
        return lambda: None
    return lambda: site.xp.copyto(out, x)


def write(xp: Any, flat: Any, at: Any, updates: Any, reduction: str) -> None:
    """flat[at[i]] ← updates[i], for 1-D `flat`, in order of i on the CPU. Half types are reduced in float32, rounded once."""
    if reduction == "none":
        overwrite(xp, flat, at, updates)
        return
    name, acc = REDUCTIONS[reduction], dtypes.accumulator(flat.dtype)
    total = flat.astype(acc) if acc != flat.dtype else flat
    if xp is np:
        getattr(np, name).at(total, at, updates.astype(acc, copy=False))
    elif reduction == "mul":
        # No atomic product on GPUs.
        host = xp.asnumpy(total)
        np.multiply.at(host, xp.asnumpy(at), xp.asnumpy(updates).astype(acc))
        total[...] = xp.asarray(host)
    else:
        # Sums wrap around alike in both, and CuPy adds only the unsigned one.
        wide = reduction == "add" and acc == np.int64
        where, what = (total.view(np.uint64), updates.view(np.uint64)) if wide else (total, updates.astype(acc, copy=False))
        getattr(xp, name).at(where, at, what)
    if total is not flat:
        flat[...] = total


def overwrite(xp: Any, rows: Any, at: Any, updates: Any) -> None:
    """rows[at[i]] = updates[i]; where indices repeat, the last one wins."""
    if xp is not np:
        # A GPU writes in no order: so every writer of a place writes what the last of them would.
        last = xp.full(rows.shape[0], -1, np.int32)
        xp.maximum.at(last, at, xp.arange(at.size, dtype=np.int32))
        updates = updates[last[at]]
    rows[at] = updates


def _wrapped(indices: Any, size: int) -> Any:
    """Indices counted from the front, as the machine's own integer type."""
    indices = indices.astype(np.int64, copy=False)
    return indices + (indices < 0) * size


def _strides(shape: tuple[int, ...]) -> list[int]:
    """Elements from one entry to the next along each axis, in C order."""
    return [math.prod(shape[d + 1 :]) for d in range(len(shape))]


@op(inplace=(0,), moves=True)
def scatter_elements(
    x: TensorType, indices: TensorType, updates: TensorType, *, axis: int, reduction: str = "none"
) -> TensorType:
    """x with y[i, indices[i, j, k], k] = updates[i, j, k] for axis 1, and so on: the counterpart of gather_elements.

    reduction: "add", "mul", "min", "max" with what is there, repeated indices included; "none": any type, and with repeated
    indices the last one wins. Half types are reduced in float32. Returns x's type. Source: ONNX ScatterElements-18.
    """
    check_beside(x, indices, axis_in(axis, x.rank))
    _check_updates(x, updates, indices.shape, reduction)
    return x


@kernel(scatter_elements, bind=True)
def _(site: Site, out: Any, x: Any, indices: Any, updates: Any, *, axis: int, reduction: str) -> Callable[[], Any]:
    xp, axis, size = site.xp, axis % x.ndim, x.shape[axis]
    start, strides = _start(site, out, x), _strides(x.shape)
    offsets = sum((g * s for g, s in zip(grid(xp, indices.shape, axis), strides, strict=True) if g is not None), 0)

    def run() -> None:
        check_range(xp, indices, size)
        start()
        at = offsets + _wrapped(indices, size) * strides[axis]
        write(xp, out.reshape(-1), at.reshape(-1), updates.reshape(-1), reduction)

    return run


@op(inplace=(0,), moves=True)
def scatter_nd(x: TensorType, indices: TensorType, updates: TensorType, *, reduction: str = "none") -> TensorType:
    """x with y[indices[i, 0], indices[i, 1], …] = updates[i]: blocks of x by coordinates; the counterpart of gather_nd.

    The last axis of indices holds k coordinates; updates: indices.shape[:-1] + x.shape[k:]. reduction as in scatter_elements.
    Returns x's type. Source: ONNX ScatterND-18.
    """
    require(indices, dtypes.INTEGER, "integer")
    if not indices.rank or not 1 <= indices.shape[-1] <= x.rank:
        raise ShapeError(f"indices {list(indices.shape)} do not address x {list(x.shape)}")
    _check_updates(x, updates, (*indices.shape[:-1], *x.shape[indices.shape[-1] :]), reduction)
    return x


@kernel(scatter_nd, bind=True)
def _(site: Site, out: Any, x: Any, indices: Any, updates: Any, *, reduction: str) -> Callable[[], Any]:
    xp, k = site.xp, indices.shape[-1]
    start, strides = _start(site, out, x), _strides(x.shape)
    block = math.prod(x.shape[k:])
    within = xp.arange(block)

    def run() -> None:
        start()
        at: Any = 0
        for d in range(k):
            check_range(xp, indices[..., d], x.shape[d])
            at = at + _wrapped(indices[..., d], x.shape[d]) * strides[d]
        if reduction == "none" and block:
            overwrite(xp, out.reshape(-1, block), at.reshape(-1) // block, updates.reshape(-1, block))
            return
        if block != 1:
            at = at.reshape(-1, 1) + within
        write(xp, out.reshape(-1), at.reshape(-1), updates.reshape(-1), reduction)

    return run


@op(inplace=(0,), moves=True)
def tensor_scatter(
    cache: TensorType, update: TensorType, write_indices: TensorType | None = None, *, axis: int, circular: bool = False
) -> TensorType:
    """cache[b, …, write_indices[b] + i, …] = update[b, …, i, …] along `axis`: new keys or values into a cache, row by row.

    cache: any type; update: cache's shape but for `axis` (not 0), where it is shorter; write_indices: int64[batch], zeros
    where left out. circular: positions wrap around; otherwise leaving the cache is a ShapeError on the CPU.
    Returns cache's type. Source: ONNX TensorScatter-24.
    """
    axis = axis_in(axis, cache.rank)
    if axis == 0:
        raise ShapeError("axis 0 is the batch, it cannot be written along")
    if update.dtype != cache.dtype or update.rank != cache.rank or update.shape[axis] > cache.shape[axis]:
        raise ShapeError(f"update {update} does not fit into the cache {cache} along axis {axis}")
    if update.shape[:axis] + update.shape[axis + 1 :] != cache.shape[:axis] + cache.shape[axis + 1 :]:
        raise ShapeError(f"update {update} and cache {cache} may differ along axis {axis} only")
    if write_indices is not None and write_indices.shape != cache.shape[:1]:
        raise ShapeError(f"write_indices {write_indices} must be one for each of the {cache.shape[0]} rows")
    return cache


@kernel(tensor_scatter, bind=True)
def _(
    site: Site, out: Any, cache: Any, update: Any, write_indices: Any = None, *, axis: int, circular: bool
) -> Callable[[], Any]:
    xp, start, size = site.xp, _start(site, out, cache), cache.shape[axis]
    steps, rows = xp.arange(update.shape[axis]), xp.arange(cache.shape[0])[:, None]
    into, what = xp.moveaxis(out, axis, 1), xp.moveaxis(update, axis, 1)

    def run() -> None:
        start()
        if write_indices is None:
            into[:, : len(steps)] = what
            return
        at = write_indices[:, None] + steps
        if circular:
            at %= size
        elif xp is np and at.size and (at.min() < 0 or at.max() >= size):
            raise ShapeError(f"writing at {at.min()} … {at.max()} leaves the cache, which has {size} positions")
        into[rows, at] = what

    return run
