"""Elementwise results that are summed up and needed by others besides are written where they are summed up."""

from __future__ import annotations

from collections.abc import Callable

from flamert import ops
from flamert.graph import Graph, Node, Value
from flamert.ops.pointwise import Instruction
from flamert.passes.columns import MAX_OPERANDS, MAX_STEPS
from flamert.passes.pointwise import ordered
from flamert.passes.programs import shortened
from flamert.rewrite import substitute

STRIDED = frozenset({"expand", "transpose", "slice"})
"""Views that a kernel for sums would have copied first."""


def keep_columns(graph: Graph, eligible: Callable[[Node], bool], fits: Callable[[Node], bool]) -> Graph:
    """`columns` take in the elementwise nodes that make one of their whole operands, and return that operand as well.

    It is not read again, and not launched for. eligible: which nodes may be taken in. fits: whether a kernel can run what a
    node has become. Its other operands come before the one it returns, so that no circle can close.
    """
    around = _Surroundings(graph, eligible)
    found: dict[Value, Value] = {}
    taken: set[Node] = set()
    for node in graph.nodes:
        if node.op is not ops.columns or node.attrs["finish"] or node.attrs["kept"]:
            continue
        for v in node.inputs:
            cone = None if v is None else around.cone(node, v, taken)
            made = None if v is None or not cone else _made(node, v, cone)
            if v is not None and cone and made is not None and fits(made):
                taken.update(cone)
                found[v] = made.outputs[-1]
                found.update(zip(node.outputs, made.outputs, strict=False))
                break
    return substitute(graph, found) if found else graph


class _Surroundings:
    """What must be known of a graph. place: where each node can come first; what is small comes right behind its operands."""

    def __init__(self, graph: Graph, eligible: Callable[[Node], bool]) -> None:
        self.eligible = eligible
        self.readers: dict[Value, set[Node]] = {}
        self.place: dict[Node, int] = {}
        self.returned = set(graph.outputs)
        for i, node in enumerate(graph.nodes):
            operands = [v for v in node.inputs if v is not None]
            small = eligible(node) and node.types[0].size == max(node.types[0].shape, default=1)
            light = not operands or small or node.op in (ops.reshape, ops.slice)
            self.place[node] = max([self.place[v.node] for v in operands], default=-1) if light else i
            for v in operands:
                self.readers.setdefault(v, set()).add(node)

    def cone(self, node: Node, v: Value, taken: set[Node]) -> list[Node]:
        """The nodes that make v, operands first, that `node` can take in with it; none where it cannot."""
        full = max((u for u in node.inputs if u is not None), key=lambda u: u.type.size).shape
        first = v.node
        if v.shape != full or not self.eligible(first) or first in taken:
            return []
        cone, pending = {first}, list(first.inputs)
        while pending:
            u = pending.pop()
            if u is None or u.shape != full or not self.eligible(u.node) or u.node in taken or u.node in cone:
                continue
            if self.readers[u] <= cone and u not in self.returned and len(cone) + len(node.attrs["program"]) < MAX_STEPS:
                cone.add(u.node)
                pending.extend(u.node.inputs)
        leaves = {u for n in cone for u in n.inputs if u is not None and u.node not in cone}
        others = {u for u in node.inputs if u is not None and u is not v}
        before = all(self.place[u.node] < self.place[first] for u in leaves | others)
        strided = any(u.shape == full and u.node.op.name in STRIDED for u in leaves)
        room = len(leaves | others) <= MAX_OPERANDS
        return ordered([first], cone) if before and room and not strided else []


def _made(node: Node, v: Value, cone: list[Node]) -> Node:
    """`columns` with these nodes in front, which returns v as well."""
    inside = {n.outputs[0] for n in cone}
    outside = [u for n in cone for u in n.inputs if u is not None and u not in inside]
    outside += [u for u in node.inputs if u is not None and u is not v]
    number = {u: i for i, u in enumerate(dict.fromkeys(outside))}
    operands, program = list(number), []
    for n in cone:
        program.append(Instruction(n.op.name, tuple([number[u] for u in n.inputs if u is not None]), tuple(n.attrs.items())))
        number[n.outputs[0]] = len(number)
    at = [number[u] for u in node.inputs if u is not None]
    for step in node.attrs["program"]:
        program.append(step._replace(operands=tuple([at[i] for i in step.operands])))
        at.append(len(operands) + len(program) - 1)
    operands, program, short = shortened(operands, program)
    attrs = {
        **node.attrs,
        "program": tuple(program),
        "results": tuple([short[at[k]] for k in node.attrs["results"]]),
        "kept": (short[number[v]],),
    }
    return Node(ops.columns, tuple(operands), attrs, (*node.types, v.type), node.source)
