"""Rows for ops/resize.py."""

import numpy as np

from flamert import graph as g
from flamert.ops.evaluate import value_of
from flamert.ops.resize import cubic, taps_at, transposed, triangle
from flamert.testing import Case
from tests.cases.elementwise import FLOATS, f32


def matrix(index, weight, size):
    """The taps as a dense matrix [new, old]."""
    dense = np.zeros((index.shape[0], size))
    for o, t in np.ndindex(*index.shape):
        dense[o, index[o, t]] += weight[o, t]
    return dense


def resample(x, *taps, axes):
    for axis, index, weight in zip(axes, taps[::2], taps[1::2], strict=True):
        x = np.moveaxis(np.tensordot(matrix(index, weight, x.shape[axis]), x, (1, axis)), 0, axis)
    return x


def taps(old, new, shape=triangle, reach=1, **how):
    at = (np.arange(new) + 0.5) * old / new - 0.5
    index, weight = taps_at(g.constant(at), at, old, shape, reach / how.get("shrink", 1), **how)
    return index, value_of(weight)


def case(shape, pairs, axes, types=FLOATS):
    flat = [array for index, weight in pairs for array in (index, weight.astype(np.float32))]
    return Case("resample", [f32(*shape), *flat], {"axes": axes}, resample, types)


def back_and_forth(old, new):
    index, weight = taps(old, new)
    back = transposed(index, weight, old)
    np.testing.assert_allclose(matrix(*back, new), matrix(index, weight, old).T)
    return back


CASES = [
    case((2, 3, 4, 5), [taps(4, 7), taps(5, 3)], (2, 3)),
    case((1, 2, 6, 4), [taps(6, 4, cubic(-0.75), 2), taps(4, 9, cubic(-0.5), 2, exclude_outside=True)], (2, 3)),
    case((2, 9), [taps(9, 4, shrink=4 / 9)], (1,)),
    case((8, 2), [taps(8, 3, cubic(-0.75), 2, shrink=3 / 8)], (0,)),
    case((2, 5, 3), [back_and_forth(7, 5)], (-2,)),
    case((0, 4), [taps(4, 6)], (1,), FLOATS[1:2]),
    case((3, 4), [taps(4, 0)], (1,), FLOATS[1:2]),
]
