"""Reshapes that keep rows go in front of elementwise ops, so that these are on the side of those who absorb them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from flamert import ops
from flamert.graph import Graph, Node, Value
from flamert.ops.rows import REDUCTIONS
from flamert.passes.repeat import CHEAP
from flamert.rewrite import rebuild

DEPTH = 8
"""Nodes in a row that a view changes places with at most."""


def views_first(graph: Graph, eligible: Callable[[Node], bool]) -> Graph:
    """reshape(f(x)) → f(reshape(x)), where only ops read it that would absorb f, and x is no larger than f's result.

    What is viewed has to be in memory, and x, a product most of the time, is there anyway. f: elementwise, of one whole operand
    and vectors; where others read its result as well, it is cheap, and made twice. eligible: which nodes can be absorbed.
    """
    readers: dict[Value, list[Node]] = {}
    for node in graph.nodes:
        for v in node.inputs:
            if v is not None:
                readers.setdefault(v, []).append(node)
    returned = set(graph.outputs)

    def movable(node: Node) -> bool:
        if not node.inputs or node.known or not eligible(node):
            return False
        v = node.outputs[0]
        alone = v not in returned and len(readers.get(v, ())) < 2
        whole = [u for u in node.inputs if u is not None and u.shape == v.shape]
        others = [u for u in node.inputs if u is not None and u.shape != v.shape]
        small = len(whole) == 1 and whole[0].type.nbytes <= v.type.nbytes
        return small and (alone or node.op.name in CHEAP) and all(math.prod(u.shape[:-1]) == 1 for u in others)

    def absorbing(node: Node) -> bool:
        return node.op.name in REDUCTIONS or eligible(node)

    def moved(v: Value, shape: tuple[int, ...], depth: int = 0) -> Value:
        """A value of another shape, made in that shape as far as it can be."""
        node = v.node
        if depth == DEPTH or not movable(node):
            return ops.reshape(v, shape=shape)
        inputs = tuple([u if u is None or u.shape != v.shape else moved(u, shape, depth + 1) for u in node.inputs])
        return node.op.node(inputs, node.attrs).outputs[0]

    def rule(node: Node, inputs: tuple[Value | None, ...]) -> Sequence[Value] | None:
        x = node.inputs[0] if node.op is ops.reshape else None
        if x is None or x.rank < 2 or x.shape[-1] == 1 or not movable(x.node):
            return None
        y = node.outputs[0]
        if y.rank < 2 or y.shape[-1] != x.shape[-1] or y in returned or not all(absorbing(n) for n in readers.get(y, ())):
            return None
        assert inputs[0] is not None
        return (moved(inputs[0], y.shape),)

    return rebuild(graph, rule)
