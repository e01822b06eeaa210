"""Attention whose results lie position by position, [B, L, H, D], as the matrix products around it want them."""

from __future__ import annotations

from typing import Any

from flamert.ops.attention import attention, attention_gradient, masked, product, softened, visible
from flamert.ops.functions import exp, log
from flamert.ops.op import composite
from flamert.ops.reduce import accumulating, reduce_max, reduce_sum
from flamert.ops.shape import transpose

PERM = (0, 2, 1, 3)
"""From [B, H, L, D] to [B, L, H, D] and back."""


@composite
def attention_blhd(
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
    sums: bool = False,
) -> Any:
    """`attention` of the same operands, [B, H, L, D] each, its result as [B, L, Hq, Dv]; with `sums`, also the logarithm of
    what each query's probabilities were divided by, float32 [B, Hq, L, 1], which `attention_gradient_blhd` takes.

    Source: the layout that FlashAttention calls BSHD, Dao et al. 2022.
    """
    attrs = {"scale": scale, "softcap": softcap, "left": left, "right": right, "offset": offset}
    y = transpose(attention(q, k, v, mask, lengths, **attrs), perm=PERM)
    if not sums:
        return y
    scores = softened(product(accumulating(q), accumulating(k), scale), softcap)
    seen = visible(lengths, q.shape[2], k.shape[2], left, right, offset)
    scores = masked(masked(scores, mask), seen)
    most = reduce_max(scores, axes=(3,), keepdims=True)
    return y, log(reduce_sum(exp(scores - most), axes=(3,), keepdims=True)) + most


@composite
def attention_gradient_blhd(
    dy: Any,
    y: Any,
    sums: Any,
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
    """(dq, dk, dv) of `attention_gradient`, as [B, L, H, D] each. dy, y, q, k, v: [B, H, L, D]. sums: as `attention_blhd` left
    them, which spares kernels the forward pass."""
    attrs = {"scale": scale, "softcap": softcap, "left": left, "right": right, "offset": offset}
    return tuple([transpose(x, perm=PERM) for x in attention_gradient(dy, y, q, k, v, mask, lengths, **attrs)])
