"""Rows for ops/region.py."""

import itertools
import math

import numpy as np

from flamert import dtypes
from flamert.testing import Case
from tests.cases.elementwise import FLOATS, f32


def max_roi_pool(x, rois, size, scale=1.0):
    y = np.zeros((len(rois), x.shape[1], *size))
    for r, (image, *corners) in enumerate(rois):
        x1, y1, x2, y2 = (math.floor(c * scale + 0.5) for c in corners)
        cells = []
        for start, end, count, limit in ((y1, y2, size[0], x.shape[2]), (x1, x2, size[1], x.shape[3])):
            step = max(end - start + 1, 1) / count
            cells.append(
                [
                    range(max(math.floor(i * step) + start, 0), min(math.ceil((i + 1) * step) + start, limit))
                    for i in range(count)
                ]
            )
        for i, rows in enumerate(cells[0]):
            for j, columns in enumerate(cells[1]):
                if len(rows) and len(columns):
                    y[r, :, i, j] = x[int(image)][:, list(rows)][:, :, list(columns)].max((1, 2))
    return y


def max_roi_places(x, rois, size, scale=1.0):
    """x has no element twice, so that each maximum is found by its value; cells outside x give 0, which x does not have."""
    y = max_roi_pool(x, rois, size, scale)
    return np.where(y == 0, -1, (x.ravel() == y[..., None]).argmax(-1))


def neighbours(plane, y, x):
    """The four products weight · element around a place, as RoiAlign has it at the borders."""
    h, w = plane.shape[1:]
    if not (-1 <= y <= h and -1 <= x <= w):
        return [np.zeros(plane.shape[0])] * 4
    y, x = min(max(y, 0), h - 1), min(max(x, 0), w - 1)
    i, j = int(y), int(x)
    k, l = min(i + 1, h - 1), min(j + 1, w - 1)
    v, u = y - i, x - j
    return [
        plane[:, i, j] * (1 - v) * (1 - u),
        plane[:, i, l] * (1 - v) * u,
        plane[:, k, j] * v * (1 - u),
        plane[:, k, l] * v * u,
    ]


def roi_align(x, rois, images, size, scale=1.0, samples=0, half_pixel=True, mode="avg"):
    y = np.zeros((len(rois), x.shape[1], *size))
    shift = 0.5 * half_pixel
    for r, (corners, image) in enumerate(zip(rois, images, strict=True)):
        x1, y1, x2, y2 = corners * scale - shift
        height, width = (y2 - y1, x2 - x1) if half_pixel else (max(y2 - y1, 1), max(x2 - x1, 1))
        step = height / size[0], width / size[1]
        count = [samples or math.ceil(s) for s in step]
        for i, j in np.ndindex(*size):
            around = [
                neighbours(x[image], y1 + (i + (a + 0.5) / count[0]) * step[0], x1 + (j + (b + 0.5) / count[1]) * step[1])
                for a, b in np.ndindex(*count)
            ]
            y[r, :, i, j] = np.mean(np.sum(around, 1), 0) if mode == "avg" else np.max(around, (0, 1))
    return y


def roi_align_gradient(dy, rois, images, shape, **grid):
    """dx[i] is what averaging a lone 1 at i yields, times dy."""
    dx = np.zeros(shape)
    for n, i, j in np.ndindex(shape[0], *shape[2:]):
        lone = np.zeros((shape[0], 1, *shape[2:]))
        lone[n, 0, i, j] = 1
        dx[n, :, i, j] = (roi_align(lone, rois, images, dy.shape[2:], **grid) * dy).sum((0, 2, 3))
    return dx


def slopes(function, rois, along, step=1e-6):
    """Central differences as the start and the end of every region move along one axis."""
    moves = [np.eye(4)[along + end] * step for end in (0, 2)]
    return np.stack([(function(rois + m) - function(rois - m)) / (2 * step) for m in moves])


def region_weights(rois, axis, cells, limit, **grid):
    """What `roi_align` makes of lone ones in a line, sampled with weight 1 across."""
    line = np.eye(limit).reshape(limit, 1, *((1, limit) if axis == 0 else (limit, 1)))
    size = (1, cells) if axis == 0 else (cells, 1)

    def weights(rois):
        flat = np.where([a % 2 == axis for a in range(4)], rois, [0, 0, 1, 1])
        each = [roi_align(line, flat, np.full(len(rois), i), size, **grid).reshape(len(rois), cells) for i in range(limit)]
        return np.stack(each, -1)

    return weights(rois), slopes(weights, rois, axis)


def neighbour(roi, axis, cells, cell, count, sample, upper, limit, scale, half_pixel):
    """Index and weight of the lower or upper neighbour of one sampled place along one axis."""
    length = (roi[axis + 2] - roi[axis]) * scale if half_pixel else max((roi[axis + 2] - roi[axis]) * scale, 1)
    at = roi[axis] * scale - 0.5 * half_pixel + (cell + (sample + 0.5) / count) * length / cells
    inside, at = -1 <= at <= limit, min(max(at, 0), limit - 1)
    low = int(at)
    return (min(low + 1, limit - 1), (at - low) * inside) if upper else (low, (1 - at + low) * inside)


