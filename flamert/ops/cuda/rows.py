"""Groups of elementwise ops and row reductions on the GPU: one kernel for each, made by the emitter."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from itertools import compress
from typing import Any

import numpy as np

from flamert import dtypes
from flamert.graph import Node, TensorType
from flamert.ops.cuda.emit import COMPUTED, expressible, merged
from flamert.ops.cuda.emit_reduce import TOTALS, totals_kernel
from flamert.ops.cuda.emit_rows import RowOperand, rows_kernel, rows_name
from flamert.ops.cuda.launch import Launch, compiled, extent
from flamert.ops.cuda.pointwise import VECTOR_BYTES, known, value_types
from flamert.ops.cuda.row_plan import MOST, REGISTERS, SHARED, Schedule, Shape, held, schedule, shape_of
from flamert.ops.op import Site, kernel
from flamert.ops.pointwise import Instruction
from flamert.ops.rows import REDUCTIONS, Geometry, rows


def fits(node: Node) -> bool:
    """Whether a group's types have expressions, its values lie along rows, and those fit into registers."""
    program, n, types = node.attrs["program"], len(node.inputs), _types(node)
    geometry = Geometry(_row(node), node.attrs["axes"])
    if not all(geometry.takes(t.shape) for t in types[:n]) or not all(geometry.has(t.shape) for t in types[n:]):
        return False
    for step, type in zip(program, types[n:], strict=True):
        operands = [types[i].dtype for i in step.operands]
        if step.op in REDUCTIONS:
            if type.dtype not in dtypes.STANDARD_FLOAT:
                return False
        elif not expressible(step.op, dict(step.attrs), operands, type.dtype):
            return False
    shape, plan, sums = _shape(node), _plan(node), node.attrs["sums"]
    if sums:
        numbers = (len(plan.kept) + len(sums)) * shape.each
        whole = all(types[i].shape == _row(node) and COMPUTED[types[i].dtype] == "float" for i in sums)
        if not whole or node.attrs["axes"] != 1 or numbers > MOST or 4 * shape.rows * shape.length > SHARED:
            return False
    return held(plan, shape) <= REGISTERS and shape.turns <= 64


def _plan(node: Node) -> Schedule:
    attrs = node.attrs
    return schedule(attrs["program"], [o.along for o in _operands(node)], attrs["results"], attrs["sums"])


_inferred: weakref.WeakKeyDictionary[Node, list[TensorType]] = weakref.WeakKeyDictionary()
"""Types of all values of a group: passes ask about the same one again and again."""


def _types(node: Node) -> list[TensorType]:
    found = _inferred.get(node)
    if found is None:
        found = _inferred[node] = value_types(node.attrs["program"], [v.type for v in node.inputs if v is not None])
    return found


def _row(node: Node) -> tuple[int, ...]:
    """The full shape of a group's values, rows first."""
    first = next(step for step in node.attrs["program"] if step.op in REDUCTIONS)
    return _types(node)[first.operands[0]].shape


def _shape(node: Node) -> Shape:
    full, axes = _row(node), node.attrs["axes"]
    length = math.prod(full[len(full) - axes :])
    sizes = [v.dtype.itemsize for v in node.inputs if v is not None and v.type.size > 1] + [
        t.dtype.itemsize for t in node.types
    ]
    width = VECTOR_BYTES // max(sizes)
    while length % width:
        width //= 2
    return shape_of(length, width, math.prod(full[: len(full) - axes]), len(_plan(node).kept), len(node.attrs["sums"]))


def _parts(node: Node) -> list[TensorType]:
    """What blocks have of sums over rows."""
    sums, shape = len(node.attrs["sums"]), _shape(node)
    return [TensorType((sums * shape.blocks * shape.length,), dtypes.float32)] if sums else []


def _operands(node: Node) -> list[RowOperand]:
    full, axes = _row(node), node.attrs["axes"]
    found = []
    for v in node.inputs:
        assert v is not None
        own = (1,) * (len(full) - v.rank) + v.shape
        found.append(RowOperand(v.type, math.prod(own[len(full) - axes :]) > 1, (), known(v)))
    return found


@kernel(rows, "cupy", when=fits, bind=True, contiguous=True, workspace=_parts)
def _(
    site: Site,
    out: Any,
    *inputs: Any,
    program: tuple[Instruction, ...],
    results: tuple[int, ...],
    axes: int,
    sums: tuple[int, ...],
) -> Callable[[], None]:
    node = site.node
    outs = out if isinstance(out, tuple) else (out,)
    outs, totals = outs[: len(results)], outs[len(results) :]
    full = _row(node)
    lead = full[: len(full) - axes]
    strides = [_lead_strides(x.shape, full, axes) for x in inputs]
    loop = merged(lead, strides) if inputs else merged(lead, [(0,) * len(lead)])
    operands = [o._replace(steps=tuple(d != 0 for d in s)) for o, s in zip(_operands(node), loop.strides, strict=False)]
    stored = [o.literal is None for o in operands]
    shape = _shape(node)
    arrays = [x for x, o in zip(inputs, operands, strict=True) if o.literal is None]
    aligned = [x for x, o in zip(inputs, operands, strict=True) if o.along]
    while shape.width > 1 and any(x.data.ptr % (shape.width * x.itemsize) for x in (*aligned, *outs)):
        shape = shape._replace(width=shape.width // 2)
    types = _types(node)
    run = compiled(rows_kernel(program, types, operands, results, len(loop.shape), shape, sums), rows_name(program))
    count = math.prod(lead)
    arguments = [*arrays, *outs, *site.work, np.uint32(count), *[np.uint32(d) for d in loop.shape[1:]]]
    arguments += [np.int64(d) for s in compress(loop.strides, stored) for d in s if d]
    memory = [extent(x) for x in arrays], [extent(x) for x in (*outs, *site.work)]
    blocks = shape.blocks or -(-count // shape.rows)
    launch = Launch(run, (blocks,), shape.threads * shape.rows, tuple(arguments), *memory)
    return _then_totals(launch, site.work[0], totals, node.types[len(results) :], shape) if sums else launch


def _then_totals(launch: Launch, parts: Any, totals: Any, types: Sequence[TensorType], shape: Shape) -> Callable[[], None]:
    """The launch, and behind it the one that puts together what its blocks have of sums over rows."""
    across, down = TOTALS
    run = compiled(totals_kernel(types), "rows_totals")
    arguments = (parts, *totals, np.uint32(shape.blocks), np.uint32(shape.length))
    grid = (-(-shape.length // across), len(types))
    last = Launch(run, grid, across * down, arguments, [extent(parts)], [extent(x) for x in totals])

    def both() -> None:
        launch()
        last()

    return both


def _lead_strides(shape: tuple[int, ...], full: tuple[int, ...], axes: int) -> tuple[int, ...]:
    """Elements from row to row of a contiguous operand, along each axis of rows; 0 where it is broadcast."""
    own = (1,) * (len(full) - len(shape)) + tuple(shape)
    found, step = [], math.prod(own[len(full) - axes :])
    for d in reversed(own[: len(full) - axes]):
        found.append(0 if d == 1 else step)
        step *= d
    return tuple(reversed(found))
