"""Rows for ops/region.py."""

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


def roi_align_gradient(dy, x, rois, images, mode, **grid):
    """Central differences, exact where the result is linear in x."""
    dx = np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        step = np.zeros(x.shape)
        step[i] = 1e-6
        ends = [roi_align(x + s, rois, images, dy.shape[2:], mode=mode, **grid) for s in (step, -step)]
        dx[i] = ((ends[0] - ends[1]) / 2e-6 * dy).sum()
    return dx


x = f32(2, 3, 8, 9)
boxes = np.array([[0, 0, 0, 8, 7], [1, 2, 3, 5, 4], [0, 6, 5, 12, 11], [1, -3, -2, 2, 1], [0, 20, 20, 25, 25]], np.float32)
regions = np.array([[0, 0, 8, 7], [1.5, 2.25, 6.5, 5.75], [6, 5, 12, 11], [-3, -2, 2, 1], [4, 4, 4.25, 4.5]], np.float32)
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
        Case("roi_align", [x, regions, images], {**s, "mode": mode}, roi_align, FLOATS, name=f"{mode}-{i}")
        for i, s in enumerate(SETTINGS)
        for mode in ("avg", "max")
    ],
    *[
        Case(
            "roi_align_gradient",
            [f32(5, 1, *s.pop("size")), x[:, :1, ::2, ::2], regions, images],
            {**s, "mode": mode},
            roi_align_gradient,
            (dtypes.float32,),
            (1e-4, 1e-4),
        )
        for s, mode in (
            (dict(SETTINGS[0]), "avg"),
            (dict(SETTINGS[0]), "max"),
            (dict(SETTINGS[1]), "avg"),
            (dict(SETTINGS[2]), "max"),
        )
    ],
    Case("roi_align", [x, regions[:0], images[:0]], {"size": (2, 2)}, np.zeros((0, 3, 2, 2))),
]
