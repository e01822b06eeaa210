"""Sums of parts that do not overlap, as the gradients of slices are, become one concatenation."""

from __future__ import annotations

from flamert import ops
from flamert.graph import Graph, Node, Value, uses
from flamert.rewrite import substitute


def join_parts(graph: Graph) -> Graph:
    """A sum of `unslice`s that lie side by side along one axis and fill it as one `concat`: every element is written once."""
    if not any(node.op is ops.unslice for node in graph.nodes):
        return graph
    count = uses(graph)
    inner = {v.node for n in graph.nodes if n.op is ops.add for v in n.inputs if v is not None and count[v] == 1}
    found: dict[Value, Value] = {}
    for node in graph.nodes:
        if node.op is ops.add and node not in inner:
            joined = _joined(_terms(node, inner))
            if joined is not None and joined.type == node.types[0]:
                found[node.outputs[0]] = joined
    return substitute(graph, found) if found else graph


def _terms(root: Node, inner: set[Node]) -> list[Value]:
    """What a tree of additions adds up."""
    found: list[Value] = []
    pending = list(root.inputs)
    while pending:
        v = pending.pop()
        assert v is not None
        if v.node.op is ops.add and v.node in inner:
            pending.extend(v.node.inputs)
        else:
            found.append(v)
    return found


def _joined(terms: list[Value]) -> Value | None:
    """The concatenation of what lies in `terms`, in order, or None where they overlap or leave gaps."""
    if any(v.node.op is not ops.unslice or v.type != terms[0].type for v in terms):
        return None
    shape = terms[0].shape
    parts = [(v.node.inputs[0], v.node.attrs) for v in terms]
    axes = {i for x, _ in parts for i, d in enumerate(shape) if x is not None and x.shape[i] != d}
    if len(axes) != 1:
        return None
    [axis] = axes
    at, pieces = 0, []
    for x, attrs in sorted(parts, key=lambda part: part[1]["starts"][axis]):
        assert x is not None
        if attrs["starts"][axis] != at or (attrs["steps"][axis] != 1 and x.shape[axis] > 1):
            return None
        pieces.append(x)
        at += x.shape[axis]
    return ops.concat(*pieces, axis=axis) if at == shape[axis] else None
