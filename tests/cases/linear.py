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
    ((0, 4), (4, 5)),
]

CASES = [Case("matmul", [f32(*a), f32(*b)], {}, np.matmul, FLOATS) for a, b in SHAPES]
