"""Converters of matrix products, Einstein summation and determinants."""

from __future__ import annotations

from flamert import ops
from flamert.errors import ShapeError
from flamert.graph import Value
from flamert.importers.registry import Context, converter, find
from flamert.ops.einsum import einsum

ACTIVATION_OPSET = 22
"""The opset whose meaning of an activation fused nodes have."""


@converter("MatMul")
def _(ctx: Context, a: Value, b: Value) -> Value:
    return ops.matmul(a, b)


@converter("Gemm", 7)
def _(
    ctx: Context,
    a: Value,
    b: Value,
    c: Value | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Value:
    return ops.gemm(a, b, c, alpha=alpha, beta=beta, trans_a=bool(transA), trans_b=bool(transB))


@converter("Gemm", 1)
def _(
    ctx: Context,
    a: Value,
    b: Value,
    c: Value,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    broadcast: int = 0,
) -> Value:
    y = ops.gemm(a, b, c, alpha=alpha, beta=beta, trans_a=bool(transA), trans_b=bool(transB))
    if not broadcast and c.shape != y.shape:
        raise ShapeError(f"C is {c.type}, the product {y.type}, and the node does not ask for broadcast")
    return y


@converter("Einsum", 12)
def _(ctx: Context, *xs: Value, equation: str) -> Value:
    return einsum(*xs, equation=equation)


@converter("Det", 11)
def _(ctx: Context, x: Value) -> Value:
    return ops.det(x)


def _oriented(x: Value, trans: int, trans_batch: int) -> Value:
    """FusedMatMul's operand as a stack of matrices: `trans_batch` says that axis 0 is the rows', behind it the batch's."""
    if x.rank < 2:
        return x
    axes = list(range(x.rank))
    if trans_batch:
        axes.insert(-1, axes.pop(0))
    if trans:
        axes[-2:] = reversed(axes[-2:])
    return ops.transpose(x, perm=tuple(axes))


def _fused_matmul(
    ctx: Context,
    a: Value,
    b: Value,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    transBatchA: int = 0,
    transBatchB: int = 0,
) -> Value:
    y = ops.matmul(_oriented(a, transA, transBatchA), _oriented(b, transB, transBatchB))
    return y if alpha == 1 else y * alpha


for _name in ("FusedMatMul", "TransposeMatMul"):
    converter(_name, domain="com.microsoft")(_fused_matmul)


def activated(ctx: Context, x: Value, name: str, **parameters: float | None) -> Value:
    """x through the activation that a fused node names: the ONNX op of that name, with those parameters that are given."""
    if not name:
        return x
    found = find("", name, ACTIVATION_OPSET)
    if found is None or found.operands != 1:
        raise ctx.unsupported(f"{name!r} is no activation")
    given = {k: v for k, v in parameters.items() if v is not None and k in found.attributes}
    return found.run(ctx, x, **given)


@converter("FusedGemm", domain="com.microsoft")
def _(
    ctx: Context,
    a: Value,
    b: Value,
    c: Value | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    activation: str = "",
    activation_alpha: float | None = None,
    activation_beta: float | None = None,
    activation_gamma: float | None = None,
) -> Value:
    y = ops.gemm(a, b, c, alpha=alpha, beta=beta, trans_a=bool(transA), trans_b=bool(transB))
    return activated(ctx, y, activation, alpha=activation_alpha, beta=activation_beta, gamma=activation_gamma)


@converter("Inverse", domain="com.microsoft")
def _(ctx: Context, x: Value) -> Value:
    return ops.inverse(x)


@converter("CDist", domain="com.microsoft")
def _(ctx: Context, a: Value, b: Value, *, metric: str = "sqeuclidean") -> Value:
    """Distances between all rows of a and all rows of b."""
    if metric not in ("sqeuclidean", "euclidean"):
        raise ctx.unsupported(f"metric {metric!r} is neither 'sqeuclidean' nor 'euclidean'")
    rows = ops.reshape(a, shape=(a.shape[0], 1, a.shape[1]))
    squares = ops.reduce_sum_square(rows - ops.reshape(b, shape=(1, *b.shape)), axes=(2,))
    return ops.sqrt(squares) if metric == "euclidean" else squares
