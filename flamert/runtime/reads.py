"""When values are read for the last time, and which new state may therefore be made where the old one lies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from flamert.graph import CONSTANT, INPUT, Graph, Node, Value

LEAVES = (INPUT, CONSTANT)


def last_reads(graph: Graph) -> dict[Value, int]:
    """When each Value is last read, aliases included: a view's reads are its operand's reads too."""
    last: dict[Value, int] = {v: len(graph.nodes) for v in graph.outputs}
    for time_ in range(len(graph.nodes) - 1, -1, -1):
        node = graph.nodes[time_]
        until = time_
        if _view(node):
            until = max(time_, last.get(node.outputs[0], time_))
        for v in node.inputs:
            if v is not None:
                last[v] = max(last.get(v, -1), until if v is node.inputs[0] else time_)
    return last


def destinations(
    graph: Graph, state: Mapping[Value, Any], updates: Mapping[int, Any], last: Mapping[Value, int]
) -> dict[Value, Any]:
    """The state that each new value can be made in: whoever reads the old contents has done so, or does it elementwise.

    Counters and other scalars wait for the end, since they need not depend on anything that may fail before.
    """
    holders = {id(array): value for value, array in state.items()}
    made = {v: i for i, node in enumerate(graph.nodes) for v in node.outputs}
    returned = Counter(graph.outputs)
    found: dict[Value, Any] = {}
    for i, array in updates.items():
        new, old = graph.outputs[i], holders.get(id(array))
        node = new.node
        if node.op in LEAVES or node.op.view is not None or returned[new] > 1 or not new.rank:
            continue
        if old is None or last.get(old, -1) < made[new] or (last[old] == made[new] and _elementwise_in(node, old)):
            found[new] = array
    return found


def _elementwise_in(node: Node, operand: Value) -> bool:
    """Whether results of this node may be written where the operand lies: every element is read before its place is taken."""
    read = [i for i, v in enumerate(node.inputs) if v is not None and _root(v) is operand]
    return all(i in node.op.inplace and node.inputs[i] is operand and operand.type == node.types[0] for i in read)


def _root(value: Value) -> Value:
    """What a value is a view of."""
    while _view(value.node):
        value = value.node.inputs[0]  # type: ignore[assignment]
    return value


def _view(node: Node) -> bool:
    return node.op not in LEAVES and node.op.view is not None
