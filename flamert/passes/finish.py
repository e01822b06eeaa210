"""What is computed of sums, one number for each column, is computed where the sums are: in the last stage of their kernel."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Sequence

from flamert import graph as g
from flamert import ops
from flamert.graph import INPUT, Graph, Node, TensorType, Value
from flamert.ops.pointwise import Instruction
from flamert.passes.programs import alike, bare, shortened
from flamert.rewrite import rebuild

MAX_STEPS, MAX_GIVEN, MAX_WANTED = 24, 8, 10
"""What may be done with one group's sums: instructions, operands besides them, and results."""


def finish_columns(graph: Graph, eligible: Callable[[Node], bool], fits: Callable[[Node], bool]) -> Graph:
    """`columns` take in the elementwise nodes behind them that have a number for each column, and casts of such numbers in
    front of them. eligible: which nodes may be taken in. fits: whether a kernel can run what a node has become.

    Whatever else a node then needs comes before it in the graph's order, so that no circle can close.
    """
    around = _Surroundings(graph, eligible)
    groups = {node: _Finish(node, around) for node in graph.nodes if node.op is ops.columns and not node.attrs["finish"]}
    if not groups:
        return graph
    for group in groups.values():
        group.grow()
    again: dict[Value, Value] = {}
    """What stands for values that have been taken in."""

    def rule(node: Node, inputs: tuple[Value | None, ...]) -> Sequence[Value] | None:
        group = groups.get(node)
        if group is not None:
            made = group.made(lambda v: again.get(v, new.get(v, v)))
            if fits(made):
                stands = dict(zip(group.wanted, made.outputs, strict=True))
                again.update({v: stands[of] for v, of in group.inside.items() if of in stands} | stands)
        results = [again.get(v) for v in node.outputs]
        if any(v is not None for v in results):
            found = [old if v is None else _shaped(v, old.shape) for v, old in zip(results, node.outputs, strict=True)]
        elif inputs != node.inputs:
            found = list(Node(node.op, inputs, node.attrs, node.types, node.source).outputs)
        else:
            return None
        new.update(zip(node.outputs, found, strict=True))
        return found

    new: dict[Value, Value] = {}
    return rebuild(graph, rule)


def _shaped(v: Value, shape: tuple[int, ...]) -> Value:
    return v if v.shape == shape else ops.reshape(v, shape=shape)


class _Surroundings:
    """What groups need to know of a graph. free: inputs, constants, and views and casts of these, which can come first."""

    def __init__(self, graph: Graph, eligible: Callable[[Node], bool]) -> None:
        self.eligible = eligible
        self.kept = set(graph.outputs)
        self.position = {node: i for i, node in enumerate(graph.nodes)}
        self.place = dict(self.position)
        """Where nodes will be: where the node is that has taken them in."""
        self.readers: dict[Value, list[Node]] = {}
        self.free: set[Node] = set()
        self.taken: set[Node] = set()
        for node in graph.nodes:
            operands = [v for v in node.inputs if v is not None]
            if node.op is INPUT or node.known or (node.op in (ops.reshape, ops.cast) and operands[0].node in self.free):
                self.free.add(node)
            for v in operands:
                self.readers.setdefault(v, []).append(node)


