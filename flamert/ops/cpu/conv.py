"""Convolutions on the CPU: NHWC, patches gathered a block at a time into cache-sized scratch, products with packed weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flamert.graph import Node, TensorType
from flamert.ops.cpu.library import NativeCall, library, native
from flamert.ops.cpu.linear import pack
from flamert.ops.fused import ACTIVATIONS, conv_channels_last
from flamert.ops.op import Site, kernel

SCRATCH_FLOATS = 1 << 16
"""Floats of gathered patches per thread: a quarter of a megabyte, which stays in the second-level cache."""

FEW, LONG = 2, 24
"""Up to so many output channels, and from such a length of patches, sums run along the patch instead of across channels."""


def _suits(node: Node) -> bool:
    """One or two spatial dimensions and constant weights."""
    w = node.inputs[1]
    return node.inputs[0].rank in (3, 4) and w is not None and w.constant is not None and node.types[0].size > 0  # type: ignore[union-attr]


def _depthwise(node: Node) -> bool:
    x, w = node.inputs[:2]
    return node.attrs["group"] == x.shape[-1] == w.shape[0] > 1 == w.shape[1]  # type: ignore[union-attr]


def _block(k: int) -> int:
    """Output pixels per block, a multiple of every tile height (6 and 12)."""
    return max(12, min(96, SCRATCH_FLOATS // max(k, 1) // 12 * 12))


def _workspace(node: Node) -> Sequence[TensorType]:
    lib = library()
    assert lib is not None
    if _depthwise(node):
        return ()
    w = node.inputs[1]
    k = w.type.size // w.shape[0]  # type: ignore[union-attr]
    return (TensorType((lib.threads * _block(k) * k,), np.dtype(np.float32)),)


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
    if _depthwise(site.node):
        return _depthwise_call(site, [out, x, w, bias, residual], integers, [alpha, beta])
    lib = library()
    assert lib is not None
    k = w.size // w.shape[0]
    few = w.shape[0] // group <= FEW and k >= LONG
    weights = site.prepacked("conv", 1, lambda: _rows(w, group) if few else _packed_groups(w, group))
    numbers = [*integers, _block(k), lib.threads, few]
    return lib.call("conv", [out, x, weights, bias, residual, site.work[0]], numbers, [alpha, beta])


def _rows(w: np.ndarray, group: int) -> np.ndarray:
    """[M, C/group, KH, KW] → [M, KH·KW·C/group]."""
    return np.ascontiguousarray(w.transpose(0, 2, 3, 1)).reshape(len(w), -1)


def _packed_groups(w: np.ndarray, group: int) -> np.ndarray:
    """[M, C/group, KH, KW] → [group][panel][KH·KW·C/group][columns]."""
    m = len(w) // group
    return np.stack([pack(rows.reshape(m, -1).T) for rows in _rows(w, group).reshape(group, m, -1)])


def _depthwise_call(site: Site, arrays: Sequence[Any], integers: Sequence[int], floats: Sequence[float]) -> NativeCall:
    lib = library()
    assert lib is not None
    out, x, w, bias, residual = arrays
    taps = site.prepacked("depthwise", 1, lambda: np.ascontiguousarray(w[:, 0].transpose(1, 2, 0)))
    return lib.call("depthwise", [out, x, taps, bias, residual], integers, floats)
