"""Mixed precision: matrix products and convolutions of float32 become ones of a half type, what would suffer stays float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import ml_dtypes
import numpy as np

from flamert import dtypes, ops
from flamert.graph import CONSTANT, INPUT, Graph, Node, Value, sourced

Choice = Callable[[Node, tuple[Value | None, ...]], "np.dtype | None"]

LOWERED = frozenset({"matmul", "gemm", "linear", "einsum", "conv", "conv_transpose", "conv_channels_last", "attention"})
"""Ops that are computed in the half type, on whatever they are given."""

FAMILIES = frozenset({"elementwise", "logic", "activation", "shape", "index", "pool", "image"})

FOLLOWING = frozenset({"dropout", "reduce_max", "reduce_min", "cast", "erf", "tanh", "sqrt"})
"""With `FAMILIES`: ops that are computed in the type of their operands, the wider one where these differ."""

NARROWABLE = frozenset({"softmax", "log_softmax", "layer_norm", "rms_norm", "group_norm", "instance_norm"})
"""Ops that compute in float32 inside, and lose no more than a rounding where their operands and results are halves."""

MIXED = frozenset({"batch_norm", "batch_norm_training"})
"""Ops whose first operand may be a half while the others are float32; what comes out is of the first one's type."""

WIDE = frozenset({"pow"})
"""Ops of these families that are computed in float32 all the same."""


def autocast(graph: Graph, to: np.dtype, *, islands: bool = True) -> Graph:
    """The graph in mixed precision: inputs and outputs as before, products in `to`, the rest where PyTorch's autocast has it.

    to: float16 or bfloat16. islands: keep norms and softmax, and what they hand on, in float32, as training needs; without,
    they take and give halves, and tables are looked up as halves. Only float32 is touched. Constants of one element, and the
    bias of a product, take the other operand's type if they fit; without islands all constants do.
    """
    return _retyped(graph, lambda node, inputs: _type_for(node, inputs, to, islands), (to, dtypes.float32))


def widen(graph: Graph) -> Graph:
    """The graph computed in float32 wherever it has half types; inputs and outputs as before."""
    return _retyped(graph, lambda node, inputs: None if node.op.name == "cast" else dtypes.float32, tuple(dtypes.HALF))


def _retyped(graph: Graph, wanted: Choice, movable: tuple[np.dtype, ...]) -> Graph:
    """Each node on operands of the type that is `wanted` for it, as far as they are of `movable` types."""
    new: dict[Value, Value] = {}
    cast: dict[tuple[Value, np.dtype], Value] = {}

    def as_type(v: Value, dtype: np.dtype) -> Value:
        if v.dtype == dtype:
            return v
        if (v, dtype) not in cast:
            cast[v, dtype] = ops.cast(v, to=dtype)
        return cast[v, dtype]

    for node in graph.nodes:
        if node.op in (INPUT, CONSTANT):
            continue
        inputs = tuple([None if v is None else new.get(v, v) for v in node.inputs])
        dtype = wanted(node, inputs)
        if dtype is not None:
            inputs = tuple([v if v is None or v.dtype not in movable else as_type(v, dtype) for v in inputs])
        if inputs != node.inputs:
            with sourced(node.source):
                new.update(zip(node.outputs, node.op.node(inputs, node.attrs).outputs, strict=True))
    return Graph(graph.inputs, [as_type(new.get(v, v), v.dtype) for v in graph.outputs])


def _type_for(node: Node, inputs: tuple[Value | None, ...], to: np.dtype, islands: bool) -> np.dtype | None:
    """What a node's float32 and half operands become: one type for all, or None to leave them as they are."""
    mine = [v for v in inputs if v is not None and v.dtype in (to, dtypes.float32)]
    if not mine:
        return None
    name = node.op.name
    if name in MIXED:
        return None
    if name in LOWERED or (name == "gather" and not islands and mine[0].node.known and _fits(mine[0], to)):
        return to
    if not any(v.dtype == to for v in mine):
        return None
    if name not in WIDE and (node.op.family in FAMILIES or name in FOLLOWING):
        return to if all(v.dtype == to or _yields(v, node.op.name, mine, to, islands) for v in mine) else dtypes.float32
    if name in NARROWABLE and not islands:
        return to
    return dtypes.float32


def _yields(v: Value, op: str, beside: Sequence[Value], to: np.dtype, islands: bool) -> bool:
    """Whether a float32 operand becomes a half because the others are: a number that anybody would write without a type; the
    bias of a product that an exporter took apart; and without islands all weights.
    """
    if v.node.known and (v.type.size == 1 or not islands):
        return _fits(v, to)
    return op == "add" and v.rank == 1 and any(x.node.op.name in LOWERED for x in beside)


def _fits(v: Value, to: np.dtype) -> bool:
    """Whether a half type can hold the largest number of a constant, or of a view of one."""
    while v.constant is None and v.node.op.view is not None:
        v = v.node.inputs[0]  # type: ignore[assignment]
    array = v.constant
    if array is None or not array.size:
        return False
    with np.errstate(all="ignore"):
        largest = max(-float(array.min()), float(array.max()))
        if not math.isfinite(largest):
            largest = float(np.abs(array[np.isfinite(array)]).max(initial=0))
    return largest <= float(ml_dtypes.finfo(to).max)
