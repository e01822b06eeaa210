"""Exporters of resampling and other ops on images."""

from __future__ import annotations

from typing import Any

import numpy as np

from flamert import dtypes, ops
from flamert.exporters.registry import exporter, spelled
from flamert.exporters.writer import Writer
from flamert.graph import Value


@exporter(ops.grid_sample, 20)
def _(to: Writer, x: Value, grid: Value, *, mode: str, padding: str, align_corners: bool) -> Any:
    """Runtimes have it for images and volumes; cubic only for images."""
    if x.rank > (4 if mode == "cubic" else 5) or x.rank < 4 or x.dtype != grid.dtype:
        return None
    return to("GridSample", x, grid, mode=mode, padding_mode=padding, align_corners=align_corners)


@exporter(ops.depth_to_space)
def _(to: Writer, x: Value, *, block: int, depth_first: bool) -> Any:
    return to("DepthToSpace", x, blocksize=block, mode="DCR" if depth_first else "CRD")


@exporter(ops.space_to_depth)
def _(to: Writer, x: Value, *, block: int, depth_first: bool) -> Any:
    return to("SpaceToDepth", x, blocksize=block, mode=None if depth_first else "CRD")


@exporter(ops.repeat)
def _(to: Writer, x: Value, *, repeats: tuple[int, ...]) -> Any:
    """The nearest element of an image, when it is enlarged."""
    if x.rank != 4 or repeats[:2] != (1, 1) or x.dtype != dtypes.float32 or not x.type.size:
        return None
    scales = np.array(repeats, np.float32)
    return to("Resize", x, None, scales, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")


@spelled(ops.resample)
def _(x: Value, *taps: Value, axes: tuple[int, ...]) -> Value:
    """Along each axis, the elements under all taps, weighted and summed."""
    y = ops.cast(x, to=dtypes.accumulator(x.dtype))
    for axis, index, weight in zip(axes, taps[::2], taps[1::2], strict=True):
        axis %= x.rank
        factors = ops.reshape(ops.cast(weight, to=y.dtype), shape=(*weight.shape, *[1] * (x.rank - 1 - axis)))
        y = ops.reduce_sum(ops.gather(y, index, axis=axis) * factors, axes=(axis + 1,))
    return ops.cast(y, to=x.dtype)
