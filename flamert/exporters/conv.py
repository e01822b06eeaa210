"""Exporters of convolutions, and of columns of windows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flamert import graph as g
from flamert import ops
from flamert.exporters.registry import exporter, spelled
from flamert.exporters.shape import Dims, dims
from flamert.exporters.writer import Writer
from flamert.graph import Value
from flamert.ops.windows import extent, window_counts


def cropped(x: Value, pads: Sequence[int]) -> tuple[Value, Dims]:
    """x without what negative padding cuts off, and the padding that is left."""
    n = len(pads) // 2
    before, behind = ([max(-p, 0) for p in side] for side in (pads[:n], pads[n:]))
    lead = x.rank - n
    sizes = (*x.shape[:lead], *[d - a - b for d, a, b in zip(x.shape[lead:], before, behind, strict=True)])
    x = ops.slice(x, starts=(*[0] * lead, *before), sizes=sizes, steps=(1,) * x.rank)
    return x, tuple(max(p, 0) for p in pads)


def around(x: Value, pads: Sequence[int], filling: Value | None = None) -> Value:
    """x with its last axes padded (begins, then ends), or cropped where a number is negative."""
    x, rest = cropped(x, pads)
    n, lead = len(rest) // 2, (0,) * (x.rank - len(rest) // 2)
    return ops.pad(x, filling, pads=(*lead, *rest[:n], *lead, *rest[n:]))


def places(spatial: Dims, kernel: Dims, counts: Dims, strides: Dims, dilations: Dims) -> np.ndarray:
    """Where in the flattened `spatial` axes each tap of each window lies: int64 [taps, windows]."""
    taps = np.array(list(itertools.product(*map(range, kernel))), np.int64).reshape(-1, 1, len(kernel))
    windows = np.array(list(itertools.product(*map(range, counts))), np.int64).reshape(1, -1, len(kernel))
    at = taps * dilations + windows * strides
    weights = [math.prod(spatial[i + 1 :]) for i in range(len(spatial))]
    return (at * np.array(weights, np.int64)).sum(2)


def unfolded(x: Value, kernel: Dims, strides: Dims, pads: Dims, dilations: Dims, filling: Value | None = None) -> Value:
    """The elements under all windows of x, padded: [N, C, taps, windows]."""
    counts = window_counts(x.shape[2:], kernel, strides, pads, dilations)
    x = around(x, pads, filling)
    flat = ops.reshape(x, shape=(*x.shape[:2], math.prod(x.shape[2:])))
    return ops.gather(flat, g.constant(places(x.shape[2:], kernel, counts, strides, dilations)), axis=2)


@exporter(ops.conv)
def _(to: Writer, x: Value, w: Value, b: Value | None = None, *, pads: Dims, group: int, **windows: Any) -> Any:
    return to("Conv", x, w, b, pads=pads, group=group, kernel_shape=w.shape[2:], **windows) if min(pads) >= 0 else None


@spelled(ops.conv)
def _(x: Value, w: Value, b: Value | None = None, *, strides: Dims, pads: Dims, dilations: Dims, group: int) -> Value:
    """What negative padding cuts off is cut off first; of element types that Conv lacks, matrix products are taken."""
    if min(pads) < 0:
        x, pads = cropped(x, pads)
        return ops.conv(x, w, b, strides=strides, pads=pads, dilations=dilations, group=group)
    counts = window_counts(x.shape[2:], w.shape[2:], strides, pads, dilations)
    columns = unfolded(x, w.shape[2:], strides, pads, dilations)
    depth = w.shape[1] * math.prod(w.shape[2:])
    columns = ops.reshape(columns, shape=(x.shape[0], group, depth, math.prod(counts)))
    weights = ops.reshape(w, shape=(group, w.shape[0] // group, depth))
    y = ops.reshape(ops.matmul(weights, columns), shape=(x.shape[0], w.shape[0], *counts))
    return y if b is None else y + per_channel(b, y)


def per_channel(b: Value, y: Value) -> Value:
    """A bias in a shape that broadcasts along axis 1."""
    return ops.reshape(b, shape=(b.shape[0], *[1] * (y.rank - 2)))


@spelled(ops.conv_weight_gradient)
def _(x: Value, dy: Value, *, kernel: Dims, strides: Dims, pads: Dims, dilations: Dims, group: int) -> Value:
    """A convolution of x with dy, samples in the place of channels, strides and dilations exchanged."""
    n, c, *_ = x.shape
    m = dy.shape[1]
    if not (x.type.size and dy.type.size):
        return ops.expand(g.constant(np.zeros((), x.dtype)), shape=(m, c // group, *kernel))
    spatial = tuple(range(3, x.rank + 1))
    apart = ops.reshape(x, shape=(n, group, c // group, *x.shape[2:]))
    rows = ops.reshape(ops.transpose(apart, perm=(2, 1, 0, *spatial)), shape=(c // group, group * n, *x.shape[2:]))
    weights = ops.transpose(dy, perm=(1, 0, *range(2, dy.rank)))
    y = ops.conv(rows, weights, strides=dilations, pads=pads, dilations=strides, group=group)
    y = ops.slice(y, starts=(0,) * y.rank, sizes=(c // group, m, *kernel), steps=(1,) * y.rank)
    return ops.transpose(y, perm=(1, 0, *range(2, y.rank)))


@exporter(ops.conv_transpose)
def _(to: Writer, x: Value, w: Value, b: Value | None = None, *, pads: Dims, output_padding: Dims, **windows: Any) -> Any:
    limits = map(max, windows["strides"], windows["dilations"])
    if min(pads) < 0 or 0 in x.shape or any(e >= limit for e, limit in zip(output_padding, limits, strict=True)):
        return None
    extra = output_padding if any(output_padding) else None
    return to("ConvTranspose", x, w, b, pads=pads, output_padding=extra, kernel_shape=w.shape[2:], **windows)


@spelled(ops.conv_transpose)
def _(
    x: Value,
    w: Value,
    b: Value | None = None,
    *,
    strides: Dims,
    pads: Dims,
    dilations: Dims,
    group: int,
    output_padding: Dims,
) -> Value:
    """All that windows reach, cut or padded to what is asked for."""
    windows = {"strides": strides, "dilations": dilations, "group": group}
    n = len(strides)
    if 0 in x.shape:
        full = ops.conv_transpose.infer(x.type, w.type, pads=pads, output_padding=output_padding, **windows).shape
        y = ops.expand(g.constant(np.zeros((), x.dtype)), shape=full)
    elif any(pads) or any(output_padding):
        y = ops.conv_transpose(x, w, pads=(0,) * (2 * n), output_padding=(0,) * n, **windows)
        ends = [e - p for e, p in zip(output_padding, pads[n:], strict=True)]
        y = around(y, (*[-p for p in pads[:n]], *ends))
    else:
        y = _from_products(x, w, strides, dilations, group)
    return y if b is None else y + per_channel(b, y)


def _from_products(x: Value, w: Value, strides: Dims, dilations: Dims, group: int) -> Value:
    """A transposed convolution without padding as a matrix product whose columns are folded."""
    kernel, counts = w.shape[2:], x.shape[2:]
    channels = w.shape[1] * group
    depth, width = x.shape[1] // group, w.shape[1] * math.prod(kernel)
    weights = ops.transpose(ops.reshape(w, shape=(group, depth, width)), perm=(0, 2, 1))
    columns = ops.matmul(weights, ops.reshape(x, shape=(x.shape[0], group, depth, math.prod(counts))))
    columns = ops.reshape(columns, shape=(x.shape[0], channels * math.prod(kernel), math.prod(counts)))
    image = tuple((d - 1) * s + e for d, s, e in zip(counts, strides, extent(kernel, dilations), strict=True))
    pads = (0,) * (2 * len(kernel))
    return ops.col2im(columns, image=image, block=kernel, strides=strides, pads=pads, dilations=dilations)


@exporter(ops.col2im)
def _(to: Writer, x: Value, *, image: Dims, block: Dims, pads: Dims, **windows: Any) -> Any:
    return to("Col2Im", x, dims(image), dims(block), pads=pads, **windows) if min(pads) >= 0 else None


@spelled(ops.col2im)
def _(x: Value, *, image: Dims, block: Dims, strides: Dims, pads: Dims, dilations: Dims) -> Value:
    """The elements added up where `places` says, in an image with its padding, which is then cut off."""
    n, c, windows = x.shape[0], x.shape[1] // math.prod(block), x.shape[2]
    rank = len(image)
    counts = window_counts(image, block, strides, pads, dilations)
    room = tuple(
        max(d + pads[i] + pads[rank + i], (counts[i] - 1) * strides[i] + e)
        for i, (d, e) in enumerate(zip(image, extent(block, dilations), strict=True))
    )
    at = places(room, block, counts, strides, dilations).reshape(1, 1, -1)
    index = ops.expand(g.constant(at), shape=(n, c, at.size))
    zeros = ops.expand(g.constant(np.zeros((), x.dtype)), shape=(n, c, math.prod(room)))
    columns = ops.reshape(x, shape=(n, c, math.prod(block) * windows))
    sums = ops.scatter_elements(zeros, index, columns, axis=2, reduction="add")
    ends = [d + pads[i] - r for i, (d, r) in enumerate(zip(image, room, strict=True))]
    return around(ops.reshape(sums, shape=(n, c, *room)), (*[-p for p in pads[:rank]], *ends))


@exporter(ops.deform_conv)
def _(
    to: Writer,
    x: Value,
    w: Value,
    offset: Value,
    b: Value | None = None,
    mask: Value | None = None,
    *,
    pads: Dims,
    **windows: Any,
) -> Any:
    """Runtimes have it for images."""
    if x.rank != 4 or min(pads) < 0 or not x.type.size:
        return None
    return to("DeformConv", x, w, offset, b, mask, pads=pads, kernel_shape=w.shape[2:], **windows)


@spelled(ops.im2col)
def _(x: Value, *, block: Dims, strides: Dims, pads: Dims, dilations: Dims) -> Value:
    columns = unfolded(x, block, strides, pads, dilations)
    return ops.reshape(columns, shape=(x.shape[0], x.shape[1] * math.prod(block), columns.shape[3]))
