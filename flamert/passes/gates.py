"""Whether a number was above zero is computed again from what is read anyway, where that takes a few instructions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from flamert import ops
from flamert.graph import Graph, Node, Value
from flamert.passes.repeat import CHEAP, DEPTH
from flamert.rewrite import substitute, with_inputs

ROWS = 32
"""What a whole tensor is larger than what there is one of for each channel at least."""

BEHIND = 16
"""Nodes behind a gate that are searched for one that reads what it can be computed from."""


def remake_gates(graph: Graph, eligible: Callable[[Node], bool]) -> Graph:
    """relu(z) > 0 → z > 0, with z made again: from the only whole tensor that it takes, in a few cheap steps per element.

    Only where elementwise nodes behind the gate read that tensor too, and relu(z) is in memory for others in any case. The
    steps are those of the forward pass, so that both find the same numbers, rounded to half types alike. eligible: which nodes
    can be absorbed.
    """
    readers: dict[Value, list[Node]] = {}
    for node in graph.nodes:
        for v in node.inputs:
            if v is not None:
                readers.setdefault(v, []).append(node)

    def kept(v: Value) -> bool:
        return v in graph.outputs or any(not eligible(n) for n in readers.get(v, ()))

    def behind(gate: Node, x: Value) -> bool:
        """Whether something behind the gate reads x."""
        found, pending = {gate: None}, [gate]
        while pending and len(found) < BEHIND:
            for n in readers.get(pending.pop().outputs[0], ()):
                if n not in found and eligible(n) and n.types[0].shape == x.shape:
                    found[n] = None
                    pending.append(n)
        operands = {v for n in found if n is not gate for v in n.inputs}
        for _ in _LIGHT:
            operands |= {u for v in operands if v is not None and v.node.op in _LIGHT for u in v.node.inputs}
        return x in operands

    found: dict[Value, Value] = {}
    for node in graph.nodes:
        if node.op is not ops.greater or not eligible(node):
            continue
        y, bound = node.inputs
        if y is None or not _zero(bound) or y.type.size < 2 or not kept(y):
            continue
        z = y.node.inputs[0] if y.node.op is ops.relu or (y.node.op is ops.maximum and _zero(y.node.inputs[1])) else None
        steps = None if z is None else _steps(z, eligible)
        if z is not None and steps is not None and behind(node, steps[1]):
            found[node.outputs[0]] = with_inputs(node, (_again(z, steps[0]), bound)).outputs[0]
    return substitute(graph, found) if found else graph


_LIGHT = (ops.cast, ops.sub)
"""What stands between a gradient's steps and the tensor that they read."""


def _steps(z: Value, eligible: Callable[[Node], bool]) -> tuple[set[Node], Value] | None:
    """(the nodes that make z, the one whole tensor that they take), if these are few and cheap."""
    nodes: set[Node] = set()
    whole: set[Value] = set()
    pending = [z]
    while pending:
        v = pending.pop()
        if v.node.op.name in CHEAP and eligible(v.node):
            nodes.add(v.node)
            for u in v.node.inputs:
                if u is not None and u.shape == z.shape:
                    pending.append(u)
                elif u is not None and (u.type.size * ROWS > z.type.size):
                    return None
        else:
            whole.add(v)
        if len(nodes) > DEPTH or len(whole) > 1:
            return None
    return (nodes, whole.pop()) if nodes and len(whole) == 1 else None


def _again(v: Value, nodes: set[Node]) -> Value:
    """v made by nodes of its own."""
    if v.node not in nodes:
        return v
    return with_inputs(v.node, tuple([None if u is None else _again(u, nodes) for u in v.node.inputs])).outputs[0]


def _zero(value: Value | None) -> bool:
    array = None if value is None else value.constant
    return array is not None and array.size == 1 and not np.any(array)
