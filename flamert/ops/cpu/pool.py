"""Pooling on the CPU with channels last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flamert.graph import Node
from flamert.ops.cpu.library import library, native
from flamert.ops.fused import average_pool_channels_last, max_pool_channels_last
from flamert.ops.op import Site, kernel


def _planar(node: Node) -> bool:
    return node.inputs[0].rank in (3, 4) and node.types[0].size > 0  # type: ignore[union-attr]


@kernel(max_pool_channels_last, "numpy", when=native(_planar), bind=True, contiguous=True)
def _(site: Site, out: Any, x: Any, *, kernel: Any, strides: Any, pads: Any, dilations: Any) -> Callable[[], None]:
    return _call(out, x, kernel, strides, pads, dilations, 2, pads)


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
    return _call(out, x, kernel, strides, pads, dilations, 1, counted)


def _all_or_none(node: Node) -> bool:
    """Whether the mean is over the image alone, or over all of the padding before it and some of that behind."""
    counted, pads, n = node.attrs["counted"], node.attrs["pads"], len(node.attrs["strides"])
    return not any(counted) or counted[:n] == pads[:n]


def _call(
    out: Any,
    x: Any,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    kind: int,
    counted: Any,
) -> Callable[[], None]:
    lib = library()
    assert lib is not None
    if x.ndim == 3:  # one spatial dimension: an image of height one
        x, out = x[:, None], out[:, None]
        kernel, strides, dilations = (1, *kernel), (1, *strides), (1, *dilations)
        pads, counted = ((0, p[0], 0, p[1]) for p in (pads, counted))
    numbers = [
        *x.shape,
        *out.shape[1:3],
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
    return lib.call("pool", [out, x], numbers)
