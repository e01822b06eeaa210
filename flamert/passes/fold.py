"""Constant folding: nodes that depend on constants alone become constants."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from flamert import graph as g
from flamert.graph import CONSTANT, Graph, Node, Value
from flamert.ops.evaluate import evaluate
from flamert.rewrite import rebuild

LIMIT = 1 << 30
"""Bytes; larger results are computed when they are needed and not kept (a ConstantOfShape of terabytes, say)."""

SMALL = 1024
"""Bytes up to which constants are told apart by content, above by identity."""


def fold(graph: Graph, cache: dict[Any, Any]) -> Graph:
    """Evaluate what needs no data, where the result is not too large to keep.

    cache: shared by the graphs of one model, so that what is derived from its weights exists once.
    """
    keys: dict[Node, Hashable] = {}
    values = {v: g.constant(_folded(v, keys, cache)) for v in _frontier(graph)}
    if not values:
        return graph

    def rule(node: Node, inputs: tuple[Value | None, ...]) -> Sequence[Value] | None:
        if node.known and any(v in values for v in node.outputs):
            return [values.get(v, v) for v in node.outputs]
        return None

    return rebuild(graph, rule)


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


def _folded(value: Value, keys: dict[Node, Hashable], cache: dict[Any, Any]) -> Any:
    """The array of a known Value, computed once per model for each way of deriving it from the weights."""
    if value.type.nbytes <= SMALL:
        return evaluate([value])[0]
    for node in g.topological([value]):
        if node not in keys:
            keys[node] = _key(node, keys)
    key = ("folded", keys[value.node], value.index)
    if key not in cache:
        # The operands are kept with the result: keys tell large constants apart by identity.
        cache[key] = (evaluate([value])[0], value)
    return cache[key][0]


def _key(node: Node, keys: dict[Node, Hashable]) -> Hashable:
    if node.op is CONSTANT:
        array = node.attrs["value"]
        small = array.nbytes <= SMALL and not array.dtype.hasobject
        return (array.shape, array.dtype, array.tobytes()) if small else id(array)
    operands = tuple([None if v is None else (keys[v.node], v.index) for v in node.inputs])
    return (node.op.name, tuple(node.attrs.items()), operands)
