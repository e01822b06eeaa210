"""Constant folding: nodes that depend on constants alone become constants."""

from __future__ import annotations

from collections.abc import Sequence

from flamert import graph as g
from flamert.graph import CONSTANT, Graph, Node, Value
from flamert.ops.evaluate import evaluate
from flamert.rewrite import rebuild

LIMIT = 1 << 30
"""Bytes; larger results are computed when they are needed and not kept (a ConstantOfShape of terabytes, say)."""


def fold(graph: Graph) -> Graph:
    """Evaluate what needs no data, where the result is not too large to keep."""
    frontier = _frontier(graph)
    if not frontier:
        return graph
    values = dict(zip(frontier, map(g.constant, evaluate(frontier)), strict=True))
    return _substitute(graph, values)


def _frontier(graph: Graph) -> list[Value]:
    """Known results that are read by something unknown, or returned."""
    found: dict[Value, None] = {}

    def consider(v: Value | None) -> None:
        if v is not None and v.node.known and v.node.op is not CONSTANT and v.type.nbytes <= LIMIT:
            found[v] = None

    for node in graph.nodes:
        if not node.known:
            for v in node.inputs:
                consider(v)
    for v in graph.outputs:
        consider(v)
    return list(found)


def _substitute(graph: Graph, values: dict[Value, Value]) -> Graph:
    def rule(node: Node, inputs: tuple[Value | None, ...]) -> Sequence[Value] | None:
        if node.known and any(v in values for v in node.outputs):
            return [values.get(v, v) for v in node.outputs]
        return None

    return rebuild(graph, rule)
