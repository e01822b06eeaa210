"""Ops on images: sampling them along a grid, the grid of an affine map, and blocks of space as depth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flamert import dtypes
from flamert import graph as g
from flamert.errors import ShapeError, UnsupportedType
from flamert.graph import Value
from flamert.ops.cast import cast
from flamert.ops.elementwise import round
from flamert.ops.index import gather
from flamert.ops.linear import matmul
from flamert.ops.op import composite
from flamert.ops.points import blend, blend_with_zeros, clamped, cubic_taps, linear_taps, reflected
from flamert.ops.shape import reshape, transpose


@composite
def grid_sample(x: Any, grid: Any, *, mode: str = "linear", padding: str = "zeros", align_corners: bool = False) -> Any:
    """y[n, c, p] = x[n, c] at the place grid[n, p], between whose neighbours is interpolated.

    x: [N, C, *spatial] with d spatial axes, floating (any type for mode "nearest"); grid: [N, *points, d], floating: last
    spatial axis first, −1 and 1 being the outer edges of x, or with `align_corners` the centres of its outermost elements.
    mode: "nearest" (halves go to the even neighbour), "linear" or "cubic". padding: what lies outside x: "zeros", "border"
    (the nearest element) or "reflection". Returns [N, C, *points] of x's type; half types are computed in float32.
    Source: ONNX GridSample-22.
    """
    n, channels, *spatial = x.shape
    d = len(spatial)
    if not d or grid.rank != d + 2 or grid.shape[0] != n or grid.shape[-1] != d:
        raise ShapeError(f"a grid [N, *points, {d}] is needed for {x.type}, not {grid.type}")
    if mode not in ("nearest", "linear", "cubic") or padding not in ("zeros", "border", "reflection"):
        raise ShapeError(f"mode {mode!r} or padding {padding!r} is unknown")
    if mode != "nearest" and x.dtype not in dtypes.STANDARD_FLOAT:
        raise UnsupportedType(f"{x.dtype.name} can only be sampled with mode 'nearest'")
    points = grid.shape[1:-1]
    flat = cast(reshape(grid, shape=(n, math.prod(points), d)), to=dtypes.accumulator(grid.dtype))
    wide = x if mode == "nearest" else cast(x, to=dtypes.accumulator(x.dtype))
    taps = []
    for i, size in enumerate(spatial):
        place = gather(flat, g.constant(np.int64(d - 1 - i)), axis=2)
        at = (place + 1) * ((size - 1) / 2) if align_corners else ((place + 1) * size - 1) * 0.5
        taps.append(_taps(at, size, mode, padding, align_corners, wide.dtype))
    y = (blend_with_zeros if padding == "zeros" else blend)(wide, taps)
    return reshape(cast(y, to=x.dtype), shape=(n, channels, *points))


def _taps(at: Value, size: int, mode: str, padding: str, align_corners: bool, dtype: np.dtype) -> list[Any]:
    """(whole coordinate, weight) of the neighbours along one axis, as `padding` moves them onto it."""
    low, high = (0.0, size - 1.0) if align_corners else (-0.5, size - 0.5)
    if mode == "nearest":
        at = round(at)
    if padding == "reflection":
        at = reflected(at, low, high)
    found: list[Any] = [(at, None)]
    if mode != "nearest":
        found = list((linear_taps if mode == "linear" else cubic_taps)(at))
    if padding == "border":
        found = [(clamped(tap, size), weight) for tap, weight in found]
    elif padding == "reflection":
        found = [(clamped(round(reflected(tap, low, high)), size), weight) for tap, weight in found]
    return [(tap, weight if weight is None else cast(weight, to=dtype)) for tap, weight in found]


@composite
def affine_grid(theta: Any, *, size: tuple[int, ...], align_corners: bool = False) -> Any:
    """grid[n, p] = theta[n] · (place of p, 1): where `grid_sample` has to look for an affinely transformed image.

    theta: [N, d, d + 1], floating. size: the d spatial sizes, whose elements lie evenly between the edges −1 and 1, or with
    `align_corners` from −1 to 1 (a single one at 0). Returns [N, *size, d], last axis first. Source: ONNX AffineGrid-20.
    """
    d = len(size)
    if theta.rank != 3 or theta.shape[1:] != (d, d + 1):
        raise ShapeError(f"theta must be [N, {d}, {d + 1}], not {list(theta.shape)}")
    wide = dtypes.accumulator(theta.dtype)
    lines = [(np.arange(k) * 2 - (k - 1)) / (max(k - 1, 1) if align_corners else max(k, 1)) for k in size]
    places = np.stack([*np.meshgrid(*lines, indexing="ij")[::-1], np.ones(size)]).reshape(d + 1, -1)
    grid = matmul(cast(theta, to=wide), g.constant(places, wide))
    grid = cast(transpose(grid, perm=(0, 2, 1)), to=theta.dtype)
    return reshape(grid, shape=(theta.shape[0], *size, d))


@composite
def depth_to_space(x: Any, *, block: int, depth_first: bool = True) -> Any:
    """Channels moved into blocks of block × block elements: [N, C · block², H, W] → [N, C, H · block, W · block].

    Any type. A channel is block row, block column, depth (`depth_first`: blocks vary slowest, mode DCR) or depth, block row,
    block column (mode CRD). Source: ONNX DepthToSpace-28.
    """
    if x.rank != 4 or block < 1 or x.shape[1] % (block * block):
        raise ShapeError(f"{x.type} has no channels for blocks of {block} × {block}")
    n, c, h, w = x.shape
    depth = c // (block * block)
    parts = (n, block, block, depth, h, w) if depth_first else (n, depth, block, block, h, w)
    perm = (0, 3, 4, 1, 5, 2) if depth_first else (0, 1, 4, 2, 5, 3)
    apart = transpose(reshape(x, shape=parts), perm=perm)
    return reshape(apart, shape=(n, depth, h * block, w * block))


@composite
def space_to_depth(x: Any, *, block: int, depth_first: bool = True) -> Any:
    """Blocks of block × block elements moved into channels, `depth_to_space` undone.

    Any type: [N, C, H · block, W · block] → [N, C · block², H, W]. Source: ONNX SpaceToDepth-28.
    """
    if x.rank != 4 or block < 1 or x.shape[2] % block or x.shape[3] % block:
        raise ShapeError(f"{x.type} does not consist of blocks of {block} × {block}")
    n, c, h, w = x.shape
    apart = reshape(x, shape=(n, c, h // block, block, w // block, block))
    moved = transpose(apart, perm=(0, 3, 5, 1, 2, 4) if depth_first else (0, 1, 3, 5, 2, 4))
    return reshape(moved, shape=(n, c * block * block, h // block, w // block))
