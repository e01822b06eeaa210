"""Exporters of Fourier transforms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flamert import graph as g
from flamert import ops
from flamert.dtypes import accumulator
from flamert.exporters.registry import exporter, spelled
from flamert.exporters.writer import Writer
from flamert.graph import Value
from flamert.ops.evaluate import evaluate


@exporter(ops.dft, 20)
def _(to: Writer, x: Value, *, axis: int, length: int, inverse: bool, onesided: bool) -> Any:
    """The one-sided way back came late, and few runtimes have it."""
    if (inverse and onesided) or not x.type.size:
        return None
    at = np.array(axis % x.rank, np.int64)
    return to("DFT", x, np.array(length, np.int64), at, inverse=inverse, onesided=onesided)


@spelled(ops.dft)
def _(x: Value, *, axis: int, length: int, inverse: bool, onesided: bool) -> Value:
    """A product with the matrix of the transform, whose rows are the transforms of the unit vectors."""
    axis %= x.rank
    n, parts = x.shape[axis], x.shape[-1]
    units = g.constant(np.eye(n * parts).reshape(n * parts, n, parts))
    [matrix] = evaluate([ops.dft(units, axis=1, length=length, inverse=inverse, onesided=onesided)])
    bins, kept = matrix.shape[1:]
    wide = accumulator(x.dtype)
    others = [i for i in range(x.rank - 1) if i != axis]
    rows = ops.transpose(ops.cast(x, to=wide), perm=(*others, axis, x.rank - 1))
    rows = ops.reshape(rows, shape=(math.prod(x.shape[i] for i in others), n * parts))
    y = ops.matmul(rows, g.constant(matrix.reshape(n * parts, bins * kept).astype(wide)))
    y = ops.reshape(y, shape=(*[x.shape[i] for i in others], bins, kept))
    order = [*others, axis]
    return ops.cast(ops.transpose(y, perm=(*[order.index(i) for i in range(x.rank - 1)], x.rank - 1)), to=x.dtype)


@exporter(ops.stft)
def _(to: Writer, signal: Value, window: Value | None = None, *, step: int, length: int, onesided: bool) -> Any:
    if signal.shape[-1] != 1 or not signal.type.size:
        return None
    whole: Any = np.ones(length, signal.dtype) if window is None else window
    return to("STFT", signal, np.array(step, np.int64), whole, np.array(length, np.int64), onesided=onesided)
