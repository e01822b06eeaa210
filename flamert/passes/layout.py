"""Channels last: convolutions and what surrounds them work on [N, spatial…, C]; transposes are left at the edges only."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from flamert import dtypes, ops
from flamert.graph import Graph, Node, Value
from flamert.ops.channels_last import to_channels_first, to_channels_last
from flamert.ops.reduce import accumulating, cast_like
from flamert.rewrite import with_inputs

Eligible = Callable[[Node], bool]

LIGHT = 4
"""An operand with so many times fewer elements than the result may be transposed for it."""


class Flat(NamedTuple):
    """A result that is the same in either layout: it has no spatial axes."""

    value: Value


Result = Value | tuple[Value | Flat, ...] | None
"""What a handler makes of a node: its results with channels last, or None where it must have channels first."""


def channels_last(graph: Graph, eligible: Eligible) -> Graph:
    """Rewrite convolutions and their gradients to channels last, and let the layout spread through ops that work on either.

    eligible: a predicate on ops with channels last, which says where they are worth while.
    Every Value that has been computed with channels last is known by that twin; its channels-first form is made only where
    somebody needs it.
    """
    if not any([node.op in (ops.conv, ops.conv_transpose, ops.conv_weight_gradient) for node in graph.nodes]):
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
            seen = old.node.inputs[0] if old.node.op is ops.expand else None
            if seen is None:
                self.twins[old] = to_channels_last(self.new[old])
            else:  # what is repeated is turned, not the repetitions
                n, c, *spatial = old.shape
                self.twins[old] = ops.expand(self.aligned(seen, old.rank), shape=(n, *spatial, c))
        return self.twins[old]

    def aligned(self, old: Value, rank: int) -> Value:
        """An operand with channels last that broadcasts to results of this rank."""
        if old.rank == rank:
            return self.last(old)
        return to_channels_last(ops.reshape(self.first(old), shape=(1,) * (rank - old.rank) + old.shape))

    def visit(self, node: Node) -> None:
        handler = HANDLERS.get(node.op.name)
        result = handler(self, node) if handler is not None else self._elementwise(node)
        if result is not None:
            for old, made in zip(node.outputs, (result,) if isinstance(result, Value) else result, strict=True):
                if isinstance(made, Flat):
                    self.new[old] = made.value
                else:
                    self.twins[old] = made
            return
        inputs = tuple([None if v is None else self.first(v) for v in node.inputs])
        outputs = node.outputs if inputs == node.inputs else with_inputs(node, inputs).outputs
        self.new.update(zip(node.outputs, outputs, strict=True))

    def follows(self, *operands: Value | None) -> bool:
        """Whether every one of these exists with channels last already."""
        return all(v is not None and v in self.twins for v in operands)

    def convolution(self, op: Any, spatial: tuple[Value, ...], others: tuple[Value, ...], attrs: Any) -> Node | None:
        """An op on images with channels last and on others that have none, if it is eligible."""
        last = [self.twins.get(v) or to_channels_last(self.first(v)) for v in spatial]
        node = op.node((*last, *[self.first(v) for v in others]), attrs)
        if not self.eligible(node):
            return None
        self.twins.update(zip(spatial, last, strict=True))
        return node

    def _elementwise(self, node: Node) -> Value | None:
        """An op on elements follows its operands, if those that are not light have channels last."""
        result = node.types[0]
        if node.op.name not in ELEMENTWISE or result.rank < 3:
            return None
        heavy = [v for v in node.inputs if v is not None and not _light(v, result.size)]
        if not heavy or not self.follows(*heavy):
            return None
        operands = [
            v if v is None else self.first(v) if v.type.size == 1 else self.aligned(v, result.rank) for v in node.inputs
        ]
        return node.op(*operands, **node.attrs)


def _light(value: Value, size: int) -> bool:
    """Whether turning this operand costs little beside a result of so many elements."""
    if value.node.op is ops.expand:
        value = value.node.inputs[0]  # type: ignore[assignment]
    return value.node.known or value.type.size * LIGHT <= size


ELEMENTWISE = frozenset(
    {
        *("abs", "add", "cast", "ceil", "celu", "clip", "div", "elu", "equal", "erf", "exp", "floor", "gelu"),
        *("gelu_tanh", "greater", "greater_equal", "hard_sigmoid", "hard_swish", "leaky_relu", "less", "less_equal"),
        *("log", "logical_and", "logical_not", "logical_or", "maximum", "minimum", "mish", "mul", "neg"),
        *("not_equal", "pow", "prelu", "reciprocal", "relu", "round", "selu", "sigmoid", "sign", "softplus"),
        *("softsign", "sqrt", "sub", "swish", "tanh", "where"),
    }
)


def _conv(walk: _Walk, node: Node) -> Result:
    x, *weights = [v for v in node.inputs if v is not None]
    new = walk.convolution(ops.conv_channels_last, (x,), tuple(weights), node.attrs)
    return None if new is None else new.outputs[0]


def _conv_weight_gradient(walk: _Walk, node: Node) -> Result:
    x, dy = node.inputs
    assert x is not None and dy is not None
    new = walk.convolution(ops.conv_weight_gradient_channels_last, (x, dy), (), node.attrs)
    return None if new is None else (Flat(new.outputs[0]),)


def _moved(axis: int, rank: int) -> int:
    """Where a channels-first axis lies with channels last."""
    return axis if axis == 0 else rank - 1 if axis == 1 else axis - 1


def _concat(walk: _Walk, node: Node) -> Value | None:
    if not walk.follows(*node.inputs):
        return None
    rank = len(node.types[0].shape)
    return ops.concat(*[walk.last(v) for v in node.inputs if v is not None], axis=_moved(node.attrs["axis"], rank))


def _reduce(walk: _Walk, node: Node) -> Result:
    x = node.inputs[0]
    if not walk.follows(x):
        return None
    assert x is not None
    axes, keepdims = tuple(sorted(_moved(a % x.rank, x.rank) for a in node.attrs["axes"])), node.attrs["keepdims"]
    if not keepdims and not set(range(1, x.rank - 1)) <= set(axes):
        return None
    y = node.op(walk.last(x), axes=axes, keepdims=keepdims)
    return y if keepdims else (Flat(y),)


def _moments(walk: _Walk, node: Node) -> Result:
    x = node.inputs[0]
    if not walk.follows(x):
        return None
    assert x is not None
    return ops.moments(walk.last(x), axes=tuple(sorted(_moved(a % x.rank, x.rank) for a in node.attrs["axes"])))


def _group_sums(walk: _Walk, node: Node) -> Result:
    """Sums over groups of channels: [N, G] or [N, C] each."""
    x = node.inputs[-1] if len(node.inputs) == 1 else node.inputs[1]
    if not walk.follows(x) or node.attrs["axis"] != 1:
        return None
    images = [walk.last(v) for v in node.inputs[:2] if v is not None]
    others = [walk.first(v) for v in node.inputs[2:] if v is not None]
    made = node.op(*images, *others, **{**node.attrs, "axis": images[0].rank - 1})
    return tuple([Flat(v) for v in made])


def _batch_norm(walk: _Walk, node: Node) -> Result:
    """As arithmetic on elements, which is fused with what surrounds it; of halves in float32."""
    x, *channels = node.inputs
    assert x is not None
    if not walk.follows(x) or any(v is None or v.dtype != dtypes.accumulator(x.dtype) for v in channels):
        return None
    scale, bias, mean, var = [walk.first(v) for v in channels if v is not None]
    wide = accumulating(walk.last(x))
    return cast_like((wide - mean) * (scale / ops.sqrt(var + node.attrs["epsilon"])) + bias, walk.last(x))


def _batch_norm_gradient(walk: _Walk, node: Node) -> Result:
    dy, x, *channels = node.inputs
    if not walk.follows(x) or node.attrs["axis"] != 1:
        return None
    assert dy is not None and x is not None
    others = [walk.first(v) for v in channels if v is not None]
    epsilon = node.attrs["epsilon"]
    dx, dscale, dbias = ops.batch_norm_gradient(walk.last(dy), walk.last(x), *others, axis=x.rank - 1, epsilon=epsilon)
    return dx, Flat(dscale), Flat(dbias)


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


def _reshape(walk: _Walk, node: Node) -> Value | None:
    """Where it leaves images and channels alone, or ends what repeats elements."""
    repeated = _repetition(walk, node)
    if repeated is not None:
        return repeated
    x, (n, c, *spatial) = node.inputs[0], (*node.types[0].shape, 0, 0)[: max(2, node.types[0].rank)]
    if not walk.follows(x) or not spatial:
        return None
    assert x is not None
    return ops.reshape(walk.last(x), shape=(n, *spatial, c)) if x.shape[:2] == (n, c) else None


def _repetition(walk: _Walk, node: Node) -> Value | None:
    """`repeat` of an image that follows, in the ops of its body."""
    wide = node.inputs[0]
    apart = wide.node.inputs[0] if wide is not None and wide.node.op is ops.expand else None
    x = apart.node.inputs[0] if apart is not None and apart.node.op is ops.reshape else None
    if wide is None or apart is None or x is None or not walk.follows(x):
        return None
    repeats = wide.shape[1::2]
    if apart.shape != tuple(n for d in x.shape for n in (d, 1)) or wide.shape[::2] != x.shape:
        return None
    if node.types[0].shape != tuple(d * r for d, r in zip(x.shape, repeats, strict=True)):
        return None
    return ops.repeat(walk.last(x), repeats=(repeats[0], *repeats[2:], repeats[1]))


def _transpose(walk: _Walk, node: Node) -> Result:
    """From channels first to last and back, as around attention over an image: what there is in the other layout already."""
    x = node.inputs[0]
    assert x is not None
    to_last, to_first = (0, *range(2, x.rank), 1), (0, x.rank - 1, *range(1, x.rank - 1))
    if x.rank > 2 and node.attrs["perm"] == to_last and walk.follows(x):
        return (Flat(walk.last(x)),)
    return walk.first(x) if x.rank > 2 and node.attrs["perm"] == to_first and x not in walk.twins else None


def _repeat(walk: _Walk, node: Node) -> Value | None:
    x = node.inputs[0]
    if not walk.follows(x):
        return None
    repeats = node.attrs["repeats"]
    return ops.repeat(walk.last(x), repeats=(repeats[0], *repeats[2:], repeats[1]))  # type: ignore[arg-type]


def _pool(walk: _Walk, node: Node) -> Result:
    """Maxima and means over windows, and their gradients: if the image, or all that there is, has channels last."""
    operands = [v for v in node.inputs if v is not None]
    if not walk.follows(operands[-1]) or operands[0].rank > 4:
        return None
    pool = ops.OPS[f"{node.op.name}_channels_last"]
    return pool(*[walk.last(v) for v in operands], **node.attrs)


def _conv_transpose(walk: _Walk, node: Node) -> Result:
    x, *weights = [v for v in node.inputs if v is not None]
    if walk.follows(x) and weights[0].node.known and _tiles(node, weights[0]):
        return _stamps(walk, node, x, *weights)
    new = walk.convolution(ops.conv_transpose_channels_last, (x,), tuple(weights), node.attrs)
    return None if new is None else new.outputs[0]


def _tiles(node: Node, w: Value) -> bool:
    """Whether the kernel's stamps lie side by side and fill the result."""
    attrs = node.attrs
    plain = attrs["strides"] == w.shape[2:] and attrs["group"] == 1 and all(d == 1 for d in attrs["dilations"])
    return plain and not any(attrs["pads"]) and not any(attrs["output_padding"])


