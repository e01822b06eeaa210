"""Reductions over the last axes become one with the elementwise ops around them: a row is read once and stays in registers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from flamert import dtypes, ops
from flamert.graph import Graph, Node, Value, sourced
from flamert.ops.pointwise import Instruction
from flamert.ops.reduce import accumulating, cast_like
from flamert.ops.rows import REDUCTIONS, Geometry
from flamert.rewrite import rebuild, with_inputs

MAX_STEPS = 48
MAX_OPERANDS = 14
"""A group takes no more instructions, and no more operands and results, than these."""


def open_rows(graph: Graph) -> Graph:
    """Write softmax and the norms over last axes in reductions, and let reductions of last axes keep them."""
    return rebuild(graph, lambda node, inputs: _opened(node, inputs))


def _opened(node: Node, inputs: tuple[Value | None, ...]) -> Sequence[Value] | None:
    name, x = node.op.name, inputs[0] if inputs else None
    if x is None or not x.type.size:
        return None
    if name in BODIES and (name not in ("softmax", "log_softmax") or node.attrs["axis"] % x.rank == x.rank - 1):
        return (cast_like(BODIES[name](accumulating(x), *inputs[1:], **node.attrs), x),)
    if name in REDUCTIONS and not node.attrs["keepdims"] and _trailing(node.attrs["axes"], x.rank):
        kept = node.op(x, axes=node.attrs["axes"], keepdims=True)
        return (ops.reshape(kept, shape=node.types[0].shape),)
    return None


def _trailing(axes: Sequence[int], rank: int) -> bool:
    return bool(axes) and tuple(axes) == tuple(range(rank - len(axes), rank))


def _softmax(x: Value, *, axis: int) -> Value:
    last = (x.rank - 1,)
    powers = ops.exp(x - ops.reduce_max(x, axes=last, keepdims=True))
    return powers / ops.reduce_sum(powers, axes=last, keepdims=True)


def _log_softmax(x: Value, *, axis: int) -> Value:
    last = (x.rank - 1,)
    shifted = x - ops.reduce_max(x, axes=last, keepdims=True)
    return shifted - ops.log(ops.reduce_sum(ops.exp(shifted), axes=last, keepdims=True))


def _layer_norm(x: Value, scale: Value | None = None, bias: Value | None = None, *, axis: int, epsilon: float) -> Value:
    axes = tuple(range(axis % x.rank, x.rank))
    centred = x - ops.reduce_mean(x, axes=axes, keepdims=True)
    return _affinely(_by_root(centred, axes, epsilon), scale, bias)


def _rms_norm(x: Value, scale: Value | None = None, *, axis: int, epsilon: float) -> Value:
    return _affinely(_by_root(x, tuple(range(axis % x.rank, x.rank)), epsilon), scale, None)


def _by_root(x: Value, axes: tuple[int, ...], epsilon: float) -> Value:
    return x * ops.reciprocal(ops.sqrt(ops.reduce_mean(x * x, axes=axes, keepdims=True) + epsilon))


def _affinely(y: Value, scale: Value | None, bias: Value | None) -> Value:
    y = y if scale is None else y * ops.cast(scale, to=y.dtype)
    return y if bias is None else y + ops.cast(bias, to=y.dtype)


BODIES: dict[str, Callable[..., Value]] = {
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
}
"""Ops on rows, in reductions and elementwise ops of float32 at least."""


def geometry_of(node: Node) -> Geometry | None:
    """That of a reduction of whole rows, which keeps their axes; None for any other node."""
    x = node.inputs[0] if node.inputs else None
    if node.op.name not in REDUCTIONS or x is None or x.dtype not in dtypes.STANDARD_FLOAT or not x.type.size:
        return None
    axes = node.attrs["axes"]
    whole = node.attrs["keepdims"] and _trailing(axes, x.rank) and math.prod(x.shape[x.rank - len(axes) :]) > 1
    return Geometry(x.shape, len(axes)) if whole else None


def fuse_rows(graph: Graph, eligible: Callable[[Node], bool], fits: Callable[[Node], bool]) -> Graph:
    """Group reductions of rows with elementwise neighbours.

    eligible: which elementwise nodes may take part. fits: whether a kernel can run what a group has become; those of other
    groups stay as they were.
    """
    if not any(geometry_of(node) is not None for node in graph.nodes):
        return graph
    grouping = _Grouping(graph, eligible)
    return _rebuilt(graph, grouping, fits)


class _Grouping:
    """Nodes as units that grow: which unit each node is in, and which nodes each unit depends on.

    A unit may take in another only where nothing outside lies between them, so that units never depend on each other both
    ways. Sets of nodes are ints, a bit for each node.
    """

    def __init__(self, graph: Graph, eligible: Callable[[Node], bool]) -> None:
        self.nodes = graph.nodes
        self.number = {node: i for i, node in enumerate(graph.nodes)}
        self.unit = list(range(len(graph.nodes)))
        self.mask = [1 << i for i in range(len(graph.nodes))]
        self.above = [0] * len(graph.nodes)
        self.geometry: dict[int, Geometry] = {}
        self.members: dict[int, list[int]] = {}
        self.elementwise = [eligible(node) for node in graph.nodes]
        for i, node in enumerate(graph.nodes):
            for j in self._feeding(i):
                self.above[i] |= self.above[j] | self.mask[j]
            self.visited = i  # nothing further down is above anything yet
            self._visit(i, node)

    def _feeding(self, unit: int) -> set[int]:
        """Units that a unit reads from."""
        found: set[int] = set()
        for i in self.members.get(unit, [unit]):
            found.update(self.unit[self.number[v.node]] for v in self.nodes[i].inputs if v is not None)
        found.discard(unit)
        return found

    def _visit(self, i: int, node: Node) -> None:
        geometry = geometry_of(node)
        if geometry is not None:
            self.geometry[i], self.members[i] = geometry, [i]
        elif not self.elementwise[i]:
            return
        unit = i
        for j in sorted(self._feeding(i), reverse=True):
            theirs = self.geometry.get(self.unit[j])
            if theirs is not None and self._within(i, theirs) and self._merge(self.unit[j], unit):
                unit = self.unit[i]
        if unit in self.geometry:
            self._absorb(unit)

    def _within(self, i: int, geometry: Geometry) -> bool:
        """Whether a node's result, and what it reads, have this geometry."""
        if geometry_of(self.nodes[i]) not in (None, geometry):
            return False
        if geometry_of(self.nodes[i]) is None and not geometry.has(self.nodes[i].types[0].shape):
            return False
        return all(geometry.takes(v.shape) for v in self.nodes[i].inputs if v is not None)

    def _merge(self, a: int, b: int) -> bool:
        """Let two units be one, a's: unless something lies between them, or they do not fit together."""
        ours, theirs = self.geometry.get(a), self.geometry.get(b)
        if a == b or (ours is not None and theirs is not None and ours != theirs):
            return False
        members = [*self.members.get(a, [a]), *self.members.get(b, [b])]
        for of, other in ((a, b), (b, a)):
            if any(j != other and self.above[j] & self.mask[other] for j in self._feeding(of)):
                return False
        if len(members) > MAX_STEPS or self._operands(set(members)) > MAX_OPERANDS:
            return False
        self.members.pop(b, None)
        self.members[a] = members
        self.geometry.pop(b, None)
        self.geometry[a] = ours or theirs  # type: ignore[assignment]
        for i in members:
            self.unit[i] = a
        self.mask[a] |= self.mask[b]
        self.above[a] = (self.above[a] | self.above[b]) & ~self.mask[a]
        below = self.above[a] | self.mask[a]
        for j in {self.unit[k] for k in range(min(members), self.visited + 1) if self.above[self.unit[k]] & self.mask[a]}:
            self.above[j] |= below
        return True

    def _operands(self, members: set[int]) -> int:
        """How many values a group reads and, at most, is read for."""
        read = {v for i in members for v in self.nodes[i].inputs if v is not None and self.number[v.node] not in members}
        return len([v for v in read if v.constant is None or v.type.size > 1])

    def _absorb(self, unit: int) -> None:
        """Take in elementwise nodes that feed a group, and what feeds those."""
        geometry = self.geometry[unit]
        pending = sorted(self._feeding(unit))
        while pending:
            j = pending.pop()
            alone = self.unit[j] == j and j not in self.members
            if alone and self.elementwise[j] and self._within(j, geometry) and self._merge(unit, j):
                pending = sorted(self._feeding(unit))


