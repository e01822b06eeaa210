"""Rows for ops/random.py that no draw can change; tests/test_random.py looks at the draws."""

import numpy as np

from flamert import dtypes
from flamert.testing import Case
from tests.cases.elementwise import f32

CERTAIN = np.array([[1, 0, 1], [0, 0, 1]], np.float32)
LIKELY = np.where(CERTAIN[:, :, None] == [0, 1], 0.0, -1e4).astype(np.float32).reshape(-1, 2)

CASES = [
    *[
        Case(op, [], {"shape": (2, 3), "dtype": t, **attrs, "seed": seed}, np.full((2, 3), 1.5))
        for op, attrs in (("random_uniform", {"low": 1.5, "high": 1.5}), ("random_normal", {"mean": 1.5, "scale": 0.0}))
        for t in sorted(dtypes.STANDARD_FLOAT, key=str)
        for seed in (None, 7)
    ],
    *[
        Case("bernoulli", [CERTAIN], {"dtype": t}, CERTAIN.astype(t))
        for t in (dtypes.float32, dtypes.bool_, dtypes.int64, dtypes.bfloat16)
    ],
    Case("dropout", [f32(2, 3), np.float32(0)], {}, lambda x, ratio: (x, np.ones(x.shape, np.bool_)), gradient=False),
    Case(
        "dropout",
        [f32(2, 3), np.float32(1)],
        {},
        lambda x, ratio: (np.zeros_like(x), np.zeros(x.shape, np.bool_)),
        gradient=False,
    ),
    *[
        Case("multinomial", [LIKELY], {"samples": 4, "dtype": t}, np.repeat(CERTAIN.reshape(-1, 1), 4, axis=1).astype(t))
        for t in (dtypes.int32, dtypes.int64)
    ],
]