def region_peaks(x, rois, images, size, scale=1.0, samples=0, half_pixel=True):
    shape = (len(rois), x.shape[1], *size)
    found, weights, slopes = np.zeros(shape, np.int64), np.zeros((2, *shape)), np.zeros((2, 2, *shape))
    for r, c, *cell in np.ndindex(shape):
        lengths = [(rois[r, a + 2] - rois[r, a]) * scale for a in (0, 1)]
        lengths = lengths if half_pixel else [max(l, 1) for l in lengths]
        count = [samples or math.ceil(l / n) for l, n in zip(lengths, size[::-1], strict=True)]
        best = -np.inf
        for uppers, ats in itertools.product(np.ndindex(2, 2), np.ndindex(*count[::-1])):
            choices = zip((0, 1), size[::-1], cell[::-1], count, ats[::-1], uppers[::-1], x.shape[:1:-1], strict=True)
            sides = [lambda roi, c=c: neighbour(roi, *c, scale, half_pixel) for c in choices]
            (j, u), (i, v) = (side(rois[r]) for side in sides)
            if u * v * x[images[r], c, i, j] > best:
                best = u * v * x[images[r], c, i, j]
                at = (slice(None), r, c, *cell)
                found[at[1:]] = np.ravel_multi_index((images[r], c, i, j), x.shape)
                weights[at] = u, v
                for (a, side), end in itertools.product(enumerate(sides), (0, 1)):
                    step = np.eye(4)[a + 2 * end] * 1e-6
                    slopes[(a, end, *at[1:])] = (side(rois[r] + step)[1] - side(rois[r] - step)[1]) / 2e-6
    return found, weights, slopes


x = f32(2, 3, 8, 9)
# A quarter more than whole numbers, image too: far from where the rounding changes.
boxes = [[0, 0, 0, 8, 7], [1, 2, 3, 5, 4], [0, 6, 5, 12, 11], [1, -3, -2, 2, 1], [0, 20, 20, 25, 25]]
boxes = np.array(boxes, np.float32) + np.float32(0.25)
# Nothing round: where a place coincides with an element, or a length is whole, the slope jumps.
regions = [
    [0.1, 0.2, 8.3, 7.15],
    [1.5, 2.25, 6.53, 5.78],
    [6.1, 5.05, 12.3, 11.17],
    [-3.1, -2.07, 2.3, 1.13],
    [4.07, 4.1, 4.25, 4.5],
]
regions = np.array(regions, np.float32)
images = np.array([0, 1, 1, 0, 1])
SETTINGS = [
    {"size": (3, 2), "samples": 2},
    {"size": (2, 2), "samples": 0, "half_pixel": False},
    {"size": (2, 3), "samples": 0},
    {"size": (1, 1), "samples": 3, "scale": 0.5, "half_pixel": False},
]

CASES = [
    Case("max_roi_pool", [x, boxes], {"size": (2, 3)}, max_roi_pool, FLOATS),
    Case("max_roi_pool", [x, boxes], {"size": (3, 3), "scale": 0.5}, max_roi_pool, FLOATS),
    Case("max_roi_pool", [x, boxes[:0]], {"size": (2, 2)}, np.zeros((0, 3, 2, 2))),
    *[
        Case("max_roi_places", [x, boxes], attrs, max_roi_places)
        for attrs in ({"size": (2, 3)}, {"size": (3, 3), "scale": 0.5})
    ],
    *[
        Case("roi_align", [x, regions, images], {**s, "mode": mode}, roi_align, FLOATS, name=f"{mode}-{i}")
        for i, s in enumerate(SETTINGS)
        for mode in ("avg", "max")
    ],
    *[
        Case(
            "roi_align_gradient",
            [f32(5, 1, *s.pop("size")), regions, images],
            {**s, "shape": (2, 1, 4, 5)},
            roi_align_gradient,
            (dtypes.float32,),
            (1e-4, 1e-4),
        )
        for s in map(dict, SETTINGS)
    ],
    *[
        Case(
            "region_weights",
            [regions],
            {"axis": axis, "cells": s["size"][1 - axis], "limit": 9 - axis, **{k: v for k, v in s.items() if k != "size"}},
            region_weights,
            tolerance=(1e-4, 1e-4),
        )
        for s in SETTINGS
        for axis in (0, 1)
    ],
    *[Case("region_peaks", [x, regions, images], s, region_peaks, tolerance=(1e-4, 1e-4)) for s in SETTINGS],
    Case("roi_align", [x, regions[:0], images[:0]], {"size": (2, 2)}, np.zeros((0, 3, 2, 2))),
]
