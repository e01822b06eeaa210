"""Rows for ops/cast.py; ops/narrow.py has tests of its own."""

import numpy as np

from flamert import dtypes
from flamert.testing import Case

HOLD_3 = sorted(dtypes.ALL - {dtypes.string, dtypes.int2, dtypes.float8_e8m0fnu, dtypes.bool_} - dtypes.COMPLEX, key=str)
HOLD_2 = sorted(dtypes.NARROW_FLOAT | dtypes.NARROW_INTEGER, key=str)
FLOAT8 = sorted(dtypes.FLOAT8 - {dtypes.float8_e8m0fnu}, key=str)
LARGEST = {"float8_e4m3fn": 448.0, "float8_e4m3fnuz": 240.0, "float8_e5m2": 57344.0, "float8_e5m2fnuz": 57344.0}
NAN = float("nan")


def typed(values, dtype):
    return np.array(values, np.float32).astype(dtype)


def out(to, *values):
    return np.array(values).astype(to)


CASES = [
    *[
        Case("cast", [typed([0, 1, 2, 3], s)], {"to": t}, typed([0, 1, 2, 3], t), name=f"{s}-{t}")
        for s in HOLD_3
        for t in HOLD_3
        if s != dtypes.float32
    ],
    *[Case("cast", [typed([1, 1], s)], {"to": t}, typed([1, 1], t), name=f"{s}-{t}") for s in HOLD_2 for t in HOLD_2],
    *[Case("cast", [typed([0, 1, 0, 3], s)], {"to": dtypes.bool_}, np.array([0, 1, 0, 1], np.bool_)) for s in HOLD_3],
    *[Case("cast", [np.array([True, False])], {"to": t}, typed([1, 0], t), name=f"bool-{t}") for t in HOLD_3],
    Case("cast", [np.array([NAN, -0.0, 1e-9], np.float64)], {"to": dtypes.bool_}, np.array([True, False, True])),
    Case("cast", [np.array([-2.7, 2.7, -0.5], np.float64)], {"to": dtypes.int32}, np.int32([-2, 2, 0]), name="toward 0"),
    Case("cast", [np.array([200, -1, 300], np.int16)], {"to": dtypes.int8}, np.int8([-56, -1, 44]), name="wraps"),
    Case("cast", [np.array([200, -1, 9], np.int16)], {"to": dtypes.int4}, typed([-8, -1, -7], dtypes.int4), name="wraps"),
    Case("cast", [typed([3, 2, 1], dtypes.uint2)], {"to": dtypes.int2}, typed([-1, -2, 1], dtypes.int2), name="wraps"),
    Case("cast", [typed([-1, -2], dtypes.int2)], {"to": dtypes.uint8}, np.uint8([255, 254]), name="wraps"),
    Case("cast", [np.float64([1e5, -1e5])], {"to": dtypes.float16}, np.float16([np.inf, -np.inf]), name="overflows"),
    *[
        Case(
            "cast",
            [np.float64([1e6, -1e6, np.inf, 1.0])],
            {"to": t},
            out(t, LARGEST[str(t)], -LARGEST[str(t)], LARGEST[str(t)], 1),
        )
        for t in FLOAT8
    ],
    Case("cast", [np.float64([0.3, -9.0])], {"to": dtypes.float4_e2m1fn}, typed([0.5, -6], dtypes.float4_e2m1fn)),
    *[
        Case("cast", [np.float64([1.25, 3.0])], {"to": dtypes.float8_e8m0fnu, "round_mode": m}, typed(v, dtypes.float8_e8m0fnu))
        for m, v in (("up", [2, 4]), ("down", [1, 2]), ("nearest", [1, 4]))
    ],
    Case("bit_cast", [np.float64([1.0, -0.0])], {"to": dtypes.int64}, np.int64([0x3FF << 52, -(1 << 63)])),
    Case("bit_cast", [np.uint16([0x3F80])], {"to": dtypes.bfloat16}, typed([1.0], dtypes.bfloat16)),
    Case("bit_cast", [np.uint8([[0x38, 0xFF]])], {"to": dtypes.int8}, np.int8([[0x38, -1]])),
    Case(
        "cast_many",
        [np.float32([[1.0001, -2.5]]), np.float32(3.7), np.float32([])],
        {"to": dtypes.bfloat16},
        lambda *xs, to: tuple(np.asarray(x, np.float32).astype(to) for x in xs),
        name="halves",
    ),
    Case("cast_many", [np.float32([1.5, -2]), np.float32(3)], {"to": dtypes.float64}, lambda *xs, to: xs),
]
