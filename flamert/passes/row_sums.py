"""Groups of rows take in sums over all rows of what they read or make, so that nobody reads it again for that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from flamert import ops
from flamert.graph import Graph, Node, Value
from flamert.ops.pointwise import Instruction
from flamert.passes.columns import summed
from flamert.passes.pointwise import ordered
from flamert.rewrite import substitute

MAX_SUMS = 4
"""Sums of one group: each takes as many registers as a thread has elements of a row."""

MAX_STEPS = 48
"""Instructions of a group."""

DEPTH = 8
"""Elementwise nodes in front of a sum that are taken in with it at most."""


def sum_rows(graph: Graph, eligible: Callable[[Node], bool], fits: Callable[[Node], bool]) -> Graph:
    """Sums over all axes but the last become results of the group whose operands and results they can be made of.

    A group's results that only such sums have read need not be written any more. eligible: which elementwise nodes may be
    taken in. fits: whether a kernel can run what a group has become; others stay as they were.
    """
    groups = [node for node in graph.nodes if node.op is ops.rows and node.attrs["axes"] == 1]
    sums = [node for node in graph.nodes if node.op is ops.reduce_sum and summed(node)]
    if not groups or not sums:
        return graph
    homes = _Homes(groups, eligible)
    found: dict[Node, list[Node]] = {}
    for node in sums:
        for group, behind in homes.near(node):
            taken = [*found.get(group, ()), node]
            if len(taken) > MAX_SUMS or not _fitting(homes.grown(group, taken), fits):
                continue
            if behind or not homes.needs(group, node):
                found[group] = taken
                homes.home[node] = group
                break
    return _replaced(graph, homes, found)


def _fitting(grown: Node | None, fits: Callable[[Node], bool]) -> bool:
    return grown is not None and len(grown.attrs["program"]) <= MAX_STEPS and fits(grown)


class _Homes:
    """Where sums can go. home: the group that each has been taken into."""

    def __init__(self, groups: Sequence[Node], eligible: Callable[[Node], bool]) -> None:
        self.eligible = eligible
        self.home: dict[Node, Node] = {}
        self.groups = set(groups)
        self.reading: dict[Value, list[Node]] = {}
        for group in groups:
            for v in group.inputs:
                if v is not None:
                    self.reading.setdefault(v, []).append(group)

    def near(self, node: Node) -> Iterator[tuple[Node, bool]]:
        """Groups that make or read something that a sum is made of, makers first; and whether the sum lies behind them."""
        pending, seen = [_whole(node)], set[Value]()
        made: dict[Node, None] = {}
        read: dict[Node, None] = {}
        while pending and len(seen) < DEPTH:
            v = pending.pop()
            if v in seen:
                continue
            seen.add(v)
            read |= dict.fromkeys(self.reading.get(v, ()))
            if v.node in self.groups:
                made[v.node] = None
            elif self.takes(v):
                pending += [u for u in v.node.inputs if u is not None and u.shape == v.shape]
        for group in {**made, **read}:
            yield group, group in made

    def takes(self, v: Value) -> bool:
        """Whether the node that makes a value may be taken in."""
        return bool(v.node.inputs) and self.eligible(v.node)

    def needs(self, group: Node, node: Node) -> bool:
        """Whether a group needs a sum, so that it cannot make it. What groups have taken in needs what they need."""
        pending, seen = [group], {group}
        while pending:
            for v in pending.pop().inputs:
                if v is None:
                    continue
                if v.node is node:
                    return True
                for n in (v.node, self.home.get(v.node)):
                    if n is not None and n not in seen:
                        seen.add(n)
                        pending.append(n)
        return False

    def grown(self, group: Node, sums: Sequence[Node]) -> Node | None:
        """The group with these sums and all of its results; None where it lacks something that a sum is made of."""
        steps = list(group.attrs["program"])
        inputs = [v for v in group.inputs if v is not None]
        number = {v: i for i, v in enumerate(inputs)}
        number |= {v: len(inputs) + k for v, k in zip(group.outputs, group.attrs["results"], strict=True)}
        cone = [self._between(_whole(node), number) for node in sums]
        if any(part is None for part in cone):
            return None
        members = {n for part in cone for n in part or ()}
        made = {n.outputs[0] for n in members}
        fresh = list(dict.fromkeys(v for n in members for v in n.inputs if v is not None and v not in made and v not in number))
        n, shift = len(inputs), len(fresh)
        if shift:  # numbers of instructions count from behind the operands
            steps = [s._replace(operands=tuple(i + shift * (i >= n) for i in s.operands)) for s in steps]
            number = {v: i + shift * (i >= n) for v, i in number.items()} | {v: n + i for i, v in enumerate(fresh)}
            inputs += fresh
        for node in ordered([v.node for s in sums if (v := _whole(s)).node in members], members):
            operands = tuple([number[v] for v in node.inputs if v is not None])
            steps.append(Instruction(node.op.name, operands, tuple(node.attrs.items())))
            number[node.outputs[0]] = len(inputs) + len(steps) - 1
        totals = tuple([number[_whole(node)] for node in sums])
        types = (*group.types, *[s.types[0]._replace(shape=s.types[0].shape[-1:]) for s in sums])
        return Node(ops.rows, tuple(inputs), {**group.attrs, "program": tuple(steps), "sums": totals}, types, group.source)

    def _between(self, v: Value, number: dict[Value, int]) -> list[Node] | None:
        """Elementwise nodes that make a value of what a group has; None where it takes more than that."""
        found: dict[Node, None] = {}
        pending = [v]
        while pending:
            u = pending.pop()
            if u in number or u.node in found or (u.constant is not None and u.type.size == 1):
                continue
            if len(found) == DEPTH or u.shape != v.shape or not self.takes(u):
                return None
            found[u.node] = None
            pending += [x for x in u.node.inputs if x is not None]
        return list(found)


def _whole(node: Node) -> Value:
    """What a sum over rows adds up, whatever way its rows are laid out before that: their order is all that changes."""
    v = node.inputs[0]
    assert v is not None
    while v.node.op in (ops.reshape, ops.transpose):
        x = v.node.inputs[0]
        assert x is not None
        kept = x.rank > 1 and x.shape[-1:] == v.shape[-1:]
        if not kept or (v.node.op is ops.transpose and v.node.attrs["perm"][-1] != x.rank - 1):
            break
        v = x
    return v


def _replaced(graph: Graph, homes: _Homes, found: dict[Node, list[Node]]) -> Graph:
    """The graph with groups as they have grown, without results that nobody reads any more."""
    new: dict[Value, Value] = {}
    for group, sums in found.items():
        grown = homes.grown(group, sums)
        assert grown is not None
        new.update(zip(group.outputs, grown.outputs, strict=False))
        for node, total in zip(sums, grown.outputs[len(group.outputs) :], strict=True):
            shape = node.types[0].shape
            new[node.outputs[0]] = total if total.shape == shape else ops.reshape(total, shape=shape)
    return unread(substitute(graph, new)) if new else graph


def unread(graph: Graph) -> Graph:
    """The graph whose groups write no results that nobody reads."""
    read = {v for node in graph.nodes for v in node.inputs if v is not None} | set(graph.outputs)
    new: dict[Value, Value] = {}
    for node in graph.nodes:
        if node.op is ops.rows and not read.issuperset(node.outputs):
            ks = node.attrs["results"]
            written = [i for i in range(len(ks)) if node.outputs[i] in read]
            left = [*written, *range(len(ks), len(node.outputs))]
            attrs = {**node.attrs, "results": tuple([ks[i] for i in written])}
            made = Node(node.op, node.inputs, attrs, tuple([node.types[i] for i in left]), node.source)
            new.update(zip([node.outputs[i] for i in left], made.outputs, strict=True))
    return substitute(graph, new) if new else graph
