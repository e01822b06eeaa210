"""Remove what changes nothing and merge what moves elements twice: transposes, reshapes, casts, padding by zero, times one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from flamert import dtypes, ops
from flamert.dtypes import widens
from flamert.graph import Graph, Node, Value
from flamert.ops.op import expand
from flamert.ops.shape import narrow
from flamert.rewrite import rebuild

Inputs = tuple[Value | None, ...]


def simplify(graph: Graph) -> Graph:
    """One walk; operands are simplified before what reads them."""

    def rule(node: Node, inputs: Inputs) -> Sequence[Value] | None:
        found = RULES.get(node.op.name)
        result = found(node, inputs) if found is not None else None
        return None if result is None else (result,)

    return rebuild(graph, rule)


def _transpose(node: Node, inputs: Inputs) -> Value | None:
    x, perm = inputs[0], node.attrs["perm"]
    assert x is not None
    if x.node.op is ops.transpose:
        inner = x.node.attrs["perm"]
        x, perm = x.node.inputs[0], tuple(inner[p] for p in perm)
        assert x is not None
        return _transpose_of(x, perm) or ops.transpose(x, perm=perm)
    return _transpose_of(x, perm)


def _transpose_of(x: Value, perm: tuple[int, ...]) -> Value | None:
    """x itself, or a reshape of it, where the permutation moves no element."""
    if perm == tuple(range(x.rank)):
        return x
    moved = [p for p in perm if x.shape[p] != 1]
    if moved == sorted(moved):
        return _reshape_to(x, tuple(x.shape[p] for p in perm))
    return None


def _reshape_to(x: Value, shape: tuple[int, ...]) -> Value:
    if x.node.op is ops.reshape:
        x = x.node.inputs[0]  # type: ignore[assignment]
    return x if x.shape == shape else ops.reshape(x, shape=shape)


def _reshape(node: Node, inputs: Inputs) -> Value | None:
    x = inputs[0]
    assert x is not None
    if x.shape == node.attrs["shape"] or x.node.op is ops.reshape:
        return _reshape_to(x, node.attrs["shape"])
    return None


def _same_type(node: Node, inputs: Inputs) -> Value | None:
    """An expand, cast, pad, slice or concat whose result has its operand's type is its operand."""
    x = inputs[0]
    assert x is not None
    present = [v for v in inputs if v is not None]
    return x if x.type == node.types[0] and (len(present) == 1 or node.op.name == "pad") else None


def _cast(node: Node, inputs: Inputs) -> Value | None:
    """A cast to a wider type and back is nothing; what is repeated is cast before it is."""
    x = inputs[0]
    assert x is not None
    inner = x.node.inputs[0] if x.node.op is ops.cast else None
    if inner is not None and inner.type == node.types[0] and widens(inner.dtype, x.dtype):
        return inner
    if x.node.op is ops.expand and not x.node.known:
        return ops.expand(ops.cast(x.node.inputs[0], **node.attrs), shape=x.shape)
    return _same_type(node, inputs)


def _gather(node: Node, inputs: Inputs) -> Value | None:
    """Evenly spaced entries along an axis, a single one among them, as a slice: a view, whose gradient adds nothing up."""
    x, indices = inputs
    assert x is not None and indices is not None
    array, axis = indices.constant, node.attrs["axis"] % x.rank
    if array is None or not 0 < array.size <= x.shape[axis] or array.ndim > 1:
        return None
    at = [int(i) + (i < 0) * x.shape[axis] for i in array.reshape(-1)]
    step = at[1] - at[0] if len(at) > 1 else 1
    if step < 1 or not 0 <= at[0] <= at[-1] < x.shape[axis] or any(b - a != step for a, b in itertools.pairwise(at)):
        return None
    return ops.reshape(narrow(x, axis, at[0], len(at), step), shape=node.types[0].shape)


