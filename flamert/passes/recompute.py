"""Recomputation: results of the forward pass are made again for the backward pass instead of being kept for it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator

from flamert.graph import CONSTANT, INPUT, Graph, Node, Value, sourced, topological
from flamert.rewrite import with_inputs

CHEAP_OPS = frozenset(
    {
        *("pointwise", "rows", "softmax", "log_softmax", "layer_norm", "rms_norm", "batch_norm", "group_norm", "instance_norm"),
        *("max_pool", "max_pool_channels_last", "average_pool", "average_pool_channels_last"),
    }
)
"""Ops, besides those of `FAMILIES`, that read and write memory and hardly compute."""

FAMILIES = frozenset({"elementwise", "functions", "logic", "activation", "cast"})

LIGHT = 1 << 12
"""Bytes up to which a result is kept all the same."""

KEPT, CHEAP, ATTENTION, ALL = range(4)
"""What may be made again: nothing; what is cheap; attention as well; whatever gives the same bits again."""

Level = Callable[[Node], int]


def recompute(graph: Graph, loss: Value) -> Graph:
    """Make anew, where the backward pass reads them, results that cost little and need nothing kept that is not kept anyway.

    graph: a training step after all other passes: a later one would find that the copies are the same. What leads to `loss` is
    the forward pass, all else the backward pass. The step computes what it did, bit for bit.
    """
    step = Step(graph, loss)
    again = step.again(lambda node: CHEAP, ())
    return step.repeated(again) if again else graph


class Step:
    """A training step's graph in its two passes. forward: what leads to the loss, leaves not among it, in order."""

    def __init__(self, graph: Graph, loss: Value) -> None:
        self.graph = graph
        leading = set(topological([loss]))
        self.forward = {node: i for i, node in enumerate(n for n in graph.nodes if n in leading and not leaf(n))}
        self.late = {v for node in graph.nodes if not leaf(node) and node not in leading for v in node.inputs if self._made(v)}
        """Results of the forward pass that the backward pass reads."""

    def _made(self, value: Value | None) -> bool:
        return value is not None and value.node in self.forward

    def again(self, level: Level, borders: Collection[Value]) -> set[Node]:
        """The nodes that the backward pass has copies of. level: what may be made again, by node. borders: what is kept.

        A copy reads what is kept for the backward pass anyway, borders, leaves, and other copies.
        """
        there: set[Node] = set()
        for node in self.forward:
            operands = [v for v in node.inputs if v is not None and not leaf(v.node) and v.type.nbytes > LIGHT]
            found = all(v in self.late or v in borders or v.node in there for v in operands)
            if found and kind_of(node) <= level(node) and not any(v in borders for v in node.outputs):
                there.add(node)
        again: set[Node] = set()
        needed = set(self.late)
        for node in reversed(self.forward):
            if node in there and sum(v.type.nbytes for v in node.outputs if v in needed) > LIGHT:
                again.add(node)
                needed.update(v for v in node.inputs if v is not None)
        return again

    def order(self, again: set[Node]) -> Iterator[tuple[Node, bool]]:
        """(node, whether it is a copy) of the step with these made again: each just before the backward pass first reads it.

        So is what costs little and is made of these alone: a view, say, of something made again.
        """
        waits = self._waits if again else set()
        made: set[Node] = set()

        def before(node: Node) -> list[Node]:
            """What has to be made now for this node of the backward pass, or copy."""
            operands = [v.node for v in reversed(node.inputs) if v is not None]
            return [n for n in operands if n not in made and (n in again or n in waits)]

        for node in self.graph.nodes:
            if leaf(node) or node in self.forward:
                yield node, False
            stack = [] if leaf(node) or node in self.forward or node in waits else [node]
            while stack:
                waiting = [] if stack[-1] in made else before(stack[-1])
                stack += waiting
                if not waiting:
                    last = stack.pop()
                    if last not in made:
                        made.add(last)
                        yield last, last in again

    @functools.cached_property
    def _waits(self) -> set[Node]:
        """Nodes of the backward pass that cost little, are read, and read the forward pass, leaves and each other alone."""
        read = {v.node for node in self.graph.nodes for v in node.inputs if v is not None}
        found: set[Node] = set()
        for node in self.graph.nodes:
            early = all(v is None or leaf(v.node) or v.node in self.forward or v.node in found for v in node.inputs)
            if early and node in read and node not in self.forward and not leaf(node) and kind_of(node) <= CHEAP:
                found.add(node)
        return found

    def repeated(self, again: set[Node]) -> Graph:
        """The graph in which the backward pass reads copies of these nodes."""
        copies: dict[Value, Value] = {}
        new: dict[Value, Value] = {}
        nodes: list[Node] = []
        for node, copy in self.order(again):
            made = node
            if copy or (node not in self.forward and not leaf(node)):
                inputs = tuple([v if v is None else copies.get(v) or new.get(v, v) for v in node.inputs])
                if copy or inputs != node.inputs:
                    with sourced(node.source):
                        made = with_inputs(node, inputs)
                    (copies if copy else new).update(zip(node.outputs, made.outputs, strict=True))
            nodes.append(made)
        return Graph.ordered(self.graph.inputs, [new.get(v, v) for v in self.graph.outputs], nodes)


def kind_of(node: Node) -> int:
    """The level from which on a node is made again. What draws random numbers without a counter and a seed never is."""
    if node.op.random and not _counted(node):
        return ALL + 1
    if node.op.view is not None or node.op.name in CHEAP_OPS or node.op.family in FAMILIES or node.op.random:
        return CHEAP
    return ATTENTION if node.op.family == "attention" or node.op.name.startswith("attention") else ALL


def _counted(node: Node) -> bool:
    """Whether its random numbers are those of a counter that it reads and a seed."""
    at = node.op.operands.index("counter") if "counter" in node.op.operands else len(node.inputs)
    return at < len(node.inputs) and node.inputs[at] is not None and node.attrs.get("seed") is not None


def leaf(node: Node) -> bool:
    """Whether it is an input or a constant."""
    return node.op is INPUT or node.op is CONSTANT
