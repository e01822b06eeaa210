"""Arithmetic on every element alone: sums, products, quotients, powers, roundings, minimum and maximum, clip.

Elementary functions are in functions.py, comparisons and bits in logic.py, activations in activation.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from flamert import dtypes
from flamert.graph import TensorType
from flamert.ops.op import Op, Site, composite, kernel, op
from flamert.ops.rules import broadcast, require, same_dtype

INTEGER = dtypes.INTEGER - dtypes.NARROW_INTEGER
REAL = dtypes.STANDARD_FLOAT | INTEGER
NUMERIC = REAL | dtypes.COMPLEX


def ufunc(name: str) -> Callable[[Op], Op]:
    """The kernel of an op that one ufunc of NumPy and CuPy computes, straight into the result."""

    def register(target: Op) -> Op:
        @kernel(target, bind=True)
        def bound(site: Site, out: Any, *inputs: Any) -> Callable[[], Any]:
            return functools.partial(getattr(site.xp, name), *inputs, out=out)

        return target

    return register


def pair(a: TensorType, b: TensorType, allowed: frozenset[Any] = NUMERIC, what: str = "numeric") -> TensorType:
    """The type of a result that has its operands' common element type and the shape they broadcast to."""
    require(a, allowed, what)
    return TensorType(broadcast(a.shape, b.shape), same_dtype(a, b))


def single(x: TensorType, allowed: frozenset[Any] = REAL, what: str = "real") -> TensorType:
    """The operand's own type, once its element type is found to be allowed."""
    require(x, allowed, what)
    return x


@ufunc("add")
@op(inplace=(0, 1))
def add(a: TensorType, b: TensorType) -> TensorType:
    """a + b, broadcast. Numeric, one type for both; integers wrap around. Source: ONNX Add-14."""
    return pair(a, b)


@ufunc("subtract")
@op(inplace=(0, 1))
def sub(a: TensorType, b: TensorType) -> TensorType:
    """a − b, broadcast. Numeric, one type for both; integers wrap around. Source: ONNX Sub-14."""
    return pair(a, b)


@ufunc("multiply")
@op(inplace=(0, 1))
def mul(a: TensorType, b: TensorType) -> TensorType:
    """a · b, broadcast. Numeric, one type for both; integers wrap around. Source: ONNX Mul-14."""
    return pair(a, b)


@op(inplace=(0, 1))
def div(a: TensorType, b: TensorType) -> TensorType:
    """a / b, broadcast. Numeric, one type for both; integers truncate toward zero. Source: ONNX Div-14.

    An integer divided by zero gives no defined value, and no error.
    """
    return pair(a, b)


@kernel(div, bind=True)
def _(site: Site, out: Any, a: Any, b: Any) -> Callable[[], Any]:
    dtype = site.node.types[0].dtype
    if dtype in dtypes.SIGNED:
        return functools.partial(_divide_truncating, site.xp, out, a, b)
    name = "floor_divide" if dtype in dtypes.UNSIGNED else "divide"
    return functools.partial(getattr(site.xp, name), a, b, out=out)


def _divide_truncating(xp: Any, out: Any, a: Any, b: Any) -> None:
    floor = xp.floor_divide(a, b)
    rounded_down = (floor * b != a) & ((a < 0) != (b < 0))
    xp.add(floor, rounded_down, out=out)


@ufunc("remainder")
@op(inplace=(0, 1))
def mod(a: TensorType, b: TensorType) -> TensorType:
    """a − b·⌊a/b⌋, broadcast: the remainder has the divisor's sign. Real, one type for both. Source: ONNX Mod-28."""
    return pair(a, b, REAL, "real")


@op(inplace=(0, 1))
def fmod(a: TensorType, b: TensorType) -> TensorType:
    """a − b·trunc(a/b), broadcast: the remainder has the dividend's sign. Real, one type for both. Source: ONNX Mod-28."""
    return pair(a, b, REAL, "real")


@kernel(fmod)
def _(xp: Any, out: Any, a: Any, b: Any) -> None:
    if out.dtype.kind == "i":
        # CuPy's fmod takes floats only; the floored remainder is off by one divisor where the signs differ.
        floored = xp.remainder(a, b)
        xp.subtract(floored, b * ((floored != 0) & ((a < 0) != (b < 0))), out=out)
    elif out.dtype.kind == "u":
        xp.remainder(a, b, out=out)
    else:
        xp.fmod(a, b, out=out)


