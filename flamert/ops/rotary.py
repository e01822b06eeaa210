"""Rotary position embeddings."""

from __future__ import annotations

from typing import Any

from flamert import dtypes
from flamert.errors import ShapeError
from flamert.graph import TensorType
from flamert.ops.op import kernel, op
from flamert.ops.rules import broadcast, require, same_dtype


@op
def rotary_embedding(x: TensorType, cos: TensorType, sin: TensorType, *, interleaved: bool = False) -> TensorType:
    """Rotates pairs (a, b) of the last dimension: (a·cos − b·sin, a·sin + b·cos).

    x: floating [..., D]. cos, sin: of its type, [..., R / 2], broadcast to x's other dimensions; R ≤ D elements are rotated
    and the rest stay. A pair is (x[i], x[i + R / 2]), or (x[2i], x[2i + 1]) if interleaved. Returns x's type; half types
    compute in float32. Raises ShapeError where cos and sin differ or do not fit.
    Source: ONNX RotaryEmbedding-23, Su et al. 2021.
    """
    require(x, dtypes.STANDARD_FLOAT, "floating")
    same_dtype(x, cos, sin)
    if cos.shape != sin.shape or not cos.rank or 2 * cos.shape[-1] > x.shape[-1]:
        raise ShapeError(f"cos {list(cos.shape)} and sin {list(sin.shape)} do not fit x {list(x.shape)}")
    if broadcast(x.shape[:-1], cos.shape[:-1]) != x.shape[:-1]:
        raise ShapeError(f"cos {list(cos.shape)} does not broadcast to x {list(x.shape)}")
    return x


@kernel(rotary_embedding)
def _(xp: Any, out: Any, x: Any, cos: Any, sin: Any, *, interleaved: bool) -> None:
    half = cos.shape[-1]
    first, second = (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if interleaved else (slice(0, half), slice(half, 2 * half))
    dtype = dtypes.accumulator(x.dtype)
    a, b, cos, sin = (t.astype(dtype, copy=False) for t in (x[..., first], x[..., second], cos, sin))
    out[..., first] = a * cos - b * sin
    out[..., second] = a * sin + b * cos
    out[..., 2 * half :] = x[..., 2 * half :]
