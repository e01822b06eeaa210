"""Layers that read the same activations, as projections to queries, keys and values do, become one, before differentiation."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from flamert import ops
from flamert.graph import INPUT, Graph, Node, Value, uses
from flamert.ops.shape import narrow
from flamert.rewrite import substitute

SWAP = (1, 0)


class Layer(NamedTuple):
    """x · wᵀ + bias. weight: [N, K], made of a parameter by casts and transposes alone; so is bias, [N], where there is one."""

    result: Value
    weight: Value
    bias: Value | None


def merge_layers(graph: Graph) -> Graph:
    """Products of one operand with several parameters that lie as [N, K], biases included, as one with all of them in a row.

    Their gradients then are single products, too; those of the parameters are the rows that are their own.
    """
    count, adds = uses(graph), _adds(graph)
    groups: dict[tuple[Value, bool], list[Layer]] = defaultdict(list)
    for node in graph.nodes:
        weight = _weight(node)
        if weight is not None:
            layer = _layer(node, weight, count[node.outputs[0]], adds)
            groups[node.inputs[0], layer.bias is not None].append(layer)  # type: ignore[index]
    found: dict[Value, Value] = {}
    for (x, biased), layers in groups.items():
        if len(layers) > 1:
            weights = ops.concat(*[layer.weight for layer in layers], axis=0)
            whole, at = ops.matmul(x, ops.transpose(weights, perm=SWAP)), 0
            if biased:
                whole = whole + ops.concat(*[layer.bias for layer in layers], axis=0)
            for layer in layers:
                columns = layer.result.shape[-1]
                found[layer.result] = narrow(whole, -1, at, columns)
                at += columns
    return substitute(graph, found) if found else graph


def _adds(graph: Graph) -> dict[Value, Node]:
    """Additions, by either operand."""
    return {v: node for node in graph.nodes if node.op is ops.add for v in node.inputs if v is not None}


def _layer(node: Node, weight: Value, readers: int, adds: dict[Value, Node]) -> Layer:
    product = node.outputs[0]
    added = adds.get(product)
    if readers == 1 and added is not None:
        [bias] = [v for v in added.inputs if v is not product]
        assert bias is not None
        if bias.shape == product.shape[-1:] and bias.dtype == product.dtype and _parameter(bias):
            return Layer(added.outputs[0], weight, bias)
    return Layer(product, weight, None)


def _weight(node: Node) -> Value | None:
    """[N, K] of a product with a transposed parameter; None for others."""
    if node.op is not ops.matmul:
        return None
    x, b = node.inputs
    assert x is not None and b is not None
    if b.rank != 2 or x.rank < 2 or not _parameter(b):
        return None
    if b.node.op is ops.transpose:
        return b.node.inputs[0]
    inner = b.node.inputs[0] if b.node.op is ops.cast else None
    return ops.cast(inner.node.inputs[0], to=b.dtype) if inner is not None and inner.node.op is ops.transpose else None


def _parameter(v: Value) -> bool:
    """Whether a Value is an input of the graph but for casts and transposes."""
    while v.node.op in (ops.cast, ops.transpose):
        v = v.node.inputs[0]  # type: ignore[assignment]
    return v.node.op is INPUT
