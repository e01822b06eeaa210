"""How large values can get, whatever the inputs: what norms make of their scale, products of their constant matrix, …"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from flamert.graph import CONSTANT, Graph, Node, Value
from flamert.ops.evaluate import value_of


class Bound(NamedTuple):
    """most: the largest absolute value of any element. norm: the largest Euclidean norm of a row along the last axis."""

    most: float
    norm: float


def bounds_of(graph: Graph) -> dict[Value, Bound]:
    """Bounds, NaN aside, that hold for all inputs, of Values that are not known; only of those that anything is known of."""
    found: dict[Value, Bound] = {}

    def at(v: Value | None) -> Bound | None:
        return None if v is None else known_bound(v) if v.node.known else found.get(v)

    for node in graph.nodes:
        rule = None if node.known else RULES.get(node.op.name)
        bound = None if rule is None else rule(node, at)
        if bound is not None and bound.most < math.inf:
            value = node.outputs[0]
            root = math.sqrt(value.shape[-1] if value.rank else 1)
            found[value] = Bound(bound.most, min(bound.norm, bound.most * root))
    return found


_measured: dict[int, tuple[Bound, Bound]] = {}
"""Bounds of arrays that live, as they lie and of matrices transposed, by identity: models are planned again and again."""


def known_bound(value: Value, turned: bool = False) -> Bound:
    """That of a known Value, or of its transpose."""
    source = value.node
    while source.op.name == "transpose" and source.attrs["perm"] == (1, 0):
        source, turned = source.inputs[0].node, not turned  # type: ignore[union-attr]
    if source.op is not CONSTANT:
        return _bounds(value_of(source.outputs[0]))[turned]
    array = source.attrs["value"]
    found = _measured.get(id(array))
    if found is None:
        found = _measured[id(array)] = _bounds(array)
        weakref.finalize(array, _measured.pop, id(array), None).atexit = False
    return found[turned]


def _bounds(array: np.ndarray) -> tuple[Bound, Bound]:
    """Of an array's rows and, if it is a matrix, its columns. A thousandth is added for what sums of float32 lose."""
    x = np.atleast_1d(array)
    x = x if x.dtype == np.float64 else x.astype(np.float32, copy=False)
    most = max(float(x.max(initial=0.0)), -float(x.min(initial=0.0)))
    sums = [np.einsum("...i,...i->...", x, x), *([np.einsum("ij,ij->j", x, x)] if x.ndim == 2 else [])]
    rows, columns = (Bound(most, 1.001 * math.sqrt(float(s.max(initial=0.0)))) for s in (sums[0], sums[-1]))
    return rows, columns


At = Callable[["Value | None"], "Bound | None"]
"""What is known of an operand."""


def _first(node: Node, at: At) -> Bound | None:
    return at(node.inputs[0])


def _unit(node: Node, at: At) -> Bound:
    """Nothing it returns is larger than 1."""
    return Bound(1.0, math.inf)


def _moved(node: Node, at: At) -> Bound | None:
    """Elements of the operand in another order, or some of them, with rows kept only where the last axis is."""
    x, found = node.inputs[0], at(node.inputs[0])
    if x is None or found is None:
        return None
    kept = node.op.name == "reshape" and x.shape[-1:] == node.types[0].shape[-1:]
    return found if kept else Bound(found.most, math.inf)


def _norm(node: Node, at: At) -> Bound | None:
    """Of n elements with mean square 1 none is larger than √n; then come a scale and a bias that are known."""
    x, scale, bias = (*node.inputs, None, None)[:3]
    assert x is not None
    if any(v is not None and not v.node.known for v in (scale, bias)):
        return None
    axis = node.attrs["axis"] % x.rank
    root = math.sqrt(math.prod(x.shape[axis:]))
    factor = 1.0 if scale is None else known_bound(scale).most
    offset = Bound(0.0, 0.0) if bias is None else known_bound(bias)
    return Bound(root * factor + offset.most, root * factor + offset.norm)


def _product(node: Node, at: At) -> Bound | None:
    """Cauchy and Schwarz: a row's norm times the largest of a known matrix's columns."""
    a, b, bias = (*node.inputs, None)[:3]
    assert b is not None
    found = at(a)
    plain = len(node.inputs) < 4 and not node.attrs.get("activation")
    if found is None or not plain or b.rank != 2 or not b.node.known or (bias is not None and not bias.node.known):
        return None
    offset = 0.0 if bias is None else known_bound(bias).most
    return Bound(found.norm * known_bound(b, turned=True).norm + offset, math.inf)


def _of_all(combine: Callable[[list[float]], float]) -> Callable[[Node, At], Bound | None]:
    """By what the largest elements of all operands make, where something is known of each."""

    def rule(node: Node, at: At) -> Bound | None:
        parts = [at(v) for v in node.inputs]
        known = [p.most for p in parts if p is not None]
        return Bound(combine(known), math.inf) if len(known) == len(parts) else None

    return rule


RULES: dict[str, Callable[[Node, At], Bound | None]] = {
    "layer_norm": _norm,
    "rms_norm": _norm,
    "matmul": _product,
    "linear": _product,
    **dict.fromkeys(("add", "sub"), _of_all(sum)),
    **dict.fromkeys(("maximum", "minimum"), _of_all(max)),
    "mul": _of_all(math.prod),
    **dict.fromkeys(("softmax", "sigmoid", "tanh", "erf"), _unit),
    **dict.fromkeys(("relu", "gelu", "gelu_tanh", "swish", "hard_swish", "abs", "neg"), _first),
    **dict.fromkeys(("reshape", "transpose", "slice", "expand"), _moved),
}
"""(node, bounds of operands) → a bound of its result. Functions of one operand here return nothing larger than that."""
