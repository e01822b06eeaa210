"""Exporters of attention and rotary embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np

from flamert import graph as g
from flamert import ops
from flamert.dtypes import accumulator
from flamert.exporters.registry import exporter, spelled
from flamert.exporters.writer import Writer
from flamert.grad.transform import through
from flamert.graph import Value
from flamert.ops.shape import narrow


@exporter(ops.attention, 25)
def _(
    to: Writer,
    q: Value,
    k: Value,
    v: Value,
    mask: Value | None = None,
    lengths: Value | None = None,
    *,
    scale: float,
    softcap: float,
    left: int | None,
    right: int | None,
    offset: int,
) -> Any:
    """Windows other than the causal one, and lengths, are masks of the body. Before opset 25 blind queries gave NaN."""
    if lengths is not None or left is not None or right not in (None, 0) or offset or not q.type.size or not k.type.size:
        return None
    if mask is not None and (mask.rank < 2 or mask.shape[-1] != k.shape[2]):
        return None  # in ONNX a mask that ends early hides the keys behind it
    return to("Attention", q, k, v, mask, scale=scale, softcap=softcap or None, is_causal=right == 0 or None)


@spelled(ops.rotary_embedding)
def _(x: Value, cos: Value, sin: Value, *, interleaved: bool) -> Value:
    half, last = cos.shape[-1], x.rank - 1
    wide = accumulator(x.dtype)
    full, cos, sin = (ops.cast(t, to=wide) for t in (x, cos, sin))
    turned = narrow(full, last, 0, 2 * half)
    step = 2 if interleaved else 1
    a, b = (narrow(turned, last, i if interleaved else i * half, half, step) for i in (0, 1))
    parts = [a * cos - b * sin, a * sin + b * cos]
    if interleaved:
        parts = [ops.reshape(p, shape=(*p.shape, 1)) for p in parts]
        turned = ops.reshape(ops.concat(*parts, axis=x.rank), shape=turned.shape)
    else:
        turned = ops.concat(*parts, axis=last)
    rest = x.shape[-1] - 2 * half
    y = ops.concat(turned, narrow(full, last, 2 * half, rest), axis=last) if rest else turned
    return ops.cast(y, to=x.dtype)


@spelled(ops.linear_attention)
def linear_attention(
    q: Value,
    k: Value,
    v: Value,
    state: Value | None = None,
    decay: Value | None = None,
    beta: Value | None = None,
    *,
    scale: float,
) -> tuple[Value, Value]:
    """Step by step."""
    (b, hq, steps, d), (_, hkv, _, dv) = q.shape, v.shape
    wide = max((accumulator(t.dtype) for t in (q, state or q)), key=lambda t: t.itemsize)
    last = q.dtype if state is None else state.dtype
    S = g.constant(np.zeros((b, hkv, d, dv), wide)) if state is None else ops.cast(state, to=wide)
    group = hq // max(hkv, 1)
    rows = ops.reshape(ops.cast(q, to=wide) * scale, shape=(b, hkv, group, steps, d))
    results = []
    for t in range(steps):
        key, value, fade, pull = (
            None if x is None else ops.cast(narrow(x, 2, min(t, x.shape[2] - 1), 1), to=wide)
            for x in (k, v, _full(decay), _full(beta))
        )
        assert key is not None and value is not None
        if fade is not None:
            S = S * ops.exp(ops.transpose(fade, perm=(0, 1, 3, 2)))
        u = value if pull is None else pull * (value - ops.matmul(key, S))
        S = S + ops.transpose(key, perm=(0, 1, 3, 2)) * u
        results.append(ops.matmul(ops.reshape(narrow(rows, 3, t, 1), shape=(b, hkv, group, d)), S))
    o = [ops.reshape(r, shape=(b, hq, 1, dv)) for r in results]
    y = ops.concat(*o, axis=2) if o else g.constant(np.zeros((b, hq, 0, dv), wide))
    return ops.cast(y, to=q.dtype), ops.cast(S, to=last)


def _full(gate: Value | None) -> Value | None:
    """A gate with all four of its axes."""
    return None if gate is None else ops.reshape(gate, shape=(1,) * (4 - gate.rank) + gate.shape)


@spelled(ops.linear_attention_gradient)
def _(
    q: Value,
    k: Value,
    v: Value,
    state: Value | None = None,
    decay: Value | None = None,
    beta: Value | None = None,
    dy: Value | None = None,
    dlast: Value | None = None,
    *,
    scale: float,
) -> list[Value]:
    """The gradient of the steps written out."""
    if state is None:
        state = g.constant(np.zeros((*k.shape[:2], k.shape[3], v.shape[3]), q.dtype))
    full = [
        None if gate is None else ops.expand(_full(gate), shape=(*k.shape[:3], n))
        for gate, n in ((decay, k.shape[3]), (beta, 1))
    ]
    operands = (q, k, v, state, *full)
    flows = through(lambda *given: linear_attention(*given, scale=scale), operands, (dy, dlast))
    return [
        g.constant(np.zeros(v.shape, v.dtype)) if f is None else f
        for v, f in zip(operands, flows, strict=True)
        if v is not None
    ]
