"""Rows for ops/linear.py."""

import numpy as np

from flamert.testing import Case
from tests.cases.elementwise import FLOATS, f32

SHAPES = [
    ((3, 4), (4, 5)),
    ((2, 3, 4), (4, 5)),
    ((2, 1, 3, 4), (5, 4, 2)),
    ((4,), (4,)),
    ((2, 3, 4), (4,)),
    ((4,), (2, 4, 3)),
    ((0, 4), (4, 5)),
    ((3, 0), (0, 5)),
]


def gemm(a, b, c=None, *, alpha=1.0, beta=1.0, trans_a=False, trans_b=False):
    y = alpha * ((a.T if trans_a else a) @ (b.T if trans_b else b))
    return y if c is None else y + beta * c


BOTH = {"trans_a": True, "trans_b": True}


def cofactors(x):
    """By definition: signed minors."""
    result = np.empty_like(x)
    for at in np.ndindex(x.shape):
        minor = np.delete(np.delete(x[at[:-2]], at[-2], 0), at[-1], 1)
        result[at] = (-1) ** (at[-2] + at[-1]) * np.linalg.det(minor)
    return result


def cofactor_slopes(x, h):
    """Differences, which are exact for polynomials if there are enough of them: here up to the fourth order."""
    weights = {1: 2 / 3, 2: -1 / 12}
    return sum(w * (cofactors(x + step * h) - cofactors(x - step * h)) for step, w in weights.items())


singular = np.array([[1, 2, 3], [2, 4, 6], [0, 1, 5]], np.float32)

CASES = [
    *[Case("matmul", [f32(*a), f32(*b)], {}, np.matmul, FLOATS) for a, b in SHAPES],
    Case("gemm", [f32(3, 4), f32(4, 5), f32(5)], {}, gemm, FLOATS),
    Case("gemm", [f32(4, 3), f32(5, 4), f32(3, 1)], {"alpha": 0.5, "beta": 2.0, **BOTH}, gemm, FLOATS),
    Case("gemm", [f32(3, 4), f32(4, 5)], {"alpha": 0.25}, gemm, FLOATS),
    Case("gemm", [np.ones((2, 3), np.int32), np.ones((3, 2), np.int32), np.int32(7)], {}, gemm),
    *[
        Case("det", [f32(*s)], {}, np.linalg.det, FLOATS, tolerance=(3e-2, 2e-2))
        for s in ((3, 3), (2, 3, 3), (0, 2, 2), (1, 1))
    ],
    Case("det", [singular], {}, np.array(0.0), tolerance=(0, 1e-5), name="singular"),
    Case("matmul", [np.array([[1, 2], [3, 2**31]], np.uint32), np.array([[4], [2]], np.uint32)], {}, np.array([[8], [12]])),
    *[Case("inverse", [f32(*s) + 5 * np.eye(3, dtype=np.float32)], {}, np.linalg.inv, FLOATS) for s in ((3, 3), (2, 3, 3))],
    *[Case("cofactors", [f32(*s) + 3 * np.eye(3, dtype=np.float32)], {}, cofactors, FLOATS) for s in ((3, 3), (2, 3, 3))],
    Case("cofactors", [singular], {}, cofactors, tolerance=(1e-5, 1e-5), name="singular"),
    Case("cofactors", [np.zeros((2, 2), np.float32)], {}, cofactors, name="zero"),
    Case("cofactors", [np.full((2, 1, 1), 3, np.float32)], {}, np.ones((2, 1, 1))),
    *[
        Case("cofactor_slopes", [x, f32(*x.shape)], {}, cofactor_slopes, FLOATS, tolerance=(3e-2, 2e-2))
        for x in (singular, f32(2, 3, 3), f32(4, 4), f32(2, 2), np.zeros((3, 3), np.float32), f32(2, 1, 1))
    ],
]
