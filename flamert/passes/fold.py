"""Constant folding: nodes that depend on constants alone become constants."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from flamert import graph as g
from flamert.graph import CONSTANT, Graph, Node, Value
from flamert.ops.folding import SMALL, Folding
from flamert.rewrite import rebuild

LIMIT = 1 << 30
"""Bytes; larger results are computed when they are needed and not kept (a ConstantOfShape of terabytes, say)."""


def fold(graph: Graph, cache: dict[Any, Any]) -> Graph:
    """Evaluate what needs no data, where the result is not too large to keep.

    cache: shared by the graphs of one model, so that what is derived from its weights exists once.
    """
    keys: dict[Node, Hashable] = {}
    folding = cache.setdefault(Folding, Folding())
    packed, frontier = _packed(graph), _frontier(graph)
    if not frontier:
        return graph

    arrays = folding.arrays(frontier, keys, packed)
    values = {v: g.constant(x) for v, x in zip(frontier, arrays, strict=True)}

    def rule(node: Node, inputs: tuple[Value | None, ...]) -> Sequence[Value] | None:
        if node.known and any(v in values for v in node.outputs):
            return [values.get(v, v) for v in node.outputs]
        return None

    return rebuild(graph, rule)


PRODUCTS = ("matmul", "linear")
"""Ops that pack their right operand for good, whatever its strides."""


def _packed(graph: Graph) -> set[Value]:
    """Known matrices that nothing reads but products, as their right operand."""
    found = {v for n in graph.nodes if n.op.name in PRODUCTS for v in n.inputs[1:2] if v is not None and v.rank == 2}
    for node in graph.nodes:
        for i, v in enumerate(node.inputs):
            if v in found and not (i == 1 and node.op.name in PRODUCTS):
                found.discard(v)
    return found - set(graph.outputs)


def _frontier(graph: Graph) -> list[Value]:
    """Known results that are read by something unknown, or returned."""
    found: dict[Value, None] = {}

    def consider(v: Value | None, copied: bool) -> None:
        if v is None or not v.node.known or v.node.op is CONSTANT or v.type.nbytes > LIMIT:
            return
        if not (copied and _spread(v)):
            found[v] = None

    for node in graph.nodes:
        if not node.known:
            for v in node.inputs:
                consider(v, copied=node.op.moves)
    for v in graph.outputs:
        consider(v, copied=True)
    return list(found)


def _spread(value: Value) -> bool:
    """Whether this is a large broadcast of a constant: who only copies it reads it through a view that takes no memory."""
    seen = value.node.inputs[0] if value.node.op.name == "expand" else None
    return seen is not None and seen.node.op is CONSTANT and value.type.nbytes > SMALL
