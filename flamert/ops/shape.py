"""Ops that change a tensor's shape, move whole blocks of it, and compute nothing: reshape, transpose, slice, concat, pad, …"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flamert.errors import ShapeError
from flamert.graph import TensorType, Value
from flamert.ops.op import composite, kernel, op
from flamert.ops.rules import axes_in, axis_in, broadcast, dims_of


def _reshaped(x: Any, *, shape: tuple[int, ...]) -> Any:
    return x.reshape(shape, copy=False) if isinstance(x, np.ndarray) else x.reshape(shape)


@op(view=_reshaped)
def reshape(x: TensorType, *, shape: tuple[int, ...]) -> TensorType:
    """The same elements in C order under another shape (all dimensions given). Any type. Source: ONNX Reshape-25.

    Raises ShapeError where the number of elements differs.
    """
    shape = dims_of(shape)
    if math.prod(shape) != x.size:
        raise ShapeError(f"cannot reshape {x.size} elements of {list(x.shape)} to {list(shape)}")
    return TensorType(shape, x.dtype)


@op(view=lambda x, *, perm: x.transpose(perm))
def transpose(x: TensorType, *, perm: tuple[int, ...]) -> TensorType:
    """Axis i of the result is axis perm[i] of x. Any type. Source: ONNX Transpose-25."""
    if len(axes_in(perm, x.rank)) != x.rank:
        raise ShapeError(f"perm {list(perm)} does not fit rank {x.rank}")
    return TensorType(tuple(x.shape[p] for p in perm), x.dtype)


@op(view=lambda x, *, shape: np.broadcast_to(x, shape))
def expand(x: TensorType, *, shape: tuple[int, ...]) -> TensorType:
    """x repeated, by NumPy's broadcasting, to exactly `shape`. Any type. Source: ONNX Expand-13.

    Raises ShapeError where x does not broadcast to `shape`.
    """
    shape = dims_of(shape)
    if broadcast(x.shape, shape) != shape:
        raise ShapeError(f"{list(x.shape)} does not broadcast to {list(shape)}")
    return TensorType(shape, x.dtype)


def window(starts: tuple[int, ...], sizes: tuple[int, ...], steps: tuple[int, ...]) -> tuple[slice, ...]:
    """Python slices of `sizes` elements each: start, start + step, …"""
    slices = []
    for start, size, step in zip(starts, sizes, steps, strict=True):
        stop = start + size * step
        slices.append(slice(0, 0) if size == 0 else slice(start, stop if stop >= 0 else None, step))
    return tuple(slices)


def _check_window(shape: tuple[int, ...], starts: tuple[int, ...], sizes: tuple[int, ...], steps: tuple[int, ...]) -> None:
    if not len(shape) == len(starts) == len(sizes) == len(steps):
        raise ShapeError(f"starts, sizes and steps must have one number for each dimension of {list(shape)}")
    for d, start, size, step in zip(shape, starts, sizes, steps, strict=True):
        if size < 0 or (size > 0 and not (0 <= start < d and 0 <= start + (size - 1) * step < d)):
            raise ShapeError(f"{size} elements from {start} in steps of {step} leave a dimension of {d}")


@op(name="slice", view=lambda x, *, starts, sizes, steps: x[window(starts, sizes, steps)])
def slice_(x: TensorType, *, starts: tuple[int, ...], sizes: tuple[int, ...], steps: tuple[int, ...]) -> TensorType:
    """y[i, j, …] = x[starts[0] + i · steps[0], starts[1] + j · steps[1], …], `sizes` elements. Any type. Source: ONNX Slice-13.

    All three have one number per dimension; steps may be negative. Raises ShapeError where that leaves x.
    """
    _check_window(x.shape, starts, sizes, steps)
    return TensorType(tuple(sizes), x.dtype)


def narrow(x: Value, axis: int, start: int, size: int, step: int = 1) -> Value:
    """`size` elements of x along one axis, from `start` on: a `slice` that leaves the other axes whole."""
    axis = axis_in(axis, x.rank)
    starts, sizes, steps = [0] * x.rank, list(x.shape), [1] * x.rank
    starts[axis], sizes[axis], steps[axis] = start, size, step
    return slice_(x, starts=tuple(starts), sizes=tuple(sizes), steps=tuple(steps))


@op
def unslice(x: TensorType, *, shape: tuple[int, ...], starts: tuple[int, ...], steps: tuple[int, ...]) -> TensorType:
    """Zeros of `shape`, save y[starts + i · steps] = x[i]: the adjoint of `slice`. Numeric; returns x's type."""
    shape = dims_of(shape)
    _check_window(shape, starts, x.shape, steps)
    return TensorType(shape, x.dtype)


