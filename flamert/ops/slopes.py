"""How `roi_align` depends on its regions: the weights that it gives to elements, and their slopes along the regions' ends."""

from __future__ import annotations

from typing import Any

import numpy as np

from flamert import dtypes
from flamert.graph import TensorType
from flamert.ops.op import kernel, op
from flamert.ops.region import corners, matrix, places, roi_align, sampled, spaced


@op
def region_weights(
    rois: TensorType, *, axis: int, cells: int, limit: int, scale: float = 1.0, samples: int = 0, half_pixel: bool = True
) -> tuple[TensorType, TensorType]:
    """What each of `limit` elements along one axis contributes to each cell of `roi_align`, mode "avg", and its slopes.

    rois: [R, 4], floating. axis: 0 for x, 1 for y. Returns weights [R, cells, limit], and their derivatives with respect to
    the start and the end of the region, [2, R, cells, limit]; both float32 for half types. Source: ONNX RoiAlign-22.
    """
    wide = dtypes.accumulator(rois.dtype)
    weights = TensorType((rois.shape[0], cells, limit), wide)
    return weights, TensorType((2, *weights.shape), wide)


@kernel(region_weights)
def _(xp: Any, out: Any, rois: Any, *, axis: int, cells: int, limit: int, scale: float, samples: int, half_pixel: bool) -> None:
    weights, slopes = out
    for r, ends in enumerate(rois.astype(xp.float64).tolist()):
        start, end = ends[axis] * scale, ends[axis + 2] * scale
        side = places(start, end, cells, limit, samples, half_pixel)
        weights[r] = xp.asarray(matrix(np, side, limit))
        moved = _moved(start, end, cells, limit, samples, half_pixel) * scale
        for end_, slope in enumerate(moved):
            rise = [(index, sign * slope) for (index, _), sign in zip(side, (-1, 1), strict=True)]
            slopes[end_, r] = xp.asarray(matrix(np, rise, limit))


def _moved(start: float, end: float, cells: int, limit: int, samples: int, half_pixel: bool) -> np.ndarray:
    """How far each sampled place moves with the start and with the end of its region: [2, cells, samples]."""
    at, along = spaced(start, end, cells, samples, half_pixel)
    along = along * (half_pixel or end - start > 1)
    return np.stack([1 - along, along]) * ((at > 0) & (at < limit - 1))


@op
def region_peaks(
    x: TensorType,
    rois: TensorType,
    images: TensorType,
    *,
    size: tuple[int, ...],
    scale: float = 1.0,
    samples: int = 0,
    half_pixel: bool = True,
) -> tuple[TensorType, TensorType, TensorType]:
    """Which element `roi_align`, mode "max", takes for each cell (the first of equals), its weights, and their slopes.

    Operands as for `roi_align`. Returns places in the flattened x, int64 [R, C, *size]; the weights along x and along y, whose
    product the element was multiplied with, [2, R, C, *size]; and their derivatives with respect to the start and the end of
    the region, [2 axes, 2 ends, R, C, *size]; float32 for half types. Source: ONNX RoiAlign-22.
    """
    y = roi_align.infer(x, rois, images, size=size)
    wide = dtypes.accumulator(x.dtype)
    return TensorType(y.shape, dtypes.int64), TensorType((2, *y.shape), wide), TensorType((2, 2, *y.shape), wide)


@kernel(region_peaks)
def _(xp: Any, out: Any, x: Any, rois: Any, images: Any, *, size: Any, scale: float, **grid: Any) -> None:
    found, weights, slopes = out
    plane = x.shape[2] * x.shape[3]
    channels = xp.arange(x.shape[1]).reshape(-1, 1, 1) * plane
    ends = (rois.astype(xp.float64) * scale).tolist()
    regions = sampled(xp, x, rois, images, size, scale=scale, **grid)
    for r, (number, (image, rows, columns)) in enumerate(zip(images.tolist(), regions, strict=True)):
        if not rows[0][0].size or not columns[0][0].size:
            found[r], weights[:, r], slopes[:, :, r] = 0, 0, 0
            continue
        products, _, at = corners(xp, image.astype(weights.dtype, copy=False), rows, columns)
        best = products.argmax(-1)
        place = xp.take_along_axis(xp.broadcast_to(at, products.shape), best[..., None], -1)[..., 0]
        found[r] = number * x.shape[1] * plane + channels + place
        corner, sample = best // (at.shape[-1] // 4), best % (at.shape[-1] // 4)
        width = columns[0][0].shape[1]
        i, j = xp.arange(size[0]).reshape(-1, 1), xp.arange(size[1])
        taken = ((columns, corner % 2, j, sample % width), (rows, corner // 2, i, sample // width))
        for axis, (side, neighbour, cell, s) in enumerate(taken):
            weights[axis, r] = xp.stack([weight for _, weight in side])[neighbour, cell, s]
            rise = _moved(ends[r][axis], ends[r][axis + 2], size[1 - axis], x.shape[3 - axis], **grid) * scale
            slopes[axis, :, r] = xp.asarray(np.stack([-rise, rise], 1))[:, neighbour, cell, s]
