"""Converters. Ops on images: grid sampling, blocks of space as depth, central crops, decoding of image files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from flamert import ops
from flamert.errors import InvalidModel, ShapeError, UnsupportedOp
from flamert.graph import Value
from flamert.importers.registry import Context, converter
from flamert.ops.rules import axes_in

MODES = {"bilinear": "linear", "bicubic": "cubic"}
"""What GridSample's modes were called before opset 20."""


@converter("GridSample", 16)
@converter("GridSample", 1, domain="com.microsoft")
def _(
    ctx: Context, x: Value, grid: Value, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> Value:
    return ops.grid_sample(x, grid, mode=MODES.get(mode, mode), padding=padding_mode, align_corners=bool(align_corners))


@converter("AffineGrid", 20)
def _(ctx: Context, theta: Value, size: Value, *, align_corners: int = 0) -> Value:
    return ops.affine_grid(theta, size=(ctx.ints(size) or ())[2:], align_corners=bool(align_corners))


def _depth_first(mode: str) -> bool:
    if mode not in ("DCR", "CRD"):
        raise InvalidModel(f"mode {mode!r} is neither DCR nor CRD")
    return mode == "DCR"


@converter("DepthToSpace")
def _(ctx: Context, x: Value, *, blocksize: int, mode: str = "DCR") -> Value:
    return ops.depth_to_space(x, block=blocksize, depth_first=_depth_first(mode))


@converter("SpaceToDepth")
def _(ctx: Context, x: Value, *, blocksize: int, mode: str = "DCR") -> Value:
    return ops.space_to_depth(x, block=blocksize, depth_first=_depth_first(mode))


@converter("CenterCropPad", 18)
def _(ctx: Context, x: Value, shape: Value, *, axes: Sequence[int] | None = None) -> Value:
    """Where the number of elements to drop or add is odd, the end has one more."""
    over = axes_in(axes, x.rank) if axes is not None else tuple(range(x.rank))
    wanted = ctx.ints(shape) or ()
    if len(wanted) != len(over):
        raise ShapeError(f"shape {list(wanted)} must be one number for each of the axes {list(over)}")
    target = list(x.shape)
    for axis, n in zip(over, wanted, strict=True):
        target[axis] = n
    extra = [n - d for n, d in zip(target, x.shape, strict=True)]
    if any(e < 0 for e in extra):
        starts = tuple(max(-e, 0) // 2 for e in extra)
        sizes = tuple(min(n, d) for n, d in zip(target, x.shape, strict=True))
        x = ops.slice(x, starts=starts, sizes=sizes, steps=(1,) * x.rank)
    begins = [max(e, 0) // 2 for e in extra]
    pads = (*begins, *[max(e, 0) - b for e, b in zip(extra, begins, strict=True)])
    return ops.pad(x, pads=pads) if any(pads) else x


@converter("ImageDecoder", 20)
def _(ctx: Context, encoded: Value, *, pixel_format: str = "RGB") -> Any:
    if pixel_format not in ("RGB", "BGR", "Grayscale"):
        raise InvalidModel(f"pixel_format {pixel_format!r} is none of RGB, BGR, Grayscale")
    return ctx.host(lambda data: [decoded(data.tobytes(), pixel_format)], encoded)


def decoded(data: bytes, pixel_format: str) -> np.ndarray:
    """An image file's pixels: uint8 [height, width, channels]. Raises UnsupportedOp where Pillow is not installed."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise UnsupportedOp("ImageDecoder needs Pillow: pip install pillow") from error
    try:
        image = Image.open(io.BytesIO(data)).convert("L" if pixel_format == "Grayscale" else "RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise InvalidModel(f"ImageDecoder: {error}") from error
    pixels = np.atleast_3d(np.asarray(image))
    return np.ascontiguousarray(pixels[:, :, ::-1] if pixel_format == "BGR" else pixels)
