"""Rows for ops/elementwise.py."""

import math

import numpy as np

from flamert import dtypes
from flamert.testing import Case

rng = np.random.default_rng(0)
FLOATS = (dtypes.float64, dtypes.float32, dtypes.float16, dtypes.bfloat16)


def f32(*shape, low=-2.0, high=2.0):
    return rng.uniform(low, high, shape).astype(np.float32)


PAIRS = [((3, 4), (3, 4)), ((3, 1), (1, 4)), ((2, 3, 4), (4,)), ((), (2, 3)), ((0, 3), (1, 3))]
math_erf = np.vectorize(math.erf, otypes=[np.float64])

CASES = [
    *[Case("add", [f32(*a), f32(*b)], {}, np.add, FLOATS) for a, b in PAIRS],
    *[Case("mul", [f32(*a), f32(*b)], {}, np.multiply, FLOATS) for a, b in PAIRS],
    *[Case("maximum", [f32(*a), f32(*b)], {}, np.maximum, FLOATS) for a, b in PAIRS],
    Case("erf", [f32(3, 5)], {}, math_erf, FLOATS),
    Case("relu", [f32(3, 5)], {}, lambda x: np.maximum(x, 0), FLOATS),
    Case("gelu", [f32(3, 5)], {}, lambda x: 0.5 * x * (1 + math_erf(x / np.sqrt(2))), FLOATS),
]
