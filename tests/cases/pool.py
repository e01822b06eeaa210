"""Rows for ops/pool.py."""

import itertools
import math

import numpy as np

from flamert.testing import Case
from tests.cases.conv import window_offsets
from tests.cases.elementwise import FLOATS, f32


def each_window(x, kernel, strides, pads, dilations):
    """(window, [(place in space, inside x?)]) for every window."""
    n = x.ndim - 2
    spatial = [
        (d + pads[i] + pads[n + i] - (kernel[i] - 1) * dilations[i] - 1) // strides[i] + 1 for i, d in enumerate(x.shape[2:])
    ]
    for o in np.ndindex(*spatial):
        at = [
            tuple(o[i] * strides[i] - pads[i] + a for i, a in enumerate(offset))
            for _, offset in window_offsets(kernel, dilations)
        ]
        yield o, [(p, all(0 <= q < d for q, d in zip(p, x.shape[2:], strict=True))) for p in at]


def pooled(x, join, kernel, strides, pads, dilations):
    results = [(o, join(at)) for o, at in each_window(x, kernel, strides, pads, dilations)]
    shape = tuple(np.max([o for o, _ in results], 0) + 1)
    y = np.zeros((*x.shape[:2], *shape), x.dtype)
    for o, value in results:
        y[(slice(None), slice(None), *o)] = value
    return y


def inside(x, at):
    return np.stack([x[(slice(None), slice(None), *p)] for p, valid in at if valid])


def max_pool(x, **windows):
    return pooled(x, lambda at: inside(x, at).max(0), **windows)


def max_pool_with_indices(x, column_major=False, **windows):
    y, places = max_pool(x, **windows), None
    spatial = x.shape[2:]
    order = [int(np.prod(spatial[:i] if column_major else spatial[i + 1 :])) for i in range(len(spatial))]

    def place(at):
        valid = [np.dot(p, order) for p, v in at if v]
        return np.array(valid)[inside(x, at).argmax(0)]

    places = pooled(np.zeros(x.shape, np.int64), lambda at: 0, **windows)
    for o, at in each_window(x, **windows):
        places[(slice(None), slice(None), *o)] = place(at)
    image = np.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], *[1] * len(spatial))
    return y, places + image * int(np.prod(spatial))


def average_pool(x, counted, **windows):
    n = x.ndim - 2

    def counts(p):
        return all(-counted[i] <= q < x.shape[2 + i] + counted[n + i] for i, q in enumerate(p))

    return pooled(x, lambda at: inside(x, at).sum(0) / sum(counts(p) for p, _ in at), **windows)


def average_pool_gradient(dy, spatial, **attrs):
    """dx[i] is what averaging a lone 1 at i yields, times dy."""
    dx = np.zeros((*dy.shape[:2], *spatial))
    for i in np.ndindex(spatial):
        lone = np.zeros((1, 1, *spatial))
        lone[(0, 0, *i)] = 1
        dx[(..., *i)] = (average_pool(lone, **attrs) * dy).sum(tuple(range(2, dy.ndim)))
    return dx


def max_pool_gradient(dy, x, **windows):
    """Each element of dy, where max_pool_with_indices finds the window's maximum."""
    dx = np.zeros(x.size)
    np.add.at(dx, max_pool_with_indices(x, **windows)[1].ravel(), dy.ravel())
    return dx.reshape(x.shape)


def last(function):
    """An oracle for channels last from one for channels first."""

    def oracle(*arrays, **attrs):
        return np.moveaxis(function(*[np.moveaxis(a, -1, 1) for a in arrays], **attrs), 1, -1)

    return oracle


def turned(x):
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


def lp_pool(x, p=2, **windows):
    return pooled(x, lambda at: (abs(inside(x, at)) ** p).sum(0) ** (1 / p), **windows)


def windows(kernel, strides, pads=None, dilations=None):
    n = len(kernel)
    return {"kernel": kernel, "strides": strides, "pads": pads or (0,) * 2 * n, "dilations": dilations or (1,) * n}


GEOMETRIES = [
    ((2, 3, 6, 5), windows((3, 2), (1, 1), (1, 0, 1, 1))),
    ((1, 2, 7, 8), windows((2, 3), (2, 3), (0, 1, 1, 2), (3, 1))),
    ((2, 2, 9), windows((3,), (2,), (1, 2), (2,))),
    ((1, 2, 4, 5, 3), windows((2, 2, 3), (1, 2, 1), (0, 0, 1, 1, 0, 1))),
    ((1, 1, 6, 6), windows((6, 6), (1, 1))),
]
EMPTY = [((0, 3, 4, 4), (0, 3, 3, 3)), ((2, 0, 4, 4), (2, 0, 3, 3)), ((2, 3, 0, 4), (2, 3, 0, 3))]
rng = np.random.default_rng(1)


def apart(*shape):
    """Numbers no two of which are close, so that differences do not step across where another becomes the maximum."""
    return (rng.permutation(math.prod(shape)).reshape(shape) / 64).astype(np.float32)


x_int8 = rng.integers(-128, 128, (2, 2, 5, 5), np.int8)
with_nan = f32(1, 1, 4, 4)
with_nan[0, 0, 1, 2] = np.nan


def nan_max(x, **windows):
    y = max_pool(x, **windows)
    assert np.isnan(y).sum() == 4
    return y


def unpooled(x, places, shape):
    y = np.zeros(int(np.prod(shape)), x.dtype)
    for place, value in zip(places.ravel(), x.ravel(), strict=True):
        y[place] = value
    return y.reshape(shape)


