"""Sums over all axes but the last take in the elementwise ops in front of them; sums of the same operands become one pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from flamert import ops
from flamert.dtypes import STANDARD_FLOAT
from flamert.graph import Graph, Node, TensorType, Value
from flamert.ops.pointwise import Instruction
from flamert.passes.pointwise import ordered
from flamert.passes.programs import shortened
from flamert.rewrite import substitute

ROWS = 32
"""Rows from which a sum over them is worth a kernel of its own."""

MAX_STEPS, MAX_OPERANDS, MAX_RESULTS = 24, 10, 4
"""What one group may have."""


def summed(node: Node) -> bool:
    """Whether this is a sum or a mean over all axes but the last, of many rows."""
    x = node.inputs[0] if node.inputs else None
    if node.op not in (ops.reduce_sum, ops.reduce_mean) or x is None or x.dtype not in STANDARD_FLOAT or x.rank < 2:
        return False
    leading = tuple(node.attrs["axes"]) == tuple(range(x.rank - 1))
    return leading and x.shape[-1] > 1 and math.prod(x.shape[:-1]) >= ROWS


def fuse_columns(graph: Graph, eligible: Callable[[Node], bool], fits: Callable[[Node], bool]) -> Graph:
    """eligible: which elementwise nodes may be taken in. fits: whether a kernel can run what a group has become."""
    sums = [node for node in graph.nodes if summed(node)]
    if not sums:
        return graph
    around = _Surroundings(graph, eligible)
    groups = _merged([_Group(node, around) for node in sums], _levels(graph, sums))
    for group in groups:
        group.grow()
    found: dict[Value, Value] = {}
    for group in groups:
        made = group.made()
        if fits(made):
            for old, new in zip(group.sums, made.outputs, strict=True):
                found[old.outputs[0]] = ops.reshape(new, shape=old.types[0].shape)
    return substitute(graph, found) if found else graph


class _Surroundings:
    """What groups need to know of a graph."""

    def __init__(self, graph: Graph, eligible: Callable[[Node], bool]) -> None:
        self.eligible = {node for node in graph.nodes if eligible(node)}
        self.kept = set(graph.outputs)
        self.readers: dict[Value, set[Node]] = {}
        for node in graph.nodes:
            for v in node.inputs:
                if v is not None:
                    self.readers.setdefault(v, set()).add(node)


class _Group:
    """Sums that are made in one pass, and the elementwise nodes in front of them."""

    def __init__(self, node: Node, surroundings: _Surroundings) -> None:
        x = node.inputs[0]
        assert x is not None
        self.sums, self.shape, self.around = [node], x.shape, surroundings
        self.taken: dict[Node, None] = {}
        self.outer: dict[Value, None] = {x: None}
        self.grow()

    def grow(self) -> None:
        """Take in what only this group needs, or one more reader that takes it in as well and leaves nobody to write it for."""
        around = self.around
        pending = list(self.outer)
        while pending:
            v = pending.pop()
            n = v.node
            if n not in around.eligible or v.shape != self.shape or v in around.kept or len(self.taken) >= MAX_STEPS:
                continue
            if v not in self.outer:  # an operand twice
                continue
            others = around.readers[v] - self.taken.keys() - set(self.sums)
            if len(others) > 1 or any(other not in around.eligible for other in others):
                continue
            if others and self.reading(v) > 2 * v.type.nbytes:  # to write it once and read it again is less
                continue
            more = [u for u in n.inputs if u is not None and u not in self.outer]
            if len(self.outer) - 1 + len(more) > MAX_OPERANDS:
                continue
            self.taken[n] = None
            del self.outer[v]
            self.outer |= dict.fromkeys(more)
            pending.extend(more)

    def reading(self, v: Value) -> int:
        """Bytes of whole operands to be read besides, if v and all that would follow is taken in."""
        cone, pending, bytes_ = {v.node}, [*v.node.inputs], 0
        seen = set(self.outer)
        while pending:
            u = pending.pop()
            if u is None or u in seen or u.shape != self.shape:
                continue
            seen.add(u)
            if u.node in self.around.eligible and u not in self.around.kept and self.around.readers[u] <= cone:
                cone.add(u.node)
                pending.extend(u.node.inputs)
            else:
                bytes_ += u.type.nbytes
        return bytes_

    @property
    def whole(self) -> set[Value]:
        """Operands of the full shape."""
        return {v for v in self.outer if v.shape == self.shape}

    def joined(self, other: _Group) -> bool:
        """Take the other group in, if they read the same and remain small enough."""
        if self.shape != other.shape or not self.whole & (other.whole | {n.outputs[0] for n in other.taken}):
            return False
        taken = {**self.taken, **other.taken}
        outer = {v: None for v in (*self.outer, *other.outer) if v.node not in taken}
        if len(taken) > MAX_STEPS or len(outer) > MAX_OPERANDS or len(self.sums) + len(other.sums) > MAX_RESULTS:
            return False
        self.taken, self.outer = taken, outer
        self.sums += other.sums
        return True

    def made(self) -> Node:
        """The group as one node. What was repeated for each of its readers is read, and computed, only once."""
        order = ordered([v.node for s in self.sums if (v := s.inputs[0]) is not None and v.node in self.taken], set(self.taken))
        inside = {n.outputs[0] for n in order}
        outside = [v for n in order for v in n.inputs if v is not None and v not in inside]
        outside += [v for s in self.sums if (v := s.inputs[0]) is not None and v not in inside]
        number = {v: i for i, v in enumerate(dict.fromkeys(outside))}
        operands, program = list(number), []
        for n in order:
            program.append(Instruction(n.op.name, tuple(number[v] for v in n.inputs if v is not None), tuple(n.attrs.items())))
            number[n.outputs[0]] = len(number)
        operands, program, at = shortened(operands, program)
        attrs = {
            "program": tuple(program),
            "results": tuple(at[number[s.inputs[0]]] for s in self.sums),  # type: ignore[index]
            "means": tuple(s.op is ops.reduce_mean for s in self.sums),
            **{"kept": (), "given": 0, "finish": (), "wanted": ()},
        }
        types = tuple(TensorType(self.shape[-1:], s.types[0].dtype) for s in self.sums)
        return Node(ops.columns, tuple(operands), attrs, types, self.sums[0].source)


def _levels(graph: Graph, sums: Sequence[Node]) -> dict[Node, int]:
    """For each of the sums, how many lie behind it at most, one made from another."""
    among = set(sums)
    behind: dict[Node, int] = {}
    for node in graph.nodes:
        behind[node] = max([behind[v.node] + (v.node in among) for v in node.inputs if v is not None], default=0)
    return {node: behind[node] for node in sums}


def _merged(groups: list[_Group], levels: dict[Node, int]) -> list[_Group]:
    """Groups of the same operands as one, where as much lies behind the one as behind the other: no circle can close."""
    found: list[_Group] = []
    for group in groups:
        level = levels[group.sums[0]]
        if not any(levels[earlier.sums[0]] == level and earlier.joined(group) for earlier in reversed(found)):
            found.append(group)
    return found