def _rebuilt(graph: Graph, grouping: _Grouping, fits: Callable[[Node], bool]) -> Graph:
    """The graph with a node for each group, operands first."""
    readers: dict[Value, set[int]] = {v: {-1} for v in graph.outputs}
    for i, node in enumerate(graph.nodes):
        for v in node.inputs:
            if v is not None:
                readers.setdefault(v, set()).add(grouping.unit[i])
    new: dict[Value, Value] = {}
    for unit in _in_order(graph, grouping):
        members = sorted(grouping.members.get(unit, ()))
        if members and _fuse([graph.nodes[i] for i in members], grouping.geometry[unit], readers, unit, new, fits):
            continue
        for i in members or [unit]:
            node = graph.nodes[i]
            inputs = tuple([None if v is None else new.get(v, v) for v in node.inputs])
            if inputs != node.inputs:
                new.update(zip(node.outputs, with_inputs(node, inputs).outputs, strict=True))
    return Graph(graph.inputs, [new.get(v, v) for v in graph.outputs])


def _in_order(graph: Graph, grouping: _Grouping) -> Iterator[int]:
    """Units, those that others depend on first."""
    done: set[int] = set()
    for start in dict.fromkeys(grouping.unit):
        stack = [start]
        while stack:
            unit = stack[-1]
            waiting = [] if unit in done else [j for j in grouping._feeding(unit) if j not in done]
            if waiting:
                stack.extend(sorted(waiting))
                continue
            stack.pop()
            if unit not in done:
                done.add(unit)
                yield unit


def _fuse(
    members: Sequence[Node],
    geometry: Geometry,
    readers: dict[Value, set[int]],
    unit: int,
    new: dict[Value, Value],
    fits: Callable[[Node], bool],
) -> bool:
    """Note a group's results as those of one node. False where no kernel would run it."""
    inside = {v for node in members for v in node.outputs}
    outer = list(dict.fromkeys(v for node in members for v in node.inputs if v is not None and v not in inside))
    number: dict[Value, int] = {v: i for i, v in enumerate(outer)}
    program, results, types = [], [], []
    made: list[Value] = []
    for k, node in enumerate(members):
        operands = tuple([number[v] for v in node.inputs if v is not None])
        program.append(Instruction(node.op.name, operands, tuple(node.attrs.items())))
        [value] = node.outputs
        number[value] = len(outer) + k
        if readers.get(value, set()) - {unit}:
            results.append(k)
            types.append(node.types[0])
            made.append(value)
    attrs: dict[str, Any] = {"program": tuple(program), "results": tuple(results), "axes": geometry.axes, "sums": ()}
    source = next((node.source for node in reversed(members) if node.source is not None), None)
    with sourced(source):
        fused = Node(ops.OPS["rows"], tuple([new.get(v, v) for v in outer]), attrs, tuple(types))
    if not fits(fused):
        return False
    new.update(zip(made, fused.outputs, strict=True))
    return True
