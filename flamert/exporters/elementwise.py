"""Exporters of arithmetic, elementary functions, comparisons, logic, bits and casts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flamert import dtypes, ops
from flamert import graph as g
from flamert.errors import UnsupportedOp
from flamert.exporters.registry import exporter, plain, spelled
from flamert.exporters.writer import Writer
from flamert.graph import Value
from flamert.ops.elementwise import REAL

for _op, _op_type in {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "neg": "Neg",
    "abs": "Abs",
    "sign": "Sign",
    "floor": "Floor",
    "ceil": "Ceil",
    "round": "Round",
    "minimum": "Min",
    "maximum": "Max",
    "clip": "Clip",
    "sqrt": "Sqrt",
    "reciprocal": "Reciprocal",
    "exp": "Exp",
    "log": "Log",
    "sin": "Sin",
    "cos": "Cos",
    "tan": "Tan",
    "asin": "Asin",
    "acos": "Acos",
    "atan": "Atan",
    "sinh": "Sinh",
    "cosh": "Cosh",
    "tanh": "Tanh",
    "asinh": "Asinh",
    "acosh": "Acosh",
    "atanh": "Atanh",
    "erf": "Erf",
    "less": "Less",
    "less_equal": "LessOrEqual",
    "greater": "Greater",
    "greater_equal": "GreaterOrEqual",
    "equal": "Equal",
    "logical_and": "And",
    "logical_or": "Or",
    "logical_xor": "Xor",
    "logical_not": "Not",
    "bitwise_and": "BitwiseAnd",
    "bitwise_or": "BitwiseOr",
    "bitwise_xor": "BitwiseXor",
    "bitwise_not": "BitwiseNot",
    "isnan": "IsNaN",
    "isinf": "IsInf",
    "bit_cast": "BitCast",
}.items():
    plain(ops.OPS[_op], _op_type)


@exporter(ops.cast)
def _(to: Writer, /, x: Value, **attributes: Any) -> Any:
    dtype = attributes["to"]
    if dtype == x.dtype and dtype in dtypes.STANDARD_FLOAT:  # as accumulators often are
        return to.name_of(x)
    saturate = attributes["saturate"] if dtype in dtypes.FLOAT8 else None
    round_mode = attributes["round_mode"] if dtype == dtypes.float8_e8m0fnu else None
    return to("Cast", x, to=dtype, saturate=saturate, round_mode=round_mode)


@exporter(ops.where)
def _(to: Writer, condition: Value, x: Value, y: Value) -> Any:
    """Of bools in terms of logic, since some runtimes have no choice between them."""
    if x.dtype != dtypes.bool_:
        return to("Where", condition, x, y)
    return to("Or", to("And", condition, x), to("And", to("Not", condition), y))


@exporter(ops.pow)
def _(to: Writer, a: Value, b: Value) -> Any:
    """Integers in int64, the reciprocals of ±1 apart: runtimes do not agree on integers to negative powers."""
    if a.dtype in dtypes.STANDARD_FLOAT:
        return to("Pow", a, b)
    base, exponent = (to("Cast", v, to=dtypes.int64) for v in (a, b))
    zero, one, two, minus = (np.array(n, np.int64) for n in (0, 1, 2, -1))
    power = to("Pow", base, to("Max", exponent, zero))
    if a.dtype in dtypes.SIGNED:
        sign = to("Sub", one, to("Mul", two, to("Mod", exponent, two)))
        inverse = to("Where", to("Equal", base, one), one, to("Where", to("Equal", base, minus), sign, zero))
        power = to("Where", to("Less", exponent, zero), inverse, power)
    return to("Cast", power, to=a.dtype)


@exporter(ops.mod)
def _(to: Writer, a: Value, b: Value) -> Any:
    """ONNX defines the floored remainder of integers; that of floats came late, and few runtimes have it."""
    return to("Mod", a, b) if a.dtype in dtypes.INTEGER else None


@spelled(ops.mod)
def _(a: Value, b: Value) -> Value:
    """The truncated remainder, moved by one divisor where the signs differ."""
    rest = ops.fmod(a, b)
    differ = ops.logical_and(ops.not_equal(rest, 0), ops.logical_xor(rest < 0, b < 0))
    return ops.where(differ, rest + b, rest)


@exporter(ops.fmod)
def _(to: Writer, a: Value, b: Value) -> Any:
    return to("Mod", a, b, fmod=1)


@exporter(ops.not_equal)
def _(to: Writer, a: Value, b: Value) -> Any:
    return to("Not", to("Equal", a, b))


@spelled(ops.not_equal)
def _(a: Value, b: Value) -> Value:
    return ops.logical_not(ops.equal(a, b))


@spelled(ops.equal)
def _(a: Value, b: Value) -> Value:
    """Element types that Equal lacks are compared in order."""
    if a.dtype not in REAL:
        raise UnsupportedOp(f"equal: ONNX does not compare {a.dtype.name}")
    return ops.logical_and(a <= b, a >= b)


@spelled(ops.trunc)
def _(x: Value) -> Value:
    return ops.sign(x) * ops.floor(abs(x))


@spelled(ops.expm1)
def _(x: Value) -> Value:
    """tanh(x / 2) · (exp x + 1): neither factor cancels near 0."""
    return ops.tanh(x * 0.5) * (ops.exp(x) + 1)


@spelled(ops.log1p)
def _(x: Value) -> Value:
    """log(u) · x / (u − 1) with u = 1 + x as it was rounded. Source: Goldberg 1991, theorem 4."""
    u = x + 1
    rounded = u - 1
    corrected = ops.where(ops.equal(rounded, x), ops.log(u), ops.log(u) * (x / rounded))
    return ops.where(ops.equal(rounded, 0), x, corrected)


@exporter(ops.shift_left)
def _(to: Writer, x: Value, by: Value) -> Any:
    return to("BitShift", x, by, direction="LEFT")


@exporter(ops.shift_right)
def _(to: Writer, x: Value, by: Value) -> Any:
    return to("BitShift", x, by, direction="RIGHT")


def _unsigned(x: Value) -> np.dtype:
    return np.dtype(f"u{x.dtype.itemsize}")


@spelled(ops.shift_left)
def _(x: Value, by: Value) -> Value:
    """Before opset 28 only unsigned integers were shifted, and a shift to the left knows no sign."""
    unsigned = _unsigned(x)
    return ops.cast(ops.shift_left(ops.cast(x, to=unsigned), ops.cast(by, to=unsigned)), to=x.dtype)


@spelled(ops.shift_right)
def _(x: Value, by: Value) -> Value:
    """¬(¬x >> by) for negative x, whose complement has no sign."""
    unsigned, negative = _unsigned(x), x < 0
    bits = ops.where(negative, ops.bitwise_not(x), x)
    moved = ops.cast(ops.shift_right(ops.cast(bits, to=unsigned), ops.cast(by, to=unsigned)), to=x.dtype)
    return ops.where(negative, ops.bitwise_not(moved), moved)


@spelled(ops.reciprocal)
def _(x: Value) -> Value:
    return 1 / x


@spelled(ops.isinf)
def _(x: Value) -> Value:
    return ops.equal(abs(x), g.constant(np.array(math.inf, x.dtype)))
