"""Matrix products, what is added to them, determinants and inverses. Einstein summation is in einsum.py."""

from __future__ import annotations

from typing import Any

from flamert import dtypes
from flamert.errors import ShapeError
from flamert.graph import TensorType
from flamert.ops.op import composite, kernel, op
from flamert.ops.rules import broadcast, require, same_dtype
from flamert.ops.shape import transpose


@op
def matmul(a: TensorType, b: TensorType) -> TensorType:
    """Matrix product over the last two axes, the axes before broadcast. NumPy's rule for 1-D operands.

    a: [..., M, K], b: [..., K, N]. Returns [..., M, N] of their type. Half types accumulate in float32. Source: ONNX MatMul-13.
    """
    dtype = same_dtype(a, b)
    if not a.rank or not b.rank:
        raise ShapeError("matmul takes no scalars")
    m, n = (a.shape[-2:-1], b.shape[-1:] if b.rank > 1 else ())
    if a.shape[-1] != (b.shape[-2] if b.rank > 1 else b.shape[0]):
        raise ShapeError(f"inner dimensions of {list(a.shape)} and {list(b.shape)} differ")
    return TensorType((*broadcast(a.shape[:-2], b.shape[:-2]), *m, *n), dtype)


@kernel(matmul)
def _(xp: Any, out: Any, a: Any, b: Any) -> None:
    if out.dtype in dtypes.HALF:
        out[...] = xp.matmul(a.astype(xp.float32), b.astype(xp.float32))
    elif b.ndim == 2 < a.ndim and a.flags.c_contiguous:
        # One product of tall matrices instead of one for each matrix of the stack.
        xp.matmul(a.reshape(-1, a.shape[-1]), b, out=out.reshape(-1, b.shape[1]))
    else:
        xp.matmul(a, b, out=out)


@composite
def gemm(
    a: Any, b: Any, c: Any = None, *, alpha: float = 1.0, beta: float = 1.0, trans_a: bool = False, trans_b: bool = False
) -> Any:
    """alpha · a' @ b' + beta · c, where a' is a or, with trans_a, its transpose; b' likewise.

    a': [M, K], b': [K, N], c: broadcast to [M, N]. Numeric, one type for all. Source: ONNX Gemm-13.
    """
    if a.rank != 2 or b.rank != 2:
        raise ShapeError("gemm takes matrices")
    y = matmul(transpose(a, perm=(1, 0)) if trans_a else a, transpose(b, perm=(1, 0)) if trans_b else b)
    if alpha != 1:
        y = y * alpha
    if c is None or beta == 0:
        return y
    if broadcast(c.shape, y.shape) != y.shape:
        raise ShapeError(f"{c.type} does not broadcast to {list(y.shape)}")
    return y + (c * beta if beta != 1 else c)


def _square(x: TensorType) -> None:
    require(x, dtypes.STANDARD_FLOAT, "floating")
    if x.rank < 2 or x.shape[-1] != x.shape[-2]:
        raise ShapeError(f"{x} holds no square matrices")


@op
def det(x: TensorType) -> TensorType:
    """The determinant of each square matrix. x: floating [..., M, M]. Returns [...]; half types are computed in float32.

    Source: ONNX Det-22.
    """
    _square(x)
    return TensorType(x.shape[:-2], x.dtype)


@kernel(det)
def _(xp: Any, out: Any, x: Any) -> None:
    out[...] = xp.linalg.det(x.astype(dtypes.accumulator(x.dtype), copy=False))


@op
def cofactors(x: TensorType) -> TensorType:
    """∂ det x / ∂x: det(x) · x⁻ᵀ, but for singular matrices as well. x: floating [..., M, M]; half types go through float32.

    Source: with x = U S V, it is det U · det V · U S' V, where S' holds for each singular value the product of the others.
    """
    _square(x)
    return x


@kernel(cofactors)
def _(xp: Any, out: Any, x: Any) -> None:
    u, s, v = xp.linalg.svd(x.astype(dtypes.accumulator(x.dtype), copy=False))
    others = xp.ones_like(s)
    # The values fall from first to last, so what lies before and what lies behind is multiplied up one by one.
    others[..., 1:] = xp.cumprod(s[..., :-1], axis=-1)
    others[..., :-1] *= xp.cumprod(s[..., :0:-1], axis=-1)[..., ::-1]
    sign = xp.linalg.det(u) * xp.linalg.det(v)
    out[...] = sign[..., None, None] * xp.matmul(u * others[..., None, :], v)


@op
def inverse(x: TensorType) -> TensorType:
    """The inverse of each matrix. x: floating [..., M, M]. Returns x's type; half types are computed in float32.

    Raises numpy.linalg.LinAlgError on the CPU for a singular matrix. Source: com.microsoft Inverse-1.
    """
    _square(x)
    return x


@kernel(inverse)
def _(xp: Any, out: Any, x: Any) -> None:
    out[...] = xp.linalg.inv(x.astype(dtypes.accumulator(x.dtype), copy=False))
