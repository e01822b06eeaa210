"""Transposes around matrix products: kernels read operands either way, so a product is made the way round that it is wanted."""

from __future__ import annotations

from collections.abc import Sequence

from flamert import ops
from flamert.graph import Graph, Node, Value, uses
from flamert.rewrite import rebuild


def turn_products(graph: Graph) -> Graph:
    """(a · b)ᵀ = bᵀ · aᵀ, where nobody reads a · b itself and neither is a constant, which would be packed for good."""
    count = uses(graph)

    def rule(node: Node, inputs: tuple[Value | None, ...]) -> Sequence[Value] | None:
        x = inputs[0] if inputs else None
        if node.op is not ops.transpose or x is None or x.node.op is not ops.matmul or count[node.inputs[0]] > 1:  # type: ignore[index]
            return None
        a, b = x.node.inputs
        assert a is not None and b is not None
        if node.attrs["perm"] != _swap(x.rank) or min(a.rank, b.rank) < 2 or a.node.known or b.node.known:
            return None
        return (ops.matmul(turned(b), turned(a)),)

    return rebuild(graph, rule)


def turned(x: Value) -> Value:
    """Each matrix transposed."""
    if x.node.op is ops.transpose and x.node.attrs["perm"] == _swap(x.rank):
        return x.node.inputs[0]  # type: ignore[return-value]
    return ops.transpose(x, perm=_swap(x.rank))


def _swap(rank: int) -> tuple[int, ...]:
    return (*range(rank - 2), rank - 1, rank - 2)
