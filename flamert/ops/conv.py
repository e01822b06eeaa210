"""Convolutions, plain and transposed, in any number of dimensions, channels first; and col2im, the adjoint of windows."""

from __future__ import annotations

import math
from typing import Any

from flamert import dtypes
from flamert.errors import ShapeError
from flamert.graph import Node, TensorType
from flamert.ops.op import kernel, op
from flamert.ops.rules import dims_of, require, same_dtype
from flamert.ops.windows import check_windows, extent, fold, padded, taps, window_counts, windows

NUMERIC = dtypes.STANDARD_FLOAT | {dtypes.int32, dtypes.int64}

COLUMN_BYTES = 1 << 25
"""Scratch that the reference kernels unfold windows into at a time; at least one sample is."""


@op
def conv(
    x: TensorType,
    w: TensorType,
    b: TensorType | None = None,
    *,
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
    group: int = 1,
) -> TensorType:
    """y[n, m, o] = b[m] + Σ_c Σ_k x[n, c, o·strides + k·dilations − pads] · w[m, c, k], zero outside x (cross-correlation).

    x: [N, C, *spatial], w: [M, C/group, *kernel], b: [M]; one type for all: floating, int32 or int64. pads: all begins, then
    all ends. group: channels are split into that many groups that do not see each other. Returns [N, M, *windows]. Half
    types accumulate in float32. Raises ShapeError where shapes do not fit or a window is larger than its axis.
    Source: ONNX Conv-22.
    """
    require(x, NUMERIC, "convolution")
    dtype = same_dtype(x, w) if b is None else same_dtype(x, w, b)
    if w.rank != x.rank:
        raise ShapeError(f"weights {list(w.shape)} do not fit an operand of rank {x.rank}")
    counts = window_counts(x.shape[2:], w.shape[2:], strides, pads, dilations)
    if group < 1 or x.shape[1] != w.shape[1] * group or w.shape[0] % group:
        raise ShapeError(f"weights {list(w.shape)} in {group} groups do not fit {x.shape[1]} channels")
    if b is not None and b.shape != w.shape[:1]:
        raise ShapeError(f"bias {list(b.shape)} does not fit {w.shape[0]} output channels")
    return TensorType((x.shape[0], w.shape[0], *counts), dtype)


