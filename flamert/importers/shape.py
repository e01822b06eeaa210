"""Converters of ONNX ops that reshape and move: static shapes make most of them views or constants."""

from __future__ import annotations

import math

import numpy as np

from flamert import graph as g
from flamert import ops
from flamert.errors import ShapeError
from flamert.graph import Value
from flamert.importers.registry import Context, converter


@converter("Reshape", 5)
def _(ctx: Context, x: Value, shape: Value, *, allowzero: int = 0) -> Value:
    dims = list(ctx.ints(shape) or ())
    if not allowzero:
        if len(dims) > x.rank and 0 in dims[x.rank :]:
            raise ShapeError(f"0 in {dims} copies a dimension that {list(x.shape)} lacks")
        dims = [x.shape[i] if d == 0 else d for i, d in enumerate(dims)]
    if -1 in dims:
        rest = math.prod(d for d in dims if d != -1)
        if not rest or x.type.size % rest:
            raise ShapeError(f"{list(x.shape)} cannot be reshaped to {dims}")
        dims[dims.index(-1)] = x.type.size // rest
    return ops.reshape(x, shape=tuple(dims))


@converter("Shape", 15, strings=True)
def _(ctx: Context, x: Value, *, start: int = 0, end: int | None = None) -> Value:
    return g.constant(np.array(x.shape[slice(start, end)], np.int64))


@converter("Shape", 1, strings=True)
def _(ctx: Context, x: Value) -> Value:
    return g.constant(np.array(x.shape, np.int64))
