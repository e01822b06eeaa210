"""Rows for ops/order.py."""

import numpy as np

from flamert.testing import Case
from tests.cases.elementwise import FLOATS, f32

ties = np.array([[3, 1, 3, 2], [0, 0, 0, 0], [-1, 5, 5, -1]], np.float32)
ints = np.array([[-128, 127, -128], [5, 5, 6]], np.int8)
bytes_ = np.array([[250, 0, 250], [0, 1, 255]], np.uint8)


def search(find):
    def oracle(x, axis, keepdims=False, select_last_index=False):
        if select_last_index:
            return x.shape[axis] - 1 - find(np.flip(x, axis), axis, keepdims=keepdims)
        return find(x, axis, keepdims=keepdims)

    return oracle


def top_k(x, k, axis=-1, largest=True):
    """Python's sort of (value, index), row by row."""
    rows = np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])
    sign = -1 if largest else 1
    order = [[i for _, i in sorted((sign * float(v), i) for i, v in enumerate(row))][:k] for row in rows]
    shape = (*np.moveaxis(x, axis, -1).shape[:-1], k)
    indices = np.moveaxis(np.array(order, np.int64).reshape(shape), -1, axis)
    return np.take_along_axis(x, indices, axis), indices


def scan(run, start):
    def oracle(x, axis, exclusive=False, reverse=False):
        rows = np.moveaxis(x, axis, -1)
        rows = rows[..., ::-1] if reverse else rows
        y = run(rows, -1)
        if exclusive:
            y = np.concatenate([np.full_like(y[..., :1], start), y[..., :-1]], -1)
        return np.moveaxis(y[..., ::-1] if reverse else y, -1, axis)

    return oracle


def linear_scan(a, b, axis, reverse=False):
    a, b = (np.moveaxis(v, axis, 0)[:: -1 if reverse else 1] for v in (a, b))
    y = np.zeros_like(b)
    for i in range(len(b)):
        y[i] = a[i] * (y[i - 1] if i else 0) + b[i]
    return np.moveaxis(y[:: -1 if reverse else 1], 0, axis)


SCANS = [{"axis": a, "exclusive": e, "reverse": r} for a in (0, 1) for e in (False, True) for r in (False, True)]

CASES = [
    *[
        Case(f"arg{name}", [x], {"axis": axis, "keepdims": keep, "select_last_index": last}, search(find), FLOATS[i:2])
        for name, find in (("max", np.argmax), ("min", np.argmin))
        for i, (x, axis) in enumerate([(ties, 1), (ties, 0), (ints, 1)])
        for keep, last in ((True, False), (False, True))
    ],
    Case("argmax", [ties], {"axis": 1}, np.array([0, 0, 1]), FLOATS, name="ties"),
    Case("hardmax", [ties], {"axis": 1}, np.eye(4)[[0, 0, 1]], FLOATS, gradient=False, name="ties"),
    Case("hardmax", [f32(3, 4)], {"axis": 0}, lambda x, axis: np.eye(3)[:, x.argmax(axis)]),
    Case("hardmax", [f32(0, 3)], {"axis": 0}, lambda x, axis: x),
    *[
        Case("top_k", [x], {"k": k, "axis": axis, "largest": big}, top_k, FLOATS, gradient=x is not ties, name=name)
        for x, name in ((ties, "ties"), (f32(3, 4), ""))
        for k, axis in ((3, 1), (2, 0), (1, -1))
        for big in (True, False)
    ],
    *[Case("top_k", [x], {"k": 2, "largest": big}, top_k, name=f"{x.dtype}") for x in (ints, bytes_) for big in (True, False)],
    Case("top_k", [f32(2, 3)], {"k": 0}, top_k),
    *[Case("cumsum", [f32(3, 4)], attrs, scan(np.cumsum, 0), FLOATS) for attrs in SCANS],
    *[Case("cumprod", [f32(3, 4)], attrs, scan(np.cumprod, 1), FLOATS) for attrs in SCANS],
    *[
        Case("cumprod", [np.array([[2, 0, 3, 0, 5]], np.float32)], {**a, "axis": 1}, scan(np.cumprod, 1), name="zeros")
        for a in SCANS[:4]
    ],
    Case("cumsum", [ints], {"axis": 1}, np.array([[-128, -1, 127], [5, 10, 16]], np.int8), name="wraps"),
    Case("cumsum", [f32(2, 0)], {"axis": 1, "exclusive": True}, lambda x, **_: x),
    *[
        Case("linear_scan", [f32(3, n), f32(3, n)], {"axis": a, "reverse": r}, linear_scan, FLOATS)
        for n, a in ((7, 1), (4, 0), (8, 1))
        for r in (False, True)
    ],
    Case("linear_scan", [f32(2, 0), f32(2, 0)], {"axis": 1}, linear_scan),
]