class _Finish:
    """A `columns` node, and what it takes in."""

    def __init__(self, node: Node, around: _Surroundings) -> None:
        self.node, self.around = node, around
        self.length = node.types[0].shape[0]
        self.sums = len(node.attrs["results"])
        self.inside: dict[Value, Value] = {v: v for v in node.outputs[: self.sums]}
        """Values that are made of the sums, and of which each is the same, perhaps in another shape."""
        self.order: list[Node] = []
        self.given: dict[Hashable, Value] = {}
        self.same: dict[Hashable, Value] = {}
        """What has been taken in by what it computes: passes repeat for each reader what they hope it will absorb."""

    def grow(self) -> None:
        around = self.around
        pending = [(around.position[n], n) for v in self.inside for n in around.readers.get(v, ())]
        heapq.heapify(pending)
        done: set[Node] = set()
        while pending:
            _, n = heapq.heappop(pending)
            if n not in done and n not in around.taken and self._take(n):
                around.taken.add(n)
                around.place[n] = around.position[self.node]
                for m in around.readers.get(n.outputs[0], ()):
                    heapq.heappush(pending, (around.position[m], m))
            done.add(n)

    def _take(self, n: Node) -> bool:
        """Take in one node, if it is of the kind and there is room."""
        if len(n.types) != 1 or not self._by_column(n.types[0]):
            return False
        if n.op is ops.reshape:
            seen = n.inputs[0]
            assert seen is not None
            self.inside[n.outputs[0]] = self.inside[seen]
            return True
        if not self.around.eligible(n) or len(self.order) == MAX_STEPS:
            return False
        outer = [v for v in n.inputs if v is not None and v not in self.inside]
        if not all(self._before(v) and (v.type.size == 1 or self._by_column(v.type)) for v in outer):
            return False
        given = self.given | {alike(v): v for v in outer if alike(v) not in self.given}
        if len(given) > MAX_GIVEN or len(self._wanted()) >= MAX_WANTED:
            return False
        self.given = given
        operands = tuple([self.inside.get(v, alike(v)) for v in n.inputs if v is not None])
        key = (n.op.name, operands, tuple(n.attrs.items()))
        self.inside[n.outputs[0]] = self.same.setdefault(key, n.outputs[0])
        self.order.append(n)
        return True

    def _by_column(self, type: TensorType) -> bool:
        """Whether there is one number for each column, and nothing else."""
        return type.size == self.length and self.length in type.shape

    def _before(self, v: Value) -> bool:
        return v.node in self.around.free or self.around.place[v.node] < self.around.place[self.node]

    def _wanted(self) -> list[Value]:
        """Values that others read, or the graph returns."""
        around, mine = self.around, set(self.order)

        def asked(v: Value) -> bool:
            readers = [n for n in around.readers.get(v, ()) if n not in mine]
            return v in around.kept or any(n.op is not ops.reshape or n.outputs[0] not in self.inside for n in readers)

        return list(dict.fromkeys(of for v, of in self.inside.items() if asked(v)))

    @property
    def wanted(self) -> list[Value]:
        """What the node will return, in this order, before whatever it keeps."""
        return [*self._wanted(), *self.node.outputs[self.sums :]]

    def made(self, now: Callable[[Value], Value]) -> Node:
        """The node with what it has taken in. now: what stands for a value by now."""
        attrs, operands, count = self.node.attrs, [v for v in self.node.inputs if v is not None], self.sums
        program, first = list(attrs["program"]), len(operands)
        casts = [i for i, v in enumerate(operands) if self._cast(v)]
        shift = len(casts)
        moved = {i: first + k for k, i in enumerate(casts)}

        def at(i: int) -> int:
            return moved.get(i, i) if i < first else i + shift

        steps = [Instruction("cast", (i,), tuple(operands[i].node.attrs.items())) for i in casts]
        steps += [step._replace(operands=tuple([at(i) for i in step.operands])) for step in program]
        outer = [bare(now(v.node.inputs[0] if i in moved else v)) for i, v in enumerate(operands)]  # type: ignore[arg-type]
        outer, steps, short = shortened(outer, steps)
        given, finish, number = self._finish(now)
        wanted = tuple([number[v] for v in self._wanted()])
        result = {
            "program": tuple(steps),
            "results": tuple([short[at(k)] for k in attrs["results"]]),
            "means": attrs["means"],
            "kept": tuple([short[at(k)] for k in attrs["kept"]]),
            "given": len(given),
            "finish": tuple(finish),
            "wanted": wanted,
        }
        types = [TensorType((self.length,), v.dtype) for v in self._wanted()] + list(self.node.types[count:])
        return Node(ops.columns, (*outer, *given), result, tuple(types), self.node.source)

    def _cast(self, v: Value) -> bool:
        """Whether an operand is a cast of one number for each column."""
        return v.node.op is ops.cast and self._by_column(v.type) and self.around.eligible(v.node)

    def _finish(self, now: Callable[[Value], Value]) -> tuple[list[Value], list[Instruction], dict[Value, int]]:
        """(operands besides the sums, instructions, the number of each value). Casts of operands are instructions, too."""
        sums = list(self.node.outputs[: self.sums])
        number = {v: i for i, v in enumerate(sums)}
        given: list[Value] = []
        steps: list[Instruction] = []
        at: dict[Hashable, int] = {}
        for key, v in self.given.items():
            seen = v.node.inputs[0] if self._cast(v) else v
            assert seen is not None
            at[key] = len(sums) + len(given)
            given.append(_flat(seen, now))
        first = len(sums) + len(given)
        for key, v in self.given.items():
            if self._cast(v):
                steps.append(Instruction("cast", (at[key],), tuple(v.node.attrs.items())))
                at[key] = first + len(steps) - 1
        for n in self.order:
            v = n.outputs[0]
            if self.inside[v] is v:
                inputs = [u for u in n.inputs if u is not None]
                operands = [number[self.inside[u]] if u in self.inside else at[alike(u)] for u in inputs]
                number[v] = first + len(steps)
                steps.append(Instruction(n.op.name, tuple(operands), tuple(n.attrs.items())))
        return given, steps, number


def _flat(v: Value, now: Callable[[Value], Value]) -> Value:
    """One number for each column as [C], a single number without axes."""
    if v.constant is not None and v.type.size == 1:
        return v if v.rank == 0 else g.constant(v.constant.reshape(()))
    return _shaped(now(v), () if v.type.size == 1 else (v.type.size,))
