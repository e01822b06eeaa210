"""Comparisons, tests, truth values, bits, and the choice between two tensors, element by element."""

from __future__ import annotations

from typing import Any

from flamert import dtypes
from flamert.graph import TensorType
from flamert.ops.elementwise import INTEGER, REAL, pair, single, ufunc
from flamert.ops.op import kernel, op
from flamert.ops.rules import broadcast, require, same_dtype

COMPARABLE = REAL | dtypes.COMPLEX | {dtypes.bool_, dtypes.string}
TRUTH = frozenset({dtypes.bool_})


def _verdict(a: TensorType, b: TensorType, allowed: frozenset[Any] = REAL, what: str = "real") -> TensorType:
    return TensorType(pair(a, b, allowed, what).shape, dtypes.bool_)


@ufunc("less")
@op
def less(a: TensorType, b: TensorType) -> TensorType:
    """a < b, broadcast; false where either is NaN. Real, one type for both; returns bool. Source: ONNX Less-13."""
    return _verdict(a, b)


@ufunc("less_equal")
@op
def less_equal(a: TensorType, b: TensorType) -> TensorType:
    """a ≤ b, broadcast; false where either is NaN. Real, one type for both; returns bool. Source: ONNX LessOrEqual-16."""
    return _verdict(a, b)


@ufunc("greater")
@op
def greater(a: TensorType, b: TensorType) -> TensorType:
    """a > b, broadcast; false where either is NaN. Real, one type for both; returns bool. Source: ONNX Greater-13."""
    return _verdict(a, b)


@ufunc("greater_equal")
@op
def greater_equal(a: TensorType, b: TensorType) -> TensorType:
    """a ≥ b, broadcast; false where either is NaN. Real, one type for both; returns bool. Source: ONNX GreaterOrEqual-16."""
    return _verdict(a, b)


@ufunc("equal")
@op
def equal(a: TensorType, b: TensorType) -> TensorType:
    """a = b, broadcast; false where either is NaN. Any standard type, one for both; returns bool. Source: ONNX Equal-19."""
    return _verdict(a, b, COMPARABLE, "comparable")


@ufunc("not_equal")
@op
def not_equal(a: TensorType, b: TensorType) -> TensorType:
    """a ≠ b, broadcast; true where either is NaN. Any standard type, one for both; returns bool. Source: Equal-19 and Not-1."""
    return _verdict(a, b, COMPARABLE, "comparable")


@ufunc("logical_and")
@op(inplace=(0, 1))
def logical_and(a: TensorType, b: TensorType) -> TensorType:
    """Whether both hold, broadcast. Bool. Source: ONNX And-7."""
    return _verdict(a, b, TRUTH, "boolean")


@ufunc("logical_or")
@op(inplace=(0, 1))
def logical_or(a: TensorType, b: TensorType) -> TensorType:
    """Whether at least one holds, broadcast. Bool. Source: ONNX Or-7."""
    return _verdict(a, b, TRUTH, "boolean")


@ufunc("logical_xor")
@op(inplace=(0, 1))
def logical_xor(a: TensorType, b: TensorType) -> TensorType:
    """Whether exactly one holds, broadcast. Bool. Source: ONNX Xor-7."""
    return _verdict(a, b, TRUTH, "boolean")


@ufunc("logical_not")
@op(inplace=(0,))
def logical_not(x: TensorType) -> TensorType:
    """Whether x does not hold. Bool. Source: ONNX Not-1."""
    return single(x, TRUTH, "boolean")


@ufunc("bitwise_and")
@op(inplace=(0, 1))
def bitwise_and(a: TensorType, b: TensorType) -> TensorType:
    """The bits set in both, broadcast. Integer, one type for both. Source: ONNX BitwiseAnd-18."""
    return pair(a, b, INTEGER, "integer")


@ufunc("bitwise_or")
@op(inplace=(0, 1))
def bitwise_or(a: TensorType, b: TensorType) -> TensorType:
    """The bits set in either, broadcast. Integer, one type for both. Source: ONNX BitwiseOr-18."""
    return pair(a, b, INTEGER, "integer")


@ufunc("bitwise_xor")
@op(inplace=(0, 1))
def bitwise_xor(a: TensorType, b: TensorType) -> TensorType:
    """The bits set in exactly one, broadcast. Integer, one type for both. Source: ONNX BitwiseXor-18."""
    return pair(a, b, INTEGER, "integer")


@ufunc("invert")
@op(inplace=(0,))
def bitwise_not(x: TensorType) -> TensorType:
    """Every bit flipped. Integer. Source: ONNX BitwiseNot-18."""
    return single(x, INTEGER, "integer")


@ufunc("left_shift")
@op(inplace=(0, 1))
def shift_left(x: TensorType, by: TensorType) -> TensorType:
    """The bits of x moved `by` places toward the top, zeros behind; broadcast. Integer. Source: ONNX BitShift-28."""
    return pair(x, by, INTEGER, "integer")


@ufunc("right_shift")
@op(inplace=(0, 1))
def shift_right(x: TensorType, by: TensorType) -> TensorType:
    """The bits of x moved `by` places toward the bottom, sign bits behind; broadcast. Integer. Source: ONNX BitShift-28."""
    return pair(x, by, INTEGER, "integer")


@ufunc("isnan")
@op
def isnan(x: TensorType) -> TensorType:
    """Whether x is NaN. Floating; returns bool. Source: ONNX IsNaN-20."""
    require(x, dtypes.STANDARD_FLOAT, "floating")
    return TensorType(x.shape, dtypes.bool_)


@ufunc("isinf")
@op
def isinf(x: TensorType) -> TensorType:
    """Whether x is ∞ or −∞. Floating; returns bool. Source: ONNX IsInf-20."""
    require(x, dtypes.STANDARD_FLOAT, "floating")
    return TensorType(x.shape, dtypes.bool_)


@op(moves=True)
def where(condition: TensorType, x: TensorType, y: TensorType) -> TensorType:
    """x where the condition holds, else y; broadcast. Any type, one for x and y. Source: ONNX Where-16."""
    require(condition, TRUTH, "boolean")
    return TensorType(broadcast(condition.shape, x.shape, y.shape), same_dtype(x, y))


@kernel(where)
def _(xp: Any, out: Any, condition: Any, x: Any, y: Any) -> None:
    xp.copyto(out, y)
    xp.copyto(out, x, where=condition)
