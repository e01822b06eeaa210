"""Rows for ops/shape.py."""

import numpy as np

from flamert.testing import Case

x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)

CASES = [
    Case("reshape", [x], {"shape": (4, 6)}, lambda x, shape: x.reshape(shape)),
    Case("transpose", [x], {"perm": (2, 0, 1)}, lambda x, perm: x.transpose(perm)),
    Case("concat", [x, x[:1], x[:0]], {"axis": 0}, lambda *xs, axis: np.concatenate(xs, axis)),
]
