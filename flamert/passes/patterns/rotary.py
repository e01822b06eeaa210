"""Rotary position embeddings that exporters wrote in slices, concatenations and products with cosines and sines."""

from __future__ import annotations

import numpy as np

from flamert import graph as g
from flamert import ops
from flamert.graph import Node, Value
from flamert.passes.patterns.index import Index, Match, other, scalar


def rotary_embedding(index: Index, node: Node) -> Match | None:
    """x · cos + concat(−x₂, x₁) · sin, with x₁ and x₂ the halves of x, and cosines and sines that say everything twice."""
    negated, first = _pair(node)
    if negated is None or first is None or negated.node.op.name != "neg":
        return None
    second = negated.node.inputs[0]
    x = _whole(first, second)
    turned = index.reader(node.outputs[0])
    total = None if turned is None else index.reader(turned.outputs[0])
    if x is None or turned is None or total is None or turned.op.name != "mul" or total.op.name != "add":
        return None
    straight = other(total, turned.outputs[0]).node
    if straight.op.name != "mul" or x not in straight.inputs or total.types[0] != x.type:
        return None
    inside = [node, negated.node, first.node, second.node, turned, straight, total]  # type: ignore[union-attr]
    cos, sin = (half(v, index) for v in (other(straight, x), other(turned, node.outputs[0])))
    return _rotated(index, inside, total.outputs[0], x, cos, sin)


def rotary_embedding_by_halves(index: Index, node: Node) -> Match | None:
    """concat(x₁ · cos − x₂ · sin, x₂ · cos + x₁ · sin), with x₁ and x₂ the halves of x."""
    left, right = _pair(node)
    if left is None or right is None or left.node.op.name != "sub" or right.node.op.name != "add":
        return None
    products = [v.node for v in (*left.node.inputs, *right.node.inputs)]  # type: ignore[union-attr]
    if any(p.op.name != "mul" for p in products):
        return None
    for first in products[0].inputs:
        cos = other(products[0], first)  # type: ignore[arg-type]
        for second in products[1].inputs:
            sin, x = other(products[1], second), _whole(first, second)  # type: ignore[arg-type]
            crossed = {frozenset(p.inputs) for p in products[2:]} == {frozenset((second, cos)), frozenset((first, sin))}
            if x is not None and crossed and node.types[0] == x.type:
                inside = [node, left.node, right.node, *products, first.node, second.node]  # type: ignore[union-attr]
                return _rotated(index, inside, node.outputs[0], x, cos, sin)
    return None


def _pair(node: Node) -> tuple[Value | None, Value | None]:
    """The operands of a concatenation of two along the last axis."""
    last = node.attrs["axis"] == len(node.types[0].shape) - 1
    return node.inputs if len(node.inputs) == 2 and last else (None, None)  # type: ignore[return-value]


def _whole(first: Value | None, second: Value | None) -> Value | None:
    """x where these are the first and the second half of it along its last axis."""
    if first is None or second is None or first.node.op.name != "slice" or second.node.op.name != "slice":
        return None
    x = first.node.inputs[0]
    if x is None or second.node.inputs[0] is not x or x.rank == 0:
        return None
    d = x.shape[-1] // 2
    sizes, starts = (*x.shape[:-1], d), (0,) * (x.rank - 1)
    halves = [(v.node.attrs["starts"], v.node.attrs["sizes"]) for v in (first, second)]
    forward = all(s == 1 for v in (first, second) for s in v.node.attrs["steps"])
    fits = forward and halves == [((*starts, 0), sizes), ((*starts, d), sizes)]
    return x if fits and 2 * d == x.shape[-1] else None


def _rotated(index: Index, inside: list[Node], root: Value, x: Value, cos: Value | None, sin: Value | None) -> Match | None:
    if cos is None or sin is None or cos.shape != sin.shape or not cos.dtype == sin.dtype == x.dtype:
        return None
    aligned = (1,) * (x.rank - cos.rank) + cos.shape
    if aligned[-1] * 2 != x.shape[-1] or any(d not in (1, whole) for d, whole in zip(aligned[:-1], x.shape, strict=False)):
        return None
    return (root, index.make(ops.rotary_embedding, x, cos, sin)) if index.enclosed(inside, root) else None


POINTWISE = frozenset({"cos", "sin", "cast", "neg"})


def half(value: Value, index: Index) -> Value | None:
    """The first half of `value` along its last axis where the second is the same, computed from halves itself."""
    key = ("half", value)
    if key not in index.memo:
        index.memo[key] = _half(value, index) if value.rank and value.shape[-1] % 2 == 0 else None
    return index.memo[key]


def _half(value: Value, index: Index) -> Value | None:
    node, d = value.node, value.shape[-1] // 2
    if value.constant is not None:
        a, b = value.constant[..., :d], value.constant[..., d:]
        return g.constant(np.ascontiguousarray(a)) if np.array_equal(a, b) else None
    x = node.inputs[0] if node.inputs else None
    if x is None:
        return None
    if node.op.name == "concat":
        return x if len(node.inputs) == 2 and node.inputs[1] is x and node.attrs["axis"] == x.rank - 1 else None
    if node.op.name in ("mul", "div"):
        base, number = (x, node.inputs[1]) if scalar(x) is None else (node.inputs[1], x)
        if scalar(number) is None or base is None or base.type != value.type or (node.op.name == "div" and base is not x):
            return None
        part = half(base, index)
        return None if part is None else node.op(part, number)
    if node.op.name == "gather":
        part = half(x, index) if node.attrs["axis"] < x.rank - 1 else None
        return None if part is None else ops.gather(part, node.inputs[1], **node.attrs)
    keeps_last = x.rank > 0 and x.shape[-1] == value.shape[-1]
    part = half(x, index) if keeps_last and (node.op.name in POINTWISE or node.op.name in ("reshape", "expand")) else None
    if part is None:
        return None
    return node.op(part, **(node.attrs if node.op.name in POINTWISE else {"shape": (*value.shape[:-1], d)}))
