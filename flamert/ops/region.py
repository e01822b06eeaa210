"""Pooling over regions of interest: rectangles of an image, each brought to one size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from flamert import dtypes
from flamert.errors import ShapeError
from flamert.graph import TensorType
from flamert.ops.op import kernel, op
from flamert.ops.rules import dims_of, require, same_dtype


@op
def max_roi_pool(x: TensorType, rois: TensorType, *, size: tuple[int, ...], scale: float = 1.0) -> TensorType:
    """The maximum over each cell of a grid laid over each region, 0 for a cell that is outside x.

    x: [N, C, H, W], floating; rois: [R, 5] of x's type: image, x₁, y₁, x₂, y₂ (both ends included), times `scale` and rounded
    to elements. Returns [R, C, *size]. Raises ShapeError for an image that x lacks. Source: ONNX MaxRoiPool-22, Girshick 2015.
    """
    require(x, dtypes.STANDARD_FLOAT, "floating")
    if x.rank != 4 or rois.rank != 2 or rois.shape[1] != 5 or len(size) != 2:
        raise ShapeError(f"max_roi_pool takes [N, C, H, W], regions [R, 5] and two sizes, not {x}, {rois}, {list(size)}")
    return TensorType((rois.shape[0], x.shape[1], *dims_of(size)), same_dtype(x, rois))


@kernel(max_roi_pool)
def _(xp: Any, out: Any, x: Any, rois: Any, *, size: Any, scale: float) -> None:
    for r, (image, rows, columns) in enumerate(_gridded(xp, x, rois, size, scale)):
        plane = _image(x, image)
        for i, (a, b) in enumerate(rows):
            strip = plane[:, a:b].max(1) if a < b else None
            for j, (c, d) in enumerate(columns):
                out[r, :, i, j] = 0 if strip is None or c >= d else strip[:, c:d].max(1)


@op
def max_roi_places(x: TensorType, rois: TensorType, *, size: tuple[int, ...], scale: float = 1.0) -> TensorType:
    """Where `max_roi_pool` found each maximum (the first of equals): its place in the flattened x, −1 for a cell outside x.

    Operands as for `max_roi_pool`. Returns int64 [R, C, *size].
    """
    return TensorType(max_roi_pool.infer(x, rois, size=size, scale=scale).shape, dtypes.int64)


@kernel(max_roi_places)
def _(xp: Any, out: Any, x: Any, rois: Any, *, size: Any, scale: float) -> None:
    height, width = x.shape[2:]
    first = xp.arange(x.shape[1]) * height * width
    for r, (image, rows, columns) in enumerate(_gridded(xp, x, rois, size, scale)):
        for (i, (a, b)), (j, (c, d)) in itertools.product(enumerate(rows), enumerate(columns)):
            if a >= b or c >= d:
                out[r, :, i, j] = -1
                continue
            best = _image(x, image)[:, a:b, c:d].reshape(x.shape[1], -1).argmax(1)
            base = int(image) * x.shape[1] * height * width + a * width + c
            out[r, :, i, j] = base + first + best // (d - c) * width + best % (d - c)


def _gridded(xp: Any, x: Any, rois: Any, size: Any, scale: float) -> Iterator[tuple[float, Any, Any]]:
    """Per region: its image, and begin and end of the rows and of the columns of each cell."""
    for image, x1, y1, x2, y2 in rois.astype(xp.float64).tolist():
        top, left, bottom, right = (math.floor(v * scale + 0.5) for v in (y1, x1, y2, x2))
        rows = _cells(top, max(bottom - top + 1, 1), size[0], x.shape[2])
        yield image, rows, _cells(left, max(right - left + 1, 1), size[1], x.shape[3])


def _cells(start: int, length: int, count: int, limit: int) -> list[tuple[int, int]]:
    """Begin and end of each of `count` cells over `length` elements, cut to the image."""
    step = length / count
    edges = [(math.floor(i * step) + start, math.ceil((i + 1) * step) + start) for i in range(count)]
    return [(min(max(a, 0), limit), min(max(b, 0), limit)) for a, b in edges]


def _image(x: Any, index: float) -> Any:
    if not 0 <= index < x.shape[0]:
        raise ShapeError(f"a region lies in image {int(index)}, but there are {x.shape[0]}")
    return x[int(index)]


@op
def roi_align(
    x: TensorType,
    rois: TensorType,
    images: TensorType,
    *,
    size: tuple[int, ...],
    scale: float = 1.0,
    samples: int = 0,
    half_pixel: bool = True,
    mode: str = "avg",
) -> TensorType:
    """The mean over `samples` × `samples` places in each cell of a grid laid over each region, interpolated linearly.

    x: [N, C, H, W], floating; rois: [R, 4], floating: x₁, y₁, x₂, y₂, times `scale`, less half an element with `half_pixel`;
    images: [R] integers. samples 0: as many as a cell is long, region by region, rounded up. Without `half_pixel` a region is
    at least one element wide. A place more than one element outside x counts as 0. mode "max": the greatest
    weight · element over all neighbours of all places, instead of the mean of their sums. Returns [R, C, *size] of x's type;
    half types are computed in float32. Raises ShapeError for an image that x lacks. Source: ONNX RoiAlign-22, He et al. 2017.
    """
    require(x, dtypes.STANDARD_FLOAT, "floating")
    require(rois, dtypes.STANDARD_FLOAT, "floating")
    require(images, dtypes.INTEGER, "integer")
    if x.rank != 4 or rois.rank != 2 or rois.shape[1] != 4 or images.shape != rois.shape[:1] or len(size) != 2:
        raise ShapeError(f"roi_align takes [N, C, H, W], regions [R, 4] and images [R], not {x}, {rois}, {images}")
    if mode not in ("avg", "max"):
        raise ShapeError(f"mode {mode!r} is neither avg nor max")
    return TensorType((rois.shape[0], x.shape[1], *dims_of(size)), x.dtype)


@kernel(roi_align)
def _(xp: Any, out: Any, x: Any, rois: Any, images: Any, *, size: Any, mode: str, **grid: Any) -> None:
    """Interpolation is separable: rows first, then columns, each with the samples of a cell on an axis of their own."""
    for r, (image, rows, columns) in enumerate(sampled(xp, x, rois, images, size, **grid)):
        plane = image.astype(dtypes.accumulator(out.dtype), copy=False)
        if not rows[0][0].size or not columns[0][0].size:
            out[r] = 0
        elif mode == "avg":
            lines = sum(plane[:, index] * weight[..., None] for index, weight in rows).mean(2)
            out[r] = sum(lines[:, :, index] * weight for index, weight in columns).mean(3)
        else:
            out[r] = corners(xp, plane, rows, columns)[0].max(-1)


@op
def roi_align_gradient(
    dy: TensorType,
    rois: TensorType,
    images: TensorType,
    *,
    shape: tuple[int, ...],
    scale: float = 1.0,
    samples: int = 0,
    half_pixel: bool = True,
) -> TensorType:
    """The adjoint of `roi_align` by means in x: dy, times the weight of every element it was made of, added to that element.

    dy: [R, C, *size], shape: that of x; the rest as for `roi_align`. Returns dy's element type; half types accumulate in
    float32. Source: ONNX RoiAlign-22 transposed.
    """
    x = TensorType(dims_of(shape), dy.dtype)
    y = roi_align.infer(x, rois, images, size=dy.shape[2:])
    if y != dy:
        raise ShapeError(f"dy is {dy}, the result was {y}")
    return x


@kernel(roi_align_gradient)
def _(xp: Any, out: Any, dy: Any, rois: Any, images: Any, *, shape: Any, **grid: Any) -> None:
    wide = dtypes.accumulator(out.dtype)
    sums = xp.zeros(out.shape, wide)
    regions = sampled(xp, out, rois, images, dy.shape[2:], **grid)
    for r, (image, (_, rows, columns)) in enumerate(zip(images.tolist(), regions, strict=True)):
        if rows[0][0].size and columns[0][0].size:
            vertical, horizontal = (matrix(xp, side, d) for side, d in zip((rows, columns), shape[2:], strict=True))
            upstream = dy[r].astype(wide, copy=False)
            sums[image] += xp.matmul(xp.matmul(vertical.astype(wide).T, upstream), horizontal.astype(wide))
    out[...] = sums


Side = list[tuple[Any, Any]]
"""Lower and upper neighbour of the places sampled along one axis: (index, weight), each [cells, samples]."""


def sampled(
    xp: Any, x: Any, rois: Any, images: Any, size: Any, *, scale: float, samples: int, half_pixel: bool
) -> Iterator[tuple[Any, Side, Side]]:
    """Per region: its image, and the neighbours of the places sampled along rows and along columns."""
    dtype = dtypes.accumulator(x.dtype)
    for (x1, y1, x2, y2), image in zip(rois.astype(xp.float64).tolist(), images.tolist(), strict=True):
        sides = []
        for start, end, cells, limit in ((y1, y2, size[0], x.shape[2]), (x1, x2, size[1], x.shape[3])):
            found = places(start * scale, end * scale, cells, limit, samples, half_pixel)
            sides.append([(xp.asarray(index), xp.asarray(weight, dtype)) for index, weight in found])
        yield _image(x, image), *sides


def places(start: float, end: float, cells: int, limit: int, samples: int, half_pixel: bool) -> Side:
    """The neighbours of the places sampled along one axis of `limit` elements."""
    at, _ = spaced(start, end, cells, samples, half_pixel)
    valid = (at >= -1) & (at <= limit)
    at = np.clip(at, 0, limit - 1)
    low = np.floor(at).astype(np.int64)
    return [(low, (1 - at + low) * valid), (np.minimum(low + 1, limit - 1), (at - low) * valid)]


def spaced(start: float, end: float, cells: int, samples: int, half_pixel: bool) -> tuple[np.ndarray, np.ndarray]:
    """Where the places sampled between two ends lie, and how far along the way that is: both [cells, samples]."""
    length = end - start if half_pixel else max(end - start, 1.0)
    count = samples or max(math.ceil(length / cells), 0)
    along = (np.arange(cells)[:, None] + (np.arange(count) + 0.5) / max(count, 1)) / cells
    return start - (0.5 if half_pixel else 0.0) + along * length, along


def matrix(xp: Any, side: Side, limit: int) -> Any:
    """The mean over the samples of each cell as a matrix [cells, limit]."""
    cells, samples = side[0][0].shape
    dense = xp.zeros((cells, limit))
    for index, weight in side:
        xp.add.at(dense, (xp.arange(cells)[:, None], index), weight / samples)
    return dense


def corners(xp: Any, plane: Any, rows: Side, columns: Side) -> tuple[Any, Any, Any]:
    """weight · element, weight, and index into the plane of all neighbours in a cell: [C or 1, *size, neighbours]."""
    width = plane.shape[2]
    weights, places = [], []
    for i, v in rows:
        for j, w in columns:
            shape = (1, i.shape[0], j.shape[0], -1)
            weights.append((v[:, :, None, None] * w).transpose(0, 2, 1, 3).reshape(shape))
            places.append((i[:, :, None, None] * width + j).transpose(0, 2, 1, 3).reshape(shape))
    weight, place = xp.concatenate(weights, -1), xp.concatenate(places, -1)
    return plane.reshape(plane.shape[0], -1)[:, place[0]] * weight, weight, place
