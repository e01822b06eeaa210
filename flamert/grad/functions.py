"""Gradients of elementary functions of one number."""

from __future__ import annotations

import math
from typing import Any

from flamert import ops
from flamert.grad.elementwise import widened
from flamert.grad.registry import gradient


@gradient(ops.sqrt)
@widened
def _(dy: Any, y: Any, x: Any) -> Any:
    """dx = dy / 2y: ∞ at 0"""
    return dy / (y * 2)


@gradient(ops.reciprocal)
@widened
def _(dy: Any, y: Any, x: Any) -> Any:
    """dx = −dy · y²"""
    return -dy * y * y


@gradient(ops.exp)
def _(dy: Any, y: Any, x: Any) -> Any:
    """dx = dy · y"""
    return dy * y


@gradient(ops.expm1)
@widened
def _(dy: Any, y: Any, x: Any) -> Any:
    """dx = dy · (y + 1)"""
    return dy * (y + 1)


@gradient(ops.log)
def _(dy: Any, y: Any, x: Any) -> Any:
    """dx = dy / x"""
    return dy / x


@gradient(ops.log1p)
@widened
def _(dy: Any, y: Any, x: Any) -> Any:
    """dx = dy / (x + 1)"""
    return dy / (x + 1)


@gradient(ops.sin)
@widened
def _(dy: Any, y: Any, x: Any) -> Any:
    """dx = dy · cos x"""
    return dy * ops.cos(x)


@gradient(ops.cos)
@widened
def _(dy: Any, y: Any, x: Any) -> Any:
    """dx = −dy · sin x"""
    return -dy * ops.sin(x)


@gradient(ops.tan)
@widened
def _(dy: Any, y: Any, x: Any) -> Any:
    """dx = dy · (1 + y²)"""
    return dy * (y * y + 1)


@gradient(ops.asin)
@widened
def _(dy: Any, y: Any, x: Any) -> Any:
    """dx = dy / √(1 − x²): ∞ at ±1"""
    return dy / ops.sqrt((1 - x) * (1 + x))


@gradient(ops.acos)
@widened
def _(dy: Any, y: Any, x: Any) -> Any:
    """dx = −dy / √(1 − x²): −∞ at ±1"""
    return -dy / ops.sqrt((1 - x) * (1 + x))


@gradient(ops.atan)
@widened
def _(dy: Any, y: Any, x: Any) -> Any:
    """dx = dy / (1 + x²)"""
    return dy / (x * x + 1)


@gradient(ops.sinh)
@widened
def _(dy: Any, y: Any, x: Any) -> Any:
    """dx = dy · cosh x"""
    return dy * ops.cosh(x)


@gradient(ops.cosh)
@widened
def _(dy: Any, y: Any, x: Any) -> Any:
    """dx = dy · sinh x"""
    return dy * ops.sinh(x)


@gradient(ops.tanh)
@widened
def _(dy: Any, y: Any, x: Any) -> Any:
    """dx = dy · (1 − y²)"""
    return dy * (1 - y * y)


@gradient(ops.asinh)
@widened
def _(dy: Any, y: Any, x: Any) -> Any:
    """dx = dy / √(x² + 1)"""
    return dy / ops.sqrt(x * x + 1)


@gradient(ops.acosh)
@widened
def _(dy: Any, y: Any, x: Any) -> Any:
    """dx = dy / √(x² − 1): ∞ at 1"""
    return dy / ops.sqrt((x - 1) * (x + 1))


@gradient(ops.atanh)
@widened
def _(dy: Any, y: Any, x: Any) -> Any:
    """dx = dy / (1 − x²)"""
    return dy / ((1 - x) * (1 + x))


@gradient(ops.erf)
@widened
def _(dy: Any, y: Any, x: Any) -> Any:
    """dx = dy · 2/√π · exp(−x²)"""
    return dy * (ops.exp(-(x * x)) * (2 / math.sqrt(math.pi)))
