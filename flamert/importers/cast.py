"""Converters of ONNX's changes of element type; strings are converted on the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from flamert import dtypes, ops
from flamert import graph as g
from flamert.errors import InvalidModel, UnsupportedType
from flamert.graph import Value
from flamert.importers.registry import Context, converter
from flamert.importers.tensors import dtype_of
from flamert.ops.evaluate import evaluate


def _cast(ctx: Context, x: Value, to: np.dtype, saturate: int = 1, round_mode: str = "up") -> Any:
    if x.dtype == to:
        return x
    if to == dtypes.string:
        return ctx.host(lambda array: [_printed(array)], x)
    if x.dtype == dtypes.string:
        return ctx.host(lambda array: [_parsed(array, to, bool(saturate), round_mode)], x)
    return ops.cast(x, to=to, saturate=bool(saturate), round_mode=round_mode)


def _printed(array: np.ndarray) -> np.ndarray:
    """Numbers as strings: the shortest decimal that reads back as the same number."""
    if array.dtype in dtypes.FLOAT and array.dtype not in (dtypes.float16, dtypes.float32, dtypes.float64):
        array = array.astype(np.float32)
    result = np.empty(array.shape, dtypes.string)
    result.reshape(-1)[:] = [str(v) for v in array.reshape(-1)]
    return result


def _parsed(array: np.ndarray, to: np.dtype, saturate: bool, round_mode: str) -> np.ndarray:
    """Strings as numbers. Raises InvalidModel for one that is no number."""
    texts = [_text(v) for v in array.reshape(-1)]
    try:
        if to in dtypes.INTEGER:
            numbers = np.array([_integer(t) & 0xFFFF_FFFF_FFFF_FFFF for t in texts], np.uint64)
        elif to == dtypes.bool_:
            numbers = np.array([t.lower() == "true" or (t.lower() != "false" and float(t) != 0) for t in texts], np.bool_)
        else:
            numbers = np.array([float(t) for t in texts], np.float64)
    except (ValueError, OverflowError) as error:
        raise InvalidModel(f"a string that should become {to.name} is no such number: {error}") from None
    cast = ops.cast(g.constant(numbers.reshape(array.shape)), to=to, saturate=saturate, round_mode=round_mode)
    return evaluate([cast])[0]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return int(float(text))


def _named(to: str | int) -> np.dtype:
    """Before opset 6, `to` was the name of a TensorProto.DataType."""
    if isinstance(to, int):
        return dtype_of(to)
    try:
        return dtype_of(onnx.TensorProto.DataType.Value(to))
    except ValueError:
        raise UnsupportedType(f"unknown ONNX element type {to!r}") from None


@converter("Cast", 1, strings=True)
def _(ctx: Context, x: Value, *, to: str | int) -> Any:
    return _cast(ctx, x, _named(to))


@converter("Cast", 6, strings=True)
def _(ctx: Context, x: Value, *, to: int) -> Any:
    return _cast(ctx, x, dtype_of(to))


@converter("Cast", 19, strings=True)
def _(ctx: Context, x: Value, *, to: int, saturate: int = 1) -> Any:
    return _cast(ctx, x, dtype_of(to), saturate)


@converter("Cast", 24, strings=True)
def _(ctx: Context, x: Value, *, to: int, saturate: int = 1, round_mode: str = "up") -> Any:
    return _cast(ctx, x, dtype_of(to), saturate, round_mode)


@converter("CastLike", 15, strings=True)
def _(ctx: Context, x: Value, target: Value) -> Any:
    return _cast(ctx, x, target.dtype)


@converter("CastLike", 19, strings=True)
def _(ctx: Context, x: Value, target: Value, *, saturate: int = 1) -> Any:
    return _cast(ctx, x, target.dtype, saturate)


@converter("CastLike", 24, strings=True)
def _(ctx: Context, x: Value, target: Value, *, saturate: int = 1, round_mode: str = "up") -> Any:
    return _cast(ctx, x, target.dtype, saturate, round_mode)


@converter("BitCast", 26)
def _(ctx: Context, x: Value, *, to: int) -> Value:
    return ops.bit_cast(x, to=dtype_of(to))