@op(inplace=(0,))
def pow(a: TensorType, b: TensorType) -> TensorType:
    """a to the power b, broadcast. Real, one type for both. Source: ONNX Pow-15.

    Integers wrap around; a negative exponent gives the exact quotient truncated toward zero (0 for 0 to a negative power).
    """
    return pair(a, b, REAL, "real")


_SIMPLE_POWERS = {2.0: "square", 1.0: "positive", 0.5: "sqrt", -1.0: "reciprocal"}


@kernel(pow, bind=True)
def _(site: Site, out: Any, a: Any, b: Any) -> Callable[[], Any]:
    dtype, exponent = site.node.types[0].dtype, site.node.inputs[1]
    constant = None if exponent is None else exponent.constant
    if dtype in dtypes.STANDARD_FLOAT and constant is not None and constant.size == 1:
        name = _SIMPLE_POWERS.get(float(constant.reshape(())))
        if name:
            return functools.partial(getattr(site.xp, name), a, out=out)
    if dtype not in dtypes.SIGNED:
        return functools.partial(site.xp.power, a, b, out=out)
    return functools.partial(_integer_power, site.xp, out, a, b)


def _integer_power(xp: Any, out: Any, a: Any, b: Any) -> None:
    power = xp.power(a, xp.maximum(b, 0))
    # Only ±1 have integer reciprocals: 1, and ±1 by the exponent's parity.
    inverse = xp.where(a == 1, 1, xp.where(a == -1, 1 - 2 * (b & 1), 0))
    out[...] = xp.where(b < 0, inverse, power)


@ufunc("negative")
@op(inplace=(0,))
def neg(x: TensorType) -> TensorType:
    """−x. Floating, signed integer or complex; the least integer is its own negative. Source: ONNX Neg-13."""
    return single(x, NUMERIC - dtypes.UNSIGNED, "signed numeric")


@ufunc("absolute")
@op(inplace=(0,))
def abs(x: TensorType) -> TensorType:
    """|x|. Real; the least integer stays as it is. Source: ONNX Abs-13."""
    return single(x)


@ufunc("sign")
@op(inplace=(0,))
def sign(x: TensorType) -> TensorType:
    """−1, 0 or 1 by the sign of x; NaN for NaN. Real; returns x's type. Source: ONNX Sign-13."""
    return single(x)


@ufunc("floor")
@op(inplace=(0,))
def floor(x: TensorType) -> TensorType:
    """The greatest integer that is not above x. Floating; returns x's type. Source: ONNX Floor-13."""
    return single(x, dtypes.STANDARD_FLOAT, "floating")


@ufunc("ceil")
@op(inplace=(0,))
def ceil(x: TensorType) -> TensorType:
    """The least integer that is not below x. Floating; returns x's type. Source: ONNX Ceil-13."""
    return single(x, dtypes.STANDARD_FLOAT, "floating")


@ufunc("rint")
@op(inplace=(0,))
def round(x: TensorType) -> TensorType:
    """The nearest integer, halves to the even one. Floating; returns x's type. Source: ONNX Round-22."""
    return single(x, dtypes.STANDARD_FLOAT, "floating")


@ufunc("trunc")
@op(inplace=(0,))
def trunc(x: TensorType) -> TensorType:
    """x without its fraction. Floating; returns x's type. Source: C's trunc."""
    return single(x, dtypes.STANDARD_FLOAT, "floating")


@ufunc("minimum")
@op(inplace=(0, 1))
def minimum(a: TensorType, b: TensorType) -> TensorType:
    """min(a, b), broadcast; NaN where either is NaN. Real, one type for both. Source: ONNX Min-13."""
    return pair(a, b, REAL, "real")


@ufunc("maximum")
@op(inplace=(0, 1))
def maximum(a: TensorType, b: TensorType) -> TensorType:
    """max(a, b), broadcast; NaN where either is NaN. Real, one type for both. Source: ONNX Max-13."""
    return pair(a, b, REAL, "real")


@composite
def clip(x: Any, low: Any = None, high: Any = None) -> Any:
    """min(max(x, low), high); either bound may be absent, and `high` wins where they cross. Real. Source: ONNX Clip-13."""
    if low is not None:
        x = maximum(x, low)
    return x if high is None else minimum(x, high)
