"""Matrix products, what is added to them, determinants and inverses. Einstein summation is in einsum.py."""

from __future__ import annotations

from typing import Any

import numpy as np

from flamert import dtypes
from flamert import graph as g
from flamert.errors import ShapeError
from flamert.graph import TensorType, Value
from flamert.ops.index import gather
from flamert.ops.op import composite, kernel, op
from flamert.ops.reduce import reduce_sum
from flamert.ops.rules import broadcast, require, same_dtype
from flamert.ops.shape import expand, transpose


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


def minors(x: Value) -> Value:
    """[..., i, j] holds the matrix x without row i and column j: [..., M, M, M − 1, M − 1]."""
    m = x.shape[-1]
    others = g.constant(np.array([[j for j in range(m) if j != i] for i in range(m)], np.int64).reshape(m, max(m - 1, 0)))
    rows = gather(x, others, axis=x.rank - 2)  # [..., i, m − 1, m]
    both = gather(rows, others, axis=x.rank)  # [..., i, m − 1, j, m − 1]
    return transpose(both, perm=(*range(x.rank - 1), x.rank, x.rank - 1, x.rank + 1))


def _signs(x: Value) -> Value:
    """A chessboard of 1 and −1."""
    at = np.arange(x.shape[-1])
    return g.constant((1 - 2 * (np.add.outer(at, at) % 2)).astype(x.dtype))


@composite
def cofactors(x: Any) -> Any:
    """∂ det x / ∂x: det(x) · x⁻ᵀ, but for singular matrices as well. x: floating [..., M, M]; half types go through float32.

    Source: Laplace's expansion; the kernel: with x = U S V, it is det U · det V · U S' V, where S' holds for each singular
    value the product of the others.
    """
    _square(x.type)
    if x.shape[-1] < 2:
        return expand(g.constant(np.ones((), x.dtype)), shape=x.shape)
    return det(minors(x)) * _signs(x)


@kernel(cofactors)
def _(xp: Any, out: Any, x: Any) -> None:
    u, s, v = xp.linalg.svd(x.astype(dtypes.accumulator(x.dtype), copy=False))
    sign = xp.linalg.det(u) * xp.linalg.det(v)
    out[...] = sign[..., None, None] * xp.matmul(u * _product_of_others(xp, s)[..., None, :], v)


def _product_of_others(xp: Any, s: Any) -> Any:
    """For each element along the last axis the product of all others: what lies before it times what lies behind."""
    others = xp.ones_like(s)
    others[..., 1:] = xp.cumprod(s[..., :-1], axis=-1)
    others[..., :-1] *= xp.cumprod(s[..., :0:-1], axis=-1)[..., ::-1]
    return others


@composite
def cofactor_slopes(x: Any, h: Any) -> Any:
    """Σᵢⱼ hᵢⱼ · ∂ cofactors(x) / ∂xᵢⱼ, for singular matrices as well; symmetric, so its own adjoint in h.

    x, h: floating [..., M, M] of one type. Source: Laplace's expansion, twice; the kernel: with x = U S V, as for diagonal S.
    """
    _square(x.type)
    if h.type != x.type:
        raise ShapeError(f"{x.type} and {h.type} differ")
    if x.shape[-1] < 2:
        return expand(g.constant(np.zeros((), x.dtype)), shape=x.shape)
    return reduce_sum(cofactors(minors(x)) * minors(h), axes=(x.rank, x.rank + 1)) * _signs(x)


@kernel(cofactor_slopes)
def _(xp: Any, out: Any, x: Any, h: Any) -> None:
    m, wide = x.shape[-1], dtypes.accumulator(x.dtype)
    u, s, v = xp.linalg.svd(x.astype(wide, copy=False))
    sign = xp.linalg.det(u) * xp.linalg.det(v)
    inner = xp.matmul(xp.matmul(u.swapaxes(-1, -2), h.astype(wide, copy=False)), v.swapaxes(-1, -2))
    eye = xp.eye(m, dtype=bool)
    rest = _product_of_others(xp, xp.where(eye, 1, s[..., None, :]))  # [i, j]: the product of all s but sᵢ and sⱼ
    rest = xp.where(eye, 0, rest)
    on_diagonal = (rest * xp.diagonal(inner, axis1=-2, axis2=-1)[..., None, :]).sum(-1)
    turned = xp.where(eye, on_diagonal[..., None], -rest * inner.swapaxes(-1, -2))
    out[...] = sign[..., None, None] * xp.matmul(xp.matmul(u, turned), v)


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
