"""Scales and shifts per channel behind a convolution or matrix product (batch norm, above all) go into its weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flamert import graph as g
from flamert import ops
from flamert.graph import Graph, Node, Value, uses
from flamert.rewrite import rebuild


def fold_affine(graph: Graph) -> Graph:
    """conv → batch_norm, mul or add by a constant per channel; matmul → mul by a constant per column; each used once."""
    count = uses(graph)

    def rule(node: Node, inputs: tuple[Value | None, ...]) -> Sequence[Value] | None:
        if node.op is ops.batch_norm:
            return (_batch_norm(node, inputs, count[node.inputs[0]]),)  # type: ignore[index]
        if node.op in (ops.mul, ops.add):
            for old, x, constant in ((node.inputs[0], inputs[0], inputs[1]), (node.inputs[1], inputs[1], inputs[0])):
                if count[old] == 1:  # type: ignore[index]
                    result = _absorbed(node.op, x, constant)  # type: ignore[arg-type]
                    if result is not None:
                        return (result,)
        return None

    return rebuild(graph, rule)


def _batch_norm(node: Node, inputs: tuple[Value | None, ...], readers: int) -> Value:
    """As a scale and a shift: into the convolution in front where that is possible, else one mul and one add."""
    x, scale, bias, mean, var = inputs
    assert x and scale and bias and mean and var
    if not all(v.node.known for v in (scale, bias, mean, var)):
        return node.op(x, scale, bias, mean, var, **node.attrs)
    wide = np.dtype(np.float64)
    scale, bias, mean, var = (ops.cast(v, to=wide) for v in (scale, bias, mean, var))
    factor = scale / ops.sqrt(var + node.attrs["epsilon"])
    factor, shift = (ops.cast(v, to=x.dtype) for v in (factor, bias - mean * factor))
    if x.node.op is ops.conv and readers == 1 and x.node.inputs[1].node.known:  # type: ignore[union-attr]
        return _scaled_conv(x.node, factor, shift)
    shape = (x.shape[1], *[1] * (x.rank - 2))
    return x * ops.reshape(factor, shape=shape) + ops.reshape(shift, shape=shape)


def _absorbed(op: ops.Op, x: Value, constant: Value) -> Value | None:
    """op(x, constant) as a convolution or product with other weights, or None."""
    if not constant.node.known or constant.dtype != x.dtype:
        return None
    if x.node.op is ops.conv and _varies_along(constant, x, axis=1):
        per_channel = ops.reshape(ops.expand(constant, shape=(1, x.shape[1], *[1] * (x.rank - 2))), shape=(x.shape[1],))
        if op is ops.mul and x.node.inputs[1].node.known:  # type: ignore[union-attr]
            return _scaled_conv(x.node, per_channel, None)
        if op is ops.add:
            return _scaled_conv(x.node, None, per_channel)
    if op is ops.mul and x.node.op is ops.matmul and _varies_along(constant, x, axis=x.rank - 1):
        a, b = x.node.inputs
        if b is not None and b.node.known and b.rank == 2:
            return ops.matmul(a, b * ops.expand(ops.reshape(constant, shape=(constant.type.size,)), shape=(b.shape[1],)))
    return None


def _varies_along(constant: Value, x: Value, axis: int) -> bool:
    """Whether a constant that broadcasts to x differs along this axis at most."""
    shape = (1,) * (x.rank - constant.rank) + constant.shape
    return constant.rank <= x.rank and all(d == 1 or (i == axis and d == x.shape[i]) for i, d in enumerate(shape))


def _scaled_conv(conv: Node, factor: Value | None, shift: Value | None) -> Value:
    """conv(x, w, b) · factor + shift as one convolution; factor and shift are [M]."""
    x, w, b = (*conv.inputs, None)[:3]
    assert x and w
    if factor is not None:
        w = w * ops.reshape(factor, shape=(w.shape[0], *[1] * (w.rank - 1)))
        b = None if b is None else b * factor
    if shift is not None:
        b = shift if b is None else b + shift
    with g.sourced(conv.source):
        return conv.op(x, w, b, **conv.attrs)
