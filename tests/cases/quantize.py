"""Rows for ops/quantize.py."""

import numpy as np

from flamert import dtypes
from flamert.testing import Case
from tests.cases.elementwise import f32, ints

X = f32(3, 8, low=-40, high=40)
RANGES = {
    dtypes.uint8: (0, 255),
    dtypes.int8: (-128, 127),
    dtypes.uint16: (0, 65535),
    dtypes.int16: (-32768, 32767),
    dtypes.uint4: (0, 15),
    dtypes.int4: (-8, 7),
    dtypes.uint2: (0, 3),
    dtypes.int2: (-2, 1),
}


def per_element(s, shape, axis, block_size):
    """A scale or zero point for every element of an array."""
    s = np.asarray(s, np.float64)
    if block_size:
        return np.repeat(s, block_size, axis)[tuple(slice(0, d) for d in shape)]
    return np.broadcast_to(s.reshape([-1 if i == axis else 1 for i in range(len(shape))]) if s.ndim else s, shape)


def quantized(x, scale, zero=None, *, to, axis=None, block_size=0, saturate=True):
    y = x.astype(np.float32) / per_element(scale, x.shape, axis, block_size).astype(np.float32)
    z = 0 if zero is None else per_element(zero.astype(np.float32), x.shape, axis, block_size)
    if to in RANGES:
        return np.clip(np.round(y) + z, *RANGES[to]).astype(to)
    return np.clip(y + z, -float(LARGEST[to]), float(LARGEST[to])).astype(np.float32).astype(to)


LARGEST = {dtypes.float8_e4m3fn: 448, dtypes.float8_e5m2: 57344, dtypes.float4_e2m1fn: 6, dtypes.float6_e3m2fn: 28}


def dequantized(x, scale, zero=None, *, to, axis=None, block_size=0):
    z = 0 if zero is None else per_element(zero.astype(np.float32), x.shape, axis, block_size)
    return (x.astype(np.float64) - z) * per_element(scale, x.shape, axis, block_size)


def dynamic(x):
    low, high = min(x.min(initial=0), 0), max(x.max(initial=0), 0)
    scale = np.float32((high - low) / 255) if high > low else np.float32(1)
    zero = np.uint8(np.clip(np.round(-low / scale), 0, 255))
    return np.clip(np.round(x.astype(np.float32) / scale) + zero, 0, 255).astype(np.uint8), scale, zero


def integer_product(a, b, a_zero=0, b_zero=0):
    return (a.astype(np.int64) - a_zero) @ (b.astype(np.int64) - b_zero)


def integer_conv(x, w, x_zero=0, w_zero=0, *, strides, pads, dilations, group=1):
    x, w = np.pad(x.astype(np.int64) - x_zero, [(0, 0), (0, 0), (1, 1), (1, 1)]), w.astype(np.int64) - w_zero
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(2, 3))
    return np.einsum("nchwij,mcij->nmhw", windows, w)


def scales(*shape):
    return f32(*shape, low=0.25, high=2)


GEOMETRY = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1)}

CASES = [
    *[Case("quantize", [X, np.float32(0.5)], {"to": t}, quantized, name=f"{t}") for t in (*RANGES, *LARGEST)],
    *[
        Case(
            "quantize",
            [X, scales(8), ints(np.int64, 8, low=0, high=2).astype(t)],
            {"to": t, "axis": 1},
            quantized,
            name=f"{t}-axis",
        )
        for t in (dtypes.uint8, dtypes.int8, dtypes.int4, dtypes.float8_e4m3fn)
    ],
    *[
        Case("quantize", [X, scales(3, n), ints(np.uint8, 3, n)], {"to": dtypes.uint8, "axis": 1, "block_size": b}, quantized)
        for n, b in ((2, 4), (3, 3), (1, 8))
    ],
    Case("quantize", [f32(2, 0), np.float32(1)], {"to": dtypes.int8}, quantized),
    *[
        Case(
            "dequantize", [ints(np.int64, 3, 8, low=0, high=2).astype(t), np.float32(0.5)], {"to": dtypes.float32}, dequantized
        )
        for t in (*RANGES, *LARGEST, dtypes.int32)
    ],
    *[
        Case(
            "dequantize",
            [ints(np.int8, 3, 8), scales(3), ints(np.int8, 3)],
            {"to": t, "axis": 0},
            dequantized,
            name=f"axis-{t}",
        )
        for t in (dtypes.float32, dtypes.float16, dtypes.bfloat16)
    ],
    *[
        Case(
            "dequantize",
            [ints(np.int8, 3, 8), scales(3, n), ints(np.int8, 3, n)],
            {"to": dtypes.float32, "axis": 1, "block_size": b},
            dequantized,
        )
        for n, b in ((2, 4), (3, 3))
    ],
    Case(
        "requantize",
        [ints(np.int32, 3, 4), scales(4), np.int8(3)],
        {"to": dtypes.int8},
        lambda x, f, zero, to: np.clip(np.round(x * f.astype(np.float32)) + zero, -128, 127).astype(to),
    ),
    *[
        Case(
            "to_code",
            [X, np.array(3).astype(t)],
            {"to": t},
            lambda y, zero, to, saturate=True: quantized(y, 1, np.asarray(zero), to=to),
            name=f"{t}",
        )
        for t in (dtypes.uint8, dtypes.int16, dtypes.int4, dtypes.float8_e4m3fn)
    ],
    Case("from_code", [ints(np.uint8, 3, 4), ints(np.uint8, 4)], {"to": dtypes.float32}, lambda x, z, to: x.astype(to) - z),
    Case("from_code", [np.int32([2**31 - 1]), np.int32([2**31 - 3])], {"to": dtypes.float32}, np.float32([2]), name="exact"),
    Case("from_code", [np.float32([1.5, -2]).astype(dtypes.float8_e5m2)], {"to": dtypes.float64}, np.float64([1.5, -2])),
    Case("whole", [np.float64([-3, 2**31 - 1])], {"wraps": False}, np.int32([-3, 2**31 - 1])),
    Case("whole", [np.float64([2**31, -(2**31) - 1])], {"wraps": True}, np.int32([-(2**31), 2**31 - 1])),
    *[Case("dynamic_quantize", [x], {}, dynamic) for x in (X, np.abs(X), -np.abs(X))],
    # The scale jumps to 1 where all is 0.
    Case("dynamic_quantize", [np.zeros((2, 2), np.float32)], {}, dynamic, gradient=False),
    *[
        Case("matmul_integer", [ints(a, 2, 3, 4), ints(b, 4, 5)], {}, integer_product)
        for a in (np.int8, np.uint8)
        for b in (np.int8, np.uint8)
    ],
    Case(
        "matmul_integer",
        [ints(np.uint8, 3, 300), ints(np.int8, 300, 5), ints(np.uint8, 3, 1), ints(np.int8, 5)],
        {},
        integer_product,
    ),
    Case("conv_integer", [ints(np.uint8, 2, 3, 5, 5), ints(np.int8, 4, 3, 3, 3)], GEOMETRY, integer_conv),
    Case(
        "conv_integer",
        [ints(np.uint8, 2, 3, 5, 5), ints(np.int8, 4, 3, 3, 3), np.uint8(7), ints(np.int8, 4, 1, 1, 1)],
        GEOMETRY,
        integer_conv,
        name="zeros",
    ),
]
