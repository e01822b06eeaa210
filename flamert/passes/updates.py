"""A training step's elementwise updates of its state, set aside while passes look at the rest: they are most of its nodes, and
what there is to do about them the last passes do."""

from __future__ import annotations

from collections.abc import Callable

from flamert.graph import CONSTANT, INPUT, Graph, Node, Value
from flamert.rewrite import with_inputs

Without = Callable[[Graph], Graph]
"""What is to be done with a graph without its updates; it keeps the number and the types of the outputs."""


def without_updates(graph: Graph, updates: int, eligible: Callable[[Node], bool], apply: Without) -> Graph:
    """Apply something to a graph without what its last outputs, as many as `updates`, end with: nodes that are `eligible`, and
    that nothing else reads. They are put back unchanged."""
    later = _later(graph, updates, eligible)
    if not later:
        return apply(graph)
    wanted = dict.fromkeys(graph.outputs[: len(graph.outputs) - updates])
    wanted.update(dict.fromkeys(v for v in graph.outputs if v.node not in later))
    for node in later:
        wanted.update(dict.fromkeys(v for v in node.inputs if v is not None and v.node not in later and _made(v)))
    rest = apply(Graph(graph.inputs, wanted))
    new: dict[Value, Value] = dict(zip(wanted, rest.outputs, strict=True))
    for node in later:
        inputs = tuple([None if v is None else new.get(v, v) for v in node.inputs])
        if inputs != node.inputs:
            new.update(zip(node.outputs, with_inputs(node, inputs).outputs, strict=True))
    return Graph(graph.inputs, [new.get(v, v) for v in graph.outputs])


def _later(graph: Graph, updates: int, eligible: Callable[[Node], bool]) -> dict[Node, None]:
    """The nodes to set aside, operands first."""
    needed = {v.node for v in graph.outputs[: len(graph.outputs) - updates]}
    found = []
    for node in reversed(graph.nodes):
        if node in needed or node.op in (INPUT, CONSTANT) or not eligible(node):
            needed.add(node)
            needed.update(v.node for v in node.inputs if v is not None)
        else:
            found.append(node)
    return dict.fromkeys(reversed(found))


def _made(value: Value) -> bool:
    return value.node.op not in (INPUT, CONSTANT)
