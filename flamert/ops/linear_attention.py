"""Attention whose state has a fixed size: linear, gated and delta-rule recurrences over matrices."""

from __future__ import annotations

import math
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


@op
def linear_attention_gradient(
    q: TensorType,
    k: TensorType,
    v: TensorType,
    state: TensorType | None = None,
    decay: TensorType | None = None,
    beta: TensorType | None = None,
    dy: TensorType | None = None,
    dlast: TensorType | None = None,
    *,
    scale: float,
) -> tuple[TensorType, ...]:
    """The adjoint of `linear_attention`: gradients of q, k, v and state, then of decay and beta where they are given.

    With S̄ₜ = exp(gₜ)⊙Sₜ₋₁, Dₜ = ∂Sₜ, D̄ₜ = ∂S̄ₜ:  Dₜ += scale · qₜ⊗dyₜ;  dqₜ = scale · Sₜ·dyₜ;  dkₜ = Dₜ·uₜ;  duₜ = Dₜᵀ·kₜ;
    dgₜ = Σ S̄ₜ⊙D̄ₜ;  Dₜ₋₁ = exp(gₜ)⊙D̄ₜ; D̄ₜ = Dₜ, and with beta less what uₜ took from S̄ₜ. dy, dlast: gradients of the results,
    zero when left out. All else as for `linear_attention`; the gradient of a state left out is returned too, those of decay
    and beta are [B, Hkv, T, K] and [B, Hkv, T, 1].
    Source: ONNX LinearAttention-27; Griewank 1992 for keeping every √T-th state.
    """
    y, last = linear_attention.infer(q, k, v, state, decay, beta, scale=scale)
    for gradient, result in ((dy, y), (dlast, last)):
        if gradient is not None and gradient.shape != result.shape:
            raise ShapeError(f"the gradient {gradient} does not fit the result {result}")
    gates = [TensorType((*k.shape[:3], n), q.dtype) for gate, n in ((decay, k.shape[3]), (beta, 1)) if gate is not None]
    return (q, k, v, last, *gates)


@kernel(linear_attention_gradient)
def _(
    xp: Any,
    out: Any,
    q: Any,
    k: Any,
    v: Any,
    state: Any = None,
    decay: Any = None,
    beta: Any = None,
    dy: Any = None,
    dlast: Any = None,
    *,
    scale: float,
) -> None:
    """States are kept every √T steps and made anew from there, a stretch at a time."""
    dtype = max((dtypes.accumulator(t.dtype) for t in (q, out[3])), key=lambda d: d.itemsize)
    (b, hq, steps, d), hkv, dv = q.shape, k.shape[1], v.shape[3]
    group = hq // max(hkv, 1)
    Q = (q.astype(dtype) * scale).reshape(b, hkv, group, steps, d)
    k, v, decay, beta = (x if x is None else x.astype(dtype, copy=False) for x in (k, v, decay, beta))
    decay, beta = (x if x is None else xp.broadcast_to(x, (*k.shape[:3], n)) for x, n in ((decay, d), (beta, 1)))
    dY = xp.zeros((b, hkv, group, steps, dv), dtype) if dy is None else dy.astype(dtype).reshape(b, hkv, group, steps, dv)
    dq, dk, dv_, dstate, *rest = out
    dq = dq.reshape(b, hkv, group, steps, d)
    ddecay, dbeta = rest.pop(0) if decay is not None else None, rest.pop(0) if beta is not None else None

    def faded(S: Any, t: int) -> Any:
        return S if decay is None else S * xp.exp(decay[:, :, t, :, None])

    def written(S: Any, t: int) -> Any:
        """What step t adds along kₜ, given S̄ₜ."""
        u = v[:, :, t, None]
        return u if beta is None else beta[:, :, t, None] * (u - k[:, :, t, None] @ S)

    def stretch(S: Any, start: int, stop: int) -> list[Any]:
        """The states before each step and after the last one."""
        states = [S]
        for t in range(start, stop):
            S = faded(S, t)
            S = S + k[:, :, t, :, None] * written(S, t)
            states.append(S)
        return states

    stride = max(1, math.isqrt(steps))
    S = xp.zeros(dstate.shape, dtype) if state is None else state.astype(dtype)
    kept = [S]
    for start in range(0, steps - stride, stride):
        kept.append(stretch(kept[-1], start, start + stride)[-1])
    D = xp.zeros(dstate.shape, dtype) if dlast is None else dlast.astype(dtype)
    for start in reversed(range(0, steps, stride)):
        stop = min(start + stride, steps)
        states = stretch(kept[start // stride], start, stop)
        for t in reversed(range(start, stop)):
            S, before = states[t - start + 1], faded(states[t - start], t)
            key, column = k[:, :, t, None], k[:, :, t, :, None]
            dq[:, :, :, t] = dY[:, :, :, t] @ S.swapaxes(2, 3) * scale
            D = D + Q[:, :, :, t].swapaxes(2, 3) @ dY[:, :, :, t]
            u, du = written(before, t), key @ D
            to_key = u @ D.swapaxes(2, 3)
            if beta is not None:
                pull = beta[:, :, t, None]
                dbeta[:, :, t] = (du * (v[:, :, t, None] - key @ before)).sum(axis=-1)  # type: ignore[index]
                du = du * pull
                to_key -= du @ before.swapaxes(2, 3)
                D = D - column * du
            dk[:, :, t], dv_[:, :, t] = to_key[:, :, 0], du[:, :, 0]
            if decay is not None:
                ddecay[:, :, t] = (before * D).sum(axis=-1)  # type: ignore[index]
                D = D * xp.exp(decay[:, :, t, :, None])
    dstate[...] = D
