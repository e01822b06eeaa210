"""Pooling: maxima, means and norms over sliding windows, over regions, over everything; and max pooling undone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flamert import dtypes
from flamert.errors import ShapeError
from flamert.graph import TensorType
from flamert.ops.cast import cast
from flamert.ops.functions import sqrt
from flamert.ops.op import composite, kernel, op
from flamert.ops.reduce import reduce_max, reduce_mean, reduce_sum
from flamert.ops.rules import dims_of, require
from flamert.ops.windows import padded, taps, window_counts

REAL = dtypes.STANDARD_FLOAT | (dtypes.INTEGER - dtypes.NARROW_INTEGER)


def pooled(
    x: TensorType, kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int]
) -> TensorType:
    """The type rule that pooling ops share: [N, C, *spatial] → [N, C, *windows] of the same element type."""
    return TensorType((*x.shape[:2], *window_counts(x.shape[2:], kernel, strides, pads, dilations)), x.dtype)


def lowest(dtype: np.dtype) -> Any:
    """The value that no other of this type is less than."""
    return -math.inf if dtype in dtypes.STANDARD_FLOAT else np.iinfo(dtype).min


def slide(
    xp: Any,
    join: Callable[..., Any],
    x: Any,
    out: Any,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> None:
    """`join` all elements of each window into `out`, one axis after the other: Σ kernel steps instead of Π kernel.

    x: already padded. The axis that leaves the fewest elements comes first.
    """
    lead = x.ndim - len(kernel)
    counts = out.shape[lead:]
    axes = sorted(range(len(kernel)), key=lambda i: counts[i] / max(x.shape[lead + i], 1))
    for i in axes:
        axis, last = lead + i, i == axes[-1]
        where = [slice(None)] * x.ndim
        result: Any = out if last else None
        for k, (_, (_, at)) in enumerate(taps([kernel[i]], [counts[i]], [strides[i]], [dilations[i]])):
            where[axis] = at
            seen = x[tuple(where)]
            if k:
                join(result, seen, out=result)
            elif last:
                result[...] = seen
            else:
                result = seen.copy()
        x = result


@op
def max_pool(
    x: TensorType, *, kernel: tuple[int, ...], strides: tuple[int, ...], pads: tuple[int, ...], dilations: tuple[int, ...]
) -> TensorType:
    """The greatest element of each window; padding counts as −∞ (the least integer). NaN wins.

    x: [N, C, *spatial], real. pads: all begins, then all ends. Returns [N, C, *windows] of x's type. Raises ShapeError where
    a window is larger than its axis. Source: ONNX MaxPool-22.
    """
    require(x, REAL, "real")
    return pooled(x, kernel, strides, pads, dilations)


@kernel(max_pool)
def _(xp: Any, out: Any, x: Any, *, kernel: Any, strides: Any, pads: Any, dilations: Any) -> None:
    slide(xp, xp.maximum, padded(xp, x, pads, lowest(out.dtype)), out, kernel, strides, dilations)


@op
def max_pool_with_indices(
    x: TensorType,
    *,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
    column_major: bool = False,
) -> tuple[TensorType, TensorType]:
    """`max_pool` and where in x each maximum was found (the first of equals): its place among all elements of x.

    Returns (y, int64 of y's shape). Places count the flattened x; with `column_major` the spatial axes are counted first to
    last instead. Source: ONNX MaxPool-22 (storage_order).
    """
    require(x, REAL, "real")
    y = pooled(x, kernel, strides, pads, dilations)
    return y, TensorType(y.shape, dtypes.int64)


@kernel(max_pool_with_indices)
def _(xp: Any, out: Any, x: Any, *, kernel: Any, strides: Any, pads: Any, dilations: Any, column_major: bool) -> None:
    y, places = out
    spatial, counts = x.shape[2:], y.shape[2:]
    weights = [math.prod(spatial[:i]) if column_major else math.prod(spatial[i + 1 :]) for i in range(len(spatial))]
    starts = [
        (xp.arange(c) * s - pads[i]).reshape([-1 if j == i else 1 for j in range(len(counts))])
        for i, (c, s) in enumerate(zip(counts, strides, strict=True))
    ]
    y[...] = lowest(x.dtype)
    # A window of nothing but −∞ reports its first element that is not padding.
    places[...] = sum((a + xp.maximum(-(a // d) * d, 0)) * w for a, d, w in zip(starts, dilations, weights, strict=True))
    filled = padded(xp, x, pads, lowest(x.dtype))
    for tap, where in taps(kernel, counts, strides, dilations):
        seen = filled[where]
        better = (seen > y) | ((seen != seen) & (y == y))
        xp.copyto(y, seen, where=better)
        at = sum((a + t * d) * w for a, t, d, w in zip(starts, tap, dilations, weights, strict=True))
        xp.copyto(places, xp.broadcast_to(at, places.shape), where=better)
    image = xp.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], *[1] * len(spatial))
    places += image * math.prod(spatial)


@op
def max_unpool(x: TensorType, places: TensorType, *, shape: tuple[int, ...]) -> TensorType:
    """Zeros of `shape`, with x's elements put at `places` of the flattened result: max pooling undone.

    x: real; places: int64 of x's shape. Raises ShapeError where the shapes differ. Source: ONNX MaxUnpool-22.
    """
    require(x, REAL, "real")
    require(places, {dtypes.int64, dtypes.int32}, "place")
    if places.shape != x.shape:
        raise ShapeError(f"{places} does not say where each element of {x} goes")
    return TensorType(dims_of(shape), x.dtype)


@kernel(max_unpool)
def _(xp: Any, out: Any, x: Any, places: Any, *, shape: Any) -> None:
    out[...] = 0
    out.reshape(-1)[places.reshape(-1)] = x.reshape(-1)


@op
def average_pool(
    x: TensorType,
    *,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
    counted: tuple[int, ...],
) -> TensorType:
    """The mean of each window: the sum of what lies in x, divided by how many of its elements count.

    x: [N, C, *spatial], floating. pads: all begins, then all ends. counted: how far beyond x, likewise, elements count (as
    zeros): all 0 for means over x alone, `pads` for means over padding too. Returns [N, C, *windows] of x's type. Half types
    accumulate in float32. Raises ShapeError where a window is larger than its axis. Source: ONNX AveragePool-22.
    """
    require(x, dtypes.STANDARD_FLOAT, "floating")
    if len(counted) != len(pads):
        raise ShapeError(f"counted {list(counted)} and pads {list(pads)} differ in length")
    return pooled(x, kernel, strides, pads, dilations)


def divisors(
    spatial: Sequence[int],
    counts: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    counted: Sequence[int],
) -> list[np.ndarray]:
    """Per spatial axis, how many elements of each window count: the divisor of a mean is the product over the axes."""
    n, result = len(spatial), []
    for i, d in enumerate(spatial):
        at = np.arange(counts[i])[:, None] * strides[i] - pads[i] + np.arange(kernel[i]) * dilations[i]
        result.append(((at >= -counted[i]) & (at < d + counted[n + i])).sum(1))
    return result


@kernel(average_pool)
def _(xp: Any, out: Any, x: Any, *, kernel: Any, strides: Any, pads: Any, dilations: Any, counted: Any) -> None:
    wide = dtypes.accumulator(out.dtype)
    sums = out if out.dtype == wide else xp.empty(out.shape, wide)
    slide(xp, xp.add, padded(xp, x, pads, 0, wide), sums, kernel, strides, dilations)
    for i, count in enumerate(divisors(x.shape[2:], out.shape[2:], kernel, strides, pads, dilations, counted)):
        sums /= xp.asarray(count, wide).reshape([-1 if j == i else 1 for j in range(len(kernel))])
    if sums is not out:
        out[...] = sums


@composite
def lp_pool(
    x: Any,
    *,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
    p: float = 2,
) -> Any:
    """(Σ |x|ᵖ)^(1/p) over each window; padding counts as zeros.

    x: [N, C, *spatial], floating. pads: all begins, then all ends. Returns [N, C, *windows] of x's type; half types are
    computed in float32. Source: ONNX LpPool-22.
    """
    wide = cast(x, to=dtypes.accumulator(x.dtype))
    powers = wide * wide if p == 2 else abs(wide) ** p
    windows = {"kernel": kernel, "strides": strides, "pads": pads, "dilations": dilations}
    sums = average_pool(powers, **windows, counted=pads) * math.prod(kernel)  # all of a window counts
    return cast(sqrt(sums) if p == 2 else sums ** (1 / p), to=x.dtype)


def _over_space(x: Any) -> dict[str, Any]:
    if x.rank < 3:
        raise ShapeError(f"global pooling takes [N, C, *spatial], not rank {x.rank}")
    return {"axes": tuple(range(2, x.rank)), "keepdims": True}


@composite
def global_average_pool(x: Any) -> Any:
    """The mean over all spatial axes, which stay with size 1.

    x: [N, C, *spatial], floating. Source: ONNX GlobalAveragePool-22.
    """
    return reduce_mean(x, **_over_space(x))


@composite
def global_max_pool(x: Any) -> Any:
    """The maximum over all spatial axes, which stay with size 1.

    x: [N, C, *spatial], real. Source: ONNX GlobalMaxPool-22.
    """
    return reduce_max(x, **_over_space(x))


@composite
def global_lp_pool(x: Any, *, p: float = 2) -> Any:
    """(Σ |x|ᵖ)^(1/p) over all spatial axes, which stay with size 1; half types are computed in float32.

    x: [N, C, *spatial], floating. Source: ONNX GlobalLpPool-22.
    """
    wide = cast(x, to=dtypes.accumulator(x.dtype))
    sums = reduce_sum(wide * wide if p == 2 else abs(wide) ** p, **_over_space(x))
    return cast(sqrt(sums) if p == 2 else sums ** (1 / p), to=x.dtype)
