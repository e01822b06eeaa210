"""Rows for ops/conv.py."""

import itertools
import math

import numpy as np

from flamert.testing import Case
from tests.cases.elementwise import FLOATS, f32


def window_offsets(kernel, dilations):
    for k in np.ndindex(*kernel):
        yield k, tuple(i * d for i, d in zip(k, dilations, strict=True))


def conv(x, w, b=None, *, strides, pads, dilations, group=1):
    """Straight from the definition, one output element at a time."""
    n = x.ndim - 2
    x = np.pad(x, [(0, 0), (0, 0), *zip(pads[:n], pads[n:], strict=True)])
    spatial = [(d - (k - 1) * e - 1) // s + 1 for d, k, e, s in zip(x.shape[2:], w.shape[2:], dilations, strides, strict=True)]
    y = np.zeros((x.shape[0], w.shape[0], *spatial), x.dtype)
    depth = w.shape[1]
    for m, o in itertools.product(range(w.shape[0]), np.ndindex(*spatial)):
        first = m // (w.shape[0] // group) * depth
        for k, at in window_offsets(w.shape[2:], dilations):
            where = tuple(i * s + a for i, s, a in zip(o, strides, at, strict=True))
            y[(slice(None), m, *o)] += x[(slice(None), slice(first, first + depth), *where)] @ w[(m, slice(None), *k)]
    return y if b is None else y + b.reshape(-1, *[1] * n)


def conv_transpose(x, w, b=None, *, strides, pads, dilations, group=1, output_padding):
    """Every input element is spread over the elements its window touches."""
    n, (channels, width) = x.ndim - 2, w.shape[:2]
    full = [
        (d - 1) * s + (k - 1) * e + 1 + p
        for d, s, k, e, p in zip(x.shape[2:], strides, w.shape[2:], dilations, output_padding, strict=True)
    ]
    y = np.zeros((x.shape[0], width * group, *full), x.dtype)
    for c, i in itertools.product(range(channels), np.ndindex(*x.shape[2:])):
        first = c // (channels // group) * width
        for k, at in window_offsets(w.shape[2:], dilations):
            where = tuple(j * s + a for j, s, a in zip(i, strides, at, strict=True))
            y[(slice(None), slice(first, first + width), *where)] += np.outer(x[(slice(None), c, *i)], w[(c, slice(None), *k)])
    y = np.pad(y, [(0, 0), (0, 0)] + [(max(-b, 0), max(-e, 0)) for b, e in zip(pads[:n], pads[n:], strict=True)])
    cut = [slice(max(b, 0), d - max(e, 0)) for b, e, d in zip(pads[:n], pads[n:], y.shape[2:], strict=True)]
    y = y[(slice(None), slice(None), *cut)]
    return y if b is None else y + b.reshape(-1, *[1] * n)


def conv_weight_gradient(x, dy, *, kernel, group=1, **attrs):
    """dw[i] is what the convolution with a lone 1 at i yields, times dy."""
    shape = (dy.shape[1], x.shape[1] // group, *kernel)
    dw = np.zeros(shape)
    for i in np.ndindex(shape):
        lone = np.zeros(shape)
        lone[i] = 1
        dw[i] = (conv(x, lone, group=group, **attrs) * dy).sum()
    return dw


def col2im(x, *, image, block, strides, pads, dilations):
    """A transposed convolution whose weights pick one element of the block each."""
    n = len(block)
    picks = np.eye(int(np.prod(block)), dtype=x.dtype).reshape(-1, 1, *block)
    counts = [(d + pads[i] + pads[n + i] - (block[i] - 1) * dilations[i] - 1) // strides[i] + 1 for i, d in enumerate(image)]
    rows = x.reshape(-1, picks.shape[0], *counts)
    left = [
        d + pads[i] + pads[n + i] - (counts[i] - 1) * strides[i] - (block[i] - 1) * dilations[i] - 1
        for i, d in enumerate(image)
    ]
    y = conv_transpose(rows, picks, strides=strides, pads=pads, dilations=dilations, output_padding=left)
    return y.reshape(x.shape[0], -1, *image)


def im2col(x, *, block, **attrs):
    """A convolution whose weights pick one element of the block each."""
    picks = np.eye(int(np.prod(block)), dtype=x.dtype).reshape(-1, 1, *block)
    seen = [conv(x[:, c : c + 1], picks, **attrs) for c in range(x.shape[1])]
    return np.concatenate([y.reshape(*y.shape[:2], math.prod(y.shape[2:])) for y in seen], 1)


def geometry(strides, pads, dilations, group=1):
    return {"strides": strides, "pads": pads, "dilations": dilations, "group": group}


def conv_case(x, w, b, *attrs, types=FLOATS, name=""):
    inputs = [f32(*x), f32(*w), *([f32(w[0])] if b else [])]
    return Case("conv", inputs, geometry(*attrs), conv, types, name=name)


def transpose_case(x, w, b, *attrs, extra, types=FLOATS[:2]):
    inputs = [f32(*x), f32(*w), *([f32(w[1] * (attrs[3] if len(attrs) > 3 else 1))] if b else [])]
    return Case("conv_transpose", inputs, {**geometry(*attrs), "output_padding": extra}, conv_transpose, types)


def channels_first(x):
    return None if x is None else np.moveaxis(x, -1, 1)


def conv_transpose_last(x, w, bias=None, residual=None, gate=None, *, activation="", alpha=0.0, beta=0.0, **attrs):
    y = np.moveaxis(conv_transpose(channels_first(x), w, bias, **attrs), 1, -1)
    y = y if residual is None else y + residual
    y = np.maximum(y, 0) if activation == "relu" else y
    return y if gate is None else np.where(gate > 0, y, 0)


def conv_last(x, w, bias=None, residual=None, gate=None, *, activation="", alpha=0.0, beta=0.0, **attrs):
    y = np.moveaxis(conv(channels_first(x), w, bias, **attrs), 1, -1)
    y = y if residual is None else y + residual
    y = np.maximum(y, 0) if activation == "relu" else y
    return y if gate is None else np.where(gate > 0, y, 0)


def weight_gradient_last(x, dy, *, kernel, strides, pads, dilations, group):
    """Tap by tap: the sum over all windows of what lies under the tap, times dy."""
    n = len(kernel)
    x = np.pad(x, [(0, 0), *[(max(b, 0), max(e, 0)) for b, e in zip(pads[:n], pads[n:], strict=True)], (0, 0)])
    x = x[(slice(None), *[slice(max(-b, 0), d + min(e, 0)) for b, e, d in zip(pads[:n], pads[n:], x.shape[1:-1], strict=True)])]
    cg, mg = x.shape[-1] // group, dy.shape[-1] // group
    dw = np.zeros((dy.shape[-1], cg, *kernel))
    for k, at in window_offsets(kernel, dilations):
        where = [slice(a, a + (c - 1) * s + 1, s) for a, c, s in zip(at, dy.shape[1:-1], strides, strict=True)]
        seen = x[(slice(None), *where)]
        for i in range(group):
            a, b = seen[..., i * cg : (i + 1) * cg], dy[..., i * mg : (i + 1) * mg]
            dw[(slice(i * mg, (i + 1) * mg), slice(None), *k)] = b.reshape(-1, mg).T @ a.reshape(-1, cg)
    return dw


def gradient_case(x, m, kernel, strides, pads, dilations, group=1):
    """x: [N, spatial…, C]; m: output channels."""
    n = len(kernel)
    counts = [(d + pads[i] + pads[n + i] - (kernel[i] - 1) * dilations[i] - 1) // strides[i] + 1 for i, d in enumerate(x[1:-1])]
    attrs = {"kernel": kernel, **geometry(strides, pads, dilations, group)}
    inputs = [f32(*x), f32(x[0], *counts, m)]
    # Sums of hundreds of numbers that nearly cancel.
    return Case("conv_weight_gradient_channels_last", inputs, attrs, weight_gradient_last, tolerance=(1e-4, 1e-4))


def spread_case(x, w, *attrs, extra, finish=(), constants=()):
    """x: [N, spatial…, C]. finish: bias, residual, gate, relu."""
    attributes = {**geometry(*attrs), "output_padding": extra}
    shape = conv_transpose_last(np.zeros(x), np.zeros(w), **attributes).shape
    more = [f32(*s) if k in finish else None for k, s in (("bias", shape[-1:]), ("residual", shape), ("gate", shape))]
    attributes |= {"activation": "relu"} if "relu" in finish else {}
    tolerance = (2e-5, 1e-5)
    inputs = [f32(*x), f32(*w), *more]
    return Case(
        "conv_transpose_channels_last", inputs, attributes, conv_transpose_last, tolerance=tolerance, constants=constants
    )


integers = np.arange(2 * 3 * 5 * 4, dtype=np.int32).reshape(2, 3, 5, 4)

CASES = [
    conv_case((2, 3, 6, 5), (4, 3, 3, 3), True, (1, 1), (1, 1, 1, 1), (1, 1)),
    conv_case((2, 4, 7, 6), (6, 2, 3, 2), True, (2, 1), (1, 0, 2, 1), (1, 2), 2),
    conv_case((2, 4, 5, 5), (4, 4, 1, 1), False, (1, 1), (0, 0, 0, 0), (1, 1), name="pointwise"),
    conv_case((1, 4, 5, 6), (8, 1, 3, 3), True, (1, 2), (1, 1, 1, 1), (1, 1), 4, name="depthwise"),
    conv_case((2, 3, 5, 6), (3, 1, 2, 3), False, (1, 1), (0, 0, 0, 0), (2, 1), 3, name="depthwise"),
    conv_case((2, 3, 9), (4, 3, 3), True, (2,), (2, 1), (2,)),
    conv_case((1, 2, 4, 3, 5), (3, 2, 2, 2, 3), True, (1, 2, 1), (1, 0, 1, 0, 1, 1), (1, 1, 1)),
    conv_case((0, 3, 5, 5), (2, 3, 3, 3), True, (1, 1), (0, 0, 0, 0), (1, 1), types=FLOATS[1:3]),
    conv_case((2, 0, 5, 5), (2, 0, 3, 3), True, (1, 1), (0, 0, 0, 0), (1, 1), types=FLOATS[1:3]),
    conv_case((2, 3, 0, 5), (2, 3, 1, 3), True, (1, 1), (0, 0, 0, 0), (1, 1), types=FLOATS[1:3]),
    Case(
        "conv",
        [f32(1, 2, 6, 6), f32(2, 2, 3, 3)],
        geometry((1, 1), (-1, 0, 0, 1), (1, 1)),
        lambda x, w, pads, **attrs: conv(x[:, :, 1:], w, pads=(0, 0, 0, 1), **attrs),
        name="crop",
    ),
    Case("conv", [integers, integers[:, :, :2, :2]], geometry((1, 1), (0, 1, 1, 0), (1, 1)), conv),
    *[
        Case(
            "conv_weight_gradient",
            [f32(*x), f32(*dy)],
            {"kernel": kernel, **geometry(*attrs)},
            conv_weight_gradient,
            FLOATS,
        )
        for x, dy, kernel, attrs in (
            ((2, 3, 5, 4), (2, 2, 3, 4), (2, 3), ((2, 1), (1, 1, 0, 1), (1, 1))),
            ((1, 4, 6), (1, 4, 4), (2,), ((1,), (0, 0), (2,), 2)),
            ((2, 2, 4, 4), (2, 2, 4, 4), (3, 3), ((1, 1), (1, 1, 1, 1), (1, 1), 2)),
            ((0, 2, 4, 4), (0, 2, 4, 4), (3, 3), ((1, 1), (1, 1, 1, 1), (1, 1))),
            ((2, 3, 0, 5), (2, 2, 0, 3), (1, 3), ((1, 1), (0, 0, 0, 0), (1, 1))),
        )
    ],
    transpose_case((2, 3, 4, 3), (3, 2, 3, 3), True, (2, 2), (1, 0, 1, 1), (1, 1), extra=(1, 0), types=FLOATS),
    transpose_case((1, 4, 3, 3), (4, 3, 2, 3), True, (1, 2), (0, 0, 0, 0), (2, 1), 2, extra=(0, 1)),
    transpose_case((2, 2, 5), (2, 3, 4), False, (3,), (0, 2), (1,), extra=(0,)),
    transpose_case((1, 2, 2, 3, 2), (2, 1, 2, 2, 2), False, (2, 1, 2), (0,) * 6, (1, 1, 1), extra=(0, 0, 0)),
    transpose_case((1, 2, 3, 3), (2, 2, 2, 2), False, (1, 1), (0, -1, -2, 0), (1, 1), extra=(0, 0)),
    transpose_case((0, 2, 3, 3), (2, 2, 2, 2), True, (1, 1), (0, 0, 0, 0), (1, 1), extra=(0, 0)),
    Case(
        "col2im",
        [f32(2, 12, 12)],
        {"image": (5, 5), "block": (2, 3), "strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1)},
        col2im,
        FLOATS,
    ),
    Case(
        "col2im",
        [f32(1, 8, 6)],
        {"image": (5, 6), "block": (2, 2), "strides": (2, 3), "pads": (1, 0, 0, 1), "dilations": (1, 2)},
        col2im,
    ),
    Case(
        "col2im",
        [f32(2, 3, 7)],
        {"image": (9,), "block": (3,), "strides": (1,), "pads": (0, 0), "dilations": (1,)},
        col2im,
    ),
    *[
        Case("im2col", [f32(*shape)], {"block": block, "strides": s, "pads": p, "dilations": d}, im2col, FLOATS)
        for shape, block, s, p, d in (
            ((2, 3, 5, 6), (2, 3), (1, 2), (1, 0, 0, 1), (2, 1)),
            ((1, 2, 9), (3,), (4,), (0, 0), (1,)),
            ((0, 2, 4, 4), (2, 2), (1, 1), (0,) * 4, (1, 1)),
        )
    ],
    # Forms that kernels with channels last tell apart: few channels and many taps, strips and panels that are not full, groups,
    # one dimension, lines longer than a block, cropped edges.
    *[
        gradient_case(*row)
        for row in (
            ((2, 9, 10, 3), 20, (5, 5), (2, 2), (2, 2, 2, 2), (1, 1)),
            ((2, 7, 7, 20), 40, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
            ((2, 8, 9, 13), 5, (3, 2), (2, 1), (1, 0, 0, 1), (2, 3)),
            ((1, 6, 6, 16), 32, (1, 1), (2, 2), (0, 0, 0, 0), (1, 1)),
            ((2, 6, 5, 24), 36, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 3),
            ((2, 6, 5, 8), 16, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 8),
            ((2, 9, 8, 19), 19, (3, 3), (2, 1), (1, 1, 1, 1), (1, 2), 19),
            ((2, 9, 8, 16), 16, (5, 5), (1, 1), (2, 2, 2, 2), (1, 1), 16),
            ((1, 6, 7, 8), 8, (3, 3), (1, 1), (-1, 1, 0, 2), (1, 1)),
            ((1, 6, 7, 2), 8, (3, 3), (1, 1), (1, -1, 0, 2), (1, 1)),
            ((2, 700, 4), 6, (5,), (1,), (2, 2), (1,)),
            ((1, 1300, 7), 3, (4,), (2,), (0, 3), (3,)),
            ((1, 2, 300, 2), 17, (1, 3), (1, 1), (0, 1, 0, 1), (1, 1)),
        )
    ],
    *[
        spread_case(*row, extra=extra, finish=finish)
        for *row, extra, finish in (
            ((2, 5, 6, 9), (9, 20, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, (0, 0), ("residual", "gate")),
            ((2, 5, 6, 9), (9, 20, 3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 1, (1, 1), ("bias", "residual", "gate")),
            ((1, 4, 5, 8), (8, 12, 1, 1), (2, 2), (0, 0, 0, 0), (1, 1), 1, (1, 0), ("residual",)),
            ((1, 4, 5, 6), (6, 4, 3, 4), (2, 3), (1, 2, 0, 1), (3, 2), 2, (0, 1), ("relu",)),
            ((2, 5, 4, 11), (11, 1, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 11, (0, 0), ()),
            ((2, 5, 4, 11), (11, 1, 3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 11, (1, 0), ("bias", "gate")),
            ((1, 4, 5, 30), (30, 1, 3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 1, (1, 1), ()),
            ((1, 3, 3, 4), (4, 3, 2, 2), (3, 3), (0, 0, 0, 0), (1, 1), 1, (0, 0), ("bias",)),
            ((1, 5, 5, 4), (4, 3, 3, 3), (1, 1), (0, -1, -2, 0), (1, 1), 1, (0, 0), ()),
            ((2, 40, 5), (5, 7, 4), (3,), (1, 2), (1,), 1, (1,), ("residual",)),
        )
    ],
    spread_case((2, 5, 6, 9), (9, 20, 3, 3), (2, 2), (1, 1, 1, 1), (1, 1), extra=(1, 1), constants=(1,)),
    *[
        Case(
            "conv_channels_last",
            [f32(2, 7, 30, 8), f32(12, 8 // group, *kernel), None, f32(2, 7, 30, 12), f32(2, 7, 30, 12)],
            {**geometry((1, 1), tuple(k // 2 for k in kernel) * 2, (1, 1), group), "activation": activation},
            conv_last,
            tolerance=(2e-5, 1e-5),
            name=f"gate-{group}-{kernel[0]}-{activation}",
        )
        for group, kernel, activation in ((1, (3, 3), ""), (4, (3, 3), "relu"), (1, (1, 1), ""))
    ],
]
