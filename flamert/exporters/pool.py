"""Exporters of pooling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flamert import graph as g
from flamert import ops
from flamert.exporters.conv import places, unfolded
from flamert.exporters.registry import exporter, plain, spelled
from flamert.exporters.shape import Dims
from flamert.exporters.writer import Writer
from flamert.graph import Value
from flamert.ops.pool import divisors, lowest
from flamert.ops.windows import extent, window_counts

plain(ops.global_average_pool, "GlobalAveragePool")
plain(ops.global_max_pool, "GlobalMaxPool")


def _fits(x: Value, kernel: Dims, pads: Dims) -> bool:
    """Whether runtimes take this padding: less than a window, and of something."""
    return bool(x.type.size) and min(pads) >= 0 and all(p < k for p, k in zip(pads, kernel * 2, strict=True))


@exporter(ops.max_pool)
def _(to: Writer, x: Value, *, kernel: Dims, pads: Dims, **windows: Any) -> Any:
    return to("MaxPool", x, kernel_shape=kernel, pads=pads, **windows) if _fits(x, kernel, pads) else None


@exporter(ops.max_pool_with_indices)
def _(to: Writer, x: Value, *, kernel: Dims, pads: Dims, column_major: bool, **windows: Any) -> Any:
    if not _fits(x, kernel, pads):
        return None
    return to("MaxPool", x, kernel_shape=kernel, pads=pads, storage_order=column_major or None, outputs=2, **windows)


def _floor(x: Value) -> Value:
    return g.constant(np.array(lowest(x.dtype), x.dtype))


@spelled(ops.max_pool)
def _(x: Value, *, kernel: Dims, strides: Dims, pads: Dims, dilations: Dims) -> Value:
    """The maximum over the taps of all windows."""
    shape = ops.max_pool.infer(x.type, kernel=kernel, strides=strides, pads=pads, dilations=dilations).shape
    best = ops.reduce_max(unfolded(x, kernel, strides, pads, dilations, _floor(x)), axes=(2,))
    return ops.reshape(best, shape=shape)


@spelled(ops.max_pool_with_indices)
def _(x: Value, *, kernel: Dims, strides: Dims, pads: Dims, dilations: Dims, column_major: bool) -> tuple[Value, Value]:
    """The first tap with the maximum, and the place of that tap for each window."""
    spatial, rank = x.shape[2:], len(kernel)
    counts = window_counts(spatial, kernel, strides, pads, dilations)
    elements = unfolded(x, kernel, strides, pads, dilations, _floor(x))
    tap = ops.argmax(elements, axis=2, keepdims=True)
    best = ops.gather_elements(elements, tap, axis=2)
    padded = tuple(d + pads[i] + pads[rank + i] for i, d in enumerate(spatial))
    at = np.stack(np.unravel_index(places(padded, kernel, counts, strides, dilations), padded))
    at = np.clip(at - np.reshape(pads[:rank], (-1, 1, 1)), 0, np.reshape(spatial, (-1, 1, 1)) - 1)
    where = np.ravel_multi_index(tuple(at), spatial, order="F" if column_major else "C")
    table = ops.expand(g.constant(where.astype(np.int64)[None, None]), shape=elements.shape)
    images = np.arange(math.prod(x.shape[:2])).reshape(*x.shape[:2], 1, 1) * math.prod(spatial)
    found = ops.gather_elements(table, tap, axis=2) + g.constant(images.astype(np.int64))
    shape = (*x.shape[:2], *counts)
    return ops.reshape(best, shape=shape), ops.reshape(found, shape=shape)


@spelled(ops.max_unpool)
def _(x: Value, at: Value, *, shape: Dims) -> Value:
    """ONNX's MaxUnpool counts places in a shape that it guesses from windows; a scatter needs none."""
    zeros = ops.expand(g.constant(np.zeros((), x.dtype)), shape=(math.prod(shape),))
    flat = (x.type.size,)
    index = ops.reshape(at, shape=flat)
    return ops.reshape(ops.scatter_elements(zeros, index, ops.reshape(x, shape=flat), axis=0), shape=shape)


@exporter(ops.average_pool)
def _(to: Writer, x: Value, *, kernel: Dims, pads: Dims, counted: Dims, **windows: Any) -> Any:
    if counted not in (pads, (0,) * len(pads)) or not _fits(x, kernel, pads):
        return None
    windows = {k: v for k, v in windows.items() if k != "dilations" or any(d > 1 for d in v)}
    return to("AveragePool", x, kernel_shape=kernel, pads=pads, count_include_pad=counted == pads, **windows)


def _shares(spatial: Dims, counts: Dims, dtype: np.dtype, **windows: Any) -> Value:
    """1 / (elements that count) for each window."""
    total = np.ones((), np.float64)
    for i, count in enumerate(divisors(spatial, counts, **windows)):
        total = total * count.reshape([-1 if j == i else 1 for j in range(len(counts))])
    with np.errstate(divide="ignore"):
        return g.constant((1 / total).astype(dtype))


@spelled(ops.average_pool)
def _(x: Value, *, counted: Dims, **windows: Any) -> Value:
    """The sum over the taps of all windows, times a constant for each."""
    counts = window_counts(x.shape[2:], **windows)
    sums = ops.reduce_sum(unfolded(x, **windows), axes=(2,))
    share = _shares(x.shape[2:], counts, x.dtype, **windows, counted=counted)
    return ops.reshape(sums, shape=(*x.shape[:2], *counts)) * share


@spelled(ops.average_pool_gradient)
def _(dy: Value, *, spatial: Dims, kernel: Dims, strides: Dims, pads: Dims, dilations: Dims, counted: Dims) -> Value:
    """Every channel's shares convolved back with ones."""
    windows = {"kernel": kernel, "strides": strides, "pads": pads, "dilations": dilations}
    counts, n, c = dy.shape[2:], len(kernel), dy.shape[1]
    if not dy.type.size:
        return ops.expand(g.constant(np.zeros((), dy.dtype)), shape=(*dy.shape[:2], *spatial))
    share = dy * _shares(spatial, counts, dy.dtype, **windows, counted=counted)
    reach = extent(kernel, dilations)
    left = tuple(d + pads[i] + pads[n + i] - (counts[i] - 1) * strides[i] - reach[i] for i, d in enumerate(spatial))
    ones = g.constant(np.ones((c, 1, *kernel), dy.dtype))
    del windows["kernel"]
    return ops.conv_transpose(share, ones, **windows, group=c, output_padding=left)


@exporter(ops.lp_pool)
def _(to: Writer, x: Value, *, kernel: Dims, pads: Dims, p: float, **windows: Any) -> Any:
    if p != int(p) or not _fits(x, kernel, pads):
        return None
    return to("LpPool", x, kernel_shape=kernel, pads=pads, p=int(p), **windows)
