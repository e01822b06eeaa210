"""Reductions to sums, means, products, extrema and norms over axes. Where extrema lie, and scans, are in order.py."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flamert import dtypes
from flamert.graph import TensorType, Value
from flamert.ops.cast import cast
from flamert.ops.elementwise import abs as absolute
from flamert.ops.functions import log, sqrt
from flamert.ops.op import composite, kernel, op
from flamert.ops.rules import axes_in, require

REAL: frozenset[Any] = dtypes.STANDARD_FLOAT | (dtypes.INTEGER - dtypes.NARROW_INTEGER)
SUMMABLE: frozenset[Any] = REAL | dtypes.COMPLEX


def reduced(x: TensorType, axes: tuple[int, ...], keepdims: bool) -> TensorType:
    """x's type with `axes` of length 1, or without them. No axes: x's own type."""
    gone = axes_in(axes, x.rank)
    shape = [1 if i in gone else d for i, d in enumerate(x.shape) if keepdims or i not in gone]
    return TensorType(tuple(shape), x.dtype)


@op
def reduce_sum(x: TensorType, *, axes: tuple[int, ...], keepdims: bool = False) -> TensorType:
    """Σ x over `axes`; 0 where there is nothing to add. Numeric; integers wrap around. Source: ONNX ReduceSum-13.

    Half types accumulate in float32. `axes=()` reduces nothing.
    """
    require(x, SUMMABLE, "numeric")
    return reduced(x, axes, keepdims)


@op
def reduce_mean(x: TensorType, *, axes: tuple[int, ...], keepdims: bool = False) -> TensorType:
    """Σ x / n over `axes` of n elements; NaN where n is 0. Numeric; integers round towards zero. Source: ONNX ReduceMean-18.

    Half types accumulate in float32. `axes=()` reduces nothing.
    """
    require(x, SUMMABLE, "numeric")
    return reduced(x, axes, keepdims)


@op
def reduce_prod(x: TensorType, *, axes: tuple[int, ...], keepdims: bool = False) -> TensorType:
    """Π x over `axes`; 1 where there is nothing to multiply. Numeric; integers wrap around. Source: ONNX ReduceProd-18.

    Half types accumulate in float32. `axes=()` reduces nothing.
    """
    require(x, SUMMABLE, "numeric")
    return reduced(x, axes, keepdims)


@op
def reduce_max(x: TensorType, *, axes: tuple[int, ...], keepdims: bool = False) -> TensorType:
    """max x over `axes`; NaN where one is NaN; −∞ or the type's least value where there is none. Source: ONNX ReduceMax-20.

    Real or bool. `axes=()` reduces nothing.
    """
    require(x, REAL | {dtypes.bool_}, "real or bool")
    return reduced(x, axes, keepdims)


@op
def reduce_min(x: TensorType, *, axes: tuple[int, ...], keepdims: bool = False) -> TensorType:
    """min x over `axes`; NaN where one is NaN; ∞ or the type's greatest value where there is none. Source: ONNX ReduceMin-20.

    Real or bool. `axes=()` reduces nothing.
    """
    require(x, REAL | {dtypes.bool_}, "real or bool")
    return reduced(x, axes, keepdims)


@kernel(reduce_sum)
def _(xp: Any, out: Any, x: Any, *, axes: tuple[int, ...], keepdims: bool) -> None:
    fold(xp, xp.sum, out, x, axes, keepdims)


@kernel(reduce_prod)
def _(xp: Any, out: Any, x: Any, *, axes: tuple[int, ...], keepdims: bool) -> None:
    fold(xp, xp.prod, out, x, axes, keepdims)


@kernel(reduce_mean)
def _(xp: Any, out: Any, x: Any, *, axes: tuple[int, ...], keepdims: bool) -> None:
    if out.dtype in dtypes.INTEGER:
        wide = dtypes.int64 if out.dtype in dtypes.SIGNED else dtypes.uint64
        total = xp.sum(x, axis=axes, dtype=wide, keepdims=keepdims)
        # NumPy's integer division rounds down; the spec's runtimes round towards zero.
        out[...] = xp.sign(total) * (xp.abs(total) // math.prod(x.shape[a] for a in axes))
    elif x.size == 0:
        out[...] = math.nan
    else:
        fold(xp, xp.mean, out, x, axes, keepdims)


def fold(xp: Any, reduce: Any, out: Any, x: Any, axes: tuple[int, ...], keepdims: bool) -> None:
    """`reduce` into `out`, kept in the accumulating type meanwhile and rounded once."""
    if not axes:
        out[...] = x
        return
    acc = dtypes.accumulator(out.dtype)
    if acc == out.dtype:
        reduce(x, axis=axes, dtype=acc, keepdims=keepdims, out=out)
    else:
        out[...] = reduce(x, axis=axes, dtype=acc, keepdims=keepdims)


@kernel(reduce_max)
def _(xp: Any, out: Any, x: Any, *, axes: tuple[int, ...], keepdims: bool) -> None:
    if x.size == 0:
        out[...] = bounds(out.dtype)[0]
    else:
        xp.max(x, axis=axes, keepdims=keepdims, out=out)


@kernel(reduce_min)
def _(xp: Any, out: Any, x: Any, *, axes: tuple[int, ...], keepdims: bool) -> None:
    if x.size == 0:
        out[...] = bounds(out.dtype)[1]
    else:
        out[...] = x.min(axis=axes, keepdims=keepdims)  # CuPy 14.2 takes an `out=` of min for something else


def bounds(dtype: np.dtype) -> tuple[Any, Any]:
    """What no element of the type is below, and above."""
    if dtype == dtypes.bool_:
        return False, True
    if dtype in dtypes.STANDARD_FLOAT:
        return -math.inf, math.inf
    return np.iinfo(dtype).min, np.iinfo(dtype).max


@op
def reduce_log_sum_exp(x: TensorType, *, axes: tuple[int, ...], keepdims: bool = False) -> TensorType:
    """log Σ exp(x) over `axes`, shifted by max(x) so that it cannot overflow; −∞ where there is nothing to add.

    Floating; half types are computed in float32. `axes=()` gives x. Source: ONNX ReduceLogSumExp-28.
    """
    require(x, dtypes.STANDARD_FLOAT, "floating")
    return reduced(x, axes, keepdims)


@kernel(reduce_log_sum_exp)
def _(xp: Any, out: Any, x: Any, *, axes: tuple[int, ...], keepdims: bool) -> None:
    if not axes:
        out[...] = x
    elif x.size == 0:
        out[...] = -math.inf
    else:
        largest = xp.max(x, axis=axes, keepdims=True).astype(dtypes.accumulator(x.dtype))
        # Infinite maxima would make NaN of inf − inf.
        largest[~xp.isfinite(largest)] = 0
        total = xp.sum(xp.exp(x - largest), axis=axes, keepdims=True)
        out[...] = (xp.log(total) + largest).reshape(out.shape)


@composite
def reduce_log_sum(x: Any, *, axes: tuple[int, ...], keepdims: bool = False) -> Any:
    """log Σ x over `axes`. Floating; half types are computed in float32. Source: ONNX ReduceLogSum-28."""
    return cast_like(log(reduce_sum(accumulating(x), axes=axes, keepdims=keepdims)), x)


@composite
def reduce_sum_square(x: Any, *, axes: tuple[int, ...], keepdims: bool = False) -> Any:
    """Σ x² over `axes`. Numeric; integers wrap around, half types are computed in float32. Source: ONNX ReduceSumSquare-18."""
    wide = accumulating(x)
    return cast_like(reduce_sum(wide * wide, axes=axes, keepdims=keepdims), x)


@composite
def reduce_l1(x: Any, *, axes: tuple[int, ...], keepdims: bool = False) -> Any:
    """Σ |x| over `axes`. Real; half types accumulate in float32. Source: ONNX ReduceL1-18."""
    return reduce_sum(absolute(x), axes=axes, keepdims=keepdims)


@composite
def reduce_l2(x: Any, *, axes: tuple[int, ...], keepdims: bool = False) -> Any:
    """√Σ x² over `axes`. Floating; half types are computed in float32. Source: ONNX ReduceL2-18."""
    wide = accumulating(x)
    return cast_like(sqrt(reduce_sum(wide * wide, axes=axes, keepdims=keepdims)), x)


@composite
def moments(x: Any, *, axes: tuple[int, ...]) -> Any:
    """(mean, variance) of x over `axes`, which keep length 1. The variance is biased: Σ (x − mean)² / n.

    x: floating. Both results are float32 for half types, else of x's type. Source: TensorFlow's nn.moments.
    """
    wide = accumulating(x)
    mean = reduce_mean(wide, axes=axes, keepdims=True)
    centred = wide - mean
    return mean, reduce_mean(centred * centred, axes=axes, keepdims=True)


@composite
def all_finite(*xs: Any) -> Any:
    """Whether no element of any operand is infinite or NaN: a bool[].

    xs: floating. Sums tell, so that tensors may be finite and the answer no where the sum of one of them overflows. On a GPU
    elements do.
    """
    sums = [cast(reduce_sum(x, axes=tuple(range(x.rank))), to=dtypes.float64) for x in xs]
    while len(sums) > 1:
        sums = [a + b for a, b in zip(sums[::2], sums[1::2], strict=False)] + (sums[-1:] if len(sums) % 2 else [])
    return absolute(sums[0]) < math.inf


@composite
def sum_of_squares(*xs: Any) -> Any:
    """Σ x² over all elements of all operands: a float64[] where one of them is float64, else a float32[].

    xs: floating. Added up in the result's type. The square of what torch.nn.utils.get_total_norm gives.
    """
    to = dtypes.float64 if any(x.dtype == dtypes.float64 for x in xs) else dtypes.float32
    sums = []
    for x in xs:
        wide = cast(x, to=to) if x.dtype != to else x
        sums.append(reduce_sum(wide * wide, axes=tuple(range(x.rank))))
    total = sums[0]
    for more in sums[1:]:
        total = total + more
    return total


def accumulating(x: Value) -> Value:
    """x in the type that sums of it are kept in, so that what follows is rounded once, at the end."""
    return cast(x, to=dtypes.accumulator(x.dtype)) if dtypes.accumulator(x.dtype) != x.dtype else x


def cast_like(y: Value, x: Value) -> Value:
    """y in x's element type."""
    return cast(y, to=x.dtype) if y.dtype != x.dtype else y
