"""Elementwise results that are cheaper to make again where they are read than to keep."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flamert.graph import Graph, Node, Value
from flamert.rewrite import rebuild, with_inputs

CHEAP = frozenset(
    {
        *("add", "sub", "mul", "neg", "abs", "maximum", "minimum", "where", "cast", "relu"),
        *("less", "less_equal", "equal", "greater", "greater_equal", "not_equal"),
    }
)
"""Ops that take an instruction or two."""

DEPTH = 8
"""Nodes in a row that are made again at most."""


def repeat_free(graph: Graph, eligible: Callable[[Node], bool]) -> Graph:
    """Give every reader a copy of its own of what is free: a cheap op of one whole operand that is no larger than the result.

    Whoever absorbs its copy reads the operand in the result's place, and nobody has to write it. Copies that nobody absorbs
    are one node again after `deduplicate`. eligible: which nodes can be absorbed.
    """
    readers: dict[Value, list[Node]] = {v: [] for v in graph.outputs}
    for node in graph.nodes:
        for u in node.inputs:
            if u is not None:
                readers.setdefault(u, []).append(node)
    returned = set(graph.outputs)
    there = {v for v, nodes in readers.items() if v in returned or not all(eligible(n) for n in nodes)}
    """What is in memory for others in any case, or is summed up, and can be written there."""
    shared: set[Value] = set()

    def free(node: Node) -> bool:
        if node.op.name not in CHEAP or not eligible(node):
            return False
        whole = [v for v in node.inputs if v is not None and v.shape == node.types[0].shape and v.type.size > 1]
        if len(whole) != 1 or whole[0].type.nbytes > node.types[0].nbytes or whole[0].node.known:
            return False
        # What is absorbed itself may never be written; with copies it would have to be, unless it is smaller anyway.
        kept = not eligible(whole[0].node) or whole[0] in shared
        return kept or whole[0].type.nbytes < node.types[0].nbytes or (whole[0] in there and node.outputs[0] not in there)

    for node in graph.nodes:
        if len(node.types) == 1 and len(readers[node.outputs[0]]) + (node.outputs[0] in returned) > 1 and free(node):
            shared.add(node.outputs[0])
    if not shared:
        return graph
    again: set[Value] = set()
    """The new forms of `shared`, and their copies."""

    def copy(v: Value | None, depth: int = 0) -> Value | None:
        if v is None or v not in again or depth == DEPTH:
            return v
        result = with_inputs(v.node, tuple([copy(x, depth + 1) for x in v.node.inputs])).outputs[0]
        again.add(result)
        return result

    def rule(node: Node, inputs: tuple[Value | None, ...]) -> Sequence[Value] | None:
        made = inputs
        if eligible(node) or node.op.name in READERS:
            made = tuple([copy(v) for v in inputs])
        results = node.outputs if made == node.inputs else with_inputs(node, made).outputs
        if node.outputs and node.outputs[0] in shared:
            again.add(results[0])
        return results

    return rebuild(graph, rule)


READERS = frozenset({"reduce_sum", "reduce_mean", "reduce_max", "reduce_min"})
"""Ops besides elementwise ones that absorb what they read."""
