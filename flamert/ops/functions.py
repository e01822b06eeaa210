"""Elementary functions of one number: roots, exponentials, logarithms, trigonometric and hyperbolic functions, erf."""

from __future__ import annotations

from typing import Any

import numpy as np

from flamert import dtypes
from flamert.graph import TensorType
from flamert.ops.blockwise import blockwise
from flamert.ops.elementwise import single, ufunc
from flamert.ops.op import op


def floating(x: TensorType) -> TensorType:
    """The operand's own type, once it is found to be floating."""
    return single(x, dtypes.STANDARD_FLOAT, "floating")


@ufunc("sqrt")
@op(inplace=(0,))
def sqrt(x: TensorType) -> TensorType:
    """√x; NaN below 0. Floating; returns x's type. Source: ONNX Sqrt-13."""
    return floating(x)


@ufunc("reciprocal")
@op(inplace=(0,))
def reciprocal(x: TensorType) -> TensorType:
    """1 / x. Floating; returns x's type. Source: ONNX Reciprocal-13."""
    return floating(x)


@ufunc("exp")
@op(inplace=(0,))
def exp(x: TensorType) -> TensorType:
    """e to the power x. Floating; returns x's type. Source: ONNX Exp-13."""
    return floating(x)


@ufunc("expm1")
@op(inplace=(0,))
def expm1(x: TensorType) -> TensorType:
    """exp(x) − 1 without cancellation near 0. Floating; returns x's type. Source: C's expm1."""
    return floating(x)


@ufunc("log")
@op(inplace=(0,))
def log(x: TensorType) -> TensorType:
    """The natural logarithm; NaN below 0, −∞ at 0. Floating; returns x's type. Source: ONNX Log-13."""
    return floating(x)


@ufunc("log1p")
@op(inplace=(0,))
def log1p(x: TensorType) -> TensorType:
    """log(1 + x) without cancellation near 0. Floating; returns x's type. Source: C's log1p."""
    return floating(x)


@ufunc("sin")
@op(inplace=(0,))
def sin(x: TensorType) -> TensorType:
    """Sine of x radians. Floating; returns x's type. Source: ONNX Sin-22."""
    return floating(x)


@ufunc("cos")
@op(inplace=(0,))
def cos(x: TensorType) -> TensorType:
    """Cosine of x radians. Floating; returns x's type. Source: ONNX Cos-22."""
    return floating(x)


@ufunc("tan")
@op(inplace=(0,))
def tan(x: TensorType) -> TensorType:
    """Tangent of x radians. Floating; returns x's type. Source: ONNX Tan-22."""
    return floating(x)


@ufunc("arcsin")
@op(inplace=(0,))
def asin(x: TensorType) -> TensorType:
    """The angle in [−π/2, π/2] radians whose sine is x; NaN outside [−1, 1]. Floating. Source: ONNX Asin-22."""
    return floating(x)


@ufunc("arccos")
@op(inplace=(0,))
def acos(x: TensorType) -> TensorType:
    """The angle in [0, π] radians whose cosine is x; NaN outside [−1, 1]. Floating. Source: ONNX Acos-22."""
    return floating(x)


@ufunc("arctan")
@op(inplace=(0,))
def atan(x: TensorType) -> TensorType:
    """The angle in [−π/2, π/2] radians whose tangent is x. Floating; returns x's type. Source: ONNX Atan-22."""
    return floating(x)


@ufunc("sinh")
@op(inplace=(0,))
def sinh(x: TensorType) -> TensorType:
    """(exp(x) − exp(−x)) / 2. Floating; returns x's type. Source: ONNX Sinh-22."""
    return floating(x)


@ufunc("cosh")
@op(inplace=(0,))
def cosh(x: TensorType) -> TensorType:
    """(exp(x) + exp(−x)) / 2. Floating; returns x's type. Source: ONNX Cosh-22."""
    return floating(x)


@ufunc("tanh")
@op(inplace=(0,))
def tanh(x: TensorType) -> TensorType:
    """sinh(x) / cosh(x). Floating; returns x's type. Source: ONNX Tanh-13."""
    return floating(x)


@ufunc("arcsinh")
@op(inplace=(0,))
def asinh(x: TensorType) -> TensorType:
    """The number whose sinh is x. Floating; returns x's type. Source: ONNX Asinh-22."""
    return floating(x)


