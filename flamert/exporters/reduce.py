"""Exporters of reductions, searches for extrema, and scans."""

from __future__ import annotations

from typing import Any

import numpy as np

from flamert import dtypes, ops
from flamert import graph as g
from flamert.errors import UnsupportedOp
from flamert.exporters.registry import exporter, plain, spelled
from flamert.exporters.shape import Dims, dims
from flamert.exporters.writer import Writer
from flamert.graph import Value
from flamert.ops.op import Op
from flamert.ops.reduce import bounds
from flamert.ops.shape import narrow


def _reduction(op: Op, op_type: str) -> None:
    @exporter(op)
    def _(to: Writer, x: Value, *, axes: Dims, keepdims: bool) -> Any:
        if axes and to.opset < 18 and op is not ops.reduce_sum:
            return to(op_type, x, axes=axes, keepdims=keepdims)
        if axes:
            return to(op_type, x, dims(axes), keepdims=keepdims)
        # No axes mean all of them in ONNX; what reduces nothing is the element itself, or as the op's body says.
        return to("Identity", x) if op.body is None else None


for _op, _op_type in {
    "reduce_sum": "ReduceSum",
    "reduce_mean": "ReduceMean",
    "reduce_prod": "ReduceProd",
    "reduce_max": "ReduceMax",
    "reduce_min": "ReduceMin",
    "reduce_log_sum": "ReduceLogSum",
    "reduce_sum_square": "ReduceSumSquare",
    "reduce_l1": "ReduceL1",
    "reduce_l2": "ReduceL2",
}.items():
    _reduction(ops.OPS[_op], _op_type)


def _widened(op: Op) -> None:
    """Narrow integers and bools in a type that ONNX's op takes; sums cut short are sums that wrapped around."""

    @spelled(op)
    def _(x: Value, **attributes: Any) -> Value:
        if x.dtype != dtypes.bool_ and (x.dtype not in dtypes.INTEGER or x.dtype.itemsize > 4):
            raise UnsupportedOp(f"{op.name}: ONNX has it for no {x.dtype.name}")
        if not x.type.size and op in (ops.reduce_max, ops.reduce_min):
            extreme = g.constant(np.array(bounds(x.dtype)[op is ops.reduce_min], x.dtype))
            return ops.expand(extreme, shape=op.infer(x.type, **attributes).shape)
        wide = dtypes.int32 if x.dtype.itemsize == 1 else dtypes.int64
        return ops.cast(op(ops.cast(x, to=wide), **attributes), to=x.dtype)


for _name in ("reduce_sum", "reduce_mean", "reduce_prod", "reduce_max", "reduce_min", "cumsum"):
    _widened(ops.OPS[_name])


@spelled(ops.reduce_log_sum_exp)
def _(x: Value, *, axes: Dims, keepdims: bool) -> Value:
    """Shifted by the maximum, which ONNX does not promise to do."""
    wide = ops.cast(x, to=dtypes.accumulator(x.dtype))
    if not axes:
        return x
    shape = ops.reduce_sum.infer(x.type, axes=axes, keepdims=keepdims).shape
    if not x.type.size:
        return ops.expand(g.constant(np.array(-np.inf, x.dtype)), shape=shape)
    largest = ops.reduce_max(wide, axes=axes, keepdims=True)
    shift = ops.where(abs(largest) < np.inf, largest, 0)
    total = ops.log(ops.reduce_sum(ops.exp(wide - shift), axes=axes, keepdims=True)) + shift
    return ops.reshape(ops.cast(total, to=x.dtype), shape=shape)


plain(ops.argmax, "ArgMax")
plain(ops.argmin, "ArgMin")
plain(ops.hardmax, "Hardmax", 13)


@exporter(ops.top_k)
def _(to: Writer, x: Value, *, k: int, axis: int, largest: bool) -> Any:
    return to("TopK", x, dims([k]), axis=axis, largest=largest, outputs=2)


def _scan(op: Op, op_type: str) -> None:
    @exporter(op)
    def _(to: Writer, x: Value, *, axis: int, exclusive: bool, reverse: bool) -> Any:
        return to(op_type, x, np.array(axis, np.int64), exclusive=exclusive, reverse=reverse)


_scan(ops.cumsum, "CumSum")
_scan(ops.cumprod, "CumProd")


def shifted(x: Value, axis: int, by: int, filling: float) -> Value:
    """x moved `by` places along an axis, with fillings in front."""
    front = ops.expand(g.constant(np.array(filling, x.dtype)), shape=(*x.shape[:axis], by, *x.shape[axis + 1 :]))
    return ops.concat(front, narrow(x, axis, 0, x.shape[axis] - by), axis=axis)


def reversed_along(x: Value, axis: int) -> Value:
    """x with an axis turned around."""
    n = x.shape[axis]
    return narrow(x, axis, n - 1, n, -1) if n > 1 else x


@spelled(ops.cumprod)
def _(x: Value, *, axis: int, exclusive: bool, reverse: bool) -> Value:
    """Products of 2, 4, 8, … elements, each of two halves."""
    axis %= x.rank
    y = reversed_along(x, axis) if reverse else x
    if exclusive and x.shape[axis]:
        y = shifted(y, axis, 1, 1)
    span = 1
    while span < x.shape[axis]:
        y = y * shifted(y, axis, span, 1)
        span *= 2
    return reversed_along(y, axis) if reverse else y


@spelled(ops.linear_scan)
def _(a: Value, b: Value, *, axis: int, reverse: bool) -> Value:
    """As the kernel does it: sums over 1, 2, 4, … terms."""
    axis %= a.rank
    factors, sums = (reversed_along(x, axis) if reverse else x for x in (a, b))
    span = 1
    while span < a.shape[axis]:
        sums = sums + factors * shifted(sums, axis, span, 0)
        factors = factors * shifted(factors, axis, span, 1)
        span *= 2
    return reversed_along(sums, axis) if reverse else sums
