"""Rows for ops/image.py and ops/deform.py."""

import itertools
import math

import numpy as np

from flamert.testing import Case
from tests.cases.conv import window_offsets
from tests.cases.elementwise import FLOATS, f32


def mirrored(i, low, high):
    """A place outside [low, high] mirrored at the nearer end, as often as it takes."""
    while high > low and not low <= i <= high:
        i = 2 * low - i if i < low else 2 * high - i
    return i if high > low else low


def line_weights(at, size, mode, padding, align_corners):
    """What each element of an axis contributes at the place `at` along it."""
    low, high = (0, size - 1) if align_corners else (-0.5, size - 0.5)
    a = -0.75
    if mode == "nearest":
        at = np.rint(at)
    if padding == "reflection":
        at = mirrored(at, low, high)
    weights = np.zeros(size)
    for i in range(math.floor(at) - 1, math.floor(at) + 3):
        d = abs(at - i)
        if mode == "nearest":
            weight = float(d == 0)
        elif mode == "linear":
            weight = max(1 - d, 0)
        elif d <= 1:
            weight = (a + 2) * d**3 - (a + 3) * d**2 + 1
        else:
            weight = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0
        if padding == "border":
            i = min(max(i, 0), size - 1)
        elif padding == "reflection":
            i = min(max(round(mirrored(i, low, high)), 0), size - 1)
        if 0 <= i < size:
            weights[i] += weight
    return weights


def grid_sample(x, grid, mode="linear", padding="zeros", align_corners=False):
    spatial = x.shape[2:]
    y = np.zeros((*x.shape[:2], *grid.shape[1:-1]))
    for n, *p in np.ndindex(grid.shape[:-1]):
        value = x[n]
        for size, g in zip(reversed(spatial), grid[(n, *p)], strict=True):
            at = (g + 1) / 2 * (size - 1) if align_corners else ((g + 1) * size - 1) / 2
            value = value @ line_weights(at, size, mode, padding, align_corners)
        y[(n, slice(None), *p)] = value
    return y


