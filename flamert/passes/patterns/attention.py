"""Attention that exporters wrote as two matrix products around a softmax, with scales, masks, caps and repeated heads."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from flamert import dtypes, ops
from flamert.graph import Node, Value
from flamert.passes.patterns.index import Index, Match, close, factor, other, scalar, unscaled
from flamert.passes.patterns.masks import HIDING, added, combined, replaced

STEPS = 8
"""Nodes between the softmax and the product of queries and keys, at most."""


class Scores(NamedTuple):
    """scale · q·kᵀ, capped and masked, and the nodes that compute it."""

    q: Value
    keys: Value  # [..., D, S]
    scale: float
    softcap: float
    masks: tuple[Value, ...]
    nodes: tuple[Node, ...]


def attention(index: Index, node: Node) -> Match | None:
    """softmax(scale · q·kᵀ + masks) · v; at the softmax."""
    logits = node.inputs[0]
    assert logits is not None
    if node.attrs["axis"] % logits.rank != logits.rank - 1 or not 2 <= logits.rank <= 4:
        return None
    inside = [node]
    weights = _weights(index, node.outputs[0], inside)
    root = index.reader(weights)
    if root is None or root.op.name != "matmul" or root.inputs[0] is not weights:
        return None
    scores = _scores(logits)
    if scores is None or root.inputs[1] is weights or not index.enclosed([*inside, *scores.nodes, root], root.outputs[0]):
        return None
    result = _attended(index, scores, root, logits.shape)
    return None if result is None else (root.outputs[0], result)


def _weights(index: Index, value: Value, inside: list[Node]) -> Value:
    """The softmax's result behind casts, reshapes of leading axes, and a guard against the NaN of a query that sees nothing."""
    while True:
        readers = index.readers.get(value, [])
        guard = [r for r in readers if r.op.name == "isnan"]
        chosen = [r for r in readers if r.op.name == "where" and r.inputs[2] is value and scalar(r.inputs[1]) == 0]
        if len(readers) == 2 and guard and chosen and chosen[0].inputs[0] is guard[0].outputs[0]:
            inside += [guard[0], chosen[0]]
            value = chosen[0].outputs[0]
        elif len(readers) == 1 and _carries(readers[0], value):
            inside.append(readers[0])
            value = readers[0].outputs[0]
        else:
            return value


def _carries(node: Node, value: Value) -> bool:
    """Whether the node is a cast between floating types, or a reshape that leaves the matrices alone."""
    if node.op.name == "reshape":
        return node.types[0].rank > 1 and node.types[0].shape[-2:] == value.shape[-2:]
    return node.op.name == "cast" and {node.types[0].dtype, value.dtype} <= dtypes.STANDARD_FLOAT


def _scores(value: Value, depth: int = STEPS) -> Scores | None:
    """What `value` is made of, from its last step back to the product; None if it is not of the form."""
    node = value.node
    name = node.op.name
    if not depth:
        return None
    if name == "matmul":
        (k, q), (m, keys) = (unscaled(v) for v in node.inputs)  # type: ignore[arg-type]
        return Scores(q, keys, k * m, 0.0, (), (node,))
    found = factor(value)
    if found is not None:
        inner = _scores(found[1], depth - 1)
        return None if inner is None else _multiplied(inner, found[0], node)
    if name in ("cast", "reshape") and _carries(node, node.inputs[0]):  # type: ignore[arg-type]
        inner = _scores(node.inputs[0], depth - 1)  # type: ignore[arg-type]
        return None if inner is None else _carried(inner, node)
    if name == "tanh":
        inner = _scores(node.inputs[0], depth - 1)  # type: ignore[arg-type]
        if inner is None or inner.masks or inner.softcap:
            return None
        # The cap is 1 until a factor follows.
        return inner._replace(softcap=1.0, nodes=(*inner.nodes, node))
    if name == "add":
        for mask in node.inputs[::-1]:
            rest = other(node, mask)  # type: ignore[arg-type]
            inner = _scores(rest, depth - 1) if rest.type == value.type and rest is not mask else None
            if inner is not None:
                return inner._replace(masks=(*inner.masks, added(mask)), nodes=(*inner.nodes, node))  # type: ignore[arg-type]
        return None
    return _hidden(value, depth) if name == "where" else None


def _carried(scores: Scores, node: Node) -> Scores | None:
    """The scores cast, or, as long as they are not masked, as matrices under other leading axes."""
    nodes = (*scores.nodes, node)
    if node.op.name == "cast":
        return scores._replace(nodes=nodes)
    lead = node.types[0].shape[:-2]
    if scores.masks or scores.q.shape[:-2] != scores.keys.shape[:-2]:
        return None
    q, keys = (reshaped(x, (*lead, *x.shape[-2:])) for x in (scores.q, scores.keys))
    return scores._replace(q=q, keys=keys, nodes=nodes)


