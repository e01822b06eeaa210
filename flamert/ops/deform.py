"""Deformable convolution: every tap of every window looks where an offset of its own tells it to."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flamert import dtypes
from flamert import graph as g
from flamert.errors import ShapeError
from flamert.graph import Value
from flamert.ops.cast import cast
from flamert.ops.index import gather
from flamert.ops.linear import matmul
from flamert.ops.op import composite
from flamert.ops.points import blend_with_zeros, linear_taps
from flamert.ops.shape import reshape
from flamert.ops.windows import window_counts


@composite
def deform_conv(
    x: Any,
    w: Any,
    offset: Any,
    b: Any = None,
    mask: Any = None,
    *,
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
    group: int = 1,
    offset_group: int = 1,
) -> Any:
    """y[n, m, o] = b[m] + Σ_c Σ_k mask[n, k, o] · x[n, c, o·strides + k·dilations − pads + offset[n, k, o]] · w[m, c, k].

    x between its elements is interpolated linearly, outside it is zero. x: [N, C, *spatial], w: [M, C/group, *kernel],
    b: [M], offset: [N, offset_group · Π kernel · d, *windows] for d spatial axes, mask: [N, offset_group · Π kernel, *windows]
    (1 where left out); floating, one type for all. Channels in `offset_group` groups share offsets and masks.
    Returns [N, M, *windows]. Half types accumulate in float32. Source: ONNX DeformConv-22, Zhu et al. 2018.
    """
    n, channels, *spatial = x.shape
    kernel, d = w.shape[2:], len(spatial)
    counts = window_counts(spatial, kernel, strides, pads, dilations)
    taps, points = math.prod(kernel), math.prod(counts)
    if group < 1 or channels != w.shape[1] * group or w.shape[0] % group:
        raise ShapeError(f"weights {list(w.shape)} in {group} groups do not fit {channels} channels")
    if offset_group < 1 or channels % offset_group or offset.shape != (n, offset_group * taps * d, *counts):
        raise ShapeError(f"offset must be {[n, offset_group * taps * d, *counts]}, not {list(offset.shape)}")
    wide = dtypes.accumulator(x.dtype)
    places = reshape(cast(offset, to=wide), shape=(n * offset_group, taps, d, points))
    at = [_coordinates(places, i, kernel, counts, strides, pads, dilations) for i in range(d)]
    grouped = reshape(cast(x, to=wide), shape=(n * offset_group, channels // offset_group, *spatial))
    columns = blend_with_zeros(grouped, [linear_taps(a) for a in at])
    if mask is not None:
        columns = columns * reshape(cast(mask, to=wide), shape=(n * offset_group, 1, taps * points))
    columns = reshape(columns, shape=(n, group, channels // group * taps, points))
    weights = reshape(cast(w, to=wide), shape=(group, w.shape[0] // group, channels // group * taps))
    y = reshape(matmul(weights, columns), shape=(n, w.shape[0], *counts))
    if b is not None:
        y = y + reshape(cast(b, to=wide), shape=(w.shape[0], *[1] * d))
    return cast(y, to=x.dtype)


def _coordinates(places: Value, i: int, kernel: Any, counts: Any, strides: Any, pads: Any, dilations: Any) -> Value:
    """Along spatial axis i, where each tap of each window looks: [N · offset_group, taps · windows]."""
    n, taps, _, points = places.shape
    window = np.arange(counts[i]).reshape([-1 if j == i else 1 for j in range(len(counts))]) * strides[i] - pads[i]
    tap = np.arange(kernel[i]).reshape([-1 if j == i else 1 for j in range(len(kernel))]) * dilations[i]
    regular = np.broadcast_to(tap, kernel).reshape(-1, 1) + np.broadcast_to(window, counts).reshape(1, -1)
    moved = gather(places, g.constant(np.int64(i)), axis=2) + g.constant(regular, places.dtype)
    return reshape(moved, shape=(n, taps * points))