def _slice(node: Node, inputs: Inputs) -> Value | None:
    forward = all(step > 0 or size < 2 for step, size in zip(node.attrs["steps"], node.attrs["sizes"], strict=True))
    return _same_type(node, inputs) if forward else None


def neutral(number: float, *sides: int) -> Callable[[Node, Inputs], Value | None]:
    """The other operand where one (on one of these sides) is a constant of this number and broadcasts nothing."""

    def rule(node: Node, inputs: Inputs) -> Value | None:
        for side in sides:
            array = inputs[side].constant if inputs[side] is not None else None  # type: ignore[union-attr]
            other = inputs[1 - side]
            if array is not None and array.size == 1 and other is not None and other.type == node.types[0]:
                with np.errstate(all="ignore"):
                    if array.reshape(())[()] == number:
                        return other
        return None

    return rule


def _where(node: Node, inputs: Inputs) -> Value | None:
    """The one side that a constant condition chooses everywhere."""
    condition, a, b = inputs
    assert condition is not None and a is not None and b is not None
    array = condition.constant
    if array is None or not array.size or array.any() != array.all():
        return None
    chosen = a if array.all() else b
    return chosen if chosen.type == node.types[0] else None


def _clip(node: Node, inputs: Inputs) -> Value:
    """In its parts, which later passes know how to fuse."""
    return expand(node, inputs)[0]


def _pow(node: Node, inputs: Inputs) -> Value | None:
    """Small constant powers as products and roots, which are exact to the last bit or two and far cheaper."""
    x, exponent = inputs
    assert x is not None and exponent is not None
    array = exponent.constant
    if array is None or array.size != 1 or x.type != node.types[0] or x.dtype not in dtypes.STANDARD_FLOAT:
        return None
    return POWERS[float(array.reshape(()))](x) if float(array.reshape(())) in POWERS else None


def _conv_transpose(node: Node, inputs: Inputs) -> Value | None:
    """With unit strides, the convolution with the kernel turned around: a product of patches instead of a sum of stamps."""
    x, w, b = (*inputs, None)[:3]
    assert x is not None and w is not None
    attrs, n = node.attrs, x.rank - 2
    spans = [d * (k - 1) for d, k in zip(attrs["dilations"], w.shape[2:], strict=True)]
    begins = [span - p for span, p in zip(spans, attrs["pads"][:n], strict=True)]
    ends = [s - p + o for s, p, o in zip(spans, attrs["pads"][n:], attrs["output_padding"], strict=True)]
    if attrs["group"] != 1 or any(s != 1 for s in attrs["strides"]) or min(begins + ends, default=0) < 0 or not x.type.size:
        return None
    last = tuple(d - 1 for d in w.shape[2:])
    turned = ops.slice(w, starts=(0, 0, *last), sizes=w.shape, steps=(1, 1, *[-1] * n))
    turned = ops.transpose(turned, perm=(1, 0, *range(2, w.rank)))
    return ops.conv(x, turned, b, strides=attrs["strides"], pads=(*begins, *ends), dilations=attrs["dilations"], group=1)


POWERS: dict[float, Callable[[Value], Value]] = {
    1.0: lambda x: x,
    2.0: lambda x: x * x,
    3.0: lambda x: x * x * x,
    0.5: ops.sqrt,
    -1.0: ops.reciprocal,
}

RULES: dict[str, Callable[[Node, Inputs], Value | None]] = {
    "transpose": _transpose,
    "reshape": _reshape,
    "expand": _same_type,
    "cast": _cast,
    "gather": _gather,
    "pad": _same_type,
    "concat": _same_type,
    "slice": _slice,
    "mul": neutral(1, 0, 1),
    "div": neutral(1, 1),
    "sub": neutral(0, 1),
    "pow": _pow,
    "clip": _clip,
    "conv_transpose": _conv_transpose,
    "where": _where,
}
"""By op: the Value that stands for a node, or None to keep it. (x + 0 stays: it turns −0 into 0.)"""
