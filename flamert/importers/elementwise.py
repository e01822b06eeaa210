"""Converters of ONNX ops that compute on every element alone: arithmetic, elementary functions, comparisons, logic, bits."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from flamert import dtypes, ops
from flamert import graph as g
from flamert.errors import InvalidModel
from flamert.graph import Value
from flamert.importers.registry import Context, converter

Consumed = Any
"""`consumed_inputs` of opset 1 named buffers that might be overwritten; plans decide that by themselves."""


def aligned(a: Value, b: Value, axis: int | None, broadcast: int) -> Value:
    """b as today's broadcasting wants it, where before opset 7 its first dimension stood at `axis` of a."""
    if not broadcast or axis is None or not b.rank:
        return b
    behind = a.rank - axis % max(a.rank, 1) - b.rank
    return ops.reshape(b, shape=(*b.shape, *[1] * behind)) if behind > 0 else b


def _unary(op_type: str, since: int, op: Any) -> None:
    if since == 1:

        @converter(op_type, 1)
        def legacy(ctx: Context, x: Value, *, consumed_inputs: Consumed = None) -> Value:
            return op(x)

    @converter(op_type, max(since, 6))
    def _(ctx: Context, x: Value) -> Value:
        return op(x)


def _binary(op_type: str, since: int, op: Any) -> None:
    if since == 1:

        @converter(op_type, 1)
        def legacy(
            ctx: Context, a: Value, b: Value, *, axis: int | None = None, broadcast: int = 0, consumed_inputs: Consumed = None
        ) -> Value:
            return op(a, aligned(a, b, axis, broadcast))

    @converter(op_type, max(since, 7))
    def _(ctx: Context, a: Value, b: Value) -> Value:
        return op(a, b)


def _variadic(op_type: str, op: Any) -> None:
    @converter(op_type, 1)
    def legacy(ctx: Context, *xs: Value, consumed_inputs: Consumed = None) -> Value:
        return op(*xs)

    @converter(op_type, 6)
    def _(ctx: Context, *xs: Value) -> Value:
        return op(*xs)


def _mean(*xs: Value) -> Value:
    return functools.reduce(ops.add, xs) / len(xs)


def _pow(a: Value, b: Value) -> Value:
    """Mixed types are computed in whichever can hold both, and give the base's type."""
    if a.dtype == b.dtype:
        return ops.pow(a, b)
    if a.dtype in dtypes.STANDARD_FLOAT and (b.dtype not in dtypes.STANDARD_FLOAT or b.dtype.itemsize <= a.dtype.itemsize):
        return ops.pow(a, ops.cast(b, to=a.dtype))
    if a.dtype in dtypes.INTEGER and b.dtype in dtypes.INTEGER:
        wide = ops.pow(ops.cast(a, to=dtypes.int64), ops.cast(b, to=dtypes.int64))
    else:
        wide = ops.pow(ops.cast(a, to=dtypes.float64), ops.cast(b, to=dtypes.float64))
    return ops.cast(wide, to=a.dtype)


def _erf(x: Value) -> Value:
    if x.dtype in dtypes.STANDARD_FLOAT:
        return ops.erf(x)
    return ops.cast(ops.erf(ops.cast(x, to=dtypes.float32)), to=x.dtype)


def _isnan(x: Value) -> Value:
    return ops.isnan(ops.cast(x, to=dtypes.float32) if x.dtype in dtypes.NARROW_FLOAT else x)


UNARY: tuple[tuple[str, int, Any], ...] = (
    ("Neg", 1, ops.neg),
    ("Abs", 1, ops.abs),
    ("Sqrt", 1, ops.sqrt),
    ("Exp", 1, ops.exp),
    ("Log", 1, ops.log),
    ("Reciprocal", 1, ops.reciprocal),
    ("Floor", 1, ops.floor),
    ("Ceil", 1, ops.ceil),
    ("Tanh", 1, ops.tanh),
    ("Not", 1, ops.logical_not),
    ("Round", 11, ops.round),
    ("Sign", 9, ops.sign),
    ("Sin", 7, ops.sin),
    ("Cos", 7, ops.cos),
    ("Tan", 7, ops.tan),
    ("Asin", 7, ops.asin),
    ("Acos", 7, ops.acos),
    ("Atan", 7, ops.atan),
    ("Sinh", 9, ops.sinh),
    ("Cosh", 9, ops.cosh),
    ("Asinh", 9, ops.asinh),
    ("Acosh", 9, ops.acosh),
    ("Atanh", 9, ops.atanh),
    ("Erf", 9, _erf),
    ("IsNaN", 9, _isnan),
    ("BitwiseNot", 18, ops.bitwise_not),
)

