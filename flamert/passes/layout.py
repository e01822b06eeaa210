"""Channels last: convolutions and what surrounds them work on [N, spatial…, C]; transposes are left at the edges only."""

from __future__ import annotations

import math
from collections.abc import Callable

from flamert import ops
from flamert.graph import Graph, Node, TensorType, Value
from flamert.ops.fused import to_channels_first, to_channels_last
from flamert.rewrite import with_inputs

Eligible = Callable[[Node], bool]


def channels_last(graph: Graph, eligible: Eligible) -> Graph:
    """Rewrite convolutions to channels last, and let the layout spread through ops that work on either.

    eligible: a predicate on conv_channels_last nodes, which says where that is worth while.
    Every Value that has been computed with channels last is known by that twin; its channels-first form is made only where
    somebody needs it.
    """
    if not any([node.op is ops.conv for node in graph.nodes]):
        return graph
    walk = _Walk(eligible)
    for node in graph.nodes:
        walk.visit(node)
    return Graph(graph.inputs, [walk.first(v) for v in graph.outputs])


class _Walk:
    """New Values for old ones, in either layout."""

    def __init__(self, eligible: Eligible) -> None:
        self.eligible = eligible
        self.new: dict[Value, Value] = {}
        self.twins: dict[Value, Value] = {}

    def first(self, old: Value) -> Value:
        """The new Value with channels first."""
        if old not in self.new:
            self.new[old] = to_channels_first(self.twins[old])
        return self.new[old]

    def last(self, old: Value) -> Value:
        """The new Value with channels last."""
        if old not in self.twins:
            self.twins[old] = to_channels_last(self.new[old])
        return self.twins[old]

    def visit(self, node: Node) -> None:
        handler = HANDLERS.get(node.op.name)
        result = handler(self, node) if handler is not None else self._elementwise(node)
        if result is not None:
            self.twins[node.outputs[0]] = result
            return
        inputs = tuple([None if v is None else self.first(v) for v in node.inputs])
        outputs = node.outputs if inputs == node.inputs else with_inputs(node, inputs).outputs
        self.new.update(zip(node.outputs, outputs, strict=True))

    def follows(self, *operands: Value | None) -> bool:
        """Whether every one of these exists with channels last already."""
        return all(v is not None and v in self.twins for v in operands)

    def _elementwise(self, node: Node) -> Value | None:
        """An op on elements follows its operands, if those that are not small constants have channels last."""
        rank = len(node.types[0].shape)
        if node.op.name not in ELEMENTWISE or rank < 3:
            return None
        full = [v for v in node.inputs if v is not None and v.rank == rank and not v.node.known]
        if not full or not self.follows(*full):
            return None
        operands: list[Value | None] = []
        for v in node.inputs:
            if v is None or v.type.size == 1:
                operands.append(None if v is None else self.first(v))
            elif v.rank == rank:
                operands.append(self.last(v))
            elif v.node.known:
                padded = ops.reshape(self.first(v), shape=(1,) * (rank - v.rank) + v.shape)
                operands.append(to_channels_last(padded))
            else:
                return None
        return node.op(*operands, **node.attrs)


ELEMENTWISE = frozenset(
    {
        "abs",
        "add",
        "cast",
        "ceil",
        "celu",
        "clip",
        "div",
        "elu",
        "equal",
        "erf",
        "exp",
        "floor",
        "gelu",
        "gelu_tanh",
        "greater",
        "greater_equal",
        "hard_sigmoid",
        "hard_swish",
        "leaky_relu",
        "less",
        "less_equal",
        "log",
        "logical_and",
        "logical_not",
        "logical_or",
        "maximum",
        "minimum",
        "mish",
        "mul",
        "neg",
        "not_equal",
        "pow",
        "prelu",
        "reciprocal",
        "relu",
        "round",
        "selu",
        "sigmoid",
        "sign",
        "softplus",
        "softsign",
        "sqrt",
        "sub",
        "swish",
        "tanh",
        "where",
    }
)


def _conv(walk: _Walk, node: Node) -> Value | None:
    x, w, b = (*node.inputs, None)[:3]
    assert x is not None and w is not None
    last = walk.twins.get(x) or to_channels_last(walk.first(x))
    n, m, *spatial = node.types[0].shape
    weights = (walk.first(w),) if b is None else (walk.first(w), walk.first(b))
    attrs = {**ops.conv_channels_last.defaults, **node.attrs}
    types = (TensorType((n, *spatial, m), node.types[0].dtype),)
    new = Node(ops.conv_channels_last, (last, *weights), attrs, types, node.source)
    if not walk.eligible(new):
        return None
    walk.twins[x] = last
    return new.outputs[0]