def over_space(join):
    return lambda x, **attrs: join(x.reshape(*x.shape[:2], -1)).reshape(*x.shape[:2], *[1] * (x.ndim - 2))


CASES = [
    *[Case("max_pool", [f32(*s)], w, max_pool, FLOATS) for s, w in GEOMETRIES],
    *[Case("max_pool", [f32(*s)], windows((2, 2), (1, 1)), np.zeros(y)) for s, y in EMPTY],
    Case("max_pool", [x_int8], windows((2, 2), (2, 2), (1, 1, 1, 1)), max_pool),
    Case("max_pool", [with_nan], windows((2, 2), (1, 1)), nan_max, FLOATS[:3], name="nan", gradient=False),
    *[
        Case("max_pool_with_indices", [f32(*s)], {**w, "column_major": c}, max_pool_with_indices, FLOATS[1:3])
        for (s, w), c in itertools.product(GEOMETRIES, (False, True))
    ],
    Case(
        "max_pool_with_indices",
        [np.zeros((1, 2, 4, 4), np.float32)],
        windows((2, 2), (2, 2)),
        max_pool_with_indices,
        name="ties",
        gradient=False,  # the first of equals takes all, differences depend on the direction
    ),
    Case("max_pool_with_indices", [f32(0, 2, 4, 4)], windows((2, 2), (2, 2)), (np.zeros((0, 2, 2, 2)), np.zeros((0, 2, 2, 2)))),
    Case(
        "max_pool_with_indices",
        [np.full((1, 1, 3), -np.inf, np.float32)],
        windows((2,), (1,), (1, 0)),
        (np.full((1, 1, 3), -np.inf), np.array([[[0, 0, 1]]])),
        name="infinite",
        gradient=False,
    ),
    Case("max_unpool", [f32(1, 2, 2), np.array([[[1, 3], [5, 4]]])], {"shape": (1, 2, 4)}, unpooled, FLOATS),
    Case("max_unpool", [f32(0, 2, 2), np.zeros((0, 2, 2), np.int64)], {"shape": (0, 2, 4)}, unpooled),
    *[
        Case("average_pool", [f32(*s)], {**w, "counted": w["pads"] if c else (0,) * len(w["pads"])}, average_pool, FLOATS)
        for (s, w), c in itertools.product(GEOMETRIES, (False, True))
    ],
    *[Case("average_pool", [f32(*s)], {**windows((2, 2), (1, 1)), "counted": (0,) * 4}, np.zeros(y)) for s, y in EMPTY],
    *[
        Case(
            "average_pool_gradient",
            [f32(*dy)],
            {"spatial": x, **w, "counted": w["pads"] if c else (0,) * len(w["pads"])},
            average_pool_gradient,
            FLOATS,
        )
        for dy, x, w in (
            ((2, 2, 5, 3), (5, 4), windows((3, 2), (1, 1), (1, 0, 1, 0))),
            ((1, 2, 3), (7,), windows((2,), (2,), (0, 1), (2,))),
            ((2, 0, 2, 2), (3, 3), windows((2, 2), (1, 1))),
        )
        for c in (False, True)
    ],
    *[
        Case("max_pool_gradient", [f32(*max_pool(np.zeros(s), **w).shape), f32(*s)], w, max_pool_gradient, FLOATS)
        for s, w in GEOMETRIES
    ],
    *[
        Case(
            "max_pool_gradient_channels_last",
            [turned(f32(*max_pool(np.zeros(s), **w).shape)), turned(apart(*s))],
            w,
            last(max_pool_gradient),
        )
        for s, w in (*GEOMETRIES, ((2, 21, 7, 8), windows((3, 3), (2, 2), (1, 1, 1, 1))))
    ],
    Case(
        "max_pool_gradient",
        [f32(1, 9, 2, 2), np.zeros((1, 9, 4, 4), np.float32)],
        windows((3, 3), (2, 2), (1, 1, 1, 1)),
        max_pool_gradient,
        name="ties",
        gradient=False,
    ),
    Case(
        "max_pool_gradient_channels_last",
        [f32(1, 2, 2, 9), np.full((1, 4, 4, 9), -np.inf, np.float32)],
        windows((3, 3), (2, 2), (1, 1, 1, 1)),
        last(max_pool_gradient),
        name="infinite",
        gradient=False,
    ),
    *[
        Case(
            "average_pool_gradient_channels_last",
            [turned(f32(*average_pool(np.zeros(s), counted, **w).shape))],
            {"spatial": s[2:], **w, "counted": counted},
            last(average_pool_gradient),
        )
        for s, w in (*GEOMETRIES[:3], ((2, 21, 7, 8), windows((3, 3), (2, 2), (1, 1, 1, 1))))
        for counted in ((0,) * len(w["pads"]), w["pads"])
    ],
    *[
        Case("lp_pool", [f32(*s)], {**w, "p": p}, lp_pool, FLOATS)
        for (s, w), p in zip(GEOMETRIES, (2, 1, 3, 2, 2), strict=True)
    ],
    *[Case("global_average_pool", [f32(*s)], {}, over_space(lambda x: x.mean(-1)), FLOATS) for s in ((2, 3, 4), (2, 3, 4, 5))],
    *[Case("global_max_pool", [f32(*s)], {}, over_space(lambda x: x.max(-1)), FLOATS) for s in ((2, 3, 4), (1, 2, 3, 4, 2))],
    *[
        Case("global_lp_pool", [f32(*s)], {"p": p}, over_space(lambda x, p=p: (abs(x) ** p).sum(-1) ** (1 / p)), FLOATS)
        for s, p in (((2, 3, 4), 2), ((1, 2, 3, 4), 3))
    ],
]
