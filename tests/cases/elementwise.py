"""Rows for ops/elementwise.py, ops/functions.py and ops/logic.py."""

import math

import numpy as np

from flamert import dtypes
from flamert.testing import Case

rng = np.random.default_rng(0)
FLOATS = (dtypes.float64, dtypes.float32, dtypes.float16, dtypes.bfloat16)
INTEGERS = (np.int8, np.uint8, np.int16, np.int32, np.int64, np.uint64)


def f32(*shape, low=-2.0, high=2.0):
    return rng.uniform(low, high, shape).astype(np.float32)


def ints(dtype, *shape, low=None, high=100):
    low = (0 if np.dtype(dtype).kind == "u" else -100) if low is None else low
    return rng.integers(low, high, shape).astype(dtype)


def bools(*shape):
    return rng.integers(0, 2, shape).astype(np.bool_)


PAIRS = [((3, 4), (3, 4)), ((3, 1), (1, 4)), ((2, 3, 4), (4,)), ((), (2, 3)), ((0, 3), (1, 3))]
math_erf = np.vectorize(math.erf, otypes=[np.float64])
SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 0.5, 1.5, 2.5, -2.5], np.float32)


def exact(function, dtype):
    """The oracle computed in Python's own integers, then wrapped."""

    def oracle(*xs, **attrs):
        wrap = (1 << np.dtype(dtype).itemsize * 8) - 1
        results = np.vectorize(lambda *v: function(*map(int, v)) & wrap, otypes=[np.uint64])(*xs)
        return results.astype(dtype)

    return oracle


def quotient(a, b):
    q = abs(a) // abs(b)
    return q if (a < 0) == (b < 0) else -q


def power(a, b):
    return a**b if b >= 0 else (a ** (-b) if abs(a) == 1 else 0)


BINARY = [
    ("add", np.add, {}),
    ("sub", np.subtract, {}),
    ("mul", np.multiply, {}),
    ("div", np.divide, {"low": 0.5}),
    ("mod", lambda a, b: a - np.floor(a / b) * b, {"low": 0.5}),
    ("fmod", lambda a, b: a - np.trunc(a / b) * b, {"low": 0.5}),
    ("maximum", lambda a, b: np.where(a > b, a, b), {}),
    ("minimum", lambda a, b: np.where(a < b, a, b), {}),
    ("less", np.less, {}),
    ("less_equal", np.less_equal, {}),
    ("greater", np.greater, {}),
    ("greater_equal", np.greater_equal, {}),
    ("equal", np.equal, {}),
    ("not_equal", np.not_equal, {}),
]
REMAINDER = {"mod": (4e-3, 4e-2), "fmod": (4e-3, 4e-2)}

UNARY = [
    ("neg", np.negative, -2, 2),
    ("abs", np.abs, -2, 2),
    ("sign", np.sign, -2, 2),
    ("floor", np.floor, -4, 4),
    ("ceil", np.ceil, -4, 4),
    ("round", np.round, -4, 4),
    ("trunc", np.trunc, -4, 4),
    ("sqrt", lambda x: x**0.5, 0, 4),
    ("reciprocal", lambda x: 1 / x, 0.5, 4),
    ("exp", np.exp, -4, 4),
    ("expm1", np.expm1, -4, 4),
    ("log", np.log, 0.25, 9),
    ("log1p", np.log1p, -0.75, 9),
    ("sin", np.sin, -7, 7),
    ("cos", np.cos, -7, 7),
    ("tan", np.tan, -1.5, 1.5),
    ("asin", np.arcsin, -1, 1),
    ("acos", np.arccos, -1, 1),
    ("atan", np.arctan, -4, 4),
    ("sinh", np.sinh, -3, 3),
    ("cosh", np.cosh, -3, 3),
    ("tanh", np.tanh, -3, 3),
    ("asinh", np.arcsinh, -4, 4),
    ("acosh", np.arccosh, 1, 9),
    ("atanh", np.arctanh, -0.9, 0.9),
    ("erf", math_erf, -4.5, 4.5),
]

