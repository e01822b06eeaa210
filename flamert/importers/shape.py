"""Converters of ONNX constants, and of ops that reshape: static shapes make all of them views or constants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flamert import dtypes, ops
from flamert import graph as g
from flamert.errors import InvalidModel, ShapeError
from flamert.graph import Value
from flamert.importers.registry import Context, Entry, converter
from flamert.ops.rules import axes_in, axis_in

# -- constants --------------------------------------------------------------------------------------------------------


@converter("Constant", 12, strings=True)
def _(
    ctx: Context,
    *,
    value: np.ndarray | None = None,
    sparse_value: np.ndarray | None = None,
    value_float: float | None = None,
    value_floats: Sequence[float] | None = None,
    value_int: int | None = None,
    value_ints: Sequence[int] | None = None,
    value_string: str | None = None,
    value_strings: Sequence[str] | None = None,
) -> Value:
    given = [
        (value, None),
        (sparse_value, None),
        (value_float, dtypes.float32),
        (value_floats, dtypes.float32),
        (value_int, dtypes.int64),
        (value_ints, dtypes.int64),
        (value_string, dtypes.string),
        (value_strings, dtypes.string),
    ]
    values = [(v, dtype) for v, dtype in given if v is not None]
    if len(values) != 1:
        raise InvalidModel(f"Constant has {len(values)} values, it must have one")
    return g.constant(*values[0])


@converter("Constant", 1, strings=True)
def _(ctx: Context, *, value: np.ndarray | None = None, sparse_value: np.ndarray | None = None) -> Value:
    if value is None and sparse_value is None:
        raise InvalidModel("Constant has no value")
    return g.constant(value if value is not None else sparse_value)


@converter("ConstantOfShape", 9)
def _(ctx: Context, shape: Value, *, value: np.ndarray | None = None) -> Value:
    filling = np.zeros((), np.float32) if value is None else value.reshape(())
    return ops.expand(g.constant(filling), shape=ctx.ints(shape))


@converter("Identity", strings=True)
def _(ctx: Context, x: Entry = None) -> Any:
    return [x]


# -- shape as data ----------------------------------------------------------------------------------------------------


@converter("Shape", 15, strings=True)
def _(ctx: Context, x: Value, *, start: int = 0, end: int | None = None) -> Value:
    return g.constant(np.array(x.shape[slice(start, end)], np.int64))


@converter("Shape", 1, strings=True)
def _(ctx: Context, x: Value) -> Value:
    return g.constant(np.array(x.shape, np.int64))


@converter("Size", strings=True)
def _(ctx: Context, x: Value) -> Value:
    return g.constant(np.array(x.type.size, np.int64))


# -- another shape for the same elements ------------------------------------------------------------------------------


@converter("Reshape", 5)
def _(ctx: Context, x: Value, shape: Value, *, allowzero: int = 0) -> Value:
    return _reshape(x, ctx.ints(shape) or (), bool(allowzero))


@converter("Reshape", 1)
def _(ctx: Context, x: Value, *, shape: Sequence[int] = (), consumed_inputs: Sequence[int] = ()) -> Value:
    return _reshape(x, shape, False)


def _reshape(x: Value, shape: Sequence[int], allowzero: bool) -> Value:
    dims = list(shape)
    if not allowzero:
        if 0 in dims[x.rank :]:
            raise ShapeError(f"0 in {dims} copies a dimension that {list(x.shape)} lacks")
        dims = [x.shape[i] if d == 0 else d for i, d in enumerate(dims)]
    if -1 in dims:
        rest = math.prod(d for d in dims if d != -1)
        if not rest or x.type.size % rest:
            raise ShapeError(f"{list(x.shape)} cannot be reshaped to {dims}")
        dims[dims.index(-1)] = x.type.size // rest
    return ops.reshape(x, shape=tuple(dims))


def _squeeze(x: Value, axes: Sequence[int] | None) -> Value:
    dropped = axes_in(axes, x.rank) if axes is not None else [i for i, d in enumerate(x.shape) if d == 1]
    for a in dropped:
        if x.shape[a] != 1:
            raise ShapeError(f"axis {a} of {list(x.shape)} cannot be squeezed, it is not 1")
    return ops.reshape(x, shape=tuple(d for i, d in enumerate(x.shape) if i not in dropped))


@converter("Squeeze", 13)
def _(ctx: Context, x: Value, axes: Value | None = None) -> Value:
    return _squeeze(x, ctx.ints(axes))


@converter("Squeeze", 1)
def _(ctx: Context, x: Value, *, axes: Sequence[int] | None = None) -> Value:
    return _squeeze(x, axes)


def _unsqueeze(x: Value, axes: Sequence[int]) -> Value:
    added = axes_in(axes, x.rank + len(axes))
    rest = iter(x.shape)
    return ops.reshape(x, shape=tuple(1 if i in added else next(rest) for i in range(x.rank + len(added))))


@converter("Unsqueeze", 13)
def _(ctx: Context, x: Value, axes: Value) -> Value:
    return _unsqueeze(x, ctx.ints(axes) or ())


@converter("Unsqueeze", 1)
def _(ctx: Context, x: Value, *, axes: Sequence[int]) -> Value:
    return _unsqueeze(x, axes)


@converter("Flatten")
def _(ctx: Context, x: Value, *, axis: int = 1) -> Value:
    at = x.rank if axis == x.rank else axis_in(axis, x.rank)
    return ops.reshape(x, shape=(math.prod(x.shape[:at]), math.prod(x.shape[at:])))


@converter("Transpose")
def _(ctx: Context, x: Value, *, perm: Sequence[int] | None = None) -> Value:
    return ops.transpose(x, perm=axes_in(perm, x.rank) if perm is not None else tuple(reversed(range(x.rank))))
