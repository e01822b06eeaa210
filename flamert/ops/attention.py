"""Scaled dot-product attention over heads, and the masks and scores it is made of."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from flamert import dtypes
from flamert.errors import ShapeError, UnsupportedType
from flamert.graph import Node, TensorType, Value, constant
from flamert.ops.elementwise import div, mul
from flamert.ops.functions import tanh
from flamert.ops.linear import matmul
from flamert.ops.logic import equal, less, less_equal, logical_and, where
from flamert.ops.normalize import softmax
from flamert.ops.op import composite, kernel
from flamert.ops.reduce import accumulating, cast_like, reduce_max, reduce_sum
from flamert.ops.rules import broadcast, require, same_dtype
from flamert.ops.shape import reshape, transpose

BLOCK_BYTES = 1 << 23
"""Scores that the reference kernel holds at a time: few enough to stay in a CPU's last cache, enough for large products."""


@composite
def attention(
    q: Any,
    k: Any,
    v: Any,
    mask: Any = None,
    lengths: Any = None,
    *,
    scale: float,
    softcap: float = 0.0,
    left: int | None = None,
    right: int | None = None,
    offset: int = 0,
) -> Any:
    """softmax(softcap · tanh(scale · q·kᵀ / softcap) + mask) · v; no cap where softcap = 0.

    q: [B, Hq, L, D], k: [B, Hkv, S, D], v: [B, Hkv, S, Dv], floating and of one type; Hq a multiple of Hkv, query head h uses
    head h // (Hq / Hkv) of k and v. mask: broadcast to [B, Hq, L, S]; boolean (true: may attend) or of q's type (added).
    Query i stands at position p = i + offset among the keys, and sees those with p − left ≤ j ≤ p + right (None: no bound;
    right = 0 is causal attention). lengths: integer [B], how many keys are there; the queries then are the last of them,
    p = i + lengths − L. Returns [B, Hq, L, Dv]; a query that sees no key gets zeros. Half types compute in float32.
    Source: ONNX Attention-25, Vaswani et al. 2017, Ainslie et al. 2023.
    """
    check(q, k, v, mask, lengths, offset)
    scores = softened(product(accumulating(q), accumulating(k), scale), softcap)
    seen = visible(lengths, q.shape[2], k.shape[2], left, right, offset)
    weights = probabilities(masked(masked(scores, mask), seen))
    return cast_like(by_group(weights, accumulating(v)), q)


@composite
def attention_gradient(
    dy: Any,
    y: Any,
    q: Any,
    k: Any,
    v: Any,
    mask: Any = None,
    lengths: Any = None,
    *,
    scale: float,
    softcap: float = 0.0,
    left: int | None = None,
    right: int | None = None,
    offset: int = 0,
) -> Any:
    """(dq, dk, dv) of `attention`, where dy reaches its result y: with p = softmax(s), ds = p⊙(dy·vᵀ − Σ dy⊙y),

    dv = pᵀ·dy, dq = scale · ds·k, dk = scale · dsᵀ·q; each of the type of q. A query that sees no key sends nothing back.
    """
    given = q, k, v
    attrs = {"scale": scale, "softcap": softcap, "left": left, "right": right, "offset": offset}
    p, ds, capped = score_gradient(dy, y, q, k, v, mask, lengths, **attrs)
    if softcap > 0:
        ratio = capped / softcap
        ds = ds * (1 - ratio * ratio)
    dy, q, k, v = map(accumulating, (dy, q, k, v))
    heads = k.shape[1]
    ds_rows, q_rows, p_rows, dy_rows = (by_rows(t, heads) for t in (ds, q, p, dy))
    dq = mul(by_group(ds, k), scale)
    dk = mul(matmul(_turned(ds_rows), q_rows), scale)
    dv = matmul(_turned(p_rows), dy_rows)
    return tuple([cast_like(found, x) for found, x in zip((dq, dk, dv), given, strict=True)])


