"""Quantization: numbers as small integers or narrow floats times a scale, and products of such tensors."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np

from flamert import dtypes
from flamert import graph as g
from flamert.errors import ShapeError, UnsupportedType
from flamert.graph import Value
from flamert.ops.cast import cast
from flamert.ops.conv import conv
from flamert.ops.elementwise import clip, maximum, minimum, round
from flamert.ops.index import gather
from flamert.ops.linear import matmul
from flamert.ops.logic import where
from flamert.ops.op import composite
from flamert.ops.reduce import reduce_max, reduce_min
from flamert.ops.shape import reshape


@composite
def quantize(
    x: Any,
    scale: Any,
    zero: Any = None,
    *,
    to: np.dtype,
    axis: int | None = None,
    block_size: int = 0,
    saturate: bool = True,
) -> Any:
    """The element of type `to` nearest to x / scale + zero; integers saturate, halves go to the even quotient.

    x: float16, bfloat16, float32 or float64; scale: x's type, in which the division is done. zero: `to`, or absent for 0.
    scale and zero have one shape: that of a scalar; or [D], one per index of x along `axis` (of size D); or, with a block
    size, x's shape but ⌈D / block_size⌉ along `axis`. saturate: for float8, as in `cast`. Source: ONNX QuantizeLinear-28.
    """
    shape = x.shape
    x, scale, zero = _spread(x, scale, zero, axis, block_size)
    return reshape(to_code(x / scale, zero, to=to, saturate=saturate), shape=shape)


@composite
def requantize(x: Any, factor: Any, zero: Any = None, *, to: np.dtype) -> Any:
    """The element of type `to` nearest to x · factor + zero, rounded and saturated as in `quantize`.

    x: int32 sums of products, or floating; factor: floating; zero: `to`; broadcast. Source: ONNX QLinearMatMul-21.
    """
    return to_code(from_code(x, to=factor.dtype) * factor, zero, to=to)


@composite
def to_code(y: Any, zero: Any = None, *, to: np.dtype, saturate: bool = True) -> Any:
    """The element of type `to` nearest to y + zero, rounded and saturated as in `quantize`.

    y: floating; zero: `to`, or absent for 0; broadcast. Differentiated as if nothing were rounded.
    """
    if to in dtypes.INTEGER:
        info = ml_dtypes.iinfo(to)
        y = _widened(round(y))
        y = clip(y if zero is None else y + cast(zero, to=y.dtype), _number(info.min, y), _number(info.max, y))
    elif to in dtypes.NARROW_FLOAT:
        y = y if zero is None else y + cast(zero, to=y.dtype)
    else:
        raise UnsupportedType(f"{to.name} is no type to quantize to")
    return cast(y, to=to, saturate=saturate)


@composite
def from_code(code: Any, zero: Any = None, *, to: np.dtype) -> Any:
    """code − zero as numbers of the floating type `to`, broadcast. code, zero: integers or narrow floats, of one type.

    int32 is subtracted as such, other types in `to`. Differentiated as if codes were real numbers.
    """
    if zero is not None and code.dtype == dtypes.int32:
        code, zero = code - zero, None
    y = _to(code, to)
    return y if zero is None else y - cast(zero, to=to)


@composite
def dequantize(
    x: Any,
    scale: Any,
    zero: Any = None,
    *,
    to: np.dtype,
    axis: int | None = None,
    block_size: int = 0,
) -> Any:
    """(x − zero) · scale in the floating type `to`. x, zero: integers or narrow floats, of one type; scale: floating.

    The shapes of scale and zero are those that `quantize` takes. Computed in float32. Source: ONNX DequantizeLinear-28.
    """
    shape = x.shape
    x, scale, zero = _spread(x, scale, zero, axis, block_size)
    y = from_code(x, zero, to=dtypes.float32) * _to(scale, dtypes.float32)
    return reshape(_to(y, to), shape=shape)


def _to(x: Value, dtype: np.dtype) -> Value:
    return x if x.dtype == dtype else cast(x, to=dtype)


def _widened(x: Value) -> Value:
    """Half types cannot hold every 16-bit integer; float32 holds them all, and float64 is left as it is."""
    return _to(x, dtypes.accumulator(x.dtype))


def _number(value: float, like: Value) -> Value:
    return g.constant(np.array(value, like.dtype))


def _spread(x: Value, scale: Value, zero: Value | None, axis: int | None, block_size: int) -> tuple[Value, Value, Value | None]:
    """x, scale and zero in shapes that broadcast; blocks become an axis of their own where they fill x exactly."""
    if zero is not None and zero.shape != scale.shape and max(zero.type.size, scale.type.size) > 1:
        raise ShapeError(f"scale {list(scale.shape)} and zero point {list(zero.shape)} differ in shape")
    if not block_size:
        shape = _along(x, scale, axis)
        return x, reshape(scale, shape=shape), zero if zero is None else reshape(zero, shape=shape)
    if axis is None:
        raise ShapeError("blocks need an axis")
    before, size, behind = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    count = -(-size // block_size)
    if scale.shape != (*before, count, *behind):
        raise ShapeError(f"{x} in blocks of {block_size} along axis {axis} does not fit scales of shape {list(scale.shape)}")
    if size % block_size:
        which = g.constant(np.arange(size) // block_size)
        return x, gather(scale, which, axis=axis), zero if zero is None else gather(zero, which, axis=axis)
    shape = (*before, count, 1, *behind)
    x = reshape(x, shape=(*before, count, block_size, *behind))
    return x, reshape(scale, shape=shape), zero if zero is None else reshape(zero, shape=shape)


def _along(x: Value, scale: Value, axis: int | None) -> tuple[int, ...]:
    """The shape of one scale for all, or of one per index along `axis`, as it broadcasts to x."""
    if scale.type.size == 1:
        return ()
    if axis is None or scale.rank != 1 or scale.shape[0] != x.shape[axis]:
        raise ShapeError(f"scales of shape {list(scale.shape)} fit neither {x} as a whole nor its axis {axis}")
    return tuple(scale.shape[0] if i == axis else 1 for i in range(x.rank))


@composite
def dynamic_quantize(x: Any) -> Any:
    """x as uint8 with the scale and zero point that its own range, widened to include 0, asks for.

    x: float32. Returns (y, scale, zero): y = round(x / scale) + zero; scale = range / 255, or 1 where all of x is 0.
    Source: ONNX DynamicQuantizeLinear-11.
    """
    axes = tuple(range(x.rank))
    high = maximum(reduce_max(x, axes=axes), 0)
    low = minimum(reduce_min(x, axes=axes), 0)
    scale = (high - low) / 255
    scale = where(scale > 0, scale, 1)
    zero = cast(clip(round(-low / scale), _number(0, low), _number(255, low)), to=dtypes.uint8)
    return quantize(x, scale, zero, to=dtypes.uint8), scale, zero


def _exact(a: Value, b: Value, terms: int) -> np.dtype:
    """A floating type that holds sums of that many products exactly: matrix products of integers run on no BLAS."""
    if a.dtype.itemsize > 1 or b.dtype.itemsize > 1:
        return dtypes.float64
    return dtypes.float32 if terms * 255 * 255 < 1 << 24 else dtypes.float64


@composite
def whole(x: Any, *, wraps: bool) -> Any:
    """x, floating but whole, as int32. wraps: around, where it is out of int32's range; otherwise no value is defined there.

    Differentiated as if integers were real numbers.
    """
    return cast(cast(x, to=dtypes.int64) if wraps else x, to=dtypes.int32)


def _overflows(terms: int) -> bool:
    """Whether int32 may be too small for a sum of that many products of 8-bit integers."""
    return terms * 255 * 255 >= 1 << 31


@composite
def matmul_integer(a: Any, b: Any, a_zero: Any = None, b_zero: Any = None) -> Any:
    """(a − a_zero) @ (b − b_zero), exactly, in int32. a, b: 8-bit integers, of any two signs; shapes as in `matmul`.

    The zero points have the type of their operand and broadcast to it. Source: ONNX MatMulInteger-10.
    """
    terms = a.shape[-1]
    wide = _exact(a, b, terms)
    return whole(matmul(from_code(a, a_zero, to=wide), from_code(b, b_zero, to=wide)), wraps=_overflows(terms))


@composite
def conv_integer(
    x: Any,
    w: Any,
    x_zero: Any = None,
    w_zero: Any = None,
    *,
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
    group: int = 1,
) -> Any:
    """conv(x − x_zero, w − w_zero), exactly, in int32; padding counts as x_zero. x, w: 8-bit integers, of any two signs.

    x_zero: a scalar; w_zero: a scalar, or [M, 1, …] with one per output channel. Source: ONNX ConvInteger-10.
    """
    terms = math.prod(w.shape[1:])
    wide = _exact(x, w, terms)
    x, w = from_code(x, x_zero, to=wide), from_code(w, w_zero, to=wide)
    y = conv(x, w, strides=strides, pads=pads, dilations=dilations, group=group)
    return whole(y, wraps=_overflows(terms))
