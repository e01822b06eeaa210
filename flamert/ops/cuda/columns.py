"""Sums over rows with elementwise ops in front of them on the GPU: one kernel for each group, made by the emitter."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flamert import dtypes
from flamert.graph import Node, TensorType
from flamert.ops.columns import columns
from flamert.ops.cuda.emit import COMPUTED, expressible
from flamert.ops.cuda.emit_columns import ColumnOperand, Columns, columns_kernel
from flamert.ops.cuda.emit_reduce import THREADS, Layout, laid
from flamert.ops.cuda.launch import Launch, compiled, extent
from flamert.ops.cuda.pointwise import known, value_types
from flamert.ops.op import Site, kernel
from flamert.ops.pointwise import Instruction


def _full(node: Node) -> tuple[int, ...]:
    """The shape of what is summed up."""
    return _types(node)[node.attrs["results"][0]].shape


def _types(node: Node) -> list[TensorType]:
    return value_types(node.attrs["program"], [v.type for v in node.inputs if v is not None])


def _kind(shape: tuple[int, ...], full: tuple[int, ...]) -> str:
    """How an operand lies along rows and columns; "" for other ways."""
    own = (1,) * (len(full) - len(shape)) + shape
    if own == full:
        return "whole"
    if math.prod(own) == 1:
        return "one"
    if own[-1] == full[-1] and math.prod(own[:-1]) == 1:
        return "column"
    return "row" if own[-1] == 1 and own[:-1] == full[:-1] else ""


def fits(node: Node) -> bool:
    """Whether a group's types have expressions, and its operands lie so that one kernel can read them."""
    types, full = _types(node), _full(node)
    n = len(node.inputs)
    for step, type in zip(node.attrs["program"], types[n:], strict=True):
        if not expressible(step.op, dict(step.attrs), [types[i].dtype for i in step.operands], type.dtype):
            return False
    if any(types[k].shape != full or COMPUTED.get(types[k].dtype) != "float" for k in node.attrs["results"]):
        return False
    kinds = [_kind(v.shape, full) for v in node.inputs if v is not None]
    return all(kinds) and "whole" in kinds and all(v is not None and v.dtype in COMPUTED for v in node.inputs)


def _layout(node: Node) -> tuple[Layout, int]:
    """And the bytes of the largest whole operand's elements."""
    full = _full(node)
    size = max(v.dtype.itemsize for v in node.inputs if v is not None and _kind(v.shape, full) == "whole")
    return laid(1, math.prod(full[:-1]), full[-1], size), size


def _parts(node: Node) -> list[TensorType]:
    """What blocks leave for the last one."""
    layout, _ = _layout(node)
    results = len(node.attrs["results"])
    return [] if layout.splits == 1 else [TensorType((results * layout.splits * layout.inner,), dtypes.float32)]


@kernel(columns, "cupy", when=fits, bind=True, contiguous=True, workspace=_parts)
def _(
    site: Site, out: Any, *inputs: Any, program: tuple[Instruction, ...], results: tuple[int, ...], means: tuple[bool, ...]
) -> Launch:
    node, xp = site.node, site.xp
    full, types = _full(node), _types(node)
    outs = out if isinstance(out, tuple) else (out,)
    operands = tuple(ColumnOperand(v.type, _kind(v.shape, full), known(v)) for v in node.inputs if v is not None)
    layout, size = _layout(node)
    arrays = [x for x, o in zip(inputs, operands, strict=True) if o.literal is None]
    packed = [x for x, o in zip(inputs, operands, strict=True) if o.kind in ("whole", "column")]
    while layout.width > 1 and any(x.data.ptr % (layout.width * x.itemsize) for x in packed):
        layout = layout._replace(width=layout.width // 2)
    of = Columns(program, tuple(types), operands, results, means, layout, size)
    blocks = layout.blocks(size)
    [parts] = site.work or (None,)
    counters = outs[0] if parts is None else xp.zeros(blocks, np.uint32)
    memory = (*arrays, outs[0] if parts is None else parts, counters, *outs)
    sizes = (*map(np.uint64, (layout.length, layout.inner, layout.chunk)), np.uint32(layout.splits))
    writes = [extent(y) for y in (*outs, *([] if parts is None else [parts]))]
    run = compiled(columns_kernel(of), of.name)
    return Launch(run, (blocks, layout.splits, 1), THREADS, (*memory, *sizes), [extent(x) for x in arrays], writes)
