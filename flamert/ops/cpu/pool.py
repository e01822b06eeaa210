"""Pooling and its gradients on the CPU with channels last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flamert.graph import Node
from flamert.ops.channels_last import (
    average_pool_channels_last,
    average_pool_gradient_channels_last,
    max_pool_channels_last,
    max_pool_gradient_channels_last,
)
from flamert.ops.cpu.library import library, native
from flamert.ops.op import Site, kernel

MEAN, MAXIMUM = 1, 2
"""Kinds of pooling, as in reduce.h."""


def _planar(node: Node) -> bool:
    return node.inputs[0].rank in (3, 4) and node.types[0].size > 0  # type: ignore[union-attr]


@kernel(max_pool_channels_last, "numpy", when=native(_planar), bind=True, contiguous=True)
def _(site: Site, out: Any, x: Any, *, kernel: Any, strides: Any, pads: Any, dilations: Any) -> Callable[[], None]:
    return _call("pool", [out, x], kernel, strides, pads, dilations, MAXIMUM, pads)


@kernel(
    average_pool_channels_last,
    "numpy",
    when=native(lambda node: _planar(node) and _all_or_none(node)),
    bind=True,
    contiguous=True,
)
def _(
    site: Site, out: Any, x: Any, *, kernel: Any, strides: Any, pads: Any, dilations: Any, counted: Any
) -> Callable[[], None]:
    return _call("pool", [out, x], kernel, strides, pads, dilations, MEAN, counted)


def _all_or_none(node: Node) -> bool:
    """Whether the mean is over the image alone, or over all of the padding before it and some of that behind."""
    counted, pads, n = node.attrs["counted"], node.attrs["pads"], len(node.attrs["strides"])
    return not any(counted) or counted[:n] == pads[:n]


@kernel(max_pool_gradient_channels_last, "numpy", when=native(_planar), bind=True, contiguous=True)
def _(site: Site, out: Any, dy: Any, x: Any, *, kernel: Any, strides: Any, pads: Any, dilations: Any) -> Callable[[], None]:
    return _call("pool_gradient", [dy, out, x], kernel, strides, pads, dilations, MAXIMUM, pads)


@kernel(
    average_pool_gradient_channels_last,
    "numpy",
    when=native(lambda node: _planar(node) and _all_or_none(node)),
    bind=True,
    contiguous=True,
)
def _(
    site: Site, out: Any, dy: Any, *, spatial: Any, kernel: Any, strides: Any, pads: Any, dilations: Any, counted: Any
) -> Callable[[], None]:
    return _call("pool_gradient", [dy, out], kernel, strides, pads, dilations, MEAN, counted)


def _call(
    name: str,
    arrays: Sequence[Any],
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    kind: int,
    counted: Any,
) -> Callable[[], None]:
    """arrays: [N, windows…, C], then those that are [N, spatial…, C]."""
    lib = library()
    assert lib is not None
    if arrays[0].ndim == 3:  # one spatial dimension: an image of height one
        arrays = [a[:, None] for a in arrays]
        kernel, strides, dilations = (1, *kernel), (1, *strides), (1, *dilations)
        pads, counted = ((0, p[0], 0, p[1]) for p in (pads, counted))
    numbers = [
        *arrays[1].shape,
        *arrays[0].shape[1:3],
        *kernel,
        *strides,
        pads[0],
        pads[1],
        *dilations,
        kind,
        any(counted),
        counted[2],
        counted[3],
    ]
    return lib.call(name, arrays, numbers)
