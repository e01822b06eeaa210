"""Gradients of activation functions, where those of their bodies would be slower, less accurate or different at a kink."""

from __future__ import annotations

import math
from typing import Any

from flamert import ops
from flamert.grad.elementwise import widened
from flamert.grad.registry import gradient
from flamert.ops.activation import SQRT_HALF, SQRT_TWO_OVER_PI


@gradient(ops.relu)
def _(dy: Any, y: Any, x: Any) -> Any:
    """dx = dy where y > 0, else 0"""
    return ops.where(y > 0, dy, 0)


@gradient(ops.leaky_relu)
def _(dy: Any, y: Any, x: Any, *, alpha: float) -> Any:
    """dx = dy where x > 0, else dy · alpha"""
    return ops.where(x > 0, dy, dy * alpha)


@gradient(ops.prelu)
def _(dy: Any, y: Any, x: Any, slope: Any) -> Any:
    """dx = dy where x > 0, else dy · slope; dslope = 0 where x > 0, else dy · x"""
    above = x > 0
    return ops.where(above, dy, dy * slope), ops.where(above, 0, dy * x)


@gradient(ops.elu)
@widened
def _(dy: Any, y: Any, x: Any, *, alpha: float) -> Any:
    """dx = dy where x > 0, else dy · alpha · exp(x)"""
    above = x > 0
    return ops.where(above, dy, dy * (ops.exp(ops.where(above, 0, x)) * alpha))


@gradient(ops.sigmoid)
@widened
def _(dy: Any, y: Any, x: Any) -> Any:
    """dx = dy · y · (1 − y)"""
    return dy * (y * (1 - y))


@gradient(ops.swish)
@widened
def _(dy: Any, y: Any, x: Any, *, alpha: float) -> Any:
    """dx = dy · s · (1 + αx · (1 − s)), where s = sigmoid(αx)"""
    scaled = x if alpha == 1 else x * alpha
    s = ops.sigmoid(scaled)
    return dy * (s * (scaled * (1 - s) + 1))


@gradient(ops.hard_sigmoid)
def _(dy: Any, y: Any, x: Any, *, alpha: float, beta: float) -> Any:
    """dx = dy · alpha where 0 < y < 1, else 0"""
    return ops.where((y > 0) & (y < 1), dy * alpha, 0)


@gradient(ops.hard_swish)
@widened
def _(dy: Any, y: Any, x: Any) -> Any:
    """dx = dy · (x/3 + ½) where −3 < x < 3; below 0, above dy"""
    return ops.where(x >= 3, dy, ops.where(x > -3, dy * (x / 3 + 0.5), 0))


@gradient(ops.softplus)
@widened
def _(dy: Any, y: Any, x: Any) -> Any:
    """dx = dy · sigmoid(x)"""
    return dy * ops.sigmoid(x)


@gradient(ops.softsign)
@widened
def _(dy: Any, y: Any, x: Any) -> Any:
    """dx = dy / (1 + |x|)²"""
    size = abs(x) + 1
    return dy / size / size


@gradient(ops.gelu)
@widened
def _(dy: Any, y: Any, x: Any) -> Any:
    """dx = dy · (Φ(x) + x · φ(x)), φ the density of the normal distribution Φ"""
    area = (ops.erf(x * SQRT_HALF) + 1) * 0.5
    density = ops.exp(x * x * -0.5) * math.sqrt(0.5 / math.pi)
    return dy * (area + x * density)


@gradient(ops.gelu_tanh)
@widened
def _(dy: Any, y: Any, x: Any) -> Any:
    """dx = dy · s · (1 + x · (1 − s) · u'), where s = sigmoid(u), u = 2√(2/π) · (x + 0.044715 · x³)"""
    square = x * x
    s = ops.sigmoid((square * 0.044715 + 1) * x * (2 * SQRT_TWO_OVER_PI))
    slope = (square * (3 * 0.044715) + 1) * (2 * SQRT_TWO_OVER_PI)
    return dy * (s * (x * (1 - s) * slope + 1))
