"""Results of groups of rows that their readers make again of one that is in memory anyway, instead of reading them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flamert import graph as g
from flamert import ops
from flamert.graph import OPERATORS, Graph, Node, TensorType, Value
from flamert.ops.pointwise import Instruction
from flamert.passes.row_sums import unread
from flamert.passes.rows import MAX_OPERANDS, MAX_STEPS
from flamert.rewrite import substitute

CHEAP = frozenset({"add", "sub", "mul", "neg", "cast"})
"""Ops that take an instruction or two."""

DEPTH = 6
"""Instructions that are made again for one value at most."""


def remake_rows(graph: Graph, fits: Callable[[Node], bool]) -> Graph:
    """A full result that only other groups read, made cheaply of one other full value and of vectors, is made again by them.

    Such is a norm's x̂ = (x − mean) · r, of the residual stream and a number or two a row. The other value is no larger, and is
    kept in its stead: memory never holds more than before. fits: whether a kernel can run what a group has become.
    """
    groups = [_Group(node) for node in graph.nodes if node.op is ops.rows]
    of = {group.node: group for group in groups}
    readers: dict[Value, dict[Node, None]] = {}
    for node in graph.nodes:
        for v in node.inputs:
            if v is not None:
                readers.setdefault(v, {})[node] = None
    kept, changed = set(graph.outputs), set[_Group]()
    for group in groups:
        for v in group.node.outputs[: len(group.results)]:
            by = [of.get(node) for node in readers.get(v, ())]
            if by and v not in kept and None not in by and group.remade(v, [b for b in by if b is not None], fits):
                changed |= {group, *[b for b in by if b is not None]}
    if not changed:
        return graph
    new: dict[Value, Value] = {}
    final: dict[_Step, Value] = {}
    for group in groups:
        if group in changed:
            made = group.made(final)
            new.update(zip(group.node.outputs, group.old(made), strict=True))
    return unread(substitute(graph, new))


class _Step:
    """An instruction while its number may still change. operands: others of its group, what the group reads, or what numbers
    of a row another group hands over.
    """

    def __init__(self, op: str, operands: Sequence[Any], attrs: tuple[tuple[str, Any], ...], type: TensorType) -> None:
        self.op, self.operands, self.attrs, self.type = op, list(operands), attrs, type


class _Group:
    """A group whose program can be changed. handed: numbers of a row that it hands to others besides its results."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.values: list[Any] = [v for v in node.inputs if v is not None]
        self.steps: list[_Step] = []
        for step in node.attrs["program"]:
            operands = [self.values[i] for i in step.operands]
            op: Any = OPERATORS[step.op]
            type = op.infer(*[v.type for v in operands], **dict(step.attrs))
            self.steps.append(_Step(step.op, operands, step.attrs, type))
            self.values.append(self.steps[-1])
        self.results = [self.steps[k] for k in node.attrs["results"]]
        self.sums = [self.values[i] for i in node.attrs["sums"]]
        self.handed: dict[_Step, None] = {}
        self.gone: set[_Step] = set()
        self.shape = max((s.type.shape for s in self.steps), key=lambda shape: TensorType(shape, node.types[0].dtype).size)

    def remade(self, v: Value, by: Sequence[_Group], fits: Callable[[Node], bool]) -> bool:
        """Let groups make what they read as v themselves, if that is possible."""
        target = self.results[v.index]
        cone = self._cone(target)
        if cone is None:
            return False
        steps, leaves = cone
        handed = [u for u in leaves if isinstance(u, _Step) and u not in self.results and u not in self.handed]
        before = [(list(b.steps), [list(s.operands) for s in b.steps], list(b.sums)) for b in by]
        self.handed |= dict.fromkeys(handed)
        for b in by:
            b._replace(v, self, steps)
        if all(b.small() and fits(b.made({})) for b in by):
            self.gone.add(target)
            return True
        for u in handed:
            del self.handed[u]
        for b, (old, operands, sums) in zip(by, before, strict=True):
            b.steps, b.sums = old, sums
            for s, o in zip(old, operands, strict=True):
                s.operands = o
        return False

    def _cone(self, target: _Step) -> tuple[list[_Step], list[Any]] | None:
        """Cheap instructions that make a result, and what they take: one full value no larger, and vectors."""
        if target.type.shape != self.shape:
            return None
        inside: dict[_Step, None] = {}
        leaves: dict[Any, None] = {}
        pending: list[Any] = [target]
        while pending:
            u = pending.pop()
            if u in inside or u in leaves:
                continue
            written = u is not target and u in self.results and u not in self.gone
            if isinstance(u, _Step) and not written and (u is target or u.type.shape == self.shape):
                if u.op not in CHEAP or len(inside) == DEPTH:
                    return None
                inside[u] = None
                pending += u.operands
            else:
                leaves[u] = None
        whole = [u for u in leaves if u.type.shape == self.shape]
        if len(whole) != 1 or whole[0].type.nbytes > target.type.nbytes:
            return None
        return [s for s in self.steps if s in inside], list(leaves)

    def _replace(self, v: Value, maker: _Group, steps: Sequence[_Step]) -> None:
        """Make v of the maker's instructions wherever it is read."""
        copies: dict[Any, Any] = {}
        for s in steps:
            copies[s] = _Step(s.op, [copies.get(u, maker.seen(u)) for u in s.operands], s.attrs, s.type)
        made = copies[maker.results[v.index]]
        for s in self.steps:
            s.operands = [made if u is v else u for u in s.operands]
        self.sums = [made if u is v else u for u in self.sums]
        self.steps = [*copies.values(), *self.steps]

    def seen(self, u: Any) -> Any:
        """What another group reads where this one has the value u."""
        return self.node.outputs[self.results.index(u)] if isinstance(u, _Step) and u in self.results else u

    def _outer(self) -> list[Any]:
        """What the group reads: values, and numbers of a row that another group hands over."""
        own = set(self.steps)
        return list(dict.fromkeys(u for u in [*[u for s in self.steps for u in s.operands], *self.sums] if u not in own))

    def small(self) -> bool:
        return len(self._outer()) <= MAX_OPERANDS and len(self.steps) <= MAX_STEPS

    def made(self, final: dict[_Step, Value]) -> Node:
        """The group as a node. final: numbers of a row that earlier groups hand over; noted are this one's."""
        outer = self._outer()
        number = {u: i for i, u in enumerate([*outer, *self.steps])}
        program = tuple([Instruction(s.op, tuple([number[u] for u in s.operands]), s.attrs) for s in self.steps])
        written = [*self.results, *self.handed]
        attrs = {
            "program": program,
            "results": tuple([number[s] - len(outer) for s in written]),
            "axes": self.node.attrs["axes"],
            "sums": tuple([number[u] for u in self.sums]),
        }
        types = (*[s.type for s in written], *self.node.types[len(self.results) :])
        inputs = tuple([final.get(u) or _standing(u) if isinstance(u, _Step) else u for u in outer])
        node = Node(ops.rows, inputs, attrs, types, self.node.source)
        final.update(zip(self.handed, node.outputs[len(self.results) :], strict=False))
        return node

    def old(self, made: Node) -> tuple[Value, ...]:
        """What stands for the results that the group had before."""
        n = len(self.results)
        return (*made.outputs[:n], *made.outputs[n + len(self.handed) :])


def _standing(step: _Step) -> Value:
    """An input of the type of what will be handed over."""
    return g.input(step.type)
