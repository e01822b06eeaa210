"""Ops that follow the order of elements along an axis: where extrema lie, the k largest, running sums and products, scans."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flamert import dtypes
from flamert.errors import ShapeError
from flamert.graph import TensorType
from flamert.ops.op import kernel, op
from flamert.ops.reduce import REAL, SUMMABLE, reduced
from flamert.ops.rules import axis_in, require


def _located(x: TensorType, axis: int, keepdims: bool) -> TensorType:
    require(x, REAL | {dtypes.bool_}, "real or bool")
    if x.shape[axis_in(axis, x.rank)] == 0 and x.rank:
        raise ShapeError(f"axis {axis} of {x} is empty and has no extremum")
    return TensorType(reduced(x, (axis,), keepdims).shape, dtypes.int64)


@op
def argmax(x: TensorType, *, axis: int, keepdims: bool = False, select_last_index: bool = False) -> TensorType:
    """Where along `axis` the maximum of x lies: the first place, or the last. NaN counts as the maximum.

    Real or bool. Returns int64. Raises ShapeError for an empty axis. Source: ONNX ArgMax-13.
    """
    return _located(x, axis, keepdims)


@op
def argmin(x: TensorType, *, axis: int, keepdims: bool = False, select_last_index: bool = False) -> TensorType:
    """Where along `axis` the minimum of x lies: the first place, or the last. NaN counts as the minimum.

    Real or bool. Returns int64. Raises ShapeError for an empty axis. Source: ONNX ArgMin-13.
    """
    return _located(x, axis, keepdims)


@kernel(argmax)
def _(xp: Any, out: Any, x: Any, *, axis: int, keepdims: bool, select_last_index: bool) -> None:
    _locate(xp, xp.argmax, out, x, axis, select_last_index)


@kernel(argmin)
def _(xp: Any, out: Any, x: Any, *, axis: int, keepdims: bool, select_last_index: bool) -> None:
    _locate(xp, xp.argmin, out, x, axis, select_last_index)


def _locate(xp: Any, find: Callable[..., Any], out: Any, x: Any, axis: int, last: bool) -> None:
    if last:
        out[...] = x.shape[axis] - 1 - find(xp.flip(x, axis), axis=axis).reshape(out.shape)
    else:
        out[...] = find(x, axis=axis).reshape(out.shape)


@op
def hardmax(x: TensorType, *, axis: int = -1) -> TensorType:
    """1 where the first maximum along `axis` lies, else 0. Floating; returns x's type. Source: ONNX Hardmax-13."""
    require(x, dtypes.STANDARD_FLOAT, "floating")
    axis_in(axis, x.rank)
    return x


@kernel(hardmax)
def _(xp: Any, out: Any, x: Any, *, axis: int) -> None:
    if x.size:
        places = xp.arange(x.shape[axis]).reshape(-1, *[1] * (x.ndim - 1 - axis % x.ndim))
        out[...] = places == xp.expand_dims(xp.argmax(x, axis=axis), axis)


@op
def top_k(x: TensorType, *, k: int, axis: int = -1, largest: bool = True) -> tuple[TensorType, TensorType]:
    """The k largest (or smallest) elements along `axis`, from the most extreme on, and their indices (int64).

    Of equal elements the one with the lower index comes first. Real. Raises ShapeError where the axis is shorter than k.
    Source: ONNX TopK-24.
    """
    require(x, REAL, "real")
    axis = axis_in(axis, x.rank)
    if not 0 <= k <= x.shape[axis]:
        raise ShapeError(f"cannot take {k} elements along axis {axis} of {x}")
    shape = (*x.shape[:axis], int(k), *x.shape[axis + 1 :])
    return TensorType(shape, x.dtype), TensorType(shape, dtypes.int64)