@kernel(unslice)
def _(xp: Any, out: Any, x: Any, *, shape: tuple[int, ...], starts: tuple[int, ...], steps: tuple[int, ...]) -> None:
    if x.size < out.size:
        out[...] = 0
    out[window(starts, x.shape, steps)] = x


@op(moves=True)
def concat(*xs: TensorType, axis: int) -> TensorType:
    """The operands one after the other along `axis`. Any type, one for all; other dimensions equal. Source: ONNX Concat-13."""
    axis = axis_in(axis, xs[0].rank)
    for x in xs[1:]:
        if x.dtype != xs[0].dtype or x.shape[:axis] + x.shape[axis + 1 :] != xs[0].shape[:axis] + xs[0].shape[axis + 1 :]:
            raise ShapeError(f"{x} and {xs[0]} do not fit together along axis {axis}")
    return TensorType((*xs[0].shape[:axis], sum(x.shape[axis] for x in xs), *xs[0].shape[axis + 1 :]), xs[0].dtype)


@kernel(concat)
def _(xp: Any, out: Any, *xs: Any, axis: int) -> None:
    at = 0
    where = [slice(None)] * out.ndim
    for x in xs:
        where[axis] = slice(at, at + x.shape[axis])
        out[tuple(where)] = x
        at += x.shape[axis]


@composite
def tile(x: Any, *, repeats: tuple[int, ...]) -> Any:
    """x laid side by side repeats[i] times along each axis i. Any type. Source: ONNX Tile-13."""
    if len(repeats) != x.rank:
        raise ShapeError(f"repeats {list(repeats)} must have one number for each dimension of {list(x.shape)}")
    dims_of(repeats)
    apart = reshape(x, shape=tuple(n for d in x.shape for n in (1, d)))
    repeated = expand(apart, shape=tuple(n for r, d in zip(repeats, x.shape, strict=True) for n in (r, d)))
    return reshape(repeated, shape=tuple(r * d for r, d in zip(repeats, x.shape, strict=True)))


@composite
def repeat(x: Any, *, repeats: tuple[int, ...]) -> Any:
    """Each element of x repeats[i] times in a row along each axis i, as NumPy's repeat does. Any type."""
    if len(repeats) != x.rank:
        raise ShapeError(f"repeats {list(repeats)} must have one number for each dimension of {list(x.shape)}")
    dims_of(repeats)
    apart = reshape(x, shape=tuple(n for d in x.shape for n in (d, 1)))
    repeated = expand(apart, shape=tuple(n for d, r in zip(x.shape, repeats, strict=True) for n in (d, r)))
    return reshape(repeated, shape=tuple(d * r for d, r in zip(x.shape, repeats, strict=True)))


@op(moves=True)
def pad(x: TensorType, value: TensorType | None = None, *, pads: tuple[int, ...]) -> TensorType:
    """x with pads[i] elements before and pads[rank + i] after it along axis i, each equal to `value` (zero where left out).

    Any type; value: a scalar of x's type. Raises ShapeError for negative pads. Source: ONNX Pad-25, mode "constant".
    """
    if len(pads) != 2 * x.rank or min(pads, default=0) < 0:
        raise ShapeError(f"pads {list(pads)} must be two numbers ≥ 0 for each dimension of {list(x.shape)}")
    if value is not None and (value.size != 1 or value.dtype != x.dtype):
        raise ShapeError(f"the padding value is {value}, it must be one {x.dtype.name}")
    return TensorType(dims_of(b + d + e for b, d, e in zip(pads, x.shape, pads[x.rank :], strict=False)), x.dtype)


@kernel(pad)
def _(xp: Any, out: Any, x: Any, value: Any = None, *, pads: tuple[int, ...]) -> None:
    filling = 0 if value is None else value.reshape(())
    inner = [slice(None)] * x.ndim
    for axis, (before, size) in enumerate(zip(pads, x.shape, strict=False)):
        for border in (slice(0, before), slice(before + size, None)):
            inner[axis] = border
            out[tuple(inner)] = filling
        inner[axis] = slice(before, before + size)
    out[tuple(inner)] = x
