"""Sums in which most terms are zero: parts that do not overlap become one concatenation, entries are added where they go."""

from __future__ import annotations

from collections.abc import Sequence

from flamert import dtypes, ops
from flamert.graph import CONSTANT, INPUT, Graph, Node, Value, uses
from flamert.rewrite import rebuild, substitute


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


def scatter_onto(graph: Graph) -> Graph:
    """x + (entries added to zeros) as the entries added to x, as for an embedding that has a second gradient.

    Not of half types, whose sums are rounded once each.
    """
    if not any(node.op in (ops.scatter_nd, ops.scatter_elements) for node in graph.nodes):
        return graph
    count = uses(graph)

    def rule(node: Node, inputs: tuple[Value | None, ...]) -> Sequence[Value] | None:
        if node.op is not ops.add or node.types[0].dtype in dtypes.HALF:
            return None
        for side in (0, 1):
            sums, x = inputs[side], inputs[1 - side]
            assert sums is not None and x is not None
            alone = sums.type == x.type and count[node.inputs[side]] == 1  # type: ignore[index]
            if alone and sums.node.op in (ops.scatter_nd, ops.scatter_elements) and sums.node.attrs["reduction"] == "add":
                zeros, *entries = sums.node.inputs
                if _zero(zeros):
                    return (sums.node.op(x, *entries, **sums.node.attrs),)
        return None

    return rebuild(graph, rule)


def _zero(v: Value | None) -> bool:
    """Whether all elements are known to be one zero."""
    while v is not None and v.node.op not in (INPUT, CONSTANT) and v.node.op.view is not None:
        v = v.node.inputs[0]
    array = None if v is None else v.constant
    return array is not None and array.size == 1 and not array.any()
