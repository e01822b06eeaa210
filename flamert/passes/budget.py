"""What a training step makes again so that its results fit into so many bytes at a time: as little as possible."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from functools import partial
from typing import NamedTuple

from flamert.graph import Graph, Node, Value
from flamert.passes.liveness import Trace, seconds
from flamert.passes.recompute import ALL, ATTENTION, CHEAP, KEPT, Step, leaf

COUNTS = (4, 8, 16, 32, 2)
"""Segments that the forward pass is tried to be cut into."""

ENOUGH = 2
"""Numbers of segments that would do, of which the better one is taken."""

FINE = 16
"""Segments where little is made again."""


def _scratch(node: Node, backend: str) -> int:
    """Bytes that a node's kernel works in."""
    kernel = node.op.kernel_for(node, backend, hot=True)
    return 0 if kernel is None or kernel.workspace is None else sum(t.nbytes for t in kernel.workspace(node))


class Choice(NamedTuple):
    """Nodes to make again, the most bytes that results then take at a time, as far as that can be told, and what it costs."""

    again: set[Node]
    nbytes: int
    seconds: float


class Budget:
    """Choices for one training step.

    The forward pass is cut into segments where little is alive. From the first on, since what it leaves waits the longest, a
    segment makes again what is cheap, then attention as well, then everything between what crosses its borders. Of several
    numbers of segments the one is taken that costs least.

    elsewhere: results that lie outside of the step's memory: state. updates: how many outputs, at the end, replace state.
    backend: whose kernels run it.
    """

    def __init__(self, graph: Graph, loss: Value, elsewhere: Collection[Value], updates: int, backend: str) -> None:
        self.step = Step(graph, loss)
        outside = {*elsewhere, *graph.outputs[len(graph.outputs) - updates :]}
        self.trace = Trace(outside, set(graph.outputs) - outside, partial(_scratch, backend=backend))
        self.forward = list(self.step.forward)
        self.crossing = self._crossing()
        self.plain = self._choice(set())

    def within(self, nbytes: int) -> Choice:
        """The cheapest choice found that takes no more, or where there is none, the one that takes the least."""
        if self.plain.nbytes <= nbytes or not self.forward:
            return self.plain
        tried = self._tried(FINE, (CHEAP, ATTENTION), nbytes)
        fitting = 0
        for count in COUNTS if tried[0].nbytes > nbytes else ():
            found = self._tried(count, (CHEAP, ATTENTION, ALL), nbytes)
            tried += found
            fitting += found[0].nbytes <= nbytes
            if fitting == ENOUGH:
                break
        least = min([self.plain, *tried], key=lambda c: c.nbytes)
        return min((c for c in tried if c.nbytes <= nbytes), key=lambda c: c.seconds, default=least)

    def graph(self, choice: Choice) -> Graph:
        """The step that makes this again."""
        return self.step.repeated(choice.again) if choice.again else self.step.graph

    def _tried(self, count: int, levels: tuple[int, ...], nbytes: int) -> list[Choice]:
        """The choice that lifts all segments to the last level, and where that fits, others on the way there, one segment and
        level after the other: a bisection for the first that fits.
        """
        segments = self._segments(count)
        ways = list(itertools.product(levels, range(1 + max(segments.values()))))
        found = [self._after(ways, segments, len(ways))]
        low, high = 0, len(ways) if found[0].nbytes <= nbytes else 0
        while low < high:
            middle = (low + high) // 2
            found.append(self._after(ways, segments, middle))
            low, high = (low, middle) if found[-1].nbytes <= nbytes else (middle + 1, high)
        return found

    def _after(self, ways: list[tuple[int, int]], segments: dict[Node, int], steps: int) -> Choice:
        """The choice after so many steps of the way, each of which lifts one segment to a level."""
        levels = [KEPT] * (1 + max(segments.values()))
        for level, segment in ways[:steps]:
            levels[segment] = level
        borders = set()
        for node in self.forward:
            for v in node.inputs:
                if v is not None and not leaf(v.node):
                    ends = segments[v.node], segments[node]
                    if ends[0] != ends[1] and ALL in (levels[ends[0]], levels[ends[1]]):
                        borders.add(v)
        return self._choice(self.step.again(lambda node: levels[segments[node]], borders))

    def _choice(self, again: set[Node]) -> Choice:
        forward = self.step.forward

        def copied(node: Node, operand: Value, copy: bool) -> bool:
            return operand.node in again and (copy or node not in forward)

        return Choice(again, self.trace.peak(self.step.order(again), copied), sum(map(seconds, again)))

    def _crossing(self) -> list[int]:
        """Bytes of results that are made before and read after each node of the forward pass, by the forward pass itself."""
        last: dict[Value, int] = {}
        for i, node in enumerate(self.forward):
            for v in node.inputs:
                if v is not None and not leaf(v.node):
                    last[v] = i
        change = [0] * (len(self.forward) + 1)
        for v, end in last.items():
            change[self.step.forward[v.node]] += v.type.nbytes
            change[end] -= v.type.nbytes
        return list(itertools.accumulate(change))[: len(self.forward)]

    def _segments(self, count: int) -> dict[Node, int]:
        """The segment of each node of the forward pass: about as much is read late of each, and little crosses borders."""
        late = list(
            itertools.accumulate(sum(v.type.nbytes for v in node.outputs if v in self.step.late) for node in self.forward)
        )
        share = max(1, late[-1]) / count
        cuts = []
        for k in range(1, count):
            near = [i for i, x in enumerate(late) if abs(x - k * share) <= share / 2]
            if near:
                cuts.append(min(near, key=lambda i: (self.crossing[i], abs(late[i] - k * share))))
        found, segment, ends = {}, 0, sorted(set(cuts))
        for i, node in enumerate(self.forward):
            found[node] = segment
            if segment < len(ends) and i == ends[segment]:
                segment += 1
        return found