BINARY: tuple[tuple[str, int, Any], ...] = (
    ("Add", 1, ops.add),
    ("Sub", 1, ops.sub),
    ("Mul", 1, ops.mul),
    ("Div", 1, ops.div),
    ("Pow", 1, _pow),
    ("Less", 1, ops.less),
    ("Greater", 1, ops.greater),
    ("Equal", 1, ops.equal),
    ("And", 1, ops.logical_and),
    ("Or", 1, ops.logical_or),
    ("Xor", 1, ops.logical_xor),
    ("LessOrEqual", 12, ops.less_equal),
    ("GreaterOrEqual", 12, ops.greater_equal),
    ("BitwiseAnd", 18, ops.bitwise_and),
    ("BitwiseOr", 18, ops.bitwise_or),
    ("BitwiseXor", 18, ops.bitwise_xor),
)

for _name, _since, _op in UNARY:
    _unary(_name, _since, _op)
for _name, _since, _op in BINARY:
    _binary(_name, _since, _op)

_variadic("Sum", lambda *xs: functools.reduce(ops.add, xs))
_variadic("Max", lambda *xs: functools.reduce(ops.maximum, xs))
_variadic("Min", lambda *xs: functools.reduce(ops.minimum, xs))
_variadic("Mean", _mean)


@converter("Where", 9)
def _(ctx: Context, condition: Value, x: Value, y: Value) -> Value:
    return ops.where(condition, x, y)


@converter("Mod", 10)
def _(ctx: Context, a: Value, b: Value, *, fmod: int = 0) -> Value:
    return ops.fmod(a, b) if fmod else ops.mod(a, b)


@converter("BitShift", 11)
def _(ctx: Context, x: Value, by: Value, *, direction: str) -> Value:
    if direction not in ("LEFT", "RIGHT"):
        raise InvalidModel(f"BitShift's direction is LEFT or RIGHT, not {direction!r}")
    return ops.shift_left(x, by) if direction == "LEFT" else ops.shift_right(x, by)


@converter("IsInf", 10)
def _(ctx: Context, x: Value, *, detect_negative: int = 1, detect_positive: int = 1) -> Value:
    if x.dtype in dtypes.NARROW_FLOAT:
        x = ops.cast(x, to=dtypes.float32)
    if detect_negative and detect_positive:
        return ops.isinf(x)
    if not detect_negative and not detect_positive:
        return g.constant(np.zeros(x.shape, np.bool_))
    return ops.equal(x, np.inf if detect_positive else -np.inf)


def _attribute_bound(x: Value, bound: float | None) -> Value | None:
    if bound is None:
        return None
    with np.errstate(over="ignore"):  # the default bounds are float32's, beyond what half types hold
        return g.constant(np.array(bound, np.float32).astype(x.dtype))


def _input_bound(bound: Value | None) -> Value | None:
    return ops.reshape(bound, shape=()) if bound is not None and bound.rank else bound


@converter("Clip", 1)
def _(ctx: Context, x: Value, *, min: float | None = None, max: float | None = None, consumed_inputs: Consumed = None) -> Value:
    return ops.clip(x, _attribute_bound(x, min), _attribute_bound(x, max))


@converter("Clip", 6)
def _(ctx: Context, x: Value, *, min: float = -3.4028234663852886e38, max: float = 3.4028234663852886e38) -> Value:
    return ops.clip(x, _attribute_bound(x, min), _attribute_bound(x, max))


@converter("Clip", 11)
def _(ctx: Context, x: Value, low: Value | None = None, high: Value | None = None) -> Value:
    return ops.clip(x, _input_bound(low), _input_bound(high))