def _stamps(walk: _Walk, node: Node, x: Value, w: Value, b: Value | None = None) -> Value:
    """One product and a rearrangement of its columns."""
    kernel, n, last = w.shape[2:], x.rank - 2, walk.last(x)
    spatial, m = last.shape[1:-1], w.shape[1]
    columns = ops.reshape(
        ops.transpose(walk.first(w), perm=(0, *range(2, n + 2), 1)), shape=(w.shape[0], math.prod(kernel) * m)
    )
    stamps = ops.matmul(ops.reshape(last, shape=(math.prod(last.shape[:-1]), last.shape[-1])), columns)
    stamps = ops.reshape(stamps, shape=(last.shape[0], *spatial, *kernel, m))
    woven = ops.transpose(stamps, perm=(0, *[i for k in range(n) for i in (1 + k, 1 + n + k)], 2 * n + 1))
    y = ops.reshape(woven, shape=(last.shape[0], *[s * k for s, k in zip(spatial, kernel, strict=True)], m))
    return y if b is None else y + walk.first(b)


HANDLERS: dict[str, Callable[[_Walk, Node], Result]] = {
    "conv": _conv,
    "conv_weight_gradient": _conv_weight_gradient,
    "concat": _concat,
    "slice": _slice,
    "pad": _pad,
    "repeat": _repeat,
    "reshape": _reshape,
    "transpose": _transpose,
    "conv_transpose": _conv_transpose,
    "batch_norm": _batch_norm,
    "batch_norm_gradient": _batch_norm_gradient,
    "moments": _moments,
    **dict.fromkeys(("group_moments", "group_sums"), _group_sums),
    **dict.fromkeys(("max_pool", "max_pool_gradient", "average_pool", "average_pool_gradient"), _pool),
    **dict.fromkeys(("reduce_mean", "reduce_sum", "reduce_max", "reduce_min"), _reduce),
}
"""By op: what to make of its nodes. Ops that are neither here nor elementwise have channels first."""
