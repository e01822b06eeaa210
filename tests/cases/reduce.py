"""Rows for ops/reduce.py."""

import math

import numpy as np

from flamert.testing import Case
from tests.cases.elementwise import FLOATS, f32

AXES = [((3, 4), (1,)), ((3, 4), (0,)), ((2, 3, 4), (0, 2)), ((2, 3, 4), (0, 1, 2)), ((2, 3), ()), ((), ()), ((2, 0, 3), (1,))]
x = f32(2, 3, 4)
ints = np.array([[-7, 2, 4], [5, -1, -9]], np.int32)
with_nan = np.array([[1, np.nan], [2, 3]], np.float32)
tenths = np.full(5000, 0.1, np.float32)
bytes_ = np.array([[250, 7, 3], [9, 1, 255]], np.uint8)

late = np.append(np.ones(40000, np.float32), -np.inf).astype(np.float32)


def finite(*xs):
    return np.array(all(np.isfinite(x.astype(float)).all() for x in xs))


def over(reduce, **extra):
    return lambda x, axes, keepdims=False: reduce(x, axis=axes, keepdims=keepdims, **extra)


def truncated(x, axes, keepdims=False):
    return np.trunc(np.mean(x.astype(float), axes, keepdims=keepdims)).astype(x.dtype)


def mean(x, axes, keepdims=False):
    return np.sum(x, axes, keepdims=keepdims) / math.prod(x.shape[a] for a in axes) if x.size else np.full((2, 3), np.nan)


@np.errstate(divide="ignore")
def log_sum_exp(x, axes, keepdims=False):
    return np.log(np.sum(np.exp(x), axes, keepdims=keepdims))


drawn = np.random.default_rng(7)


def own(*shape):
    """Numbers that leave those of all other rows as they are."""
    return drawn.standard_normal(shape).astype(np.float32)


def squares(*xs):
    return sum(np.sum(np.square(x.astype(np.float64))) for x in xs)


def square_sum(x, **over_axes):
    return np.sum(x * x, **over_axes)


@np.errstate(divide="ignore")
def log_sum(x, axes, keepdims=False):
    return np.log(np.sum(x, axes, keepdims=keepdims))


def moments(x, axes):
    return np.mean(x, axes, keepdims=True), np.var(x, axes, keepdims=True)


big = np.array([[1e4, 1e4], [-1e4, -1e4], [-np.inf, -np.inf], [np.inf, 0]], np.float32)
big_sums = np.array([1e4 + math.log(2), -1e4 + math.log(2), -np.inf, np.inf])

CASES = [
    *[Case("reduce_log_sum_exp", [f32(*s)], {"axes": a}, log_sum_exp, FLOATS) for s, a in AXES],
    Case("all_finite", [f32(3, 4), f32(), f32(2, 0), f32(40000)], {}, finite, FLOATS, gradient=False),
    Case("all_finite", [f32(3, 4), with_nan], {}, finite, gradient=False, name="nan"),
    Case("all_finite", [f32(40000), late], {}, finite, gradient=False, name="infinite"),
    Case("sum_of_squares", [own(3, 4), own(), own(2, 0), own(300)], {}, squares, FLOATS),
    Case("sum_of_squares", [np.full((4, 2), 200, np.float16)], {}, np.float32(320000), name="half range"),
    Case("reduce_log_sum_exp", [big], {"axes": (1,)}, big_sums, gradient=False, name="large"),
    Case("reduce_log_sum_exp", [x], {"axes": (2, 0), "keepdims": True}, log_sum_exp),
    *[Case("reduce_log_sum", [f32(*s, low=0.1)], {"axes": a}, log_sum, FLOATS) for s, a in AXES],
    *[Case("reduce_sum_square", [f32(*s)], {"axes": a}, over(square_sum), FLOATS) for s, a in AXES],
    *[Case("reduce_l1", [f32(*s)], {"axes": a}, over(lambda x, **k: np.sum(np.abs(x), **k)), FLOATS) for s, a in AXES],
    *[Case("reduce_l2", [f32(*s)], {"axes": a}, over(lambda x, **k: np.sqrt(square_sum(x, **k))), FLOATS) for s, a in AXES],
    Case("reduce_l2", [np.full((4, 2), 200, np.float16)], {"axes": (0,)}, np.full(2, 400), name="half range"),
    Case("reduce_sum_square", [ints], {"axes": (0,)}, np.array([74, 5, 97], np.int32), name="int"),
    Case("reduce_l1", [ints], {"axes": (0,)}, np.array([12, 3, 13], np.int32), name="int"),
    *[Case("moments", [f32(2, 3, 4)], {"axes": a}, moments, FLOATS[:2]) for a in ((0, 2), (1,))],
    Case("moments", [f32(2, 3).astype(np.float16)], {"axes": (1,)}, moments, name="float16"),
    *[Case("reduce_sum", [f32(*s)], {"axes": a}, over(np.sum), FLOATS) for s, a in AXES],
    *[Case("reduce_prod", [f32(*s)], {"axes": a}, over(np.prod), FLOATS) for s, a in AXES],
    Case("reduce_prod", [np.array([[1, 0, 3], [0, 2, 0]], np.float32)], {"axes": (1,)}, over(np.prod), name="zeros"),
    *[Case("reduce_mean", [f32(*s)], {"axes": a}, mean, FLOATS) for s, a in AXES],
    *[Case("reduce_max", [f32(*s)], {"axes": a}, over(np.max, initial=-np.inf), FLOATS) for s, a in AXES],
    *[Case("reduce_min", [f32(*s)], {"axes": a}, over(np.min, initial=np.inf), FLOATS) for s, a in AXES],
    *[
        Case(f"reduce_{name}", [x], {"axes": (2, 0), "keepdims": True}, over(getattr(np, name)))
        for name in ("sum", "prod", "mean", "max", "min")
    ],
    *[
        Case(f"reduce_{name}", [i], {"axes": (1,)}, over(getattr(np, name), **wrap), name=f"{i.dtype}")
        for name, wrap in (("sum", {"dtype": None}), ("prod", {"dtype": None}), ("max", {}), ("min", {}))
        for i in (ints, bytes_)
    ],
    *[Case("reduce_mean", [i], {"axes": (1,)}, truncated, name=f"{i.dtype}") for i in (ints, bytes_)],
    *[
        Case(f"reduce_{name}", [np.zeros((2, 0), np.int8)], {"axes": (1,)}, np.full(2, empty, np.int8), name="empty-int8")
        for name, empty in (("sum", 0), ("prod", 1), ("max", -128), ("min", 127))
    ],
    Case("reduce_max", [ints > 0], {"axes": (1,)}, over(np.any), name="bool"),
    Case("reduce_min", [ints > 0], {"axes": (0,)}, over(np.all), name="bool"),
    Case("reduce_max", [with_nan], {"axes": (1,)}, np.array([np.nan, 3]), FLOATS, gradient=False, name="nan"),
    Case("reduce_sum", [tenths], {"axes": (0,)}, over(np.sum), FLOATS, name="long", tolerance=(4e-3, 0)),
]