def deform_conv(x, w, offset, b=None, mask=None, *, strides, pads, dilations, group=1, offset_group=1):
    """One output element at a time, from the definition."""
    (n, channels), (m, depth), kernel, counts = x.shape[:2], w.shape[:2], w.shape[2:], offset.shape[2:]
    d = len(kernel)
    offset = offset.reshape(n, offset_group, math.prod(kernel), d, *counts)
    mask = np.ones(offset.shape[:3] + counts) if mask is None else mask.reshape(offset.shape[:3] + counts)
    y = np.zeros((n, m, *counts)) + (0 if b is None else b.reshape(-1, *[1] * d))
    for i, c, o in itertools.product(range(n), range(channels), np.ndindex(counts)):
        g = c // (channels // offset_group)
        filters = w[c // depth * (m // group) : (c // depth + 1) * (m // group), c % depth]
        for t, (k, at) in enumerate(window_offsets(kernel, dilations)):
            value = x[i, c]
            for axis in reversed(range(d)):
                place = o[axis] * strides[axis] + at[axis] - pads[axis] + offset[(i, g, t, axis, *o)]
                value = value @ line_weights(place, x.shape[2 + axis], "linear", "zeros", False)
            first = c // depth * (m // group)
            y[(i, slice(first, first + m // group), *o)] += filters[(slice(None), *k)] * value * mask[(i, g, t, *o)]
    return y


def affine_grid(theta, size, align_corners=False):
    grid = np.zeros((theta.shape[0], *size, len(size)))
    for n, *p in np.ndindex(grid.shape[:-1]):
        if align_corners:
            place = [2 * i / (d - 1) - 1 if d > 1 else 0 for i, d in zip(p, size, strict=True)]
        else:
            place = [(2 * i + 1) / d - 1 for i, d in zip(p, size, strict=True)]
        grid[(n, *p)] = theta[n] @ np.array([*place[::-1], 1])
    return grid


def depth_to_space(x, block, depth_first=True):
    n, c, h, w = x.shape
    depth = c // block**2
    y = np.zeros((n, depth, h * block, w * block), x.dtype)
    for k, i, j in np.ndindex(depth, block, block):
        channel = (i * block + j) * depth + k if depth_first else (k * block + i) * block + j
        y[:, k, i::block, j::block] = x[:, channel]
    return y


def space_to_depth(x, block, depth_first=True):
    n, c, h, w = x.shape
    y = np.zeros((n, c * block**2, h // block, w // block), x.dtype)
    for k, i, j in np.ndindex(c, block, block):
        channel = (i * block + j) * c + k if depth_first else (k * block + i) * block + j
        y[:, channel] = x[:, k, i::block, j::block]
    return y


def windows(strides, pads, dilations, group=1, offset_group=1):
    return {"strides": strides, "pads": pads, "dilations": dilations, "group": group, "offset_group": offset_group}


CLOSE = (1e-4, 1e-5)
MODES = list(itertools.product(("nearest", "linear", "cubic"), ("zeros", "border", "reflection"), (False, True)))
picture = np.arange(16 * 2 * 3, dtype=np.int16).reshape(1, 16, 2, 3)

CASES = [
    *[
        Case(
            "grid_sample",
            [f32(2, 3, 4, 5), f32(2, 3, 6, 2, low=-1.6, high=1.6)],
            {"mode": m, "padding": p, "align_corners": a},
            grid_sample,
            FLOATS[:2],
            CLOSE,
            name=f"{m}-{p}-{a}",
        )
        for m, p, a in MODES
    ],
    Case("grid_sample", [f32(2, 3, 4, 5), f32(2, 3, 6, 2)], {}, grid_sample, FLOATS[2:]),
    Case("grid_sample", [f32(1, 2, 3, 4, 5), f32(1, 2, 2, 3, 3)], {"padding": "reflection"}, grid_sample, tolerance=CLOSE),
    Case("grid_sample", [f32(1, 2, 6), f32(1, 5, 1)], {"mode": "cubic", "padding": "border"}, grid_sample, tolerance=CLOSE),
    Case(
        "grid_sample",
        [f32(1, 2, 1, 1), f32(1, 2, 3, 2)],
        {"padding": "reflection", "align_corners": True},
        grid_sample,
        tolerance=CLOSE,
    ),
    Case("grid_sample", [np.arange(12).reshape(1, 1, 3, 4), f32(1, 2, 3, 2)], {"mode": "nearest"}, grid_sample),
    Case("grid_sample", [f32(0, 2, 3, 3), f32(0, 2, 3, 2)], {}, np.zeros((0, 2, 2, 3))),
    Case("grid_sample", [f32(1, 2, 3, 3), f32(1, 0, 3, 2)], {}, np.zeros((1, 2, 0, 3))),
    *[
        Case("affine_grid", [f32(2, len(s), len(s) + 1)], {"size": s, "align_corners": a}, affine_grid, FLOATS)
        for s, a in itertools.product(((3, 4), (1, 2), (2, 3, 4)), (False, True))
    ],
    *[
        Case(op, [picture.reshape(shape)], {"block": 2, "depth_first": first}, oracle)
        for (op, oracle, shape), first in itertools.product(
            (("depth_to_space", depth_to_space, (1, 16, 2, 3)), ("space_to_depth", space_to_depth, (2, 2, 4, 6))),
            (False, True),
        )
    ],
    Case("depth_to_space", [f32(2, 12, 2, 3)], {"block": 2}, depth_to_space),
    Case("depth_to_space", [f32(0, 4, 2, 3)], {"block": 2}, depth_to_space),
    Case("space_to_depth", [f32(2, 3, 4, 6)], {"block": 2, "depth_first": False}, space_to_depth),
    Case("space_to_depth", [f32(2, 0, 4, 4)], {"block": 4}, space_to_depth),
    Case(
        "deform_conv",
        [f32(2, 4, 5, 4), f32(6, 2, 3, 2), f32(2, 24, 3, 3), f32(6), f32(2, 12, 3, 3)],
        windows((2, 1), (1, 0, 1, 0), (1, 1), 2, 2),
        deform_conv,
        FLOATS[:2],
        CLOSE,
    ),
    Case(
        "deform_conv",
        [f32(1, 1, 4, 4), f32(2, 1, 2, 2), f32(1, 8, 2, 2)],
        windows((1, 1), (0, 0, 0, 0), (2, 2)),
        deform_conv,
        FLOATS,
    ),
    Case("deform_conv", [f32(1, 2, 6), f32(2, 2, 3), f32(1, 3, 4)], windows((1,), (0, 0), (1,)), deform_conv, tolerance=CLOSE),
    Case(
        "deform_conv",
        [f32(0, 1, 4, 4), f32(2, 1, 2, 2), f32(0, 8, 3, 3)],
        windows((1, 1), (0,) * 4, (1, 1)),
        np.zeros((0, 2, 3, 3)),
    ),
]
