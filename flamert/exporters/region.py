"""Exporters of pooling over regions of interest, and of its gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flamert import dtypes, ops
from flamert import graph as g
from flamert.errors import UnsupportedOp
from flamert.exporters.registry import exporter, spelled
from flamert.exporters.writer import Writer
from flamert.graph import Value
from flamert.ops.shape import narrow


@exporter(ops.max_roi_pool)
def _(to: Writer, x: Value, rois: Value, *, size: tuple[int, ...], scale: float) -> Any:
    return to("MaxRoiPool", x, rois, pooled_shape=size, spatial_scale=scale)


@exporter(ops.roi_align, 16)
def _(
    to: Writer,
    x: Value,
    rois: Value,
    images: Value,
    *,
    size: tuple[int, ...],
    scale: float,
    samples: int,
    half_pixel: bool,
    mode: str,
) -> Any:
    number: Any = images if images.dtype == dtypes.int64 else to("Cast", images, to=dtypes.int64)
    return to(
        "RoiAlign",
        x,
        rois,
        number,
        output_height=size[0],
        output_width=size[1],
        spatial_scale=scale,
        sampling_ratio=samples,
        coordinate_transformation_mode="half_pixel" if half_pixel else "output_half_pixel",
        mode=mode,
    )


@spelled(ops.max_roi_places)
def _(x: Value, rois: Value, *, size: tuple[int, ...], scale: float) -> Value:
    """The first maximum of each image's elements that a cell's rows and columns admit."""
    (_, c, height, width), r = x.shape, rois.shape[0]
    wide = ops.cast(rois, to=dtypes.float64)
    image = ops.reshape(ops.cast(narrow(wide, 1, 0, 1), to=dtypes.int64), shape=(r,))
    rows = _admitted(wide, (2, 4), size[0], height, scale)
    columns = _admitted(wide, (1, 3), size[1], width, scale)
    inside = ops.logical_and(
        ops.reshape(rows, shape=(r, 1, size[0], 1, height, 1)), ops.reshape(columns, shape=(r, 1, 1, size[1], 1, width))
    )
    planes = ops.reshape(ops.gather(x, image, axis=0), shape=(r, c, 1, 1, height, width))
    seen = ops.where(inside, planes, g.constant(np.array(-math.inf, x.dtype)))
    flat = (*seen.shape[:4], height * width)
    place = ops.argmax(ops.reshape(seen, shape=flat), axis=4)
    base = ops.reshape(image, shape=(r, 1, 1, 1)) * (c * height * width)
    channel = g.constant(np.arange(c, dtype=np.int64).reshape(c, 1, 1) * (height * width))
    some = ops.reduce_max(ops.reshape(ops.cast(inside, to=dtypes.int32), shape=(r, 1, *size, height * width)), axes=(4,))
    return ops.where(some > 0, place + base + channel, -1)


def _admitted(rois: Value, ends: tuple[int, int], cells: int, limit: int, scale: float) -> Value:
    """Which of `limit` elements lie in each cell of each region: bool [R, cells, limit]."""
    start, end = (ops.floor(narrow(rois, 1, i, 1) * scale + 0.5) for i in ends)
    step = ops.maximum(end - start + 1, 1) / float(cells)
    number = np.arange(cells, dtype=np.float64)
    first = ops.floor(step * g.constant(number)) + start
    last = ops.ceil(step * g.constant(number + 1)) + start
    element = g.constant(np.arange(limit, dtype=np.float64))
    first, last = (ops.reshape(v, shape=(*v.shape, 1)) for v in (first, last))
    return ops.logical_and(element >= first, element < last)


@spelled(ops.region_weights)
def _(rois: Value, *, axis: int, cells: int, limit: int, scale: float, samples: int, half_pixel: bool) -> tuple[Value, Value]:
    """Two neighbours for each place sampled, as rows of a matrix, with their weights and with the slopes of those."""
    if not samples:
        raise UnsupportedOp("region_weights: without sampling_ratio each region has as many samples as it is large")
    start, end = (narrow(rois, 1, i, 1) * scale for i in (axis, axis + 2))
    start, end = (
        ops.reshape(ops.cast(v, to=dtypes.accumulator(rois.dtype)), shape=(rois.shape[0], 1, 1)) for v in (start, end)
    )
    length = end - start
    along = (np.arange(cells)[:, None] + (np.arange(samples) + 0.5) / samples) / cells
    share = g.constant(along.astype(length.dtype))
    at = (start - 0.5 if half_pixel else start) + share * (length if half_pixel else ops.maximum(length, 1.0))
    moves = share if half_pixel else ops.where(length > 1.0, share, 0.0)
    free = ops.logical_and(at > 0.0, at < limit - 1.0)
    valid = ops.logical_and(at >= -1.0, at <= float(limit))
    at = ops.minimum(ops.maximum(at, 0.0), limit - 1.0)
    low = ops.floor(at)
    element = np.arange(limit).astype(low.dtype)

    def spread(below: Value, above: Value, admitted: Value) -> Value:
        """The mean over samples of what the two neighbours get: [R, cells, limit]."""
        total = None
        for place, weight in ((low, below), (ops.minimum(low + 1, limit - 1.0), above)):
            hit = ops.equal(ops.reshape(place, shape=(*place.shape, 1)), g.constant(element))
            weight = ops.where(admitted, weight, 0.0)
            part = ops.where(hit, ops.reshape(weight, shape=(*weight.shape, 1)), 0.0)
            total = part if total is None else total + part
        assert total is not None
        return ops.reduce_mean(total, axes=(2,))

    slopes = []
    for slope in (1.0 - share if half_pixel else 1.0 - moves, moves):
        slope = ops.expand(slope * scale, shape=low.shape)
        part = spread(-slope, slope, free)
        slopes.append(ops.reshape(part, shape=(1, *part.shape)))
    return spread(1.0 - at + low, at - low, valid), ops.concat(*slopes, axis=0)


@spelled(ops.roi_align_gradient)
def _(dy: Value, rois: Value, images: Value, *, shape: tuple[int, ...], scale: float, samples: int, half_pixel: bool) -> Value:
    """Between the matrices of weights, and added up image by image."""
    wide = dtypes.accumulator(dy.dtype)
    matrices = []
    for axis, cells, limit in ((1, dy.shape[2], shape[2]), (0, dy.shape[3], shape[3])):
        weights, _ = ops.region_weights(
            rois, axis=axis, cells=cells, limit=limit, scale=scale, samples=samples, half_pixel=half_pixel
        )
        matrices.append(ops.reshape(ops.cast(weights, to=wide), shape=(rois.shape[0], 1, cells, limit)))
    vertical, horizontal = matrices
    spread = ops.matmul(ops.matmul(ops.transpose(vertical, perm=(0, 1, 3, 2)), ops.cast(dy, to=wide)), horizontal)
    number = ops.reshape(ops.cast(images, to=dtypes.int64), shape=(rois.shape[0], 1))
    zeros = ops.expand(g.constant(np.zeros((), wide)), shape=shape)
    return ops.cast(ops.scatter_nd(zeros, number, spread, reduction="add"), to=dy.dtype)


@spelled(ops.region_peaks)
def _(*operands: Value, **attributes: Any) -> Value:
    raise UnsupportedOp("region_peaks: the slopes of RoiAlign with mode='max' have no form in ONNX; mode='avg' has")
