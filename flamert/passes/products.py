"""Matrix products on a GPU: made the way round that they are wanted, with their biases, several of one operand as one."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from flamert import ops
from flamert.dtypes import HALF, STANDARD_FLOAT, float32
from flamert.graph import CONSTANT, Graph, Node, Value, constant, uses
from flamert.ops.folding import Folding
from flamert.ops.fused import ACTIVATIONS
from flamert.ops.shape import narrow
from flamert.rewrite import rebuild, substitute

MOSTLY = 0.9
"""How much of a product must be a result for all of it to be written wider."""


def turn_products(graph: Graph) -> Graph:
    """(a · b)ᵀ = bᵀ · aᵀ, where nobody reads a · b itself and neither is a constant, which would be packed for good."""
    count = uses(graph)

    def rule(node: Node, inputs: tuple[Value | None, ...]) -> Sequence[Value] | None:
        x = inputs[0] if inputs else None
        if node.op is not ops.transpose or x is None or x.node.op is not ops.matmul or count[node.inputs[0]] > 1:  # type: ignore[index]
            return None
        a, b = x.node.inputs
        assert a is not None and b is not None
        if node.attrs["perm"] != _swap(x.rank) or min(a.rank, b.rank) < 2 or a.node.known or b.node.known:
            return None
        return (ops.matmul(turned(b), turned(a)),)

    return rebuild(graph, rule)


def scale_products(graph: Graph) -> Graph:
    """(a · s) times (b · t), with numbers s and t, → (a times b) · st: one pass over the product, which others share, for two.

    Only of float32 and float64, whose range leaves room; attention that no kernel takes whole scales its operands so.
    """

    def rule(node: Node, inputs: tuple[Value | None, ...]) -> Sequence[Value] | None:
        if node.op is not ops.matmul or node.types[0].dtype in HALF or node.types[0].dtype not in STANDARD_FLOAT:
            return None
        (a, s), (b, t) = (_unscaled(v) for v in inputs if v is not None)
        return None if s is None or t is None else (ops.matmul(a, b) * (s * t),)

    return rebuild(graph, rule)


def _unscaled(v: Value) -> tuple[Value, float | None]:
    """What a view of a multiple of something is a view of, and the factor; None where it is none."""
    views: list[Node] = []
    x = v
    while x.node.op in (ops.transpose, ops.reshape):
        views.append(x.node)
        x = x.node.inputs[0]  # type: ignore[assignment]
    if x.node.op is not ops.mul:
        return v, None
    for side in (0, 1):
        factor, x_ = x.node.inputs[side], x.node.inputs[1 - side]
        array = None if factor is None else factor.constant
        if array is not None and array.size == 1 and x_ is not None and x_.type == x.type:
            for view in reversed(views):
                x_ = view.op(x_, **view.attrs)
            return x_, float(array.reshape(()))
    return v, None


def take_biases(graph: Graph) -> Graph:
    """matmul(a, b) + bias → linear(a, b, bias), where nobody reads the product itself: added as it is written."""
    count = uses(graph)

    def rule(node: Node, inputs: tuple[Value | None, ...]) -> Sequence[Value] | None:
        if node.op is not ops.add:
            return None
        for side in (0, 1):
            x, bias = inputs[side], inputs[1 - side]
            assert x is not None and bias is not None
            if x.node.op is ops.matmul and count[node.inputs[side]] == 1 and bias.shape == x.shape[-1:] and x.rank > 1:  # type: ignore[index]
                return (ops.linear(*x.node.inputs, bias),)
        return None

    return rebuild(graph, rule)


def take_activations(graph: Graph, eligible: Callable[[Node], bool]) -> Graph:
    """activation(linear(a, b, bias)) → linear with that activation, where nobody reads what is in front of it.

    eligible: a predicate on the new nodes.
    """
    count = uses(graph)

    def rule(node: Node, inputs: tuple[Value | None, ...]) -> Sequence[Value] | None:
        x = inputs[0] if node.op.name in ACTIVATIONS and not node.attrs else None
        if x is None or x.node.op is not ops.linear or x.node.attrs["activation"] or count[node.inputs[0]] > 1:  # type: ignore[index]
            return None
        made = Node(ops.linear, x.node.inputs, {**x.node.attrs, "activation": node.op.name}, node.types, node.source)
        return made.outputs if eligible(made) else None

    return rebuild(graph, rule)


def merge_products(graph: Graph) -> Graph:
    """Products of one operand with several known matrices, biases included, as one product with all of them side by side.

    Each result is a view of the columns that are its own.
    """
    groups: dict[tuple[Value, bool], list[Node]] = {}
    for node in graph.nodes:
        if node.op in (ops.matmul, ops.linear) and _mergeable(node):
            a = node.inputs[0]
            assert a is not None
            groups.setdefault((a, len(node.inputs) > 2), []).append(node)
    found: dict[Value, Value] = {}
    for (a, _), nodes in groups.items():
        if len(nodes) < 2:
            continue
        operands = [ops.concat(*[node.inputs[i] for node in nodes], axis=-1) for i in range(1, len(nodes[0].inputs))]
        whole, at = nodes[0].op(a, *operands, **nodes[0].attrs), 0
        for node in nodes:
            columns = node.types[0].shape[-1]
            found[node.outputs[0]] = narrow(whole, -1, at, columns)
            at += columns
    return substitute(graph, found) if found else graph


def _mergeable(node: Node) -> bool:
    a, b, *bias = node.inputs
    known = all(v is not None and v.node.known for v in (b, *bias))
    plain = node.op is ops.matmul or (node.attrs["activation"] == "" and len(node.inputs) == 3)
    return plain and known and a is not None and b is not None and b.rank == 2 and a.rank > 1 and not a.node.known


ALIGNED, WIDE, TALL = 8, 256, 64
"""Columns that fast kernels take a multiple of; columns and rows from which it is worth to make them so."""


def align_products(graph: Graph) -> Graph:
    """Products with a large matrix of an odd number of columns, a vocabulary's say, with columns of zeros beside it.

    The result is a view of the columns that count. Run before differentiation, it makes the gradients' products even as well.
    """

    def rule(node: Node, inputs: tuple[Value | None, ...]) -> Sequence[Value] | None:
        if node.op is not ops.matmul:
            return None
        a, b = inputs
        assert a is not None and b is not None
        extra = -b.shape[-1] % ALIGNED
        rows = math.prod(a.shape[:-1])
        if not extra or b.rank != 2 or b.dtype not in STANDARD_FLOAT or b.shape[-1] < WIDE or rows < TALL or a.rank < 2:
            return None
        if b.node.op is ops.transpose:  # as it lies, a matrix takes more rows at its end
            wide = ops.transpose(ops.pad(turned(b), pads=(0, 0, extra, 0)), perm=(1, 0))
        else:
            wide = ops.pad(b, pads=(0, 0, 0, extra))
        return (narrow(ops.matmul(a, wide), -1, 0, b.shape[-1]),)

    return rebuild(graph, rule)


def widen_results(graph: Graph) -> Graph:
    """Products of halves that nobody gets but as float32, as results of the graph, are written so: a pass over memory less.

    Or all but a few columns of them are got: those of zeros, say, that make a product even.
    """
    count, returned = uses(graph), set(graph.outputs)

    def rule(node: Node, inputs: tuple[Value | None, ...]) -> Sequence[Value] | None:
        if node.op is not ops.cast or node.types[0].dtype != float32 or node.outputs[0] not in returned:
            return None
        old, new, view = node.inputs[0], inputs[0], None
        assert old is not None and new is not None
        if old.node.op is ops.slice and count[old] == 1:
            view, old, new = old.node.attrs, old.node.inputs[0], new.node.inputs[0]
            assert old is not None and new is not None
        if old.node.op is not ops.matmul or old.dtype not in HALF or count[old] > 1 or count[node.outputs[0]] > 1:
            return None
        if node.types[0].size < MOSTLY * old.type.size:
            return None
        y = ops.wide_matmul(*new.node.inputs, to=float32)
        return (y if view is None else ops.slice(y, **view),)

    return rebuild(graph, rule)


def lay_weights(graph: Graph, cache: dict[Any, Any]) -> Graph:
    """Constant matrices of float32 products with the axis that is summed innermost: tensor cores read TF32 so, a fifth faster.

    cache: as for `fold`, so that a model's plans share them.
    """
    folding, keys = cache.setdefault(Folding, Folding()), dict[Node, Hashable]()

    def rule(node: Node, inputs: tuple[Value | None, ...]) -> Sequence[Value] | None:
        b = inputs[1] if node.op in (ops.matmul, ops.linear) else None
        if b is None or b.node.op is not CONSTANT or b.dtype != float32 or b.rank != 2 or b.shape[0] % ALIGNED:
            return None
        lies = constant(folding.array(ops.transpose(b, perm=(1, 0)), keys))
        return Node(node.op, (inputs[0], ops.transpose(lies, perm=(1, 0)), *inputs[2:]), node.attrs, node.types).outputs

    return rebuild(graph, rule)


def turned(x: Value) -> Value:
    """Each matrix transposed."""
    if x.node.op is ops.transpose and x.node.attrs["perm"] == _swap(x.rank):
        return x.node.inputs[0]  # type: ignore[return-value]
    return ops.transpose(x, perm=_swap(x.rank))


def _swap(rank: int) -> tuple[int, ...]:
    return (*range(rank - 2), rank - 1, rank - 2)