@ufunc("arccosh")
@op(inplace=(0,))
def acosh(x: TensorType) -> TensorType:
    """The number ≥ 0 whose cosh is x; NaN below 1. Floating; returns x's type. Source: ONNX Acosh-22."""
    return floating(x)


@ufunc("arctanh")
@op(inplace=(0,))
def atanh(x: TensorType) -> TensorType:
    """The number whose tanh is x; NaN outside [−1, 1]. Floating; returns x's type. Source: ONNX Atanh-22."""
    return floating(x)


@op(inplace=(0,))
def erf(x: TensorType) -> TensorType:
    """2/√π ∫₀ˣ exp(−t²) dt. Floating; returns x's type. Source: ONNX Erf-13."""
    return floating(x)


@blockwise(erf)
def erf_steps(xp: Any, y: Any, x: Any) -> None:
    """An odd rational function within 4·10⁻⁷ in float32; in float64 two polynomials, right to the last bit or two."""
    if y.dtype == np.float32:
        _erf_single(y, x)
    else:
        _erf_double(y, x)


ERF_SATURATES = 4.0
"""From here on erf rounds to 1 in float32, and the quotient below, which has come to exceed 1, is cut there."""

ERF_NUMERATOR = (1.12837915, 0.190367300, 0.0527440379, 0.00376406626, 2.84871487e-4, 2.05070856e-6)
ERF_DENOMINATOR = (1.0, 0.502041372, 0.114093372, 0.0149660993, 0.00116220286, 3.80975346e-5)
"""erf(x) / x on [0, 3.92] as a quotient of polynomials in x², lowest power first: a weighted least-squares fit made minimax."""

ERF_BELOW_1 = (
    1.1283791670955126,
    -0.3761263890318375,
    0.11283791670954879,
    -0.026866170645076792,
    0.0052239776248180145,
    -0.000854832698083379,
    0.0001205533111164271,
    -1.4925595266831182e-05,
    1.6461000484121368e-06,
    -1.6350312701054695e-07,
    1.4659775274047436e-08,
    -1.1372848856791674e-09,
    5.957176147748911e-11,
)
"""erf(x) / x on [0, 1], in powers of x²: the interpolant at the Chebyshev nodes."""

ERFC_ABOVE_1 = (
    0.2108063640611436,
    -0.37173673394897294,
    0.2517131932174488,
    -0.12503305237891782,
    0.03992253907546523,
    -0.003993701160123029,
    -0.0026423659518134547,
    0.0008759152875774328,
    0.0002283799633257643,
    -0.00012887483134837842,
    -3.4175718896856294e-05,
    1.8596747731144528e-05,
    7.499735050763299e-06,
    -2.2328516517555215e-06,
    -1.587633893127344e-06,
)
"""exp(x²) · (1 − erf(x)) on [1, 6], in powers of (x − 2.5) / (x + 2.5): the interpolant at the Chebyshev nodes."""


def _polynomial(out: Any, x: Any, coefficients: tuple[float, ...]) -> Any:
    """Σ coefficients[i] · xⁱ by Horner's rule, into `out`."""
    np.multiply(x, coefficients[-1], out=out)
    for c in coefficients[-2:0:-1]:
        np.add(out, c, out=out)
        np.multiply(out, x, out=out)
    return np.add(out, coefficients[0], out=out)


def _erf_single(y: Any, x: Any) -> None:
    near = np.minimum(np.maximum(x, -ERF_SATURATES), ERF_SATURATES)
    square = near * near
    quotient = _polynomial(np.empty_like(near), square, ERF_NUMERATOR)
    np.divide(quotient, _polynomial(y, square, ERF_DENOMINATOR), out=quotient)
    np.multiply(near, quotient, out=y)
    np.minimum(np.maximum(y, -1, out=y), 1, out=y)


def _erf_double(y: Any, x: Any) -> None:
    size = np.minimum(np.abs(x), 6)
    square = size * size
    below = size * _polynomial(np.empty_like(size), square, ERF_BELOW_1)
    tail = _polynomial(np.empty_like(size), (size - 2.5) / (size + 2.5), ERFC_ABOVE_1)
    np.copysign(np.where(size < 1, below, 1 - tail * np.exp(-square)), x, out=y)
