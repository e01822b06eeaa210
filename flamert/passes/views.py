"""Views next to products, which read and write any way round; casts next to the elementwise ops that absorb them."""

from __future__ import annotations

from collections.abc import Sequence

from flamert import ops
from flamert.dtypes import widens
from flamert.graph import Graph, Node, Value, uses
from flamert.rewrite import rebuild

PRODUCTS = frozenset({"matmul", "linear", "attention", "attention_gradient", "attention_blhd", "attention_gradient_blhd"})

MOVING = (ops.transpose, ops.reshape)
"""Views under which every element stays one element."""


def settle_views(graph: Graph) -> Graph:
    """Casts change places with views: off a product's result, and onto whatever else is viewed, weights among it.

    So a transposed weight is cast as it lies, a transposed gradient is made the way round that it is wanted, and the casts
    there and back between two products meet and cancel, which is left to `simplify`. What is asked whether it is finite is
    asked as it was made.
    """
    count = uses(graph)

    def rule(node: Node, inputs: tuple[Value | None, ...]) -> Sequence[Value] | None:
        x = inputs[0] if inputs else None
        if node.op is ops.cast and x is not None:
            return _below(node, x)
        if node.op in MOVING and x is not None and x.node.op is ops.cast and count[node.inputs[0]] == 1:  # type: ignore[index]
            seen = x.node.inputs[0]
            assert seen is not None
            if _source(seen).node.op.name in PRODUCTS:
                return (ops.cast(node.op(seen, **node.attrs), **x.node.attrs),)
        if node.op is ops.all_finite:
            bare = tuple([_bare(v) for v in inputs if v is not None])
            return None if bare == inputs else (ops.all_finite(*bare),)
        return None

    return rebuild(graph, rule)


def _below(node: Node, x: Value) -> Sequence[Value] | None:
    """The cast of a view as the view of a cast, or None where the view belongs to a product or to nothing."""
    views: list[Node] = []
    while x.node.op in (*MOVING, ops.expand):
        views.append(x.node)
        x = x.node.inputs[0]  # type: ignore[assignment]
    padded = x.node.inputs[0] if x.node.op is ops.pad and len(x.node.inputs) == 1 else None
    if padded is not None and widens(node.types[0].dtype, x.dtype):
        # Zeros around less that is to be moved.
        result = ops.pad(ops.cast(padded, **node.attrs), **x.node.attrs)
    elif not views or x.node.known or x.node.op.name in PRODUCTS:
        return None
    else:
        result = ops.cast(x, **node.attrs)
    for view in reversed(views):
        result = view.op(result, **view.attrs)
    return (result,)


def _source(x: Value) -> Value:
    """What a chain of views looks at."""
    while x.node.op in MOVING:
        x = x.node.inputs[0]  # type: ignore[assignment]
    return x


def _bare(x: Value) -> Value:
    """x before casts from a narrower type."""
    while _widening(x.node):
        x = x.node.inputs[0]  # type: ignore[assignment]
    return x


def _widening(node: Node) -> bool:
    x = node.inputs[0] if node.op is ops.cast else None
    return x is not None and widens(x.dtype, node.types[0].dtype)