@kernel(top_k)
def _(xp: Any, out: tuple[Any, Any], x: Any, *, k: int, axis: int, largest: bool) -> None:
    values, indices = out
    keys = x.astype(dtypes.accumulator(x.dtype), copy=False)
    n = x.shape[axis]
    if largest:
        # Ascending order of the reversed axis, read backwards, is descending order with ties in their original order.
        order = n - 1 - xp.flip(xp.argsort(xp.flip(keys, axis), axis=axis, kind="stable"), axis)
    else:
        order = xp.argsort(keys, axis=axis, kind="stable")
    first = [slice(None)] * x.ndim
    first[axis] = slice(k)
    indices[...] = order[tuple(first)]
    values[...] = xp.take_along_axis(x, indices, axis=axis)


@op
def cumsum(x: TensorType, *, axis: int, exclusive: bool = False, reverse: bool = False) -> TensorType:
    """The sum along `axis` of all elements up to and including each (`exclusive`: up to and without it).

    `reverse`: from the end on. Numeric; integers wrap around, half types accumulate in float32. Source: ONNX CumSum-14.
    """
    require(x, SUMMABLE, "numeric")
    axis_in(axis, x.rank)
    return x


@op
def cumprod(x: TensorType, *, axis: int, exclusive: bool = False, reverse: bool = False) -> TensorType:
    """The product along `axis` of all elements up to and including each (`exclusive`: up to and without it).

    `reverse`: from the end on. Numeric; integers wrap around, half types accumulate in float32. Source: ONNX CumProd-26.
    """
    require(x, SUMMABLE, "numeric")
    axis_in(axis, x.rank)
    return x


@kernel(cumsum)
def _(xp: Any, out: Any, x: Any, *, axis: int, exclusive: bool, reverse: bool) -> None:
    _scan(xp, xp.cumsum, 0, out, x, axis, exclusive, reverse)


@kernel(cumprod)
def _(xp: Any, out: Any, x: Any, *, axis: int, exclusive: bool, reverse: bool) -> None:
    _scan(xp, xp.cumprod, 1, out, x, axis, exclusive, reverse)


def _scan(xp: Any, run: Callable[..., Any], start: int, out: Any, x: Any, axis: int, exclusive: bool, reverse: bool) -> None:
    """`run` along the axis, on views of x and out that undo `reverse` and shift by one where `exclusive`."""
    if not x.size:
        return
    x, out = xp.moveaxis(x, axis, 0), xp.moveaxis(out, axis, 0)
    if reverse:
        x, out = x[::-1], out[::-1]
    if exclusive:
        out[0] = start
        x, out = x[:-1], out[1:]
    out[...] = run(x, axis=0, dtype=dtypes.accumulator(out.dtype))


@op
def linear_scan(a: TensorType, b: TensorType, *, axis: int, reverse: bool = False) -> TensorType:
    """y[i] = a[i] · y[i−1] + b[i] along `axis`, y[−1] = 0; `reverse`: y[i] = a[i] · y[i+1] + b[i], from the end on.

    Floating, one type and shape for both; half types are computed in float32. Source: a linear recurrence of first order;
    in log₂ n steps, as Hillis and Steele (1986) add up.
    """
    require(a, dtypes.STANDARD_FLOAT, "floating")
    axis_in(axis, a.rank)
    if a != b:
        raise ShapeError(f"factors {a} and terms {b} differ")
    return a


@kernel(linear_scan)
def _(xp: Any, out: Any, a: Any, b: Any, *, axis: int, reverse: bool) -> None:
    acc = dtypes.accumulator(out.dtype)
    factors, sums = (xp.moveaxis(x, axis, 0)[:: -1 if reverse else 1].astype(acc) for x in (a, b))
    span = 1
    while span < len(sums):
        # sums[i] now covers the last `span` terms up to i, factors[i] what the sum before them is multiplied with.
        sums[span:] += factors[span:] * sums[:-span]
        factors[span:] = factors[span:] * factors[:-span]
        span *= 2
    xp.moveaxis(out, axis, 0)[:: -1 if reverse else 1] = sums
