"""Gradients of arithmetic."""

from __future__ import annotations

from typing import Any

from flamert import ops
from flamert.grad.registry import gradient


@gradient(ops.add)
def _(dy: Any, y: Any, a: Any, b: Any) -> Any:
    return dy, dy


@gradient(ops.mul)
def _(dy: Any, y: Any, a: Any, b: Any) -> Any:
    return dy * b, dy * a


@gradient(ops.neg)
def _(dy: Any, y: Any, x: Any) -> Any:
    return -dy
