"""Neighbouring elementwise ops become one chain that passes over memory once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flamert import ops
from flamert.graph import Graph, Node, Value
from flamert.ops.pointwise import Instruction
from flamert.rewrite import rebuild

MAX_INPUTS = 12
MAX_STEPS = 32
"""A chain is closed before it exceeds these: each operand and step takes a register."""


def fuse_pointwise(graph: Graph, eligible: Callable[[Node], bool]) -> Graph:
    """Elementwise nodes that are `eligible` are joined with those they feed, where nobody else reads the results between."""
    members = {node for node in graph.nodes if eligible(node)}
    readers: dict[Value, set[Node]] = {}
    for node in graph.nodes:
        for v in node.inputs:
            if v is not None:
                readers.setdefault(v, set()).add(node)
    returned = set(graph.outputs)
    chains: dict[Node, list[Node]] = {}
    taken: set[Node] = set()
    for root in reversed(graph.nodes):
        if root in members and root not in taken:
            chains[root] = _chain(root, members, taken, readers, returned)
            taken.update(chains[root])

    def rule(node: Node, inputs: tuple[Value | None, ...]) -> Sequence[Value] | None:
        return (_fused(node, chains[node], new),) if node in chains else None

    new: dict[Value, Value] = {}
    return _rebuild(graph, rule, new)


def _chain(
    root: Node, members: set[Node], taken: set[Node], readers: dict[Value, set[Node]], returned: set[Value]
) -> list[Node]:
    """The nodes that `root` can absorb, operands first, itself last."""
    chain = {root}
    outside = {v for v in root.inputs if v is not None}
    pending = list(outside)
    while pending:
        value = pending.pop()
        node = value.node
        if node not in members or node in taken or node in chain or value in returned or not readers[value] <= chain:
            continue
        grown = (outside - {value}) | {v for v in node.inputs if v is not None and v.node not in chain}
        if node.types[0].shape != root.types[0].shape or len(grown) > MAX_INPUTS or len(chain) >= MAX_STEPS:
            continue
        chain.add(node)
        outside = grown
        pending.extend(v for v in outside if v not in pending)
    order: list[Node] = []
    _visit(root, chain, order)
    return order


def _visit(root: Node, chain: set[Node], order: list[Node]) -> None:
    """Operands first, without recursion."""
    stack = [root]
    done: set[Node] = set()
    while stack:
        node = stack[-1]
        pending = [v.node for v in node.inputs if v is not None and v.node in chain and v.node not in done]
        if pending:
            stack.extend(pending)
            continue
        stack.pop()
        if node not in done:
            done.add(node)
            order.append(node)


def _fused(root: Node, chain: Sequence[Node], new: dict[Value, Value]) -> Value:
    """The chain as one node, over the new forms of its outer operands."""
    inside = {node.outputs[0] for node in chain}
    outer = list(dict.fromkeys(v for node in chain for v in node.inputs if v is not None and v not in inside))
    number = {v: i for i, v in enumerate(outer)}
    program = []
    for node in chain:
        operands = tuple(number[v] for v in node.inputs if v is not None)
        program.append(Instruction(node.op.name, operands, tuple(node.attrs.items())))
        number[node.outputs[0]] = len(number)
    # The root's type is known: finding it again through the chain's body would take longer than all of this.
    return Node(ops.pointwise, tuple([new.get(v, v) for v in outer]), {"program": tuple(program)}, root.types).outputs[0]


def _rebuild(graph: Graph, rule: Callable[..., Sequence[Value] | None], new: dict[Value, Value]) -> Graph:
    """`rebuild`, with the map of new Values in the caller's hands."""

    def noting(node: Node, inputs: tuple[Value | None, ...]) -> Sequence[Value] | None:
        for old, value in zip(node.inputs, inputs, strict=True):
            if old is not None and value is not None:
                new[old] = value
        return rule(node, inputs)

    return rebuild(graph, noting)
