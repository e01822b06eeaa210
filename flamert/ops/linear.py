"""Matrix products and what is made of them: matmul, gemm, einsum, determinants."""

from __future__ import annotations

from typing import Any

from flamert import dtypes
from flamert.errors import ShapeError
from flamert.graph import TensorType
from flamert.ops.op import kernel, op
from flamert.ops.rules import broadcast, same_dtype


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
    else:
        xp.matmul(a, b, out)