def _multiplied(scores: Scores, k: float, node: Node) -> Scores | None:
    if k <= 0 and (scores.masks or scores.softcap):
        return None
    masks = tuple([m if m.dtype == np.bool_ else m * k for m in scores.masks])
    return Scores(scores.q, scores.keys, scores.scale * k, scores.softcap * k, masks, (*scores.nodes, node))


def _hidden(value: Value, depth: int) -> Scores | None:
    """Scores with a large negative number in the place of some."""
    node = value.node
    condition, a, b = node.inputs
    number, rest = (scalar(a), b) if scalar(a) is not None else (scalar(b), a)
    if number is None or number > HIDING or condition is None or rest is None or rest.type != value.type:
        return None
    inner, mask = _scores(rest, depth - 1), replaced(condition, rest is b, number, value.dtype)
    if inner is None or mask is None or (inner.masks and mask.dtype != np.bool_):
        return None
    return inner._replace(masks=(*inner.masks, mask), nodes=(*inner.nodes, node))


def _attended(index: Index, scores: Scores, root: Node, shape: tuple[int, ...]) -> Value | None:
    """The op on these operands, in four dimensions; None where their shapes or types are not what it takes."""
    q, v = scores.q, root.inputs[1]
    assert v is not None
    if v.rank < 2 or not q.dtype == scores.keys.dtype == v.dtype:
        return None
    if v.shape[:-2] == root.inputs[0].shape[:-2] == root.types[0].shape[:-2] != shape[:-2]:  # type: ignore[union-attr]
        v = reshaped(v, (*shape[:-2], *v.shape[-2:]))
    if not q.rank == scores.keys.rank == v.rank == len(shape):
        return None
    if shape[:-2] != q.shape[:-2] or scores.keys.shape[:-2] != v.shape[:-2]:
        return None
    q, k, v = (_four(x) for x in (q, swapped(scores.keys), v))
    if k.shape[1] > 1:
        (bare_k, n), (bare_v, m) = unrepeated(k), unrepeated(v)
        k, v = (bare_k, bare_v) if n == m else (k, v)
    if q.shape[0] != k.shape[0] or not k.shape[1] or q.shape[1] % k.shape[1]:
        return None
    mask, window = combined(scores.masks, shape, index)
    if mask is not None and mask.dtype not in (np.bool_, q.dtype):
        return None
    if mask is not None and mask.rank == 3 and len(shape) == 3:
        mask = _four(mask)
    scale = scores.scale
    if q.dtype in dtypes.HALF and not scores.softcap and close(scale, q.shape[3] ** -0.5, q.dtype):
        scale = q.shape[3] ** -0.5  # as it was before it had to be written down in a half type
    y = index.make(ops.attention, q, k, v, mask, scale=scale, softcap=scores.softcap, **window._asdict())
    return ops.reshape(y, shape=root.types[0].shape) if y.shape != root.types[0].shape else y


def _four(x: Value) -> Value:
    """[N, L, D] → [N, 1, L, D]; [L, D] → [1, 1, L, D]."""
    return x if x.rank == 4 else reshaped(x, (*x.shape[:-2], *(1,) * (4 - x.rank), *x.shape[-2:]))


def reshaped(x: Value, shape: tuple[int, ...]) -> Value:
    """x under another shape, without a reshape of a reshape."""
    if x.node.op.name == "reshape":
        x = x.node.inputs[0]  # type: ignore[assignment]
    return x if x.shape == shape else ops.reshape(x, shape=shape)


def swapped(x: Value) -> Value:
    """x with its last two axes exchanged, without a transposition of a transposition."""
    swap = (*range(x.rank - 2), x.rank - 1, x.rank - 2)
    node = x.node
    if node.op.name == "transpose":
        inner, perm = node.inputs[0], tuple(node.attrs["perm"][p] for p in swap)
        return inner if perm == tuple(range(x.rank)) else ops.transpose(inner, perm=perm)  # type: ignore[return-value]
    if node.op.name == "reshape" and node.inputs[0].shape[-2:] == x.shape[-2:]:  # type: ignore[union-attr]
        turned = node.inputs[0].node  # type: ignore[union-attr]
        if turned.op.name == "transpose":
            return reshaped(swapped(turned.outputs[0]), (*x.shape[:-2], x.shape[-1], x.shape[-2]))
    return ops.transpose(x, perm=swap)


def unrepeated(x: Value) -> tuple[Value, int]:
    """(y, n) where x: [B, H·n, S, D] is y: [B, H, S, D] with every head n times, one after the other."""
    b, heads, s, d = x.shape
    node = x.node
    if node.op.name == "reshape":
        node = node.inputs[0].node  # type: ignore[union-attr]
    if node.op.name != "expand":
        return x, 1
    inner, wide = node.inputs[0], node.types[0].shape
    assert inner is not None
    if wide == (b, heads, s, d) and inner.shape == (b, 1, s, d):
        return inner, heads
    if len(wide) == 5 and wide == (b, wide[1], wide[2], s, d) and inner.shape == (b, wide[1], 1, s, d):
        return reshaped(inner, (b, wide[1], s, d)), wide[2]
    return x, 1
