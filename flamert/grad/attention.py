"""Gradient of attention, from its probabilities made anew."""

from __future__ import annotations

from typing import Any

from flamert import ops
from flamert.grad.registry import gradient
from flamert.graph import Value
from flamert.ops.attention import by_group, masked, probabilities, product, softened, visible
from flamert.ops.reduce import accumulating


@gradient(ops.attention)
def _(
    dy: Any,
    y: Any,
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
) -> Any:
    """With p = softmax(s):  dv = pᵀ·dy;  ds = p⊙(dy·vᵀ − Σ dy⊙y);  dmask = ds;  dq = scale · ds·k;  dk = scale · dsᵀ·q.

    Softcap multiplies ds by 1 − (s/softcap)² on its way to q and k. A query that sees no key sends nothing back.
    """
    dy, y, q, k, v = map(accumulating, (dy, y, q, k, v))
    heads, s = k.shape[1], k.shape[2]
    capped = softened(product(q, k, scale), softcap)
    p = probabilities(masked(masked(capped, mask), visible(lengths, q.shape[2], s, left, right, offset)))
    dp = by_group(dy, _turned(v))
    ds = p * (dp - ops.reduce_sum(dy * y, axes=(3,), keepdims=True))
    dmask = None if mask is None or mask.dtype.kind == "b" else ds
    if softcap > 0:
        ratio = capped / softcap
        ds = ds * (1 - ratio * ratio)
    ds_rows, q_rows, p_rows, dy_rows = (_rows(t, heads) for t in (ds, q, p, dy))
    dq = by_group(ds, k) * scale
    dk = _turned(ds_rows) @ q_rows * scale
    return dq, dk, _turned(p_rows) @ dy_rows, dmask


def _rows(x: Value, heads: int) -> Value:
    """[B, Hq, L, n] → [B, Hkv, group · L, n]: the queries that read the same head, one after the other."""
    b, h, l, n = x.shape
    return ops.reshape(x, shape=(b, heads, h // max(heads, 1) * l, n))


def _turned(x: Value) -> Value:
    return ops.transpose(x, perm=(0, 1, 3, 2))
