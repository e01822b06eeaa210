"""What recognisers ask of a graph: nodes by op, who reads a Value, constants, and simple algebra on small expressions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flamert import dtypes
from flamert.graph import Graph, Node, Value, sourced
from flamert.ops.op import Op

Match = tuple[Value, Value]
"""A Value of the graph and the expression that replaces it."""


class Index:
    """A graph made searchable. `memo`: for what recognisers derive from a Value and should derive only once."""

    def __init__(self, graph: Graph) -> None:
        self.by_op: dict[str, list[Node]] = {}
        self.readers: dict[Value, list[Node]] = {}
        self.returned = set(graph.outputs)
        self.memo: dict[Any, Any] = {}
        for node in graph.nodes:
            self.by_op.setdefault(node.op.name, []).append(node)
            for v in node.inputs:
                if v is not None:
                    self.readers.setdefault(v, []).append(node)

    def matches(self, op: str, recognisers: Iterable[Recogniser]) -> Iterator[Match]:
        """What is recognised at the nodes of one op; the first recogniser that agrees has each."""
        for node in self.by_op.get(op, ()):
            for recogniser in recognisers:
                with sourced(node.source):
                    match = recogniser(self, node)
                if match is not None:
                    yield match
                    break

    def reader(self, value: Value) -> Node | None:
        """The one node that reads this Value, once, where nobody else has a use for it."""
        found = self.readers.get(value, ())
        return found[0] if len(found) == 1 and value not in self.returned else None

    def make(self, op: Op, *inputs: Value | None, **attrs: Any) -> Value:
        """op(*inputs, **attrs), with the types inferred once for all applications alike: layers repeat."""
        key = (op.name, tuple([None if v is None else v.type for v in inputs]), tuple(attrs.items()))
        like = self.memo.get(key)
        if like is None:
            like = self.memo[key] = op(*inputs, **attrs).node
        return Node(op, inputs[: len(like.inputs)], like.attrs, like.types).outputs[0]

    def enclosed(self, inside: Iterable[Node], root: Value) -> bool:
        """Whether nobody but these nodes reads their results, `root` excepted."""
        members = set(inside)
        for node in members:
            for v in node.outputs:
                if v is not root and (v in self.returned or not members.issuperset(self.readers.get(v, ()))):
                    return False
        return True


Recogniser = Callable[[Index, Node], Match | None]
Recognisers = Mapping[str, Sequence[Recogniser]]


def known(value: Value) -> np.ndarray | None:
    """The array of a constant, or of a constant broadcast to more, which stays a view."""
    if value.node.op.name == "expand":
        array = value.node.inputs[0].constant  # type: ignore[union-attr]
        return None if array is None else np.broadcast_to(array, value.shape)
    return value.constant


def scalar(value: Value | None) -> float | None:
    """The number that a constant of one element holds."""
    array = None if value is None else value.constant
    if array is None or array.size != 1 or array.dtype not in dtypes.STANDARD_FLOAT:
        return None
    return float(array.reshape(()))


def close(a: float, b: float, dtype: np.dtype) -> bool:
    """Equal up to how exporters round such constants: to the element type, or to five digits in the source."""
    epsilon = 2e-3 if dtype in dtypes.HALF else 2e-5
    return abs(a - b) <= epsilon * max(abs(a), abs(b))


def other(node: Node, value: Value) -> Value:
    """The other operand of a binary node."""
    a, b = node.inputs
    found = b if a is value else a
    assert found is not None
    return found


def step(node: Node, value: Value) -> float | None:
    """k where the node computes k · value with a constant k, and nothing but that."""
    if node.types[0] != value.type:
        return None
    if node.op.name == "neg":
        return -1.0
    if node.op.name == "mul":
        return scalar(other(node, value))
    if node.op.name == "div" and node.inputs[0] is value:
        divisor = scalar(node.inputs[1])
        return 1 / divisor if divisor else None
    return None


def factor(value: Value) -> tuple[float, Value] | None:
    """(k, x) where `value` is computed as k · x with a constant k."""
    node = value.node
    if node.op.name in ("mul", "div", "neg"):
        for x in node.inputs:
            k = None if x is None or x.constant is not None else step(node, x)
            if k is not None:
                return k, x  # type: ignore[return-value]
    return None


def unscaled(value: Value) -> tuple[float, Value]:
    """(k, x) with value = k · x, all constant factors taken out."""
    k = 1.0
    while (found := factor(value)) is not None:
        k, value = k * found[0], found[1]
    return k, value


Coefficients = tuple[float, ...]

DEGREE, DEPTH, STEPS = 3, 6, 6
"""Bounds of the search: degree of a polynomial, depth of its expression, nodes between a reduction and its use."""

REDUCTIONS = ("reduce_mean", "reduce_sum", "reduce_max")


def polynomial(value: Value, x: Value, inside: list[Node], depth: int = DEPTH) -> Coefficients | None:
    """`value` as a polynomial in x, constant term first, up to the third degree; its nodes are added to `inside`."""
    if value is x:
        return (0.0, 1.0)
    number = scalar(value)
    if number is not None:
        return (number,)
    node = value.node
    if not depth or node.op.name not in ("add", "sub", "mul", "div", "neg") or value.type != x.type:
        return None
    inside.append(node)
    parts = []
    for v in dict.fromkeys(node.inputs):
        part = None if v is None else polynomial(v, x, inside, depth - 1)
        if part is None:
            return None
        parts.append(part)
    a, b = parts[0], parts[-1]
    if node.op.name == "neg":
        return tuple([-c for c in a])
    if node.op.name == "div":
        return tuple([c / b[0] for c in a]) if len(b) == 1 and b[0] else None
    if node.op.name == "mul":
        return _times(a, b)
    sign = -1.0 if node.op.name == "sub" else 1.0
    size = max(len(a), len(b))
    return tuple([p + sign * q for p, q in zip(_padded(a, size), _padded(b, size), strict=True)])


def _padded(a: Coefficients, size: int) -> Coefficients:
    return a + (0.0,) * (size - len(a))


def _times(a: Coefficients, b: Coefficients) -> Coefficients | None:
    if len(a) + len(b) - 2 > DEGREE:
        return None
    product = [0.0] * (len(a) + len(b) - 1)
    for i, p in enumerate(a):
        for j, q in enumerate(b):
            product[i + j] += p * q
    return tuple(product)


def same(a: Coefficients | None, b: Coefficients, dtype: np.dtype) -> bool:
    """Whether two polynomials are equal, coefficient by coefficient."""
    return a is not None and len(a) == len(b) and all(close(p, q, dtype) for p, q in zip(a, b, strict=True))


def reduction(value: Value, inside: list[Node]) -> tuple[str, Value, tuple[int, ...], float] | None:
    """(op, x, axes, k) where `value` is k · op(x) over these axes, which have length 1, are gone or broadcast again."""
    top, k = value, 1.0
    spread: Value | None = None
    for _ in range(STEPS):
        node = value.node
        inside.append(node)
        found = factor(value)
        if node.op.name in REDUCTIONS:
            x, axes = node.inputs[0], tuple(sorted(node.attrs["axes"]))
            assert x is not None
            kept = tuple([1 if i in axes else d for i, d in enumerate(x.shape)])
            gone = tuple([d for i, d in enumerate(x.shape) if i not in axes])
            aligned = top.shape in (kept, gone) if spread is None else spread.shape == kept and top.shape == x.shape
            return (node.op.name, x, axes, k) if axes and aligned else None
        if node.op.name == "expand" and spread is None:
            value = spread = node.inputs[0]  # type: ignore[assignment]
        elif node.op.name == "reshape":
            value = node.inputs[0]  # type: ignore[assignment]
        elif node.op.name == "maximum" and -math.inf in (scalar(node.inputs[0]), scalar(node.inputs[1])):
            value = node.inputs[1] if scalar(node.inputs[0]) is not None else node.inputs[0]  # type: ignore[assignment]
        elif found is not None:
            k, value = k * found[0], found[1]
        else:
            return None
    return None


def mean(value: Value, inside: list[Node]) -> tuple[Value, tuple[int, ...]] | None:
    """(x, axes) where `value` is the mean of x over these axes, which have length 1, are gone, or are broadcast over again."""
    found = reduction(value, inside)
    if found is None:
        return None
    op, x, axes, k = found
    count = math.prod(x.shape[a] for a in axes)
    expected = {"reduce_mean": 1.0, "reduce_sum": 1 / max(count, 1)}.get(op)
    return (x, axes) if expected is not None and close(k, expected, x.dtype) else None
