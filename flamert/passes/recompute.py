"""Recomputation: cheap results of the forward pass are made again for the backward pass instead of being kept for it."""

from __future__ import annotations

from flamert.graph import CONSTANT, INPUT, Graph, Node, Value, sourced, topological
from flamert.rewrite import with_inputs

CHEAP = frozenset(
    {
        *("pointwise", "rows", "softmax", "log_softmax", "layer_norm", "rms_norm", "batch_norm", "group_norm", "instance_norm"),
        *("max_pool", "max_pool_channels_last", "average_pool", "average_pool_channels_last"),
    }
)
"""Ops, besides those of `FAMILIES`, that read and write memory and hardly compute."""

FAMILIES = frozenset({"elementwise", "functions", "logic", "activation", "cast"})

LIGHT = 1 << 12
"""Bytes up to which a result is kept all the same."""


def recompute(graph: Graph, loss: Value) -> Graph:
    """Make anew, where the backward pass reads them, results that cost little and need nothing kept that is not kept anyway.

    graph: a training step after all other passes: a later one would find that the copies are the same. What leads to `loss` is
    the forward pass, all else the backward pass. The step computes what it did, bit for bit.
    """
    forward = set(topological([loss]))
    late = {v for node in graph.nodes if node not in forward for v in node.inputs if v is not None and v.node in forward}
    if not late:
        return graph
    held: set[Value] = set()
    again: set[Node] = set()
    for node in graph.nodes:
        if node not in forward:
            continue
        if node.op in (INPUT, CONSTANT):
            held.update(node.outputs)
            continue
        read = [v for v in node.outputs if v in late]
        large = sum(v.type.nbytes for v in read) > LIGHT
        if read and large and _cheap(node) and all(v in held for v in node.inputs if v is not None and v.type.nbytes > LIGHT):
            again.add(node)
        held.update(read)
    return _repeated(graph, forward, again) if again else graph


def _cheap(node: Node) -> bool:
    return not node.op.random and (node.op.name in CHEAP or node.op.family in FAMILIES)


def _repeated(graph: Graph, forward: set[Node], again: set[Node]) -> Graph:
    """The graph in which the backward pass reads copies of the nodes in `again`."""
    copies: dict[Node, tuple[Value, ...]] = {}
    new: dict[Value, Value] = {}

    def late(v: Value | None) -> Value | None:
        """What the backward pass reads in the place of a Value."""
        if v is None or v.node not in again:
            return v if v is None else new.get(v, v)
        return copies[v.node][v.index]

    for node in graph.nodes:
        if node in again:
            # A copy is made when it is first read: the plan's order follows the readers.
            with sourced(node.source):
                copies[node] = with_inputs(node, tuple([late(v) for v in node.inputs])).outputs
        elif node not in forward and node.op not in (INPUT, CONSTANT):
            inputs = tuple([late(v) for v in node.inputs])
            if inputs != node.inputs:
                new.update(zip(node.outputs, with_inputs(node, inputs).outputs, strict=True))
    return Graph(graph.inputs, [new.get(v, v) for v in graph.outputs])
