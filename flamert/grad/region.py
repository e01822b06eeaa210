"""Gradients of pooling over regions: to the elements that were taken, and to the ends of regions that are not rounded."""

from __future__ import annotations

from typing import Any

import numpy as np

from flamert import dtypes, ops
from flamert import graph as g
from flamert.grad.pool import to_places
from flamert.grad.registry import flat, gradient
from flamert.graph import Value
from flamert.ops.shape import narrow


@gradient(ops.max_roi_pool)
def _(dy: Any, y: Any, x: Any, rois: Any, **grid: Any) -> Any:
    """dx[place of y[o]] += dy[o]; regions are rounded to elements, so nothing flows to them."""
    places = ops.max_roi_places(x, rois, **grid)
    found = places >= 0
    dy = ops.where(found, dy, g.constant(np.zeros((), dy.dtype)))
    return to_places(dy, ops.where(found, places, g.constant(np.int64(0))), x.shape), None


flat(ops.max_roi_places)


@gradient(ops.roi_align)
def _(dy: Any, y: Any, x: Any, rois: Any, images: Any, *, size: Any, mode: str, **grid: Any) -> Any:
    """dx = Σ weight · dy over the regions, or in mode "max" to the element that was taken;
    drois = Σ dy · x · (slope of the weight along an end of the region)
    """
    if mode == "avg":
        return ops.roi_align_gradient(dy, rois, images, shape=x.shape, **grid), _to_ends_of_means(dy, x, rois, images, grid)
    places, weights, slopes = ops.region_peaks(x, rois, images, size=size, **grid)
    along_x, along_y = (ops.reshape(narrow(weights, 0, i, 1), shape=dy.shape) for i in (0, 1))
    dy = ops.cast(dy, to=weights.dtype)
    taken = ops.cast(ops.gather(ops.reshape(x, shape=(x.type.size,)), places, axis=0), to=weights.dtype)
    dweights = dy * taken * narrow(weights, 0, 1, 2, -1)
    return to_places(dy * along_x * along_y, places, x.shape), _to_ends(dweights, slopes)


@gradient(ops.roi_align_gradient)
def _(dv: Any, v: Any, dy: Any, rois: Any, images: Any, *, shape: Any, **grid: Any) -> Any:
    """⟨dv, v⟩ = ⟨dy, roi_align(dv)⟩"""
    back = ops.roi_align(dv, rois, images, size=dy.shape[2:], **grid)
    return back, _to_ends_of_means(dy, dv, rois, images, grid)


@gradient(ops.region_peaks)
def _(dy: Any, y: Any, x: Any, rois: Any, images: Any, **grid: Any) -> Any:
    """drois = Σ dweight · slope; the slopes themselves are flat, and so is the choice of the element."""
    return None, None if dy[1] is None else _to_ends(dy[1], y[2])


@gradient(ops.region_weights)
def _(dy: Any, y: Any, rois: Any, *, axis: int, **line: Any) -> Any:
    """drois = Σ dweight · slope; the slopes themselves are flat."""
    if dy[0] is None:
        return None
    ends = ops.reduce_sum(dy[0] * y[1], axes=(2, 3))
    return ops.unslice(ops.transpose(ends, perm=(1, 0)), shape=rois.shape, starts=(0, axis), steps=(1, 2))


def _to_ends(dweights: Value, slopes: Value) -> Value:
    """[2 axes, R, C, *size] and [2 axes, 2 ends, R, C, *size] → regions [R, 4]"""
    axes, regions, *cells = dweights.shape
    upstream = ops.reshape(dweights, shape=(axes, 1, regions, *cells))
    ends = ops.reduce_sum(upstream * slopes, axes=(3, 4, 5))
    return ops.reshape(ops.transpose(ends, perm=(2, 1, 0)), shape=(regions, 4))


def _to_ends_of_means(dy: Value, x: Value, rois: Value, images: Value, grid: dict[str, Any]) -> Value:
    """What flows to the regions of y[r] = rows[r] · x[images[r]] · columns[r]ᵀ"""
    (height, width), wide = dy.shape[2:], dtypes.accumulator(rois.dtype)
    columns, along_x = ops.region_weights(rois, axis=0, cells=width, limit=x.shape[3], **grid)
    rows, along_y = ops.region_weights(rois, axis=1, cells=height, limit=x.shape[2], **grid)
    image, dy = ops.cast(ops.gather(x, images, axis=0), to=wide), ops.cast(dy, to=wide)
    turned = ops.transpose(dy, perm=(0, 1, 3, 2))
    lines, strips = _times(rows, image), _times(columns, ops.transpose(image, perm=(0, 1, 3, 2)))
    drows = ops.reduce_sum(ops.matmul(dy, strips), axes=(1,))
    dcolumns = ops.reduce_sum(ops.matmul(turned, lines), axes=(1,))
    ends = [ops.reduce_sum(d * slope, axes=(2, 3)) for d, slope in ((dcolumns, along_x), (drows, along_y))]
    stacked = ops.concat(*[ops.reshape(e, shape=(2, 1, rois.shape[0])) for e in ends], axis=1)
    return ops.reshape(ops.transpose(stacked, perm=(2, 0, 1)), shape=rois.shape)


def _times(weights: Value, image: Value) -> Value:
    """weights[r] · image[r, c] for every channel c"""
    return ops.matmul(ops.reshape(weights, shape=(weights.shape[0], 1, *weights.shape[1:])), image)
