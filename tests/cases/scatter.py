"""Rows for ops/scatter.py."""

import numpy as np

from flamert.testing import Case
from tests.cases.elementwise import FLOATS

x = np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 4
ints = np.arange(6).reshape(2, 3)
COMBINE = {
    "none": lambda old, new: new,
    "add": lambda old, new: old + new,
    "mul": lambda old, new: old * new,
    "min": min,
    "max": max,
}


def elements(x, indices, updates, *, axis, reduction="none"):
    """The definition, index by index."""
    result = x.copy()
    for at in np.ndindex(indices.shape):
        to = list(at)
        to[axis] = indices[at]
        result[tuple(to)] = COMBINE[reduction](result[tuple(to)], updates[at])
    return result


def blocks(x, indices, updates, *, reduction="none"):
    result = x.copy()
    for at in np.ndindex(indices.shape[:-1]):
        to = tuple(indices[at])
        for within in np.ndindex(x.shape[len(to) :]):
            result[to + within] = COMBINE[reduction](result[to + within], updates[at + within])
    return result


def cached(cache, update, write_indices=None, *, axis, circular=False):
    result = cache.copy()
    for b in range(len(cache)):
        for i in range(update.shape[axis]):
            to = i + (0 if write_indices is None else write_indices[b])
            np.moveaxis(result[b], axis - 1, 0)[to % cache.shape[axis]] = np.moveaxis(update[b], axis - 1, 0)[i]
    return result


some = np.array([[[2, 0, -1]], [[0, 1, 2]]])
again = np.array([[[2, 0, -1], [2, 0, 1]], [[0, 0, 0], [0, -3, 2]]])
values = np.linspace(-2, 3, 12, dtype=np.float32).reshape(2, 2, 3)
pairs = np.array([[[0, 1], [1, -1]], [[0, 1], [-2, 0]]])
rows = np.linspace(-2, 3, 16, dtype=np.float32).reshape(2, 2, 4)
cache = np.arange(40, dtype=np.float32).reshape(2, 5, 4)
update = -np.arange(16, dtype=np.float32).reshape(2, 2, 4)

CASES = [
    Case("scatter_elements", [x, some, values[:, :1]], {"axis": 1}, elements, FLOATS),
    Case("scatter_elements", [x, some.astype(np.int32), values[:, :1]], {"axis": 2}, elements),
    *[
        Case("scatter_elements", [x, again, values], {"axis": 1, "reduction": how}, elements, FLOATS)
        for how in ("none", "add", "mul", "min", "max")
    ],
    Case("scatter_elements", [x, again, values * (values > 0)], {"axis": 1, "reduction": "mul"}, elements, name="zeros"),
    Case("scatter_elements", [ints, np.array([[1, 1]]), np.array([[5, 6]])], {"axis": 1, "reduction": "add"}, elements),
    Case("scatter_elements", [x, np.zeros((2, 0, 4), np.int64), np.zeros((2, 0, 4), np.float32)], {"axis": 1}, elements),
    Case("scatter_nd", [x, pairs[0], rows[0]], {}, blocks, FLOATS),
    Case("scatter_nd", [x, np.array([[1]]), x[:1]], {}, blocks),
    *[Case("scatter_nd", [x, pairs, rows], {"reduction": how}, blocks, FLOATS) for how in ("none", "add", "mul", "min", "max")],
    Case("scatter_nd", [ints, np.array([[1, 1], [-1, 1]]), np.array([5, 6])], {"reduction": "add"}, blocks),
    Case("tensor_scatter", [cache, update, np.array([3, 0])], {"axis": 1}, cached, FLOATS),
    Case("tensor_scatter", [cache, update, np.array([4, 9])], {"axis": 1, "circular": True}, cached),
    Case("tensor_scatter", [cache, update[:, :, :]], {"axis": 1}, cached),
    Case("tensor_scatter", [x, x[:, :, :2] * 2, np.array([1, 2])], {"axis": 2}, cached),
]
