"""Attention whose state has a fixed size: linear, gated and delta-rule recurrences over matrices."""

from __future__ import annotations

from typing import Any

from flamert import dtypes
from flamert.errors import ShapeError
from flamert.graph import Node, TensorType
from flamert.ops.op import kernel, op
from flamert.ops.rules import broadcast, require, same_dtype


@op
def linear_attention(
    q: TensorType,
    k: TensorType,
    v: TensorType,
    state: TensorType | None = None,
    decay: TensorType | None = None,
    beta: TensorType | None = None,
    *,
    scale: float,
) -> tuple[TensorType, TensorType]:
    """Sₜ = exp(gₜ)⊙Sₜ₋₁ + kₜ⊗uₜ;  oₜ = scale · qₜᵀ·Sₜ;  uₜ = vₜ, or βₜ·(vₜ − (exp(gₜ)⊙Sₜ₋₁)ᵀ·kₜ) with beta.

    q: [B, Hq, T, K], k: [B, Hkv, T, K], v: [B, Hkv, T, V]; Hq a multiple of Hkv, query head h reads the state of head
    h // (Hq / Hkv). state: S₀ [B, Hkv, K, V], of a floating type of its own, zero when left out. decay: g, broadcast to
    [B, Hkv, T, K], no decay when left out. beta: broadcast to [B, Hkv, T, 1]. All else floating and of one type; half types
    compute in float32. Returns o [B, Hq, T, V] and the last state, of state's type or else of q's.
    Source: ONNX LinearAttention-27, Yang et al. 2024.
    """
    require(q, dtypes.STANDARD_FLOAT, "floating")
    same_dtype(q, k, v, *[t for t in (decay, beta) if t is not None])
    if not q.rank == k.rank == v.rank == 4:
        raise ShapeError(f"q, k and v must be [batch, heads, time, size], not {q}, {k} and {v}")
    (b, hq, t, d), hkv, dv = q.shape, k.shape[1], v.shape[3]
    if k.shape != (b, hkv, t, d) or v.shape[:3] != (b, hkv, t) or (hq % hkv if hkv else hq):
        raise ShapeError(f"q {list(q.shape)}, k {list(k.shape)} and v {list(v.shape)} do not fit together")
    last = state or TensorType((b, hkv, d, dv), q.dtype)
    require(last, dtypes.STANDARD_FLOAT, "floating")
    if last.shape != (b, hkv, d, dv):
        raise ShapeError(f"the state must be {[b, hkv, d, dv]}, not {list(last.shape)}")
    for name, gate, full in (("decay", decay, (b, hkv, t, d)), ("beta", beta, (b, hkv, t, 1))):
        if gate is not None and broadcast(gate.shape, full) != full:
            raise ShapeError(f"{name} {list(gate.shape)} does not broadcast to {list(full)}")
    return TensorType((b, hq, t, dv), q.dtype), last


def _scratch(node: Node) -> list[TensorType]:
    dtype = max((dtypes.accumulator(t.dtype) for t in node.types), key=lambda d: d.itemsize)
    return [TensorType(node.types[1].shape, dtype), TensorType(node.types[1].shape, dtype)]


@kernel(linear_attention, workspace=_scratch)
def _(
    xp: Any,
    out: Any,
    q: Any,
    k: Any,
    v: Any,
    state: Any = None,
    decay: Any = None,
    beta: Any = None,
    *,
    scale: float,
    work: Any,
) -> None:
    o, last = out
    S, outer = work
    S[...] = 0 if state is None else state
    (b, hq, steps, d), hkv = q.shape, k.shape[1]
    q = (q.astype(S.dtype) * scale).reshape(b, hkv, hq // max(hkv, 1), steps, d)
    k, v, decay, beta = (x if x is None else x.astype(S.dtype, copy=False) for x in (k, v, decay, beta))
    kept = None if decay is None else xp.exp(decay)
    for t in range(steps):
        if kept is not None:
            S *= kept[:, :, t, :, None]
        u = v[:, :, t, None]
        if beta is not None:
            u = beta[:, :, t, None] * (u - k[:, :, t, None] @ S)
        xp.multiply(k[:, :, t, :, None], u, out=outer)
        S += outer
        o[:, :, t] = (q[:, :, :, t] @ S).reshape(b, hq, -1)
    last[...] = S
