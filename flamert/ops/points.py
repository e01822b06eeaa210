"""Values of an image between its elements: what grid sampling and deformable convolution share. Functions, no ops."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from flamert import dtypes
from flamert import graph as g
from flamert.errors import ShapeError
from flamert.graph import Value
from flamert.ops.cast import cast
from flamert.ops.elementwise import floor
from flamert.ops.index import gather
from flamert.ops.logic import where
from flamert.ops.shape import reshape, transpose

CUBIC_SLOPE = -0.75


def zero(like: Value) -> Value:
    """The scalar 0 of a Value's element type."""
    return g.constant(np.zeros((), like.dtype))


def within(at: Value, size: int) -> Value:
    """Whether whole coordinates lie on an axis of `size` elements. False for NaN."""
    return (at >= 0) & (at <= size - 1)


def clamped(at: Value, size: int) -> Value:
    """Coordinates moved to the nearest one on an axis of `size` elements; NaN goes to 0, so that it can be an index."""
    at = where(at >= 0, at, zero(at))
    return where(at <= size - 1, at, g.constant(np.array(size - 1, at.dtype)))


def reflected(at: Value, low: float, high: float) -> Value:
    """Coordinates mirrored at `low` and `high` until they lie between them."""
    span = high - low
    if span <= 0:
        return at * 0 + low
    turns = (at - low) / (2 * span)
    return high - abs((turns - floor(turns)) * (2 * span) - span)


def linear_taps(at: Value) -> list[tuple[Value, Value]]:
    """(whole coordinate, weight) of the two neighbours on a line."""
    base = floor(at)
    rest = at - base
    return [(base, 1 - rest), (base + 1, rest)]


def cubic_taps(at: Value, a: float = CUBIC_SLOPE) -> list[tuple[Value, Value]]:
    """(whole coordinate, weight) of the four neighbours on a line, by cubic convolution. Source: Keys 1981."""
    base = floor(at)
    rest = at - base

    def near(d: Value) -> Value:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: Value) -> Value:
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    return [(base - 1, far(rest + 1)), (base, near(rest)), (base + 1, near(1 - rest)), (base + 2, far(2 - rest))]


def blend(x: Value, taps: Sequence[Sequence[tuple[Value, Value | None]]]) -> Value:
    """Σ weight · x over all combinations of one tap per axis: x [N, C, *spatial] → [N, C, P].

    taps: per spatial axis, pairs (coordinate, weight), both [N, P]; coordinates are whole and on the axis. A weight of None
    stands for 1. Weights are floating, or bool where x's type is not: then what is false gives 0.
    """
    n, channels, *spatial = x.shape
    points = taps[0][0][0].shape[1]
    if n * points and not math.prod(spatial):
        raise ShapeError(f"{x} has no elements to sample")
    rows = reshape(x, shape=(n, channels, math.prod(spatial)))
    rows = reshape(transpose(rows, perm=(0, 2, 1)), shape=(n * math.prod(spatial), channels))
    image = g.constant(np.arange(n, dtype=np.int64)[:, None] * math.prod(spatial))
    offsets = [
        [(cast(at, to=dtypes.int64) * math.prod(spatial[i + 1 :]), weight) for at, weight in axis]
        for i, axis in enumerate(taps)
    ]
    total: Value | None = None
    for corner in itertools.product(*offsets):
        index, weight = image, None
        for offset, w in corner:
            index = index + offset
            weight = w if weight is None else weight if w is None else weight & w if w.dtype == np.bool_ else weight * w
        seen = gather(rows, index, axis=0)
        if weight is not None:
            apart = reshape(weight, shape=(n, points, 1))
            seen = where(apart, seen, zero(seen)) if weight.dtype == np.bool_ else seen * apart
        total = seen if total is None else total + seen
    assert total is not None
    return transpose(total, perm=(0, 2, 1))


def blend_with_zeros(x: Value, taps: Sequence[Sequence[tuple[Value, Value | None]]]) -> Value:
    """`blend`, where taps may lie outside x, which counts as zero there."""
    inside = []
    for size, axis in zip(x.shape[2:], taps, strict=True):
        row: list[tuple[Value, Value | None]] = []
        for at, weight in axis:
            valid = within(at, size)
            row.append((where(valid, at, zero(at)), valid if weight is None else where(valid, weight, zero(weight))))
        inside.append(row)
    return blend(x, inside)