def score_gradient(
    dy: Value, y: Value, q: Value, k: Value, v: Value, mask: Value | None, lengths: Value | None, **attrs: Any
) -> tuple[Value, Value, Value]:
    """The probabilities, the gradient of what they are the softmax of, and the capped scores: all [B, Hq, L, S]."""
    dy, y, q, k, v = map(accumulating, (dy, y, q, k, v))
    capped = softened(product(q, k, attrs["scale"]), attrs["softcap"])
    seen = visible(lengths, q.shape[2], k.shape[2], attrs["left"], attrs["right"], attrs["offset"])
    p = probabilities(masked(masked(capped, mask), seen))
    dp = by_group(dy, _turned(v))
    return p, p * (dp - reduce_sum(dy * y, axes=(3,), keepdims=True)), capped


def by_rows(x: Value, heads: int) -> Value:
    """[B, Hq, L, n] → [B, Hkv, group · L, n]: the queries that read the same head, one after the other."""
    b, h, l, n = x.shape
    return reshape(x, shape=(b, heads, h // max(heads, 1) * l, n))


def _turned(x: Value) -> Value:
    return transpose(x, perm=(0, 1, 3, 2))


def check(q: Value, k: Value, v: Value, mask: Value | None, lengths: Value | None, offset: int) -> None:
    """Raise unless the operands of attention fit together."""
    require(q.type, dtypes.STANDARD_FLOAT, "floating")
    same_dtype(q.type, k.type, v.type)
    if not q.rank == k.rank == v.rank == 4:
        raise ShapeError(f"q, k and v must be [batch, heads, length, size], not {q.type}, {k.type} and {v.type}")
    (b, hq, l, d), (_, hkv, s, _) = q.shape, k.shape
    if k.shape != (b, hkv, s, d) or v.shape[:3] != (b, hkv, s) or (hq % hkv if hkv else hq):
        raise ShapeError(f"q {list(q.shape)}, k {list(k.shape)} and v {list(v.shape)} do not fit together")
    if mask is not None:
        if mask.dtype not in (dtypes.bool_, q.dtype):
            raise UnsupportedType(f"the mask is {mask.dtype.name}, neither boolean nor {q.dtype.name}")
        if broadcast(mask.shape, (b, hq, l, s)) != (b, hq, l, s):
            raise ShapeError(f"mask {list(mask.shape)} does not broadcast to {[b, hq, l, s]}")
    if lengths is not None and (lengths.shape != (b,) or lengths.dtype not in (dtypes.int32, dtypes.int64) or offset):
        raise ShapeError(f"lengths must be integers [{b}] and come without an offset, not {lengths.type}")


def product(q: Value, k: Value, scale: float) -> Value:
    """scale · q·kᵀ over heads in groups: [B, Hq, L, S]. As ONNX has it, both get √scale, lest the product overflow."""
    (b, hq, l, d), (_, hkv, s, _) = q.shape, k.shape
    root = math.sqrt(scale) if scale > 0 else 1.0
    rows = reshape(mul(q, root if scale > 0 else scale), shape=(b, hkv, hq // max(hkv, 1) * l, d))
    scores = matmul(rows, transpose(mul(k, root), perm=(0, 1, 3, 2)))
    return reshape(scores, shape=(b, hq, l, s))


def by_group(weights: Value, v: Value) -> Value:
    """weights·v, each group of query heads with its head of v: [B, Hq, L, Dv]."""
    (b, hq, l, s), (_, hkv, _, dv) = weights.shape, v.shape
    rows = reshape(weights, shape=(b, hkv, hq // max(hkv, 1) * l, s))
    return reshape(matmul(rows, v), shape=(b, hq, l, dv))


def softened(scores: Value, softcap: float) -> Value:
    """Scores squeezed into (−softcap, softcap), or as they are if softcap is 0."""
    return mul(tanh(div(scores, softcap)), softcap) if softcap > 0 else scores


def masked(scores: Value, mask: Value | None) -> Value:
    """Scores plus a floating mask, or −∞ where a boolean one is false."""
    if mask is None:
        return scores
    if mask.dtype == np.bool_:
        return where(mask, scores, constant(-math.inf, scores.dtype))
    return scores + cast_like(mask, scores)


def probabilities(scores: Value) -> Value:
    """softmax over the keys, and zeros for a query that sees none."""
    if not scores.shape[-1]:
        return scores
    blind = equal(reduce_max(scores, axes=(scores.rank - 1,), keepdims=True), constant(-math.inf, scores.dtype))
    zero = constant(0, scores.dtype)
    # Without the inner guard the softmax of −∞ alone is NaN, which a gradient carries past the outer one.
    return where(blind, zero, softmax(where(blind, zero, scores), axis=-1))


def visible(lengths: Value | None, l: int, s: int, left: int | None, right: int | None, offset: int) -> Value | None:
    """Which keys are there and within the window: boolean [L, S], or [B, 1, L, S] with `lengths`; None for all."""
    i, j = np.arange(l)[:, None], np.arange(s)
    if lengths is None:
        seen = _window(i + offset, j, left, right)
        return None if seen is None or bool(np.all(seen)) else constant(seen)
    keys, count = constant(j, lengths.dtype), reshape(lengths, shape=(lengths.shape[0], 1, 1, 1))
    seen = less(keys, count)
    position = count + (i - l).astype(lengths.dtype)
    if right is not None:
        seen = logical_and(seen, less_equal(keys, position + right))
    if left is not None:
        seen = logical_and(seen, less_equal(position - left, keys))
    return seen


def _window(position: Any, j: Any, left: int | None, right: int | None) -> Any:
    bounds = [] if right is None else [j <= position + right]
    bounds += [] if left is None else [j >= position - left]
    return None if not bounds else bounds[0] if len(bounds) == 1 else bounds[0] & bounds[1]


class Block(NamedTuple):
    """How much of the scores the kernel holds at a time: batch entries, heads of k and v, queries."""

    batch: int
    heads: int
    queries: int


def block_of(b: int, hkv: int, group: int, l: int, s: int, itemsize: int) -> Block:
    """The largest block within BLOCK_BYTES: whole batch entries, else whole heads, else as many queries of one as fit."""
    fit = BLOCK_BYTES // max(group * l * s * itemsize, 1)
    if fit >= hkv:
        return Block(min(b, fit // max(hkv, 1)), hkv, l)
    return Block(1, fit, l) if fit else Block(1, 1, max(1, BLOCK_BYTES // max(group * s * itemsize, 1)))


def _blocks(shape: tuple[int, int, int], block: Block) -> Iterator[tuple[slice, slice, slice]]:
    for b in range(0, shape[0], max(block.batch, 1)):
        for h in range(0, shape[1], max(block.heads, 1)):
            for l in range(0, shape[2], max(block.queries, 1)):
                yield slice(b, b + block.batch), slice(h, h + block.heads), slice(l, min(l + block.queries, shape[2]))


def _dims(node: Node) -> tuple[int, int, int, int, int, int, np.dtype]:
    q, k = node.inputs[0], node.inputs[1]
    assert q is not None and k is not None
    (b, hq, l, d), (_, hkv, s, _) = q.shape, k.shape
    return b, hkv, hq // max(hkv, 1), l, s, d, dtypes.accumulator(q.dtype)


def _scratch(node: Node) -> list[TensorType]:
    """The scaled queries and the scores of one block."""
    b, hkv, group, l, s, d, dtype = _dims(node)
    block = block_of(b, hkv, group, l, s, dtype.itemsize)
    rows = block.batch * block.heads * group * block.queries
    return [TensorType((rows * d,), dtype), TensorType((rows * s,), dtype)]


@kernel(attention, "numpy", workspace=_scratch)
def _(
    xp: Any,
    out: Any,
    q: Any,
    k: Any,
    v: Any,
    mask: Any = None,
    lengths: Any = None,
    *,
    scale: float,
    softcap: float,
    left: int | None,
    right: int | None,
    offset: int,
    work: Any,
) -> None:
    (b, hq, l, d), (_, hkv, s, _) = q.shape, k.shape
    if not out.size or not s:
        out[...] = 0
        return
    group = hq // hkv
    q, out = q.reshape(b, hkv, group, l, d), out.reshape(b, hkv, group, l, -1)
    if mask is not None:
        mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
        heads = (hkv, group) if mask.shape[1] == hq else (1, 1)
        mask = xp.broadcast_to(mask.reshape(mask.shape[0], *heads, *mask.shape[2:]), (b, hkv, group, l, s))
    scaled, scores = work
    dtype = scores.dtype
    for at_b, at_h, at_l in _blocks((b, hkv, l), block_of(b, hkv, group, l, s, dtype.itemsize)):
        part = (at_b, at_h, slice(None), at_l)
        at_s = slice(0, s) if lengths is not None else _reach(at_l, s, left, right, offset)
        rows = q[part]
        nb, nh, _, n, _ = rows.shape
        if at_s.start == at_s.stop:
            out[part] = 0
            continue
        xp.multiply(rows, scale, out=scaled[: rows.size].reshape(rows.shape), dtype=dtype)
        block = scores[: nb * nh * group * n * (at_s.stop - at_s.start)].reshape(nb, nh, group * n, -1)
        keys = k[at_b, at_h, at_s].astype(dtype, copy=False)
        xp.matmul(scaled[: rows.size].reshape(nb, nh, group * n, d), keys.swapaxes(2, 3), out=block)
        if softcap > 0:
            block /= softcap
            xp.tanh(block, out=block)
            block *= softcap
        apart = block.reshape(nb, nh, group, n, -1)
        if mask is not None:
            _hide(xp, apart, mask[(*part, at_s)])
        seen = _seen(xp, None if lengths is None else lengths[at_b], at_l, at_s, l, left, right, offset)
        if seen is not None:
            _hide(xp, apart, seen)
        out[part] = weigh(xp, block, v[at_b, at_h, at_s].astype(dtype, copy=False)).reshape(nb, nh, group, n, -1)


def _reach(at_l: slice, s: int, left: int | None, right: int | None, offset: int) -> slice:
    """The keys that any query of the block can see; the others are left out altogether."""
    stop = s if right is None else min(s, max(at_l.stop + offset + right, 0))
    return slice(0 if left is None else min(max(at_l.start + offset - left, 0), stop), stop)


def _hide(xp: Any, scores: Any, mask: Any) -> None:
    """`masked`, in place."""
    if mask.dtype == np.bool_:
        xp.copyto(scores, -math.inf, where=~mask)
    else:
        scores += mask


def _seen(xp: Any, lengths: Any, at_l: slice, at_s: slice, l: int, left: int | None, right: int | None, offset: int) -> Any:
    """The block's part of `visible`; None where all is."""
    i, j = xp.arange(at_l.start, at_l.stop)[:, None], xp.arange(at_s.start, at_s.stop)
    if lengths is not None:
        count = lengths.astype(xp.int64)[:, None, None, None, None]
        seen = _window(i + count - l, j, left, right)
        return j < count if seen is None else seen & (j < count)
    first, last = at_l.start + offset, at_l.stop - 1 + offset
    if (right is None or at_s.stop - 1 <= first + right) and (left is None or at_s.start >= last - left):
        return None
    return _window(i + offset, j, left, right)


def weigh(xp: Any, scores: Any, v: Any) -> Any:
    """softmax(scores)·v; a row of −∞ alone gives zeros. Overwrites the scores, and divides last, where there is less to do."""
    largest = scores.max(axis=-1, keepdims=True)
    xp.maximum(largest, xp.finfo(scores.dtype).min, out=largest)
    scores -= largest
    xp.exp(scores, out=scores)
    total = scores.sum(axis=-1, keepdims=True)
    total += total == 0
    result = xp.matmul(scores, v)
    result /= total
    return result