CASES = [
    *[
        Case(name, [f32(*a), f32(*b, **domain)], {}, oracle, FLOATS, tolerance=REMAINDER.get(name))
        for name, oracle, domain in BINARY
        for a, b in PAIRS
    ],
    *[Case(name, [f32(*s, low=lo, high=hi)], {}, f, FLOATS) for name, f, lo, hi in UNARY for s in ((3, 5), (), (2, 0))],
    *[
        Case(name, [ints(t, 40), ints(t, 40, low=1)], {}, exact(f, t), name=f"{name}-{np.dtype(t).name}")
        for t in INTEGERS
        for name, f in (
            ("add", int.__add__),
            ("sub", int.__sub__),
            ("mul", int.__mul__),
            ("div", quotient),
            ("mod", int.__mod__),
            ("fmod", lambda a, b: a - quotient(a, b) * b),
            ("maximum", max),
            ("minimum", min),
            ("bitwise_and", int.__and__),
            ("bitwise_or", int.__or__),
            ("bitwise_xor", int.__xor__),
        )
    ],
    *[
        Case("div", [ints(t, 40), ints(t, 40, low=-9, high=0)], {}, exact(quotient, t), name="negative divisor")
        for t in (np.int8, np.int32, np.int64)
    ],
    *[
        Case(name, [ints(t, 40), ints(t, 40, low=-9, high=0)], {}, exact(f, t), name="negative divisor")
        for t in (np.int8, np.int64)
        for name, f in (("mod", int.__mod__), ("fmod", lambda a, b: a - quotient(a, b) * b))
    ],
    *[
        Case(name, [ints(t, 12)], {}, exact(f, t), name=f"{name}-{np.dtype(t).name}")
        for t in (np.int8, np.int32, np.int64)
        for name, f in (
            ("neg", int.__neg__),
            ("abs", abs),
            ("sign", lambda v: (v > 0) - (v < 0)),
            ("bitwise_not", int.__invert__),
        )
    ],
    Case("bitwise_not", [ints(np.uint16, 2, 3)], {}, lambda x: 65535 - x),
    *[
        Case("shift_left", [ints(t, 3, 1), ints(t, 1, 4, low=0, high=8)], {}, exact(int.__lshift__, t))
        for t in (np.uint8, np.uint32, np.int16, np.int64)
    ],
    *[
        Case("shift_right", [ints(t, 3, 1), ints(t, 1, 4, low=0, high=8)], {}, exact(int.__rshift__, t))
        for t in (np.uint8, np.uint32, np.int16, np.int64)
    ],
    Case("shift_left", [np.int32([-5, 5, 5]), np.int32([40, 32, -1])], {}, np.int32([0, 0, 0]), name="too far"),
    Case("shift_right", [np.int32([-5, 5, -5]), np.int32([40, 32, -1])], {}, np.int32([-1, 0, -1]), name="too far"),
    *[Case("pow", [f32(*a, low=0.25), f32(*b)], {}, np.power, FLOATS) for a, b in PAIRS],
    # With respect to the exponent of a negative number there is no derivative.
    Case("pow", [f32(5), np.float32([2, 3, -1, 0, -2])], {}, np.power, FLOATS, name="whole exponents", gradient=False),
    *[Case("pow", [ints(t, 9, low=0, high=6), ints(t, 9, low=0, high=4)], {}, exact(power, t)) for t in INTEGERS],
    Case("pow", [np.int32([1, -1, -1, 2, 0]), np.int32([-3, -2, -3, -1, -2])], {}, np.int32([1, 1, -1, 0, 0])),
    *[
        Case(name, [bools(2, 1, 5), bools(3, 1)], {}, f)
        for name, f in (
            ("logical_and", lambda a, b: a & b),
            ("logical_or", lambda a, b: a | b),
            ("logical_xor", lambda a, b: a ^ b),
            ("equal", lambda a, b: ~(a ^ b)),
        )
    ],
    Case("logical_not", [bools(2, 3)], {}, lambda x: x ^ True),
    Case("isnan", [SPECIAL], {}, lambda x: x != x, FLOATS),
    Case("isinf", [SPECIAL], {}, lambda x: abs(x) == np.inf, FLOATS),
    # What is infinite, or no number, has no differences.
    *[
        Case(op, [SPECIAL, *more], {}, oracle, FLOATS, name=name, gradient=False)
        for op, more, oracle, name in (
            ("maximum", [np.float32(0)], np.float32([0, 0, 1, 0, np.inf, 0, np.nan, 0.5, 1.5, 2.5, 0]), "special"),
            ("round", [], np.float32([0, 0, 1, -1, np.inf, -np.inf, np.nan, 0, 2, 2, -2]), "halves"),
            ("erf", [], math_erf, "special"),
        )
    ],
    Case("erf", [f32(3, 20000, low=-5, high=5)], {}, math_erf, (dtypes.float32, dtypes.float64), (5e-7, 1e-12), name="blocks"),
    *[
        Case("where", [bools(*c), f32(*x), f32(*y)], {}, lambda c, x, y: x * c + y * ~c, FLOATS)
        for c, x, y in (((3, 4), (3, 4), (3, 4)), ((3, 1), (4,), ()), ((), (2, 3), (3,)), ((0,), (1,), ()))
    ],
    Case("where", [bools(4), ints(np.int64, 3, 1), ints(np.int64, 4)], {}, lambda c, x, y: x * c + y * ~c),
    Case("clip", [f32(3, 5), np.float32(-0.5), np.float32(0.75)], {}, np.clip, FLOATS),
    Case("clip", [f32(3, 5), None, np.float32(0.75)], {}, lambda x, low, high: np.minimum(x, high), FLOATS, name="high"),
    Case("clip", [f32(3, 5), np.float32(0.25)], {}, lambda x, low: np.maximum(x, low), FLOATS, name="low"),
    Case("clip", [f32(3, 5), np.float32(2), np.float32(-1)], {}, lambda x, low, high: np.full_like(x, high), name="crossed"),
    Case("clip", [ints(np.int8, 20), np.int8(-5), np.int8(5)], {}, np.clip),
]
