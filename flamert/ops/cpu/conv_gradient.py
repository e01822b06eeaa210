"""Gradients of the weights of convolutions on the CPU: products that sum over pixels, of operands packed channels last."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flamert.graph import Node, TensorType
from flamert.ops.channels_last import conv_weight_gradient_channels_last
from flamert.ops.cpu.library import library, native
from flamert.ops.op import Site, kernel

MOST_TAPS = 256
"""Of a depthwise kernel, as in conv_gradient.h."""


def _suits(node: Node) -> bool:
    x = node.inputs[0]
    assert x is not None
    return x.rank in (3, 4) and x.type.size > 0 and node.types[0].size > 0 and node.inputs[1].type.size > 0  # type: ignore[union-attr]


def _depthwise(node: Node) -> bool:
    x, dy = node.inputs
    taps = math.prod(node.attrs["kernel"])
    return node.attrs["group"] == x.shape[-1] == dy.shape[-1] > 1 and taps <= MOST_TAPS  # type: ignore[union-attr]


def _workspace(node: Node) -> Sequence[TensorType]:
    """Sums, packed x and packed dy."""
    lib = library()
    x, dy = node.inputs
    assert lib is not None and x is not None and dy is not None
    if _depthwise(node):
        return ()
    m, channels, *taps = node.types[0].shape
    group = node.attrs["group"]
    columns = group * -(-(m // group) // lib.panel) * lib.panel
    # A line may be packed as it lies in the image, or as it is walked over, padding included.
    line = max(x.shape[-2], (dy.shape[-2] - 1) * node.attrs["strides"][-1] + taps[-1])
    sizes = [columns * channels * math.prod(taps), x.type.size // x.shape[-2] * line, columns * dy.type.size // m]
    return [TensorType((size,), np.dtype(np.float32)) for size in sizes]


@kernel(conv_weight_gradient_channels_last, "numpy", when=native(_suits), bind=True, contiguous=True, workspace=_workspace)
def _(
    site: Site,
    out: Any,
    x: Any,
    dy: Any,
    *,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
    group: int,
) -> Callable[[], None]:
    lib = library()
    assert lib is not None
    begins = pads[: len(strides)]
    if x.ndim == 3:  # one spatial dimension: an image of height one
        x, dy = x[:, None], dy[:, None]
        kernel, strides, begins, dilations = (1, *kernel), (1, *strides), (0, *begins), (1, *dilations)
    numbers = [*x.shape, *dy.shape[1:], *kernel, *strides, *begins, *dilations, group]
    if _depthwise(site.node):
        return lib.call("depthwise_gradient", [out, x, dy], numbers)
    return lib.call("conv_gradient", [out, x, dy, *site.work], numbers)
