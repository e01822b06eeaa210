"""Converters of ONNX's quantization ops, and of those that onnxruntime's quantizer puts into the com.microsoft domain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flamert import dtypes, ops
from flamert.errors import InvalidModel
from flamert.graph import Value
from flamert.importers.registry import Context, converter
from flamert.importers.tensors import dtype_of
from flamert.importers.windows import check_kernel, geometry
from flamert.ops.rules import axis_in

MICROSOFT = "com.microsoft"


def _axis(x: Value, scale: Value, axis: int) -> int | None:
    """The axis where scales differ along one; the attribute's default of 1 is no error for a single scale."""
    return None if scale.type.size == 1 else axis_in(axis, x.rank)


def _to(x: Value, dtype: np.dtype) -> Value:
    return x if x.dtype == dtype else ops.cast(x, to=dtype)


def _quantize(
    x: Value,
    scale: Value,
    zero: Value | None,
    *,
    axis: int = 1,
    saturate: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
) -> Value:
    to = zero.dtype if zero is not None else dtype_of(output_dtype) if output_dtype else dtypes.uint8
    if output_dtype and dtype_of(output_dtype) != to:
        raise InvalidModel(f"output_dtype {dtype_of(output_dtype).name} contradicts the zero point's {to.name}")
    wide = dtype_of(precision) if precision else scale.dtype
    if wide not in dtypes.STANDARD_FLOAT:
        wide = dtypes.float32
    x, scale = _to(x, wide), _to(scale, wide)
    where = axis_in(axis, x.rank) if block_size else _axis(x, scale, axis)
    return ops.quantize(x, scale, zero, to=to, axis=where, block_size=block_size, saturate=bool(saturate))


def _dequantize(
    x: Value, scale: Value, zero: Value | None, *, axis: int = 1, block_size: int = 0, output_dtype: int = 0
) -> Value:
    to = dtype_of(output_dtype) if output_dtype else scale.dtype if scale.dtype in dtypes.STANDARD_FLOAT else dtypes.float32
    where = axis_in(axis, x.rank) if block_size else _axis(x, scale, axis)
    return ops.dequantize(x, scale, zero, to=to, axis=where, block_size=block_size)


@converter("QuantizeLinear", 10)
def _(ctx: Context, x: Value, scale: Value, zero: Value | None = None) -> Value:
    return _quantize(x, scale, zero)


@converter("QuantizeLinear", 13)
@converter("QuantizeLinear", domain=MICROSOFT)
def _(ctx: Context, x: Value, scale: Value, zero: Value | None = None, *, axis: int = 1) -> Value:
    return _quantize(x, scale, zero, axis=axis)


@converter("QuantizeLinear", 19)
def _(ctx: Context, x: Value, scale: Value, zero: Value | None = None, *, axis: int = 1, saturate: int = 1) -> Value:
    return _quantize(x, scale, zero, axis=axis, saturate=saturate)


