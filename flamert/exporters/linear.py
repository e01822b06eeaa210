"""Exporters of matrix products, Einstein summation, determinants and inverses."""

from __future__ import annotations

from typing import Any

import numpy as np

from flamert import graph as g
from flamert import ops
from flamert.exporters.registry import exporter, plain, spelled
from flamert.exporters.writer import Writer
from flamert.graph import Value
from flamert.ops.shape import narrow

plain(ops.matmul, "MatMul")
plain(ops.gemm, "Gemm", trans_a="transA", trans_b="transB")
plain(ops.det, "Det")


@exporter(ops.einsum)
def _(to: Writer, *xs: Value, equation: str) -> Any:
    """Where a dimension of 1 meets a longer one of the same label, runtimes differ: the body is clear."""
    sizes: dict[str, set[int]] = {}
    if "..." in equation:
        return None
    for x, term in zip(xs, equation.replace(" ", "").partition("->")[0].split(","), strict=True):
        for label, d in zip(term, x.shape, strict=True):
            sizes.setdefault(label, set()).add(d)
    return to("Einsum", *xs, equation=equation) if all(len(s) == 1 for s in sizes.values()) else None


@spelled(ops.inverse)
def _(x: Value) -> Value:
    """Gauss and Jordan's elimination with row exchanges, one column of all matrices at a time."""
    m, axis = x.shape[-1], x.rank - 2
    eye = np.eye(m, dtype=x.dtype)
    whole = ops.concat(x, ops.expand(g.constant(eye), shape=x.shape), axis=x.rank - 1)
    for k in range(m):
        column = narrow(whole, x.rank - 1, k, 1)
        here = g.constant((np.arange(m) == k).reshape(m, 1))
        size = ops.where(g.constant((np.arange(m) < k).reshape(m, 1)), g.constant(np.array(-1, x.dtype)), abs(column))
        best = ops.equal(ops.argmax(size, axis=axis, keepdims=True), g.constant(np.arange(m).reshape(m, 1)))
        row = ops.reduce_sum(ops.where(best, whole, 0), axes=(axis,), keepdims=True)
        exchanged = ops.where(best, narrow(whole, axis, k, 1), whole)
        row = row / narrow(row, x.rank - 1, k, 1)
        below = exchanged - narrow(exchanged, x.rank - 1, k, 1) * row
        whole = ops.where(here, row, below)
    return narrow(whole, x.rank - 1, m, m)
