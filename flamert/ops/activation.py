"""Activation functions of neural networks, element by element, in forms that do not overflow."""

from __future__ import annotations

import math
from typing import Any

from flamert.graph import TensorType
from flamert.ops.blockwise import blockwise
from flamert.ops.elementwise import maximum, minimum
from flamert.ops.functions import erf, erf_steps, expm1, floating, tanh
from flamert.ops.logic import where
from flamert.ops.op import composite, op

SQRT_HALF = math.sqrt(0.5)
SQRT_TWO_OVER_PI = math.sqrt(2 / math.pi)


@composite(inplace=(0,))
def relu(x: Any) -> Any:
    """max(x, 0). Real; returns x's type. Source: ONNX Relu-14."""
    return maximum(x, 0)


@composite(inplace=(0,))
def leaky_relu(x: Any, *, alpha: float = 0.01) -> Any:
    """x above 0, alpha · x below. Floating; returns x's type. Source: ONNX LeakyRelu-16."""
    return where(x > 0, x, x * alpha)


@blockwise(leaky_relu)
def _(xp: Any, y: Any, x: Any, *, alpha: float) -> None:
    xp.multiply(x, alpha, out=y)
    (xp.maximum if alpha <= 1 else xp.minimum)(x, y, out=y)


@composite
def prelu(x: Any, slope: Any) -> Any:
    """x above 0, slope · x below; the slope is broadcast to x. Real, one type for both. Source: ONNX PRelu-16."""
    return where(x < 0, x * slope, x)


@composite
def thresholded_relu(x: Any, *, alpha: float = 1.0) -> Any:
    """x above alpha, else 0. Floating; returns x's type. Source: ONNX ThresholdedRelu-22."""
    return where(x > alpha, x, 0)


@composite
def shrink(x: Any, *, lambd: float = 0.5, bias: float = 0.0) -> Any:
    """x + bias below −lambd, x − bias above lambd, 0 between. Real; returns x's type. Source: ONNX Shrink-9."""
    return where(x < -lambd, x + bias, where(x > lambd, x - bias, 0))


@composite(inplace=(0,))
def elu(x: Any, *, alpha: float = 1.0) -> Any:
    """x above 0, alpha · (exp(x) − 1) below. Floating; returns x's type. Source: ONNX Elu-22, Clevert et al. 2015."""
    return where(x > 0, x, expm1(minimum(x, 0)) * alpha)


@blockwise(elu)
def _(xp: Any, y: Any, x: Any, *, alpha: float) -> None:
    xp.minimum(x, 0, out=y)
    xp.expm1(y, out=y)
    xp.multiply(y, alpha, out=y)
    xp.add(y, xp.maximum(x, 0), out=y)


@composite
def celu(x: Any, *, alpha: float = 1.0) -> Any:
    """x above 0, alpha · (exp(x/alpha) − 1) below. Floating; returns x's type. Source: ONNX Celu-28, Barron 2017."""
    return elu(x / alpha) * alpha


@composite
def selu(x: Any, *, alpha: float = 1.6732632, gamma: float = 1.0507010) -> Any:
    """gamma · x above 0, gamma · alpha · (exp(x) − 1) below. Floating. Source: ONNX Selu-22, Klambauer et al. 2017."""
    return elu(x, alpha=alpha) * gamma


@op(inplace=(0,))
def sigmoid(x: TensorType) -> TensorType:
    """1 / (1 + exp(−x)). Floating; returns x's type. Source: ONNX Sigmoid-13."""
    return floating(x)


@blockwise(sigmoid)
def _(xp: Any, y: Any, x: Any) -> None:
    # Where exp(−x) overflows, the quotient is 0, which is what the sigmoid rounds to there.
    _one_plus_exp(xp, y, x, -1.0)
    xp.reciprocal(y, out=y)


def _one_plus_exp(xp: Any, y: Any, x: Any, factor: float) -> None:
    xp.multiply(x, factor, out=y)
    xp.exp(y, out=y)
    xp.add(y, 1, out=y)


@composite(inplace=(0,))
def swish(x: Any, *, alpha: float = 1.0) -> Any:
    """x · sigmoid(alpha · x); SiLU where alpha = 1. Floating. Source: ONNX Swish-24, Ramachandran et al. 2017."""
    return x * sigmoid(x if alpha == 1 else x * alpha)


