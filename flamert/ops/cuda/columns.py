"""Sums over rows with elementwise ops in front of them on the GPU: one kernel for each group, made by the emitter."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flamert import dtypes
from flamert.graph import Node, TensorType, Value
from flamert.ops.columns import columns
from flamert.ops.cuda.emit import COMPUTED, expressible
from flamert.ops.cuda.emit_columns import ColumnOperand, Columns, columns_kernel
from flamert.ops.cuda.launch import Launch, compiled, extent
from flamert.ops.cuda.lay_columns import THREADS, WARP, laid
from flamert.ops.cuda.pointwise import known, value_types
from flamert.ops.op import Site, kernel


def _full(node: Node) -> tuple[int, ...]:
    """The shape of what is summed up."""
    return _types(node)[node.attrs["results"][0]].shape


def _operands(node: Node) -> tuple[list[Value], list[Value]]:
    """Those of what is summed up, and those of what is made of the sums."""
    values = [v for v in node.inputs if v is not None]
    first = len(values) - node.attrs.get("given", 0)
    return values[:first], values[first:]


def _types(node: Node) -> list[TensorType]:
    return value_types(node.attrs["program"], [v.type for v in _operands(node)[0]])


def _ends(node: Node) -> list[TensorType]:
    """The types of sums, and of what is made of them."""
    types, attrs = _types(node), node.attrs
    sums = [TensorType(types[k].shape[-1:], types[k].dtype) for k in attrs["results"]]
    return value_types(attrs.get("finish", ()), [*sums, *[v.type for v in _operands(node)[1]]])


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
    types, ends, full = _types(node), _ends(node), _full(node)
    operands, given = _operands(node)
    finish, attrs = node.attrs.get("finish", ()), node.attrs
    for program, all_types in ((attrs["program"], types), (finish, ends)):
        for step, type in zip(program, all_types[len(all_types) - len(program) :], strict=True):
            if not expressible(step.op, dict(step.attrs), [all_types[i].dtype for i in step.operands], type.dtype):
                return False
    if any(types[k].shape != full or COMPUTED.get(types[k].dtype) != "float" for k in attrs["results"]):
        return False
    if any(types[k].shape != full for k in attrs.get("kept", ())) or math.prod(full[:-1]) >= 1 << 31:
        return False
    kinds = [_kind(v.shape, full) for v in operands]
    around = [_kind(v.shape, full[-1:]) for v in given]
    known_types = all(v.dtype in COMPUTED for v in (*operands, *given))
    return all(kinds) and "whole" in kinds and all(k in ("whole", "one") for k in around) and known_types


def _described(node: Node) -> Columns:
    """The kernel for operands that begin wherever they should."""
    attrs, full, types = node.attrs, _full(node), _types(node)
    first, given = _operands(node)
    operands = tuple([ColumnOperand(v.type, _kind(v.shape, full), known(v)) for v in first])
    # Along one row, what has a number for each column is whole.
    kinds = {"whole": "column", "one": "one"}
    ends = tuple([ColumnOperand(v.type, kinds[_kind(v.shape, full[-1:])], known(v)) for v in given])
    sizes = [o.type.dtype.itemsize for o in operands if o.kind == "whole"]
    results, kept = attrs["results"], attrs.get("kept", ())
    wanted = attrs.get("wanted", ()) or tuple(range(len(results)))
    of = Columns(
        attrs["program"],
        tuple(types),
        operands,
        results,
        attrs["means"],
        kept,
        ends,
        attrs.get("finish", ()),
        tuple(_ends(node)),
        wanted,
        laid(1, 1, [1], 0),
    )
    return of._replace(layout=laid(math.prod(full[:-1]), full[-1], sizes, len(results) + len(of.held())))


def _parts(node: Node) -> list[TensorType]:
    """What blocks leave for the last one."""
    of = _described(node)
    numbers = len(of.results) * of.layout.splits * of.layout.inner
    return [] if of.layout.splits == 1 else [TensorType((numbers,), dtypes.float32)]


@kernel(columns, "cupy", when=fits, bind=True, contiguous=True, workspace=_parts)
def _(site: Site, out: Any, *inputs: Any, **attrs: Any) -> Launch:
    node, xp = site.node, site.xp
    outs = out if isinstance(out, tuple) else (out,)
    of = _described(node)
    every = (*of.operands, *of.given)
    arrays = [x for x, o in zip(inputs, every, strict=True) if o.literal is None]
    packed = [x for x, o in zip(inputs, of.operands, strict=False) if o.kind in ("whole", "column")]
    packed += outs[len(of.wanted) :]
    layout = of.layout
    while layout.width > 1 and any(x.data.ptr % (layout.width * x.itemsize) for x in packed):
        layout = layout._replace(width=layout.width // 2, across=min(WARP, layout.across * 2))
    of = of._replace(layout=layout)
    [parts] = site.work or (None,)
    counters = outs[0] if parts is None else xp.zeros(layout.blocks, np.uint32)
    memory = (*arrays, outs[0] if parts is None else parts, counters, *outs)
    sizes = tuple([np.uint32(n) for n in (layout.length, layout.inner, layout.splits)])
    writes = [extent(y) for y in (*outs, *([] if parts is None else [parts]))]
    run = compiled(columns_kernel(of), of.name)
    return Launch(run, (layout.blocks, layout.splits, 1), THREADS, (*memory, *sizes), [extent(x) for x in arrays], writes)
