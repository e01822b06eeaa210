"""Converters of ONNX ops that cut tensors into blocks, put blocks together, repeat them and give them borders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flamert import dtypes, ops
from flamert import graph as g
from flamert.errors import InvalidModel, ShapeError
from flamert.graph import Value
from flamert.importers.registry import Context, Entry, converter
from flamert.ops.rules import axes_in, axis_in, broadcast, dims_of
from flamert.ops.shape import narrow

# -- parts and wholes -------------------------------------------------------------------------------------------------


@converter("Concat", 4)
def _(ctx: Context, *xs: Value, axis: int) -> Value:
    return _concat(xs, axis)


@converter("Concat", 1)
def _(ctx: Context, *xs: Value, axis: int = 1) -> Value:
    return _concat(xs, axis)


def _concat(xs: Sequence[Value], axis: int) -> Value:
    if not xs:
        raise InvalidModel("Concat has no inputs")
    axis = axis_in(axis, xs[0].rank)
    return xs[0] if len(xs) == 1 else ops.concat(*xs, axis=axis)


@converter("Slice", 10)
def _(ctx: Context, x: Value, starts: Value, ends: Value, axes: Value | None = None, steps: Value | None = None) -> Value:
    if not ((starts.node.known and ends.node.known) or x.node.known or x.dtype.hasobject):
        return _slice_from_data(ctx, x, starts, ends, ctx.ints(axes), ctx.ints(steps))
    return _slice(x, ctx.ints(starts) or (), ctx.ints(ends) or (), ctx.ints(axes), ctx.ints(steps))


@converter("Slice", 1)
def _(ctx: Context, x: Value, *, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int] | None = None) -> Value:
    return _slice(x, starts, ends, axes, None)


def _slice(
    x: Value, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int] | None, steps: Sequence[int] | None
) -> Value:
    first, sizes, strides = [0] * x.rank, list(x.shape), [1] * x.rank
    for axis, span in _spans(x.shape, starts, ends, axes, steps).items():
        first[axis], sizes[axis] = span.start if span else 0, len(span)
        strides[axis] = span.step if len(span) > 1 else 1
    return ops.slice(x, starts=tuple(first), sizes=tuple(sizes), steps=tuple(strides))


def _slice_from_data(
    ctx: Context, x: Value, starts: Value, ends: Value, axes: Sequence[int] | None, steps: Sequence[int] | None
) -> Any:
    """A slice between bounds that only data can tell: what follows depends on its size, but not on where it lies."""
    shape, named = x.shape, axes_in(range(starts.type.size) if axes is None else axes, x.rank)

    def positions(starts: np.ndarray, ends: np.ndarray) -> list[np.ndarray]:
        return [np.array(s, np.int64) for s in _spans(shape, starts.tolist(), ends.tolist(), named, steps).values()]

    def taken(indices: list[Entry], state: list[Entry]) -> Value:
        (part,) = state
        for axis, index in zip(named, indices, strict=True):
            part = ops.gather(part, index, axis=axis)
        return part

    return ctx.host(positions, starts, ends, then=taken, state=[x])


def _spans(
    shape: tuple[int, ...],
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int] | None,
    steps: Sequence[int] | None,
) -> dict[int, range]:
    """The positions that a slice takes along each axis that it names."""
    named = axes_in(range(len(starts)) if axes is None else axes, len(shape))
    steps = [1] * len(starts) if steps is None else steps
    if not len(named) == len(starts) == len(ends) == len(steps):
        raise ShapeError(f"starts {starts}, ends {ends}, axes {list(named)} and steps {steps} differ in length")
    if 0 in steps:
        raise ShapeError("a step of 0")
    spans = {}
    for axis, start, end, step in zip(named, starts, ends, steps, strict=True):
        # Clamped as ONNX has it, which is not what Python does with a start before the first element and a negative step.
        size, back = shape[axis], int(step < 0)
        first, last = (bound + size if bound < 0 else bound for bound in (start, end))
        spans[axis] = range(min(max(first, 0), size - back), min(max(last, -back), size - back), step)
    return spans


@converter("Split", 18)
def _(ctx: Context, x: Value, split: Value | None = None, *, axis: int = 0, num_outputs: int | None = None) -> list[Value]:
    if num_outputs is not None and num_outputs < 1:
        raise InvalidModel(f"Split into {num_outputs} parts")
    return _split(ctx, x, ctx.ints(split), axis, num_outputs or ctx.n_outputs)


@converter("Split", 13)
def _(ctx: Context, x: Value, split: Value | None = None, *, axis: int = 0) -> list[Value]:
    return _split(ctx, x, ctx.ints(split), axis, ctx.n_outputs)


@converter("Split", 2)
def _(ctx: Context, x: Value, *, axis: int = 0, split: Sequence[int] | None = None) -> list[Value]:
    return _split(ctx, x, split, axis, ctx.n_outputs)


@converter("Split", 1)
def _(ctx: Context, x: Value, sizes: Value | None = None, *, axis: int = 0, split: Sequence[int] | None = None) -> list[Value]:
    return _split(ctx, x, split if split is not None else ctx.ints(sizes), axis, ctx.n_outputs)


def _split(ctx: Context, x: Value, sizes: Sequence[int] | None, axis: int, parts: int) -> list[Value]:
    axis = axis_in(axis, x.rank)
    whole = x.shape[axis]
    if sizes is None:
        # Equal parts; where that does not come out even, from opset 18 on the last one is shorter.
        if whole % parts and ctx.opset < 18:
            raise ShapeError(f"{whole} elements do not split into {parts} equal parts")
        size = -(-whole // parts)
        sizes = [max(0, min(size, whole - i * size)) for i in range(parts)]
    if sum(sizes) != whole or min(sizes, default=0) < 0:
        raise ShapeError(f"parts of {list(sizes)} do not make up a dimension of {whole}")
    return pieces(x, axis, sizes)


def pieces(x: Value, axis: int, sizes: Sequence[int]) -> list[Value]:
    """x cut along an axis into parts of these sizes."""
    starts = np.cumsum([0, *sizes]).tolist()
    return [narrow(x, axis, start, size) for start, size in zip(starts, sizes, strict=False)]


# -- repetition and borders -------------------------------------------------------------------------------------------


@converter("Expand", 8)
def _(ctx: Context, x: Value, shape: Value) -> Value:
    dims = dims_of(ctx.ints(shape) or ())
    return ops.expand(x, shape=broadcast(x.shape, dims))


@converter("Tile", 6)
def _(ctx: Context, x: Value, repeats: Value) -> Value:
    return ops.tile(x, repeats=ctx.ints(repeats))


@converter("Tile", 1)
def _(ctx: Context, x: Value, tiles: Value, axis: Value) -> Value:
    repeats = [1] * x.rank
    (at,), (times,) = ctx.ints(axis) or (), ctx.ints(tiles) or ()
    repeats[axis_in(at, x.rank)] = times
    return ops.tile(x, repeats=tuple(repeats))


@converter("Pad", 11)
def _(
    ctx: Context,
    x: Value,
    pads: Value,
    value: Value | None = None,
    axes: Value | None = None,
    *,
    mode: str = "constant",
) -> Value:
    amounts = list(ctx.ints(pads) or ())
    named = axes_in(range(x.rank) if axes is None else ctx.ints(axes) or (), x.rank)
    if len(amounts) != 2 * len(named):
        raise ShapeError(f"pads {amounts} are not two numbers for each of {len(named)} axes")
    full = [0] * (2 * x.rank)
    for i, axis in enumerate(named):
        full[axis], full[x.rank + axis] = amounts[i], amounts[len(named) + i]
    return _pad(ctx, x, full, value, mode)


@converter("Pad", 2)
def _(ctx: Context, x: Value, *, pads: Sequence[int], mode: str = "constant", value: float = 0.0) -> Value:
    return _pad(ctx, x, pads, g.constant(value, x.dtype), mode)


@converter("Pad", 1)
def _(ctx: Context, x: Value, *, paddings: Sequence[int], mode: str = "constant", value: float = 0.0) -> Value:
    return _pad(ctx, x, paddings, g.constant(value, x.dtype), mode)


def _pad(ctx: Context, x: Value, pads: Sequence[int], value: Value | None, mode: str) -> Value:
    """Negative pads cut first; then constant borders are added, or indices that mirror, clamp or wrap are gathered."""
    if len(pads) != 2 * x.rank:
        raise ShapeError(f"pads {list(pads)} are not two numbers for each dimension of {list(x.shape)}")
    for axis in range(x.rank):
        before, after = (min(pads[axis], 0), min(pads[x.rank + axis], 0))
        if before or after:
            x = narrow(x, axis, -before, x.shape[axis] + before + after)
    pads = tuple(max(p, 0) for p in pads)
    if mode == "constant":
        filling = ctx.known(value)
        if filling is not None and not filling.any():
            value = None
        if value is None and x.dtype.hasobject:
            value = g.constant("", dtypes.string)
        return ops.pad(x, value, pads=pads) if any(pads) else x
    if mode not in _SOURCES:
        raise ctx.unsupported(f"mode {mode!r} is none of constant, {', '.join(_SOURCES)}")
    for axis, (before, after) in enumerate(zip(pads, pads[x.rank :], strict=False)):
        if before or after:
            if not x.shape[axis]:
                raise ShapeError(f"axis {axis} of {list(x.shape)} is empty, so there is nothing to pad it with")
            at = np.arange(-before, x.shape[axis] + after)
            x = ops.gather(x, g.constant(_SOURCES[mode](at, x.shape[axis])), axis=axis)
    return x


def _mirrored(at: np.ndarray, size: int) -> np.ndarray:
    period = max(2 * (size - 1), 1)
    at = at % period
    return np.minimum(at, period - at) if size > 1 else at * 0


_SOURCES = {
    "reflect": _mirrored,
    "edge": lambda at, size: np.clip(at, 0, size - 1),
    "wrap": lambda at, size: at % size,
}
"""Where an element of the padded tensor comes from, by mode: positions relative to x along an axis → indices into x."""
