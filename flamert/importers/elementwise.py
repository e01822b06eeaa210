"""Converters of elementwise ONNX ops."""

from __future__ import annotations

from flamert import ops
from flamert.graph import Value
from flamert.importers.registry import Context, converter


@converter("Add", 7)
def _(ctx: Context, a: Value, b: Value) -> Value:
    return ops.add(a, b)


@converter("Relu", 6)
def _(ctx: Context, x: Value) -> Value:
    return ops.relu(x)
