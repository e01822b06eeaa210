"""Sums of what a product reads anyway, as the gradient of a bias is beside that of the weights, become part of the product."""

from __future__ import annotations

import math
from collections.abc import Callable

from flamert import ops
from flamert.graph import Graph, Node, Value
from flamert.rewrite import substitute

Lines = tuple[Value, int]
"""A Value, and one of its axes: for each place on it the elements that lie there."""


def sum_in_products(graph: Graph, eligible: Callable[[Node], bool]) -> Graph:
    """matmul(a, b) and a reduce_sum of a's rows or b's columns, through whatever views → product_and_sums.

    eligible: a predicate on the new nodes.
    """
    sums: dict[Lines, Node] = {}
    for node in graph.nodes:
        if (lines := _summed(node)) is not None:
            sums.setdefault(lines, node)
    if not sums:
        return graph
    place = {node: i for i, node in enumerate(graph.nodes)}
    found: dict[Value, Value] = {}
    for node in graph.nodes:
        if node.op is not ops.matmul or any(v is None or v.rank != 2 for v in node.inputs):
            continue
        for side in (0, 1):
            total = sums.get(lines_of(node.inputs[side], side))  # type: ignore[arg-type]
            # What is made before the sums cannot need them.
            if total is None or any(place[_root(v)] > place[total] for v in node.inputs if v is not None):
                continue
            made = ops.product_and_sums.node(node.inputs, {"side": side})
            if eligible(made):
                y, line = made.outputs
                del sums[lines_of(node.inputs[side], side)]  # type: ignore[arg-type]
                found[node.outputs[0]] = y
                found[total.outputs[0]] = ops.reshape(line, shape=total.types[0].shape)
                break
    return substitute(graph, found) if found else graph


def _summed(node: Node) -> Lines | None:
    """What a node sums up along all axes but one; None where it does not."""
    x = node.inputs[0] if node.op is ops.reduce_sum else None
    if x is None or node.types[0].dtype != x.dtype:
        return None
    axes = {a % x.rank for a in node.attrs["axes"]}
    kept = [a for a in range(x.rank) if a not in axes and x.shape[a] != 1]
    return lines_of(x, kept[0]) if len(kept) == 1 else None


def lines_of(v: Value, axis: int) -> Lines:
    """The same elements for each place on the axis, seen without the views in between."""
    while v.node.op in (ops.transpose, ops.reshape):
        x = v.node.inputs[0]
        assert x is not None
        if v.node.op is ops.transpose:
            v, axis = x, v.node.attrs["perm"][axis]
            continue
        before = math.prod(v.shape[:axis])
        same = [i for i in range(x.rank) if x.shape[i] == v.shape[axis] and math.prod(x.shape[:i]) == before]
        if not same:
            break
        v, axis = x, same[0]
    return v, axis


def _root(v: Value) -> Node:
    """The node that a Value is a view of the result of."""
    while v.node.inputs and v.node.op.view is not None:
        v = v.node.inputs[0]  # type: ignore[assignment]
    return v.node
