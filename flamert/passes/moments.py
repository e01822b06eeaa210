"""Mean and variance of each channel from one pass over the data, where two were written."""

from __future__ import annotations

from flamert import ops
from flamert.graph import Graph, Node, Value
from flamert.ops.shape import narrow
from flamert.rewrite import substitute


def shift_moments(graph: Graph) -> Graph:
    """mean(x) and mean((x − mean(x))²) over all axes but one → both from sums over d = x − x₀, where x₀ is each channel's first
    entry: mean = x₀ + mean(d), variance = mean(d²) − mean(d)².

    The shift keeps what cancels small: x₀ is as far from the mean as the data is. Source: Chan, Golub & LeVeque 1983.
    """
    found: dict[Value, Value] = {}
    for node in graph.nodes:
        parts = _parts(node)
        if parts is None:
            continue
        x, mean = parts
        axes = node.attrs["axes"]
        d = x - _first(x, axes)
        first, second = (ops.reduce_mean(v, axes=axes, keepdims=True) for v in (d, d * d))
        found[mean.outputs[0]] = _first(x, axes) + first
        found[node.outputs[0]] = ops.maximum(second - first * first, 0.0)
    return substitute(graph, found) if found else graph


def _parts(node: Node) -> tuple[Value, Node] | None:
    """(x, the node that makes its mean) where this is x's variance over all axes but one, of many numbers each."""
    square = _operand(node, "reduce_mean")
    if square is None or not node.attrs["keepdims"] or square.node.op is not ops.mul:
        return None
    centred, again = square.node.inputs
    if centred is not again or centred is None or centred.node.op is not ops.sub:
        return None
    x, mean = centred.node.inputs
    if x is None or mean is None or _operand(mean.node, "reduce_mean") is not x or mean.node.attrs != node.attrs:
        return None
    channels = [i for i in range(x.rank) if i not in node.attrs["axes"]]
    return (x, mean.node) if 0 in node.attrs["axes"] and len(channels) == 1 and x.shape[channels[0]] > 1 else None


def _operand(node: Node, name: str) -> Value | None:
    return node.inputs[0] if node.op.name == name else None


def _first(x: Value, axes: tuple[int, ...]) -> Value:
    """The first entry along these axes, which keep length 1; taken before a cast, so that the cast is of nothing else."""
    if x.node.op is ops.cast:
        seen = x.node.inputs[0]
        assert seen is not None
        return ops.cast(_first(seen, axes), **x.node.attrs)
    for axis in axes:
        x = narrow(x, axis, 0, 1)
    return x
