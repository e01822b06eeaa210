"""Group normalisation on a GPU, in sums over groups and what is done to each element, which is fused with its neighbours."""

from __future__ import annotations

from collections.abc import Sequence

from flamert import dtypes, ops
from flamert.dtypes import widens
from flamert.graph import Graph, Node, Value
from flamert.ops.reduce import accumulating, cast_like
from flamert.rewrite import rebuild

SUMS = (ops.OPS["group_moments"], ops.OPS["group_sums"])


def open_groups(graph: Graph) -> Graph:
    """group_norm(x) → x · factor + offset, one number of each for every channel of an image; and its sums read halves as such.

    Runs before layouts are chosen: all of it can be had with channels last.
    """
    return rebuild(graph, _rule)


def _rule(node: Node, inputs: tuple[Value | None, ...]) -> Sequence[Value] | None:
    if node.op is ops.group_norm and node.types[0].size:
        x, scale, bias = inputs
        assert x is not None and scale is not None and bias is not None
        return (_normalised(x, scale, bias, **node.attrs),)
    if node.op in SUMS:
        images = [_narrow(v) for v in inputs[:2]]
        if any(a is not b for a, b in zip(images, inputs, strict=False)):
            return node.op(*images, *inputs[2:], **node.attrs)
    return None


def _normalised(x: Value, scale: Value, bias: Value, *, groups: int, epsilon: float) -> Value:
    n, c = x.shape[:2]
    wide = accumulating(x)
    apart = (n, groups, c // groups)
    # Repeated at once, so that one launch makes both of what follows.
    found = [ops.reshape(v, shape=(n, groups, 1)) for v in ops.group_moments(_narrow(x), groups=groups)]
    mean, variance = [ops.expand(v, shape=apart) for v in found]
    by_group = [ops.reshape(ops.cast(v, to=wide.dtype), shape=apart[1:]) for v in (scale, bias)]
    factor = by_group[0] * ops.reciprocal(ops.sqrt(variance + epsilon))
    offset = by_group[1] - mean * factor
    shape = (n, c, *[1] * (x.rank - 2))
    return cast_like(wide * ops.reshape(factor, shape=shape) + ops.reshape(offset, shape=shape), x)


def _narrow(v: Value | None) -> Value | None:
    """What this is a cast to float32 of, where sums of it are kept in float32 too."""
    x = v.node.inputs[0] if v is not None and v.node.op is ops.cast else None
    if x is None or v is None or v.dtype != dtypes.float32 or not widens(x.dtype, v.dtype) or x.dtype not in dtypes.HALF:
        return v
    return x
