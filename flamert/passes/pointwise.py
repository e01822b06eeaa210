"""Neighbouring elementwise ops become one chain that passes over memory once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from flamert import ops
from flamert.graph import INPUT, Graph, Node, Value, sourced
from flamert.ops.pointwise import MAX_INPUTS, Instruction
from flamert.passes.programs import bare, shortened
from flamert.rewrite import with_inputs

MAX_STEPS = 32
"""A chain is closed before it has more steps, or more than MAX_INPUTS operands: each takes a register."""

MAX_ROOTS = 4
"""Results that one chain may have."""

CONE = 64
"""Nodes above a result that are searched for what it shares with others."""


class Chain(NamedTuple):
    """Nodes that become one. order: operands first; roots: those whose results are wanted."""

    roots: tuple[Node, ...]
    order: list[Node]


def fuse_pointwise(graph: Graph, eligible: Callable[[Node], bool], together: bool = False) -> Graph:
    """Elementwise nodes that are `eligible` are joined with those they feed, where nobody else reads the results between.

    together: results of the graph that are made of the same operands (a parameter and its moments, above all) are made in one
    pass. Nothing reads them, so that joining them closes no circle.
    """
    walk = _Walk(graph, eligible)
    if together:
        for roots in _siblings(walk):
            walk.close(roots)
    for root in reversed(graph.nodes):
        if root in walk.members and root not in walk.taken:
            walk.close((root,))
    return _rebuilt(graph, walk)


class _Walk:
    """What is known of a graph while chains are found. chains: by the last of their roots."""

    def __init__(self, graph: Graph, eligible: Callable[[Node], bool]) -> None:
        self.members = {node: None for node in graph.nodes if eligible(node)}
        self.returned = set(graph.outputs)
        self.readers: dict[Value, set[Node]] = {}
        for node in graph.nodes:
            for v in node.inputs:
                if v is not None:
                    self.readers.setdefault(v, set()).add(node)
        self.taken: set[Node] = set()
        self.chains: dict[Node, Chain] = {}

    def close(self, roots: Sequence[Node]) -> None:
        """Find the chain that ends in these nodes, the last of them last in the graph's order."""
        order = self._absorbed(roots)
        self.taken.update(order)
        self.chains[roots[-1]] = Chain(tuple(roots), order)

    def _absorbed(self, roots: Sequence[Node]) -> list[Node]:
        """The nodes that `roots` can absorb, operands first, and themselves."""
        chain = set(roots)
        outside = {v: None for root in roots for v in root.inputs if v is not None}
        pending = list(outside)
        while pending:
            value = pending.pop()
            node = value.node
            if node not in self.members or node in self.taken or node in chain:
                continue
            if value in self.returned or not self.readers[value] <= chain or node.types[0].shape != roots[0].types[0].shape:
                continue
            grown = {v: None for v in (*outside, *node.inputs) if v is not None and v is not value and v.node not in chain}
            if len(grown) > MAX_INPUTS or len(chain) >= MAX_STEPS:
                continue
            chain.add(node)
            outside = grown
            pending.extend(v for v in outside if v not in pending)
        return ordered(roots, chain)


def _siblings(walk: _Walk) -> list[list[Node]]:
    """Groups of nodes whose results nothing reads but the graph's caller, of one shape and made of the same operands."""
    ends = [node for node in walk.members if node.outputs[0] in walk.returned and node.outputs[0] not in walk.readers]
    groups: dict[Value, list[Node]] = {}
    for node in ends:
        cone = _cone(node, walk) if node.types[0].size > 1 else ()
        group = next((g for v in cone if (g := groups.get(v)) is not None and len(g) < MAX_ROOTS), [])
        group.append(node)
        for v in cone:
            groups[v] = group
    return [g for g in {id(g): g for g in groups.values()}.values() if len(g) > 1]


def _cone(root: Node, walk: _Walk) -> list[Value]:
    """What an elementwise node is made of, as far as that has its shape."""
    found: dict[Value, None] = {}
    pending = [root]
    while pending and len(found) < CONE:
        for v in pending.pop().inputs:
            if v is not None and v not in found and v.shape == root.types[0].shape:
                found[v] = None
                if v.node in walk.members:
                    pending.append(v.node)
    return list(found)


def ordered(roots: Sequence[Node], chain: set[Node]) -> list[Node]:
    """Operands first, without recursion."""
    done: dict[Node, None] = {}
    stack = list(reversed(roots))
    while stack:
        node = stack[-1]
        pending = [v.node for v in node.inputs if v is not None and v.node in chain and v.node not in done]
        if pending:
            stack.extend(pending)
            continue
        stack.pop()
        done[node] = None
    return list(done)


def _rebuilt(graph: Graph, walk: _Walk) -> Graph:
    """The graph with each chain as one node, where its last root was."""
    if not walk.chains:
        return graph
    new: dict[Value | None, Value | None] = {None: None}
    for node in graph.nodes:
        if node.op is INPUT or (node in walk.taken and node not in walk.chains):
            continue
        chain = walk.chains.get(node)
        if chain is not None:
            with sourced(node.source):
                results = _fused(chain, new)
            new.update(zip([root.outputs[0] for root in chain.roots], results, strict=True))
            continue
        inputs = tuple([new.get(v, v) for v in node.inputs])
        if inputs != node.inputs:
            new.update(zip(node.outputs, with_inputs(node, inputs).outputs, strict=True))
    return Graph(graph.inputs, [new.get(v, v) for v in graph.outputs])  # type: ignore[misc]


def _fused(chain: Chain, new: dict[Value | None, Value | None]) -> Sequence[Value]:
    """The chain as one node, over the new forms of its outer operands."""
    inside = {node.outputs[0] for node in chain.order}
    outer = list(dict.fromkeys(v for node in chain.order for v in node.inputs if v is not None and v not in inside))
    number = {v: i for i, v in enumerate(outer)}
    program = []
    for node in chain.order:
        operands = tuple(number[v] for v in node.inputs if v is not None)
        program.append(Instruction(node.op.name, operands, tuple(node.attrs.items())))
        number[node.outputs[0]] = len(number)
    size = chain.roots[0].types[0].size
    inputs = [v if now is None else now for v in outer for now in [new.get(v, v)]]
    inputs, program, at = shortened([bare(v) if v.type.size < size else v for v in inputs], program)
    # The roots' types are known: finding them again through the chain's body would take longer than all of this.
    types = tuple([root.types[0] for root in chain.roots])
    if len(types) == 1:
        return Node(ops.pointwise, tuple(inputs), {"program": tuple(program)}, types).outputs
    results = tuple([at[number[root.outputs[0]]] - len(inputs) for root in chain.roots])
    return Node(ops.pointwise_many, tuple(inputs), {"program": tuple(program), "results": results}, types).outputs
