"""Gradients of choices; comparisons, tests, truth values and bits have none to pass on."""

from __future__ import annotations

from typing import Any

from flamert import ops
from flamert.grad.registry import flat, gradient

flat(ops.less, ops.less_equal, ops.greater, ops.greater_equal, ops.equal, ops.not_equal, ops.isnan, ops.isinf)
flat(ops.logical_and, ops.logical_or, ops.logical_xor, ops.logical_not)
flat(ops.bitwise_and, ops.bitwise_or, ops.bitwise_xor, ops.bitwise_not, ops.shift_left, ops.shift_right)


@gradient(ops.where)
def _(dy: Any, y: Any, condition: Any, a: Any, b: Any) -> Any:
    """da = dy where the condition holds, db = dy where it does not"""
    return None, ops.where(condition, dy, 0), ops.where(condition, 0, dy)
