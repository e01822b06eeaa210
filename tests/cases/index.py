"""Rows for ops/index.py."""

import numpy as np

from flamert.testing import Case
from tests.cases.elementwise import FLOATS

x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
i64 = np.int64


def along(x, indices, axis):
    """One element of x for each index: the definition, index by index."""
    result = np.empty(indices.shape, x.dtype)
    for at in np.ndindex(indices.shape):
        source = list(at)
        source[axis] = indices[at]
        result[at] = x[tuple(source)]
    return result


def by_coordinates(x, indices, batch_dims=0):
    rows = indices.reshape(-1, indices.shape[-1])
    result = [
        x[(*np.unravel_index(n, indices.shape[:-1])[:batch_dims], *row)] for n, row in enumerate(map(tuple, rows.tolist()))
    ]
    return np.array(result).reshape(indices.shape[:-1] + x.shape[batch_dims + indices.shape[-1] :])


def take(x, indices, axis):
    return np.moveaxis(np.array([np.moveaxis(x, axis, 0)[i] for i in indices.reshape(-1)]), 0, axis)


def reversed_rows(x, lengths, *, time_axis, batch_axis):
    result = x.copy()
    for b, n in enumerate(lengths):
        np.moveaxis(result, (time_axis, batch_axis), (0, 1))[:n, b] = np.moveaxis(x, (time_axis, batch_axis), (0, 1))[:n, b][
            ::-1
        ]
    return result


def triangle(x, k=0, upper=True):
    return np.triu(x, k) if upper else np.tril(x, k)


def hot(indices, values, *, depth, axis):
    result = np.full((*indices.shape, depth), values[0])
    for at in np.ndindex(indices.shape):
        if -depth <= indices[at] < depth:
            result[at][indices[at]] = values[1]
    return np.moveaxis(result, -1, axis)


CASES = [
    Case("gather", [x, np.array([2, -1, 0, 2])], {"axis": 1}, take, FLOATS),
    Case("gather", [x, np.array([1, -2], np.int32)], {"axis": 0}, take),
    Case("gather", [x, np.array([[0, 1], [2, 3]])], {"axis": 2}, lambda x, i, axis: x[:, :, i], FLOATS),
    Case("gather", [x, i64(1)], {"axis": 1}, lambda x, i, axis: x[:, i]),
    Case("gather", [x, np.zeros((0, 2), i64)], {"axis": 1}, lambda x, i, axis: x[:, i]),
    Case("gather_elements", [x, np.array([[[0, -1, 2, 1]], [[2, 2, 0, -3]]])], {"axis": 1}, along, FLOATS),
    Case("gather_elements", [x, np.array([[[1]], [[-4]]], np.int32)], {"axis": 2}, along),
    Case("gather_nd", [x, np.array([[0, 2], [-1, 1]])], {}, by_coordinates, FLOATS),
    Case("gather_nd", [x, np.array([[[0, 3]], [[-1, 1]]])], {"batch_dims": 1}, by_coordinates, FLOATS),
    Case("gather_nd", [x, np.array([1])], {}, lambda x, i, **_: x[1]),
    Case("gather_nd", [x, np.array([[[0], [1], [2]], [[3], [0], [-1]]])], {"batch_dims": 2}, by_coordinates),
    Case("reverse_sequence", [x, np.array([0, 3, 2, 1])], {"time_axis": 1, "batch_axis": 2}, reversed_rows, FLOATS),
    Case("reverse_sequence", [x, np.array([1, 3, 0])], {"time_axis": 2, "batch_axis": 1}, reversed_rows),
    Case("trilu", [x], {}, triangle, FLOATS),
    Case("trilu", [x], {"k": -1, "upper": False}, triangle),
    Case("trilu", [x], {"k": 2, "upper": True}, triangle),
    Case("trilu", [x], {"k": 99, "upper": True}, triangle),
    Case("trilu", [np.zeros((0, 3), np.float32)], {}, triangle),
    Case("one_hot", [np.array([0, -1, 5, -6]), np.array([2, 3], np.float32)], {"depth": 5, "axis": 0}, hot, FLOATS),
    Case("one_hot", [np.array([[1], [2]]), np.array([2, 3])], {"depth": 3, "axis": 1}, hot),
    Case("one_hot", [i64(2), np.array([False, True])], {"depth": 4, "axis": 0}, hot),
]