def _moved(axis: int, rank: int) -> int:
    """Where a channels-first axis lies with channels last."""
    return axis if axis == 0 else rank - 1 if axis == 1 else axis - 1


def _concat(walk: _Walk, node: Node) -> Value | None:
    if not walk.follows(*node.inputs):
        return None
    rank = len(node.types[0].shape)
    return ops.concat(*[walk.last(v) for v in node.inputs if v is not None], axis=_moved(node.attrs["axis"], rank))


def _reduce(walk: _Walk, node: Node) -> Value | None:
    x = node.inputs[0]
    if not walk.follows(x) or not node.attrs["keepdims"]:
        return None
    assert x is not None
    axes = tuple(sorted(_moved(a, x.rank) for a in node.attrs["axes"]))
    return node.op(walk.last(x), axes=axes, keepdims=True)


def _slice(walk: _Walk, node: Node) -> Value | None:
    x = node.inputs[0]
    if not walk.follows(x):
        return None
    assert x is not None
    moved = {k: (v[0], *v[2:], v[1]) for k, v in node.attrs.items()}
    return node.op(walk.last(x), **moved)


def _pad(walk: _Walk, node: Node) -> Value | None:
    x = node.inputs[0]
    if not walk.follows(x):
        return None
    assert x is not None
    pads, r = node.attrs["pads"], x.rank
    moved = (pads[0], *pads[2:r], pads[1], pads[r], *pads[r + 2 :], pads[r + 1])
    value = node.inputs[1] if len(node.inputs) > 1 else None
    return node.op(walk.last(x), None if value is None else walk.first(value), pads=moved)


def _repeat(walk: _Walk, node: Node) -> Value | None:
    x = node.inputs[0]
    if not walk.follows(x):
        return None
    repeats = node.attrs["repeats"]
    return ops.repeat(walk.last(x), repeats=(repeats[0], *repeats[2:], repeats[1]))  # type: ignore[arg-type]


def _pool(walk: _Walk, node: Node) -> Value | None:
    x = node.inputs[0]
    if not walk.follows(x) or x.rank > 4:  # type: ignore[union-attr]
        return None
    pool = ops.OPS[f"{node.op.name}_channels_last"]
    return pool(walk.last(x), **node.attrs)  # type: ignore[arg-type]


def _conv_transpose(walk: _Walk, node: Node) -> Value | None:
    """Where the kernel's stamps do not overlap, one product and a rearrangement of its columns."""
    x, w, b = (*node.inputs, None)[:3]
    assert x is not None and w is not None
    kernel, attrs, n = w.shape[2:], node.attrs, x.rank - 2
    plain = attrs["strides"] == kernel and attrs["group"] == 1 and not any(attrs["pads"]) and not any(attrs["output_padding"])
    if not walk.follows(x) or not plain or any(d != 1 for d in attrs["dilations"]) or not w.node.known:
        return None
    last = walk.last(x)
    spatial, m = last.shape[1:-1], w.shape[1]
    columns = ops.reshape(
        ops.transpose(walk.first(w), perm=(0, *range(2, n + 2), 1)), shape=(w.shape[0], math.prod(kernel) * m)
    )
    stamps = ops.matmul(ops.reshape(last, shape=(math.prod(last.shape[:-1]), last.shape[-1])), columns)
    stamps = ops.reshape(stamps, shape=(last.shape[0], *spatial, *kernel, m))
    woven = ops.transpose(stamps, perm=(0, *[i for k in range(n) for i in (1 + k, 1 + n + k)], 2 * n + 1))
    y = ops.reshape(woven, shape=(last.shape[0], *[s * k for s, k in zip(spatial, kernel, strict=True)], m))
    return y if b is None else y + walk.first(b)


HANDLERS: dict[str, Callable[[_Walk, Node], Value | None]] = {
    "conv": _conv,
    "concat": _concat,
    "slice": _slice,
    "pad": _pad,
    "repeat": _repeat,
    "max_pool": _pool,
    "average_pool": _pool,
    "conv_transpose": _conv_transpose,
    **dict.fromkeys(("reduce_mean", "reduce_sum", "reduce_max", "reduce_min"), _reduce),
}
"""By op: its result with channels last, or None where it must have channels first."""
