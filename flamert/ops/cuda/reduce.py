"""Reductions on the GPU, of columns and of long rows, in parts where one block for each result would keep few of them busy.

The order of summation depends on shapes alone, so that every run gives the same bits. Short rows are `rows`' business.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from flamert import dtypes
from flamert.graph import Node, TensorType
from flamert.ops.cuda.emit_reduce import THREADS, Layout, kernel_name, laid, source
from flamert.ops.cuda.launch import Launch, compiled, extent
from flamert.ops.op import Site, kernel
from flamert.ops.reduce import reduce_max, reduce_mean, reduce_min, reduce_sum


def layout_of(shape: tuple[int, ...], axes: tuple[int, ...], size: int) -> Layout | None:
    """None where the reduced axes are not neighbours, or there is nothing to do. size: bytes of an element."""
    axes = tuple(a for a in sorted(axes) if shape[a] != 1)
    if not axes or any(shape[i] != 1 for i in range(axes[0], axes[-1]) if i not in axes) or not math.prod(shape):
        return None
    outer, inner = math.prod(shape[: axes[0]]), math.prod(shape[axes[-1] + 1 :])
    return laid(outer, math.prod(shape[axes[0] : axes[-1] + 1]), inner, size)


def _layout(node: Node) -> Layout | None:
    x = node.inputs[0]
    assert x is not None
    return layout_of(x.shape, node.attrs["axes"], x.dtype.itemsize) if x.dtype in dtypes.STANDARD_FLOAT else None


def _suits(node: Node) -> bool:
    layout = _layout(node)
    return layout is not None and layout.outer <= 65535


def _parts(node: Node) -> list[TensorType]:
    """What blocks leave for the last one."""
    layout, x = _layout(node), node.inputs[0]
    assert layout is not None and x is not None
    if layout.splits == 1:
        return []
    return [TensorType((layout.outer * layout.splits * layout.inner,), dtypes.accumulator(x.dtype))]


def reduction(name: str, layout: Layout, types: tuple[np.dtype, np.dtype], xp: Any, x: Any, out: Any, parts: Any) -> Launch:
    """The launch. types: of x and out; parts: memory for those of `layout`, if it has more than one."""
    while layout.width > 1 and x.data.ptr % (layout.width * x.itemsize):
        layout = layout._replace(width=layout.width // 2)
    blocks = layout.blocks(x.itemsize)
    counters = None if layout.splits == 1 else xp.zeros(layout.outer * blocks, np.uint32)
    memory = (x, out if parts is None else parts, out if counters is None else counters, out)
    sizes = (*map(np.uint64, (layout.length, layout.inner, layout.chunk)), np.uint32(layout.splits))
    run = compiled(source(name, *types, layout), kernel_name(name, layout))
    writes = [extent(y) for y in (out, parts) if y is not None]
    return Launch(run, (blocks, layout.splits, layout.outer), THREADS, (*memory, *sizes), [extent(x)], writes)


def _register(op: Any) -> None:
    @kernel(op, "cupy", when=_suits, bind=True, contiguous=True, workspace=_parts)
    def _(site: Site, out: Any, x: Any, *, axes: tuple[int, ...], keepdims: bool) -> Callable[[], None]:
        layout = _layout(site.node)
        assert layout is not None
        types = site.node.inputs[0].dtype, site.node.types[0].dtype  # type: ignore[union-attr]
        return reduction(op.name, layout, types, site.xp, x, out, *(site.work or (None,)))


for _op in (reduce_sum, reduce_mean, reduce_max, reduce_min):
    _register(_op)
