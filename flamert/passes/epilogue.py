"""Bias, residual, activation and gate go into the convolution or matrix product in front of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flamert import ops
from flamert.graph import Graph, Node, Value, uses
from flamert.rewrite import rebuild


def fuse_epilogues(
    graph: Graph, eligible: Callable[[Node], bool], accepted: Callable[[Node], bool] = lambda node: True
) -> Graph:
    """matmul → linear where that is `eligible` (a predicate on linear nodes), then + bias, + residual, activation into it.

    Into a convolution goes also what makes it 0 where something else is not positive, as relu's gradient does. A product is
    extended only while nobody else reads it, and to what is `accepted` (a predicate on extended nodes).
    """
    count = uses(graph)

    def rule(node: Node, inputs: tuple[Value | None, ...]) -> Sequence[Value] | None:
        results = extended(node, inputs)
        return results if results is None or accepted(results[0].node) else None

    def extended(node: Node, inputs: tuple[Value | None, ...]) -> Sequence[Value] | None:
        if node.op is ops.matmul:
            product = Node(ops.linear, inputs, ops.linear.defaults, node.types, node.source)
            return product.outputs if eligible(product) else None
        if node.op is ops.add:
            for side in (0, 1):
                if count[node.inputs[side]] == 1:  # type: ignore[index]
                    result = _plus(inputs[side], inputs[1 - side])  # type: ignore[arg-type]
                    if result is not None:
                        return (result,)
        elif node.op in (ops.maximum, ops.minimum):
            for side in (0, 1):
                if count[node.inputs[side]] == 1:  # type: ignore[index]
                    result = _bounded(node.op.name, inputs[side], inputs[1 - side])  # type: ignore[arg-type]
                    if result is not None:
                        return (result,)
        elif node.op is ops.where and count[node.inputs[1]] == 1:  # type: ignore[index]
            result = _gated(node, *inputs)  # type: ignore[arg-type]
            if result is not None:
                return (result,)
        elif node.op.name in _ACTIVATIONS and count[node.inputs[0]] == 1:  # type: ignore[index]
            result = _activated(node, inputs)
            if result is not None:
                return (result,)
        return None

    return rebuild(graph, rule)


CONVOLUTIONS = ("conv_channels_last", "conv_transpose_channels_last")
PRODUCTS = (*CONVOLUTIONS, "linear")


def _open(node: Node) -> bool:
    """Whether this is a product whose result may still be changed: a gate is the last that can happen to it."""
    return node.op.name in PRODUCTS and len(node.inputs) < 5


def _plus(x: Value, other: Value) -> Value | None:
    """x + other with `other` as x's bias or residual, or None where x has no room for it."""
    node = x.node
    if not _open(node) or node.attrs["activation"] or other.dtype != x.dtype:
        return None
    a, w, bias, residual = (*node.inputs, None, None)[:4]
    columns = x.shape[-1]
    if bias is None and residual is None and other.node.known and other.type.size == columns and other.shape[-1:] == (columns,):
        return _extended(node, (a, w, ops.reshape(other, shape=(columns,))))
    if residual is None and other.type == x.type:
        return _extended(node, (a, w, bias, other))
    return None


def _extended(node: Node, inputs: tuple[Value | None, ...], **attrs: Any) -> Value:
    """The product with more operands, or with an activation; its type stays, so that no rule need find it again."""
    return Node(node.op, inputs, {**node.attrs, **attrs}, node.types).outputs[0]


def _bounded(op: str, x: Value, bound: Value) -> Value | None:
    """maximum or minimum of x and a constant as the product's clip, or None."""
    node, array = x.node, bound.constant
    if not _open(node) or array is None or array.size != 1 or np.isnan(array).any():
        return None
    low, high = (node.attrs["alpha"], node.attrs["beta"]) if node.attrs["activation"] == "clip" else (-math.inf, math.inf)
    number = float(array.reshape(()))
    if node.attrs["activation"] not in ("", "clip") or not low <= number <= high:
        return None
    low, high = (number, high) if op == "maximum" else (low, number)
    return _extended(node, node.inputs, activation="clip", alpha=low, beta=high)


_ACTIVATIONS: dict[str, Callable[[Node], dict[str, Any] | None]] = {
    "relu": lambda node: {},
    "leaky_relu": lambda node: {"alpha": node.attrs["alpha"]},
    "hard_sigmoid": lambda node: {"alpha": node.attrs["alpha"], "beta": node.attrs["beta"]},
    "hard_swish": lambda node: {},
    "sigmoid": lambda node: {},
    "tanh": lambda node: {},
    "swish": lambda node: {} if node.attrs["alpha"] == 1 else None,
    "gelu": lambda node: {},
    "gelu_tanh": lambda node: {},
}
"""By op: the attributes that describe it to a product, or None where the product has no such activation."""


def _activated(node: Node, inputs: tuple[Value | None, ...]) -> Value | None:
    x = inputs[0]
    assert x is not None
    product = x.node
    if not _open(product) or product.attrs["activation"]:
        return None
    parameters = _ACTIVATIONS[node.op.name](node)
    if parameters is None:
        return None
    return _extended(product, product.inputs, activation=node.op.name, **parameters)


def _gated(node: Node, condition: Value, x: Value, otherwise: Value) -> Value | None:
    """where(y > 0, x, 0) with y as x's gate, or None."""
    if not _open(x.node) or x.node.op.name not in CONVOLUTIONS or condition.node.op is not ops.greater:
        return None
    y, bound = condition.node.inputs
    if y is None or y.type != node.types[0] or x.type != node.types[0] or not (_zero(bound) and _zero(otherwise)):
        return None
    return _extended(x.node, (*(*x.node.inputs, None, None)[:4], y))


def _zero(value: Value | None) -> bool:
    array = None if value is None else value.constant
    return array is not None and array.size == 1 and float(array.reshape(())) == 0
