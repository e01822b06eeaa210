"""Rows for ops/shape.py."""

import numpy as np

from flamert import dtypes
from flamert.testing import Case
from tests.cases.elementwise import FLOATS

x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
ints = np.arange(6).reshape(2, 3)
scalar = np.float32(3)
empty = np.zeros((0, 3), np.float32)


def unsliced(x, *, shape, starts, steps):
    result = np.zeros(shape, x.dtype)
    for at in np.ndindex(x.shape):
        result[tuple(s + i * k for s, i, k in zip(starts, at, steps, strict=True))] = x[at]
    return result


def padded(x, value=None, *, pads):
    pairs = list(zip(pads, pads[x.ndim :], strict=False))
    return np.pad(x, pairs, constant_values=0 if value is None else value) if x.ndim else x


def window(starts, sizes, steps):
    return {"starts": starts, "sizes": sizes, "steps": steps}


CASES = [
    Case("reshape", [x], {"shape": (4, 6)}, lambda x, shape: x.reshape(shape), FLOATS),
    Case("reshape", [scalar], {"shape": (1, 1)}, lambda x, shape: x.reshape(shape)),
    Case("reshape", [empty], {"shape": (5, 0, 2)}, lambda x, shape: x.reshape(shape)),
    Case("transpose", [x], {"perm": (2, 0, 1)}, lambda x, perm: x.transpose(perm), FLOATS),
    Case("transpose", [scalar], {"perm": ()}, lambda x, perm: x),
    Case("expand", [x[:, :1]], {"shape": (5, 2, 3, 4)}, lambda x, shape: x * np.ones(shape), FLOATS),
    Case("expand", [scalar], {"shape": (2, 3)}, lambda x, shape: np.full(shape, x)),
    Case("expand", [scalar], {"shape": (2, 0)}, lambda x, shape: np.full(shape, x)),
    Case("slice", [x], window((1, 0, 1), (1, 2, 2), (1, 2, 2)), lambda x, **_: x[1:, ::2, 1::2], FLOATS),
    Case("slice", [x], window((1, 2, 3), (2, 3, 2), (-1, -1, -3)), lambda x, **_: x[::-1, ::-1, ::-3]),
    Case("slice", [x], window((0, 0, 0), (2, 0, 4), (1, 1, 1)), lambda x, **_: x[:, :0]),
    Case("unslice", [x], {"shape": (5, 3, 9), "starts": (3, 2, 1), "steps": (-2, -1, 2)}, unsliced, FLOATS),
    Case("unslice", [x], {"shape": (2, 3, 4), "starts": (0, 0, 0), "steps": (1, 1, 1)}, unsliced),
    Case("unslice", [empty], {"shape": (2, 3), "starts": (0, 0), "steps": (1, 1)}, unsliced),
    Case("concat", [x, x[:1], x[:0]], {"axis": 0}, lambda *xs, axis: np.concatenate(xs, axis), FLOATS),
    Case("concat", [x, x + 1], {"axis": 2}, lambda *xs, axis: np.concatenate(xs, axis)),
    Case("tile", [x], {"repeats": (2, 1, 3)}, lambda x, repeats: np.tile(x, repeats), FLOATS),
    Case("tile", [x], {"repeats": (2, 0, 1)}, lambda x, repeats: np.tile(x, repeats)),
    Case("pad", [x], {"pads": (1, 0, 2, 0, 1, 3)}, padded, FLOATS),
    Case("pad", [x, np.float32(7)], {"pads": (1, 0, 2, 0, 1, 3)}, padded, FLOATS),
    Case("pad", [empty, np.float32(7)], {"pads": (1, 0, 2, 0)}, padded),
    Case("pad", [ints, np.int64(-1)], {"pads": (0, 1, 0, 0)}, padded),
    Case("pad", [ints.astype(dtypes.int4)], {"pads": (0, 1, 0, 0)}, lambda x, pads: np.pad(x.astype(int), ((0, 0), (1, 0)))),
    Case("pad", [scalar], {"pads": ()}, padded),
    Case("repeat", [x], {"repeats": (2, 1, 3)}, lambda x, repeats: x.repeat(2, 0).repeat(3, 2)),
]
