"""Converters of matrix products."""

from __future__ import annotations

from flamert import ops
from flamert.graph import Value
from flamert.importers.registry import Context, converter


@converter("MatMul")
def _(ctx: Context, a: Value, b: Value) -> Value:
    return ops.matmul(a, b)
