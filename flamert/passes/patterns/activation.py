"""Activation functions that exporters wrote in arithmetic: GELU in both forms, swish, mish, hard sigmoid and hard swish."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from flamert import ops
from flamert.graph import Node, Value
from flamert.ops.activation import SQRT_HALF, SQRT_TWO_OVER_PI
from flamert.passes.patterns.index import Coefficients, Index, Match, close, factor, other, polynomial, same, scalar, step

STEPS = 6
"""Nodes that a pattern is followed upwards at most."""

GELUS: dict[str, tuple[ops.Op, Coefficients]] = {
    "erf": (ops.gelu, (0.0, SQRT_HALF)),
    "tanh": (ops.gelu_tanh, (0.0, SQRT_TWO_OVER_PI, 0.0, SQRT_TWO_OVER_PI * 0.044715)),
}
"""x · (1 + f(p(x))) / 2: the function f, what it makes, and the polynomial p."""


def gelu(index: Index, node: Node) -> Match | None:
    """x · (1 + f(p(x))) / 2, with the factors in any order and the half and the one anywhere; at f."""
    function, p = GELUS[node.op.name]
    (argument,) = node.inputs
    value, k, inside, shifted = node.outputs[0], 1.0, [node], False
    x: Value | None = None
    assert argument is not None
    for _ in range(STEPS):
        reader = index.reader(value)
        if reader is None or reader.types[0] != argument.type:
            return None
        inside.append(reader)
        factor_ = step(reader, value)
        if factor_ is not None:
            k *= factor_
        elif reader.op.name in ("add", "sub") and not shifted:
            # k·f + k, or k − k·f, which the odd function makes k + k·f(−p).
            one = scalar(other(reader, value))
            if one is None or (reader.op.name == "sub" and value is reader.inputs[0]) or not close(one, k, argument.dtype):
                return None
            sign, shifted = -1.0 if reader.op.name == "sub" else 1.0, True
        elif reader.op.name == "mul" and shifted and x is None:
            expected = tuple([sign * c for c in p])
            for scale, candidate in scalings(other(reader, value)):
                nodes: list[Node] = []
                if same(polynomial(argument, candidate, nodes), expected, argument.dtype):
                    x, k = candidate, k * scale
                    inside += nodes
                    break
            else:
                return None
        else:
            return None
        value = reader.outputs[0]
        if x is not None and close(k, 0.5, argument.dtype):
            return (value, index.make(function, x)) if index.enclosed(inside, value) else None
    return None


def scalings(value: Value) -> Iterator[tuple[float, Value]]:
    """(1, value), and (k, x) for what it is k times."""
    k = 1.0
    yield k, value
    while (found := factor(value)) is not None:
        k, value = k * found[0], found[1]
        yield k, value


def swish(index: Index, node: Node) -> Match | None:
    """x · sigmoid(alpha · x); at the sigmoid."""
    (argument,) = node.inputs
    reader = index.reader(node.outputs[0])
    if argument is None or reader is None or reader.op.name != "mul" or reader.types[0] != argument.type:
        return None
    x, inside = other(reader, node.outputs[0]), [node, reader]
    p = polynomial(argument, x, inside)
    if p is None or len(p) != 2 or p[0] or not p[1] or not index.enclosed(inside, reader.outputs[0]):
        return None
    return reader.outputs[0], index.make(ops.swish, x, alpha=p[1])


def mish(index: Index, node: Node) -> Match | None:
    """x · tanh(softplus(x)); at the tanh."""
    reader = index.reader(node.outputs[0])
    if reader is None or reader.op.name != "mul" or reader.types != node.types:
        return None
    x, inside = other(reader, node.outputs[0]), [node, reader]
    alike = _softplus(node.inputs[0], inside) is x and index.enclosed(inside, reader.outputs[0])
    return (reader.outputs[0], index.make(ops.mish, x)) if alike else None


def _softplus(value: Value | None, inside: list[Node]) -> Value | None:
    """x where `value` is softplus(x) or log(exp(x) + 1), whose overflow a tanh hides."""
    assert value is not None
    node = value.node
    inside.append(node)
    if node.op.name == "softplus":
        return node.inputs[0]
    if node.op.name == "log":
        (value,) = node.inputs
        node = value.node  # type: ignore[union-attr]
        if node.op.name != "add" or 1.0 not in (scalar(node.inputs[0]), scalar(node.inputs[1])):
            return None
        inside.append(node)
        value = node.inputs[1] if scalar(node.inputs[0]) == 1 else node.inputs[0]
    elif node.op.name == "log1p":
        (value,) = node.inputs
    node = value.node  # type: ignore[union-attr]
    inside.append(node)
    return node.inputs[0] if node.op.name == "exp" else None


def hard_swish(index: Index, node: Node) -> Match | None:
    """x · hard_sigmoid(x); at the hard sigmoid."""
    (x,) = node.inputs
    reader = index.reader(node.outputs[0])
    if x is None or reader is None or reader.op.name != "mul" or other(reader, node.outputs[0]) is not x:
        return None
    alike = close(node.attrs["alpha"], 1 / 6, x.dtype) and close(node.attrs["beta"], 0.5, x.dtype)
    return (reader.outputs[0], index.make(ops.hard_swish, x)) if alike else None


class Line(NamedTuple):
    """slope · x + offset, and the nodes that compute it."""

    slope: float
    offset: float
    x: Value
    nodes: tuple[Node, ...]


def hard_sigmoid(index: Index, node: Node) -> Match | None:
    """min(max(a·x + b, 0), h) / h, the division anywhere behind; hard swish where x is a factor too; at the outer bound."""
    clipped = _clipped(node)
    if clipped is None:
        return None
    inner, p, h = clipped
    lines, dtype = list(_lines(p)), node.types[0].dtype
    alone: Match | None = None
    for value, k, partner, nodes in _climb(index, node.outputs[0]):
        for slope, offset, x, below in lines[:0:-1]:
            for scale, candidate in [(1.0, x)] if partner is None else scalings(partner):
                if candidate is not x or not close(k * scale * h, 1, dtype):
                    continue
                if not index.enclosed([node, inner, *below, *nodes], value):
                    continue
                if partner is not None and close(slope / h, 1 / 6, dtype) and close(offset / h, 0.5, dtype):
                    return value, index.make(ops.hard_swish, x)
                # With slope 1 it is a bias and a clip, which products absorb as they are.
                if partner is None and alone is None and not close(slope / h, 1, dtype):
                    alone = value, index.make(ops.hard_sigmoid, x, alpha=slope / h, beta=offset / h)
    return alone


def _clipped(node: Node) -> tuple[Node, Value, float] | None:
    """(inner node, p, h) where the node is p kept within [0, h], h > 0."""
    for inner_value in node.inputs:
        inner = inner_value.node  # type: ignore[union-attr]
        if {node.op.name, inner.op.name} != {"minimum", "maximum"} or inner.types != node.types:
            continue
        for p in inner.inputs:
            bounds = {node.op.name: scalar(other(node, inner_value)), inner.op.name: scalar(other(inner, p))}  # type: ignore[arg-type]
            h = bounds["minimum"]
            if bounds["maximum"] == 0 and h is not None and h > 0 and p.type == node.types[0]:  # type: ignore[union-attr]
                return inner, p, h  # type: ignore[return-value]
    return None


def _lines(value: Value) -> Iterator[Line]:
    """`value` as a line in itself, in what it is computed from, and so on."""
    line = Line(1.0, 0.0, value, ())
    while True:
        yield line
        slope, offset, x, nodes = line
        node = x.node
        found, added = factor(x), [scalar(v) for v in node.inputs] if node.op.name in ("add", "sub") else [None, None]
        if found is not None:
            line = Line(slope * found[0], offset, found[1], (*nodes, node))
        elif node.op.name == "add" and added != [None, None]:
            inner = node.inputs[0] if added[0] is None else node.inputs[1]
            line = Line(slope, offset + slope * (added[0] or added[1] or 0.0), inner, (*nodes, node))  # type: ignore[arg-type]
        elif node.op.name == "sub" and added[1] is not None:
            line = Line(slope, offset - slope * added[1], node.inputs[0], (*nodes, node))  # type: ignore[arg-type]
        else:
            return
        if line.x.type != value.type:
            return


def _climb(index: Index, value: Value) -> Iterator[tuple[Value, float, Value | None, list[Node]]]:
    """(product, k, partner, nodes): `value`, then what it is multiplied up to: k · value, or k · value · partner."""
    k, partner, nodes = 1.0, None, list[Node]()
    type = value.type
    for _ in range(STEPS):
        yield value, k, partner, nodes
        reader = index.reader(value)
        if reader is None or reader.types[0] != type:
            return
        constant = step(reader, value)
        if constant is not None:
            k *= constant
        elif reader.op.name == "mul" and partner is None:
            partner = other(reader, value)
        else:
            return
        nodes.append(reader)
        value = reader.outputs[0]