@blockwise(swish)
def _(xp: Any, y: Any, x: Any, *, alpha: float) -> None:
    _one_plus_exp(xp, y, x, -alpha)
    xp.divide(x, y, out=y)


@composite
def swiglu(a: Any, b: Any, *, alpha: float = 1.0) -> Any:
    """swish(a) · b, broadcast. Floating, one type for both. Source: ONNX SwiGLU-28, Shazeer 2020."""
    return swish(a, alpha=alpha) * b


@composite(inplace=(0,))
def hard_sigmoid(x: Any, *, alpha: float = 0.2, beta: float = 0.5) -> Any:
    """alpha · x + beta, kept within [0, 1]. Floating; returns x's type. Source: ONNX HardSigmoid-22."""
    return minimum(maximum(x * alpha + beta, 0), 1)


@blockwise(hard_sigmoid)
def _hard_sigmoid(xp: Any, y: Any, x: Any, *, alpha: float, beta: float) -> None:
    xp.multiply(x, alpha, out=y)
    xp.add(y, beta, out=y)
    xp.maximum(y, 0, out=y)
    xp.minimum(y, 1, out=y)


@composite(inplace=(0,))
def hard_swish(x: Any) -> Any:
    """x · hard_sigmoid(x) with slope 1/6. Floating; returns x's type. Source: ONNX HardSwish-22, Howard et al. 2019."""
    return x * hard_sigmoid(x, alpha=1 / 6, beta=0.5)


@blockwise(hard_swish)
def _(xp: Any, y: Any, x: Any) -> None:
    _hard_sigmoid(xp, y, x, alpha=1 / 6, beta=0.5)
    xp.multiply(x, y, out=y)


@op(inplace=(0,))
def softplus(x: TensorType) -> TensorType:
    """log(1 + exp(x)). Floating; returns x's type. Source: ONNX Softplus-22."""
    return floating(x)


@blockwise(softplus)
def _(xp: Any, y: Any, x: Any) -> None:
    """max(x, 0) + log1p(exp(−|x|)): neither overflows nor loses small results."""
    xp.absolute(x, out=y)
    xp.negative(y, out=y)
    xp.exp(y, out=y)
    xp.log1p(y, out=y)
    xp.add(y, xp.maximum(x, 0), out=y)


@composite
def softsign(x: Any) -> Any:
    """x / (1 + |x|). Floating; returns x's type. Source: ONNX Softsign-22."""
    return x / (abs(x) + 1)


@composite(inplace=(0,))
def mish(x: Any) -> Any:
    """x · tanh(softplus(x)). Floating; returns x's type. Source: ONNX Mish-22, Misra 2019."""
    return x * tanh(softplus(x))


@composite(inplace=(0,))
def gelu(x: Any) -> Any:
    """x · Φ(x), Φ the normal distribution function. Floating. Source: ONNX Gelu-20, Hendrycks & Gimpel 2016."""
    return x * (erf(x * SQRT_HALF) + 1) * 0.5


@blockwise(gelu)
def _(xp: Any, y: Any, x: Any) -> None:
    erf_steps(xp, y, x * SQRT_HALF)
    xp.add(y, 1, out=y)
    xp.multiply(y, 0.5, out=y)
    xp.multiply(x, y, out=y)


@composite(inplace=(0,))
def gelu_tanh(x: Any) -> Any:
    """x · (1 + tanh(√(2/π) · (x + 0.044715 · x³))) / 2: GELU's older approximation. Floating. Source: ONNX Gelu-20, tanh."""
    return x * (tanh((x * x * 0.044715 + 1) * x * SQRT_TWO_OVER_PI) + 1) * 0.5


@blockwise(gelu_tanh)
def _(xp: Any, y: Any, x: Any) -> None:
    """(1 + tanh u) / 2 = 1 / (1 + exp(−2u)), and exp is the faster function."""
    xp.multiply(x, x, out=y)
    xp.multiply(y, -2 * SQRT_TWO_OVER_PI * 0.044715, out=y)
    xp.subtract(y, 2 * SQRT_TWO_OVER_PI, out=y)
    xp.multiply(y, x, out=y)
    xp.exp(y, out=y)
    xp.add(y, 1, out=y)
    xp.divide(x, y, out=y)
