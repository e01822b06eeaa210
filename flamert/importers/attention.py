"""Converters of ONNX's attention ops: packed heads are unpacked, caches concatenated, modifier subgraphs entered."""

from __future__ import annotations

import math
from typing import Any

from flamert import dtypes, ops
from flamert import graph as g
from flamert.errors import InvalidModel, ShapeError
from flamert.graph import Value
from flamert.importers.onnx import OnnxGraph, dtype_of
from flamert.importers.registry import Context, Enter, converter
from flamert.ops.attention import attention, by_group, masked, probabilities, product, softened, visible
from flamert.ops.cast import cast
from flamert.ops.conv import conv
from flamert.ops.linear_attention import linear_attention
from flamert.ops.reduce import accumulating, cast_like
from flamert.ops.shape import narrow


def unpacked(x: Value, heads: int | None) -> Value:
    """[B, L, H·D] → [B, H, L, D]; a tensor of rank 4 is that already."""
    if x.rank == 4:
        return x
    if x.rank != 3 or not heads or x.shape[2] % heads:
        raise ShapeError(f"{list(x.shape)} cannot be split into {heads} heads")
    return ops.transpose(ops.reshape(x, shape=(*x.shape[:2], heads, x.shape[2] // heads)), perm=(0, 2, 1, 3))


def packed(y: Value) -> Value:
    """[B, H, L, D] → [B, L, H·D]."""
    b, h, l, d = y.shape
    return ops.reshape(ops.transpose(y, perm=(0, 2, 1, 3)), shape=(b, l, h * d))


def _widened(mask: Value | None, keys: int) -> Value | None:
    """A mask that ends before the keys do hides the keys beyond it."""
    if mask is None or not mask.rank or mask.shape[-1] in (1, keys):
        return mask
    pads = (*(0,) * (2 * mask.rank - 1), keys - mask.shape[-1])
    hidden = g.constant(False) if mask.dtype == dtypes.bool_ else g.constant(-math.inf, mask.dtype)
    return ops.pad(mask, hidden, pads=pads)


@converter("Attention", 23)
def _(
    ctx: Context,
    q: Value,
    k: Value,
    v: Value,
    attn_mask: Value | None = None,
    past_key: Value | None = None,
    past_value: Value | None = None,
    nonpad_kv_seqlen: Value | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    left_window_size: int = -1,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
) -> tuple[Value | None, ...]:
    """softmax_precision: the softmax is computed in float32 at least, whichever narrower type is asked for."""
    flat = q.rank == 3
    q, k, v = unpacked(q, q_num_heads), unpacked(k, kv_num_heads), unpacked(v, kv_num_heads)
    if (past_key is None) != (past_value is None) or (past_key is not None and nonpad_kv_seqlen is not None):
        raise InvalidModel("past_key and past_value go together, and not with nonpad_kv_seqlen")
    offset = 0
    if past_key is not None:
        offset = past_key.shape[2]
        k, v = ops.concat(past_key, k, axis=2), ops.concat(past_value, v, axis=2)
    bounds = [w for w in (right_window_size, 0 if is_causal else -1) if w >= 0]
    options: dict[str, Any] = {
        "scale": scale if scale is not None else q.shape[3] ** -0.5,
        "softcap": softcap,
        "left": left_window_size if left_window_size >= 0 else None,
        "right": min(bounds, default=None),
        "offset": offset,
    }
    mask = _widened(attn_mask, k.shape[2])
    operands: tuple[Value | None, ...] = (q, k, v, mask)
    if softmax_precision is not None and dtype_of(softmax_precision) == dtypes.float64:
        operands = tuple(x if x is None or x.dtype == dtypes.bool_ else cast(x, to=dtypes.float64) for x in operands)
    y = cast_like(attention(*operands, nonpad_kv_seqlen, **options), q)
    scores = _scores(q, k, mask, nonpad_kv_seqlen, qk_matmul_output_mode, **options) if ctx.wants(3) else None
    return packed(y) if flat else y, k, v, scores


def _scores(
    q: Value,
    k: Value,
    mask: Value | None,
    lengths: Value | None,
    mode: int,
    *,
    scale: float,
    softcap: float,
    left: int | None,
    right: int | None,
    offset: int,
) -> Value:
    """What attention computes on its way: 0 scaled products, 1 with the cap, 2 with the masks, 3 after softmax."""
    if mode not in range(4):
        raise InvalidModel(f"qk_matmul_output_mode {mode} is none of 0, 1, 2, 3")
    scores = product(accumulating(q), accumulating(k), scale)
    if mode >= 1:
        scores = softened(scores, softcap)
    if mode >= 2:
        scores = masked(masked(scores, mask), visible(lengths, q.shape[2], k.shape[2], left, right, offset))
    if mode == 3:
        scores = probabilities(scores)
    return cast_like(scores, q)


@converter("RotaryEmbedding", 23)
def _(
    ctx: Context,
    x: Value,
    cos_cache: Value,
    sin_cache: Value,
    position_ids: Value | None = None,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Value:
    apart = x
    if x.rank == 3:
        if num_heads < 1 or x.shape[2] % num_heads:
            raise ShapeError(f"{list(x.shape)} cannot be split into {num_heads} heads")
        apart = ops.reshape(x, shape=(*x.shape[:2], num_heads, x.shape[2] // num_heads))
    rotated = rotary_embedding_dim or apart.shape[3]
    caches = []
    for cache in (cos_cache, sin_cache):
        at = cache if position_ids is None else ops.gather(cache, position_ids, axis=0)
        if at.rank != 3 or 2 * at.shape[2] != rotated:
            raise ShapeError(f"cos and sin {list(cache.shape)} do not fit {rotated} rotated elements of {list(x.shape)}")
        caches.append(
            ops.reshape(at, shape=(*at.shape[:-1], 1, at.shape[-1]) if x.rank == 3 else (at.shape[0], 1, *at.shape[1:]))
        )
    return ops.reshape(ops.rotary_embedding(apart, *caches, interleaved=bool(interleaved)), shape=x.shape)


GATED = {"linear": (False, False), "gated": (True, False), "delta": (False, True), "gated_delta": (True, True)}
"""Update rules of LinearAttention: whether they take decay, and beta."""


@converter("LinearAttention", 27)
def _(
    ctx: Context,
    query: Value,
    key: Value,
    value: Value,
    past_state: Value | None = None,
    decay: Value | None = None,
    beta: Value | None = None,
    *,
    chunk_size: int = 64,
    kv_num_heads: int,
    q_num_heads: int,
    scale: float = 0.0,
    update_rule: str = "gated_delta",
) -> tuple[Value, Value]:
    """chunk_size is a hint on how to compute, not what."""
    if GATED.get(update_rule) != (decay is not None, beta is not None):
        raise InvalidModel(f"update rule {update_rule!r} does not go with the inputs given")
    q, k, v = unpacked(query, q_num_heads), unpacked(key, kv_num_heads), unpacked(value, kv_num_heads)
    g4 = None if decay is None else unpacked(decay, kv_num_heads)
    b4 = None if beta is None else unpacked(beta, beta.shape[-1])
    y, state = linear_attention(q, k, v, past_state, g4, b4, scale=scale or q.shape[3] ** -0.5)
    return packed(y), state


@converter("CausalConvWithState", 27)
def _(
    ctx: Context,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    past_state: Value | None = None,
    *,
    activation: str = "none",
) -> tuple[Value, Value]:
    if activation not in ("none", "silu", "swish"):
        raise ctx.unsupported(f"activation {activation!r} is none of none, silu, swish")
    before = weight.shape[2] - 1
    line = ops.pad(x, pads=(0, 0, before, 0, 0, 0)) if past_state is None else ops.concat(past_state, x, axis=2)
    y = conv(line, weight, bias, strides=(1,), pads=(0, 0), dilations=(1,), group=x.shape[1])
    state = narrow(line, 2, line.shape[2] - before, before)
    return y if activation == "none" else ops.swish(y), state


@converter("FlexAttention", domain="ai.onnx.preview")
def _(
    ctx: Context,
    q: Value,
    k: Value,
    v: Value,
    *,
    prob_mod: OnnxGraph | None = None,
    scale: float | None = None,
    score_mod: OnnxGraph | None = None,
    softmax_precision: int | None = None,
) -> Any:
    scale = q.shape[3] ** -0.5 if scale is None else scale
    if score_mod is None and prob_mod is None:
        return attention(q, k, v, scale=scale)
    precision = dtypes.accumulator(q.dtype) if softmax_precision is None else dtype_of(softmax_precision)

    def weigh(probs: list[Any], state: list[Any]) -> list[Value]:
        values = state[0]
        return [cast_like(by_group(accumulating(probs[0]), cast(values, to=dtypes.accumulator(precision))), values)]

    def normalise(scores: list[Any], state: list[Any]) -> Any:
        probs = ops.softmax(scores[0], axis=-1)
        if prob_mod is None:
            return weigh([probs], state)
        return Enter(prob_mod, {prob_mod.inputs[0]: probs}, weigh, state)

    scores = cast(product(accumulating(q), accumulating(k), scale), to=precision)
    if score_mod is None:
        return normalise([scores], [v])
    return Enter(score_mod, {score_mod.inputs[0]: scores}, normalise, [v])
