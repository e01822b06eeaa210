"""Convolutions on the CPU: NHWC, patches gathered a block at a time into cache-sized scratch, products with packed weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flamert.graph import Node, TensorType
from flamert.ops.cpu.library import library, native
from flamert.ops.cpu.shape import copier, sequence
from flamert.ops.fused import ACTIVATIONS, conv_channels_last
from flamert.ops.op import Site, kernel

SCRATCH_FLOATS = 1 << 16
"""Floats of gathered patches per thread: a quarter of a megabyte, which stays in the second-level cache."""

FEW, LONG = 2, 24
"""Up to so many output channels, and from such a length of patches, sums run along the patch instead of across channels."""


def _suits(node: Node) -> bool:
    """One or two spatial dimensions."""
    return node.inputs[0].rank in (3, 4) and node.types[0].size > 0  # type: ignore[union-attr]


def _depthwise(node: Node) -> bool:
    x, w = node.inputs[:2]
    return node.attrs["group"] == x.shape[-1] == w.shape[0] > 1 == w.shape[1]  # type: ignore[union-attr]


def _block(k: int) -> int:
    """Output pixels per block, a multiple of every tile height (6 and 12)."""
    return max(12, min(96, SCRATCH_FLOATS // max(k, 1) // 12 * 12))


def _few(node: Node) -> bool:
    m, *patch = node.inputs[1].shape  # type: ignore[union-attr]
    return m // node.attrs["group"] <= FEW and math.prod(patch) >= LONG


def _arrangement(node: Node) -> tuple[int, ...]:
    """The shape of the weights as the kernel for this node reads them."""
    lib = library()
    assert lib is not None
    m, *patch = node.inputs[1].shape  # type: ignore[union-attr]
    k, group = math.prod(patch), node.attrs["group"]
    if _depthwise(node) or _few(node):
        return (k * m,)
    return (group, -(-(m // group) // lib.panel), k, lib.panel)


def _workspace(node: Node) -> Sequence[TensorType]:
    """Gathered patches for each thread; weights arranged, where they may be others in every call."""
    lib = library()
    assert lib is not None
    k = math.prod(node.inputs[1].shape[1:])  # type: ignore[union-attr]
    shapes: list[tuple[int, ...]] = [() if _depthwise(node) else (lib.threads * _block(k) * k,)]
    if node.inputs[1].constant is None:  # type: ignore[union-attr]
        shapes.append(_arrangement(node))
    return [TensorType(shape, np.dtype(np.float32)) for shape in shapes]


@kernel(conv_channels_last, "numpy", when=native(_suits), bind=True, contiguous=True, workspace=_workspace)
def _(
    site: Site,
    out: Any,
    x: Any,
    w: Any,
    bias: Any = None,
    residual: Any = None,
    *,
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
    group: int,
    activation: str,
    alpha: float,
    beta: float,
) -> Callable[[], None]:
    if x.ndim == 4 and x.shape[2] == out.shape[2] == w.shape[3] == 1:  # the same numbers, lying down
        x, out, w = x.swapaxes(1, 2), out.swapaxes(1, 2), w.swapaxes(2, 3)
        residual = None if residual is None else residual.swapaxes(1, 2)
        strides, pads, dilations = (strides[1], strides[0]), (pads[1], pads[0], pads[3], pads[2]), (dilations[1], dilations[0])
    if x.ndim == 3:  # one spatial dimension: an image of height one
        x, out, w = x[:, None], out[:, None], w[:, :, None]
        residual = None if residual is None else residual[:, None]
        strides, pads, dilations = (1, *strides), (0, pads[0], 0, pads[1]), (1, *dilations)
    integers = [
        *x.shape,
        *out.shape[1:],
        *w.shape[2:],
        *strides,
        pads[0],
        pads[1],
        *dilations,
        group,
        ACTIVATIONS.index(activation),
    ]
    lib = library()
    assert lib is not None
    weights, first = _arranged(site, w, group)
    if _depthwise(site.node):
        call = lib.call("depthwise", [out, x, weights, bias, residual], integers, [alpha, beta])
    else:
        k = math.prod(w.shape[1:])
        numbers = [*integers, _block(k), lib.threads, _few(site.node)]
        call = lib.call("conv", [out, x, weights, bias, residual, site.work[0]], numbers, [alpha, beta])
    return sequence([*first, call])


def _arranged(site: Site, w: np.ndarray, group: int) -> tuple[np.ndarray, list[Callable[[], Any]]]:
    """The weights in the kernel's order, and calls that put them there each time: none for constants, arranged for good."""
    if not site.is_constant(1):
        return site.work[1], _arranging(site, site.work[1], w, group)

    def arrange() -> np.ndarray:
        weights = np.empty(_arrangement(site.node), np.float32)
        for call in _arranging(site, weights, w, group):
            call()
        return weights

    return site.prepacked("conv", 1, arrange), []


def _arranging(site: Site, out: np.ndarray, w: np.ndarray, group: int) -> list[Callable[[], Any]]:
    """Calls that copy w [M, C/group, KH, KW] into its order in `out`.

    Depthwise [KH, KW, M]; for few channels [M, KH, KW, C/group]; else panels of columns, [group, panel, KH, KW, C/group,
    columns], with zeros for columns that are missing in the last one.
    """
    m, channels, *taps = w.shape
    if _depthwise(site.node):
        return [copier(out.reshape(*taps, m), w[:, 0].transpose(1, 2, 0))]
    if _few(site.node):
        return [copier(out.reshape(m, *taps, channels), w.transpose(0, 2, 3, 1))]
    lib = library()
    assert lib is not None
    own, panel = m // group, out.shape[-1]
    full, rest = divmod(own, panel)
    panels = out.reshape(group, -1, *taps, channels, panel)
    columns = w.reshape(group, own, channels, *taps)
    calls: list[Callable[[], Any]] = []
    if rest:
        calls.append(lib.call("fill", [out], [out.size], [0.0]))
        calls.append(copier(panels[:, full, ..., :rest], columns[:, full * panel :].transpose(0, 3, 4, 2, 1)))
    if full:
        whole = columns[:, : full * panel].reshape(group, full, panel, channels, *taps)
        calls.append(copier(panels[:, :full], whole.transpose(0, 1, 4, 5, 3, 2)))
    return calls
