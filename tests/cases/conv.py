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
]
