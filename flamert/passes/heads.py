"""Attention whose results lie as the products around it want them: position by position."""

from __future__ import annotations

from collections.abc import Callable

from flamert import ops
from flamert.graph import Graph, Node, Value
from flamert.ops.attention_blhd import PERM
from flamert.rewrite import substitute


def lay_heads(graph: Graph, eligible: Callable[[Node], bool]) -> Graph:
    """attention and its gradient → their `_blhd` forms, seen through transposes that meet those of the graph and cancel.

    eligible: a predicate on the new nodes. The gradient is handed what the forward pass knows.
    """
    gradients = {(n.inputs[1], *n.inputs[2:]): n for n in graph.nodes if n.op is ops.attention_gradient}
    found: dict[Value, Value] = {}
    for node in graph.nodes:
        if node.op is not ops.attention:
            continue
        back = gradients.get((node.outputs[0], *node.inputs))
        made = ops.attention_blhd.node(node.inputs, {**node.attrs, "sums": back is not None})
        if not eligible(made):
            continue
        y = found[node.outputs[0]] = ops.transpose(made.outputs[0], perm=PERM)
        if back is not None:
            operands = (back.inputs[0], y, made.outputs[1], *node.inputs)
            results = ops.attention_gradient_blhd.node(operands, back.attrs).outputs
            found |= {old: ops.transpose(new, perm=PERM) for old, new in zip(back.outputs, results, strict=True)}
    return substitute(graph, found) if found else graph
