"""Converters of reductions, of searches for extrema, and of scans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flamert import dtypes, ops
from flamert.graph import Value
from flamert.importers.registry import Context, converter
from flamert.ops.cast import cast
from flamert.ops.rules import axes_in, axis_in


def _register(op_type: str, reduce: Callable[..., Value], axes_as_input: int) -> None:
    """Converters of one reduction: `axes` is an attribute at first, and an input from opset `axes_as_input` on."""

    @converter(op_type, 1)
    def by_attribute(ctx: Context, x: Value, *, axes: Sequence[int] | None = None, keepdims: int = 1) -> Value:
        return reduce(x, axes=_axes(x, axes), keepdims=bool(keepdims))

    @converter(op_type, axes_as_input)
    def by_input(
        ctx: Context, x: Value, axes: Value | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Value:
        given = ctx.ints(axes)
        if noop_with_empty_axes and not given:
            return reduce(x, axes=(), keepdims=bool(keepdims))
        return reduce(x, axes=_axes(x, given), keepdims=bool(keepdims))


def _axes(x: Value, axes: Sequence[Any] | None) -> tuple[int, ...]:
    """Axes counted from the front; all of them where none are named."""
    return axes_in(axes, x.rank) if axes else tuple(range(x.rank))


def _in_float(reduce: Callable[..., Value]) -> Callable[..., Value]:
    """Integers, which ONNX allowed up to opset 27, are reduced in float64, and what comes out is cut to an integer."""

    def reduce_any(x: Value, **attrs: Any) -> Value:
        if x.dtype in dtypes.INTEGER:
            return cast(reduce(cast(x, to=dtypes.float64), **attrs), to=x.dtype)
        return reduce(x, **attrs)

    return reduce_any


for _op_type, _reduce, _since in (
    ("ReduceSum", ops.reduce_sum, 13),
    ("ReduceMean", ops.reduce_mean, 18),
    ("ReduceMax", ops.reduce_max, 18),
    ("ReduceMin", ops.reduce_min, 18),
    ("ReduceProd", ops.reduce_prod, 18),
    ("ReduceL1", ops.reduce_l1, 18),
    ("ReduceSumSquare", ops.reduce_sum_square, 18),
    ("ReduceL2", _in_float(ops.reduce_l2), 18),
    ("ReduceLogSum", _in_float(ops.reduce_log_sum), 18),
    ("ReduceLogSumExp", _in_float(ops.reduce_log_sum_exp), 18),
):
    _register(_op_type, _reduce, _since)


def _register_search(op_type: str, find: Callable[..., Value]) -> None:
    @converter(op_type, 1)
    def locate(ctx: Context, x: Value, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Value:
        return find(x, axis=axis_in(axis, x.rank), keepdims=bool(keepdims), select_last_index=bool(select_last_index))


_register_search("ArgMax", ops.argmax)
_register_search("ArgMin", ops.argmin)


def _register_scan(op_type: str, since: int, scan: Callable[..., Value]) -> None:
    @converter(op_type, since)
    def along(ctx: Context, x: Value, axis: Value, *, exclusive: int = 0, reverse: int = 0) -> Value:
        [at] = ctx.ints(axis) or ()
        return scan(x, axis=axis_in(at, x.rank), exclusive=bool(exclusive), reverse=bool(reverse))


_register_scan("CumSum", 11, ops.cumsum)
_register_scan("CumProd", 26, ops.cumprod)


@converter("TopK", 10)
def _(ctx: Context, x: Value, k: Value, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> Sequence[Value]:
    """Without `sorted` any order will do, so the result is sorted all the same."""
    [count] = ctx.ints(k) or ()
    return ops.top_k(x, k=count, axis=axis_in(axis, x.rank), largest=bool(largest))


@converter("TopK", 1)
def _(ctx: Context, x: Value, *, k: int, axis: int = -1) -> Sequence[Value]:
    return ops.top_k(x, k=k, axis=axis_in(axis, x.rank), largest=True)