@converter("QuantizeLinear", 21)
def _(
    ctx: Context,
    x: Value,
    scale: Value,
    zero: Value | None = None,
    *,
    axis: int = 1,
    saturate: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Value:
    return _quantize(x, scale, zero, axis=axis, saturate=saturate, block_size=block_size, output_dtype=output_dtype)


@converter("QuantizeLinear", 23)
def _(
    ctx: Context,
    x: Value,
    scale: Value,
    zero: Value | None = None,
    *,
    axis: int = 1,
    saturate: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
) -> Value:
    return _quantize(
        x,
        scale,
        zero,
        axis=axis,
        saturate=saturate,
        block_size=block_size,
        output_dtype=output_dtype,
        precision=precision,
    )


@converter("DequantizeLinear", 10)
def _(ctx: Context, x: Value, scale: Value, zero: Value | None = None) -> Value:
    return _dequantize(x, scale, zero)


@converter("DequantizeLinear", 13)
@converter("DequantizeLinear", domain=MICROSOFT)
def _(ctx: Context, x: Value, scale: Value, zero: Value | None = None, *, axis: int = 1) -> Value:
    return _dequantize(x, scale, zero, axis=axis)


@converter("DequantizeLinear", 21)
def _(ctx: Context, x: Value, scale: Value, zero: Value | None = None, *, axis: int = 1, block_size: int = 0) -> Value:
    return _dequantize(x, scale, zero, axis=axis, block_size=block_size)


@converter("DequantizeLinear", 23)
def _(
    ctx: Context,
    x: Value,
    scale: Value,
    zero: Value | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Value:
    return _dequantize(x, scale, zero, axis=axis, block_size=block_size, output_dtype=output_dtype)


@converter("DynamicQuantizeLinear", 11)
def _(ctx: Context, x: Value) -> tuple[Value, ...]:
    return ops.dynamic_quantize(x)


def _by_row(v: Value | None, a: Value) -> Any:
    """One number for each row of a, as it broadcasts to a; a single one as a scalar."""
    if v is None or v.type.size == 1:
        return v if v is None else ops.reshape(v, shape=())
    return ops.reshape(v, shape=(v.shape[0], 1)) if v.rank == 1 and a.rank > 1 else v


def _by_column(v: Value | None) -> Any:
    return ops.reshape(v, shape=()) if v is not None and v.type.size == 1 else v


@converter("MatMulInteger", 10)
def _(ctx: Context, a: Value, b: Value, a_zero: Value | None = None, b_zero: Value | None = None) -> Value:
    return ops.matmul_integer(a, b, _by_row(a_zero, a), _by_column(b_zero))


def _matmul(a: Value, b: Value, a_zero: Value | None, b_zero: Value | None) -> Value:
    """The product of two quantized matrices in float32, still without their scales."""
    a_zero, b_zero = _by_row(a_zero, a), _by_column(b_zero)
    if a.dtype in dtypes.INTEGER:
        return ops.cast(ops.matmul_integer(a, b, a_zero, b_zero), to=dtypes.float32)
    a, b = [
        _to(v, dtypes.float32) if zero is None else _to(v, dtypes.float32) - _to(zero, dtypes.float32)
        for v, zero in ((a, a_zero), (b, b_zero))
    ]
    return ops.matmul(a, b)


@converter("QLinearMatMul", 10)
def _(
    ctx: Context,
    a: Value,
    a_scale: Value,
    a_zero: Value,
    b: Value,
    b_scale: Value,
    b_zero: Value,
    y_scale: Value,
    y_zero: Value,
) -> Value:
    product = _matmul(a, b, a_zero, b_zero)
    factor = _by_row(a_scale, a) * _by_column(b_scale) / _by_row(y_scale, product)
    return ops.requantize(product, _to(factor, dtypes.float32), _by_row(y_zero, product), to=y_zero.dtype)


@converter("MatMulIntegerToFloat", domain=MICROSOFT)
def _(
    ctx: Context,
    a: Value,
    b: Value,
    a_scale: Value,
    b_scale: Value,
    a_zero: Value | None = None,
    b_zero: Value | None = None,
    bias: Value | None = None,
) -> Value:
    factor = _to(_by_row(a_scale, a) * _by_column(b_scale), dtypes.float32)
    y = _to(_matmul(a, b, a_zero, b_zero) * factor, a_scale.dtype)
    return y if bias is None else y + bias


@converter("DynamicQuantizeMatMul", domain=MICROSOFT)
def _(ctx: Context, a: Value, b: Value, b_scale: Value, b_zero: Value | None = None, bias: Value | None = None) -> Value:
    quantized, a_scale, a_zero = ops.dynamic_quantize(a)
    y = _matmul(quantized, b, a_zero, b_zero) * (a_scale * _by_column(b_scale))
    return y if bias is None else y + bias


def _by_channel(v: Value | None, rank: int, at: int) -> Any:
    """A scalar, or one number for each output channel, as it broadcasts to an array with channels at axis `at`."""
    if v is None:
        return None
    shape = () if v.type.size == 1 else tuple(v.shape[0] if i == at else 1 for i in range(rank))
    return ops.reshape(v, shape=shape)


@converter("ConvInteger", 10)
def _(
    ctx: Context,
    x: Value,
    w: Value,
    x_zero: Value | None = None,
    w_zero: Value | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Value:
    check_kernel(kernel_shape, w.shape[2:])
    windows = geometry(x.shape[2:], w.shape[2:], strides, pads, dilations, auto_pad)
    x_zero, w_zero = _by_channel(x_zero, 1, 0), _by_channel(w_zero, w.rank, 0)
    return ops.conv_integer(x, w, x_zero, w_zero, **windows._asdict(), group=group)


@converter("QLinearConv", 10)
def _(
    ctx: Context,
    x: Value,
    x_scale: Value,
    x_zero: Value,
    w: Value,
    w_scale: Value,
    w_zero: Value,
    y_scale: Value,
    y_zero: Value,
    bias: Value | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Value:
    """The bias is int32, in units of x_scale · w_scale, so it joins the sums before they are rescaled."""
    check_kernel(kernel_shape, w.shape[2:])
    windows = geometry(x.shape[2:], w.shape[2:], strides, pads, dilations, auto_pad)
    zeros = _by_channel(x_zero, 1, 0), _by_channel(w_zero, w.rank, 0)
    sums = ops.conv_integer(x, w, *zeros, **windows._asdict(), group=group)
    if bias is not None:
        sums = sums + ops.reshape(bias, shape=(*bias.shape, *[1] * (x.rank - 2)))
    x_scale, y_scale = (ops.reshape(s, shape=()) for s in (x_scale, y_scale))
    factor = x_scale * _by_channel(w_scale, x.rank, 1) / y_scale
    return ops.requantize(sums, factor, ops.reshape(y_zero, shape=()), to=y_zero.dtype)