@kernel(conv)
def _(xp: Any, out: Any, x: Any, w: Any, b: Any = None, *, strides: Any, pads: Any, dilations: Any, group: int) -> None:
    """Windows unfolded to columns, a few samples at a time, and one matrix product per sample and group."""
    size, counts, points = w.shape[2:], out.shape[2:], math.prod(out.shape[2:])
    wide = dtypes.accumulator(out.dtype)
    depth = w.shape[1] * math.prod(size)
    weights = w.reshape(group, w.shape[0] // group, depth).astype(wide, copy=False)
    step = max(1, COLUMN_BYTES // max(1, group * depth * points * wide.itemsize))
    for n in range(0, x.shape[0], step):
        seen = windows(xp, padded(xp, x[n : n + step], pads, 0, wide), size, counts, strides, dilations)
        columns = seen.reshape(seen.shape[0], group, depth, points)
        result = out[n : n + step].reshape(seen.shape[0], group, w.shape[0] // group, points)
        if result.dtype == wide:
            xp.matmul(weights, columns, out=result)
            if b is not None:
                result += b.reshape(1, group, -1, 1)
        else:
            sums = xp.matmul(weights, columns)
            result[...] = sums if b is None else sums + b.reshape(1, group, -1, 1).astype(wide)


def depthwise(node: Node) -> bool:
    """Whether every channel has a few filters of its own, so that a matrix product per group would hardly multiply."""
    w = node.inputs[1].shape  # type: ignore[union-attr]
    return w[1] == 1 and node.attrs["group"] > 1 and w[0] <= 4 * node.attrs["group"]


@kernel(conv, when=depthwise)
def _(xp: Any, out: Any, x: Any, w: Any, b: Any = None, *, strides: Any, pads: Any, dilations: Any, group: int) -> None:
    """One multiply and add per tap, over all windows and channels at once."""
    wide = dtypes.accumulator(out.dtype)
    size, counts = w.shape[2:], out.shape[2:]
    filled = padded(xp, x, pads, 0, wide)[:, :, None]
    weights = w.reshape(group, -1, *size).astype(wide, copy=False)
    shape = (x.shape[0], group, w.shape[0] // group, *counts)
    sums = out.reshape(shape) if out.dtype == wide else xp.empty(shape, wide)
    sums[...] = 0 if b is None else b.reshape(group, -1, *[1] * len(counts))
    product = xp.empty(shape, wide)
    for tap, where in taps(size, counts, strides, dilations):
        xp.multiply(filled[where], weights[(..., *tap)].reshape(group, -1, *[1] * len(counts)), out=product)
        sums += product
    if sums.dtype != out.dtype:
        out[...] = sums.reshape(out.shape)


@op
def conv_weight_gradient(
    x: TensorType,
    dy: TensorType,
    *,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
    group: int = 1,
) -> TensorType:
    """The adjoint of `conv` in w: dw[m, c, k] = Σ_n Σ_o dy[n, m, o] · x[n, c, o·strides + k·dilations − pads].

    x: [N, C, *spatial], dy: [N, M, *windows], one floating type for both. Returns [M, C/group, *kernel]. Half types accumulate
    in float32. Raises ShapeError where shapes do not fit. Source: the product rule on ONNX Conv-22.
    """
    require(x, dtypes.STANDARD_FLOAT, "floating")
    dtype = same_dtype(x, dy)
    counts = window_counts(x.shape[2:], kernel, strides, pads, dilations)
    if dy.rank != x.rank or dy.shape[0] != x.shape[0] or dy.shape[2:] != counts:
        raise ShapeError(f"dy {list(dy.shape)} does not belong to {x.shape[0]} samples with {list(counts)} windows")
    if group < 1 or x.shape[1] % group or dy.shape[1] % group:
        raise ShapeError(f"{x.shape[1]} and {dy.shape[1]} channels do not form {group} groups")
    return TensorType((dy.shape[1], x.shape[1] // group, *kernel), dtype)


@kernel(conv_weight_gradient)
def _(xp: Any, out: Any, x: Any, dy: Any, *, kernel: Any, strides: Any, pads: Any, dilations: Any, group: int) -> None:
    """As in `conv`: one matrix product per sample and group, a few samples at a time."""
    counts, points = dy.shape[2:], math.prod(dy.shape[2:])
    wide = dtypes.accumulator(out.dtype)
    depth = out.shape[1] * math.prod(kernel)
    sums = xp.zeros((group, out.shape[0] // group, depth), wide)
    step = max(1, COLUMN_BYTES // max(1, group * depth * points * wide.itemsize))
    for n in range(0, x.shape[0], step):
        seen = windows(xp, padded(xp, x[n : n + step], pads, 0, wide), kernel, counts, strides, dilations)
        columns = seen.reshape(seen.shape[0], group, depth, points)
        upstream = dy[n : n + step].astype(wide, copy=False).reshape(seen.shape[0], group, dy.shape[1] // group, points)
        sums += xp.matmul(upstream, columns.transpose(0, 1, 3, 2)).sum(0)
    out[...] = sums.reshape(out.shape)


@op
def conv_transpose(
    x: TensorType,
    w: TensorType,
    b: TensorType | None = None,
    *,
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
    group: int = 1,
    output_padding: tuple[int, ...],
) -> TensorType:
    """The adjoint of `conv` in x, plus b: x[n, c, i] · w[c, m, k] is added to y[n, m, i·strides + k·dilations − pads].

    x: [N, C, *spatial], w: [C, M/group, *kernel], b: [M]; one type for all: floating, int32 or int64. pads: all begins, then
    all ends, cut off the result (negative: zeros added). output_padding: elements added at the end of each axis, which
    no window may have reached. Returns [N, M, *] with (D − 1)·stride + extent + output_padding − begin − end elements along
    an axis. Half types accumulate in float32. Raises ShapeError where shapes do not fit. Source: ONNX ConvTranspose-22.
    """
    require(x, NUMERIC, "convolution")
    dtype = same_dtype(x, w) if b is None else same_dtype(x, w, b)
    n = x.rank - 2
    if w.rank != x.rank or len(output_padding) != n:
        raise ShapeError(f"weights {list(w.shape)}, output_padding {list(output_padding)} do not fit rank {x.rank}")
    check_windows(n, w.shape[2:], strides, pads, dilations)
    if group < 1 or x.shape[1] != w.shape[0] or x.shape[1] % group:
        raise ShapeError(f"weights {list(w.shape)} in {group} groups do not fit {x.shape[1]} channels")
    channels = w.shape[1] * group
    if b is not None and b.shape != (channels,):
        raise ShapeError(f"bias {list(b.shape)} does not fit {channels} output channels")
    reach = extent(w.shape[2:], dilations)
    spatial = [
        (d - 1) * strides[i] + reach[i] + output_padding[i] - pads[i] - pads[n + i] if d else 0
        for i, d in enumerate(x.shape[2:])
    ]
    return TensorType((x.shape[0], channels, *dims_of(spatial)), dtype)


@kernel(conv_transpose)
def _(
    xp: Any,
    out: Any,
    x: Any,
    w: Any,
    b: Any = None,
    *,
    strides: Any,
    pads: Any,
    dilations: Any,
    group: int,
    output_padding: Any,
) -> None:
    """One matrix product per sample and group gives the columns, which are folded into the result a few samples at a time."""
    size, counts, points = w.shape[2:], x.shape[2:], math.prod(x.shape[2:])
    wide = dtypes.accumulator(out.dtype)
    depth = x.shape[1] // group
    width = w.shape[1] * math.prod(size)
    weights = w.reshape(group, depth, width).astype(wide, copy=False).transpose(0, 2, 1)
    bias = None if b is None else b.astype(wide, copy=False).reshape(-1, *[1] * len(counts))
    step = max(1, COLUMN_BYTES // max(1, group * width * points * wide.itemsize))
    for n in range(0, x.shape[0], step):
        part = x[n : n + step].astype(wide, copy=False)
        columns = xp.matmul(weights, part.reshape(part.shape[0], group, depth, points))
        columns = columns.reshape(part.shape[0], out.shape[1], *size, *counts)
        result = out[n : n + step]
        sums = result if out.dtype == wide else xp.empty(result.shape, wide)
        fold(xp, sums, columns, size, strides, pads, dilations)
        if bias is not None:
            sums += bias
        if sums is not result:
            result[...] = sums


@op
def col2im(
    x: TensorType,
    *,
    image: tuple[int, ...],
    block: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
) -> TensorType:
    """The adjoint of cutting an image into blocks: every column is added back where its block was taken from.

    x: [N, C · Π block, blocks] of a floating or integer type, blocks in row-major order. Returns [N, C, *image]. What lies
    in the padding is dropped. Half types accumulate in float32. Raises ShapeError where the counts do not fit.
    Source: ONNX Col2Im-18.
    """
    require(x, dtypes.STANDARD_FLOAT | dtypes.INTEGER, "col2im")
    if x.rank != 3:
        raise ShapeError(f"col2im takes [N, C·block, blocks], not rank {x.rank}")
    image = dims_of(image)
    counts = window_counts(image, block, strides, pads, dilations)
    if x.shape[1] % math.prod(block) or x.shape[2] != math.prod(counts):
        raise ShapeError(f"{x} does not hold {list(counts)} blocks of {list(block)} elements per channel")
    return TensorType((x.shape[0], x.shape[1] // math.prod(block), *image), x.dtype)


@kernel(col2im)
def _(xp: Any, out: Any, x: Any, *, image: Any, block: Any, strides: Any, pads: Any, dilations: Any) -> None:
    counts = window_counts(image, block, strides, pads, dilations)
    columns = x.astype(dtypes.accumulator(out.dtype), copy=False).reshape(*out.shape[:2], *block, *counts)
    fold(xp, out, columns, block, strides, pads, dilations)


@op(moves=True)
def im2col(
    x: TensorType, *, block: tuple[int, ...], strides: tuple[int, ...], pads: tuple[int, ...], dilations: tuple[int, ...]
) -> TensorType:
    """An image cut into blocks, one column each; zero outside x. The adjoint of `col2im`.

    x: [N, C, *image], any numeric type. Returns [N, C · Π block, blocks], blocks in row-major order. Raises ShapeError where a
    block is larger than its axis. Source: ONNX Col2Im-18 transposed.
    """
    counts = window_counts(x.shape[2:], block, strides, pads, dilations)
    return TensorType((x.shape[0], x.shape[1] * math.prod(block), math.prod(counts)), x.dtype)


@kernel(im2col)
def _(xp: Any, out: Any, x: Any, *, block: Any, strides: Any, pads: Any, dilations: Any) -> None:
    counts = window_counts(x.shape[2:], block, strides, pads, dilations)
    seen = windows(xp, padded(xp, x, pads), block, counts, strides, dilations)
    out.reshape(seen.shape)[...] = seen
