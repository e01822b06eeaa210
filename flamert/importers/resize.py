"""Converters. Resize and Upsample in all their versions: where each result lies in the input, and what is summed there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from flamert import dtypes, ops
from flamert import graph as g
from flamert.errors import InvalidModel, ShapeError
from flamert.graph import Value
from flamert.importers.registry import Context, converter
from flamert.ops.evaluate import value_of
from flamert.ops.resize import cubic, taps_at, triangle
from flamert.ops.rules import axes_in
from flamert.ops.shape import narrow

NEAREST: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": lambda at: np.ceil(at - 0.5),
    "round_prefer_ceil": lambda at: np.floor(at + 0.5),
}


class Axis(NamedTuple):
    """How one axis is resized: old and new size, scale (new / old, not rounded), and the region of interest.

    computed: scale, start and end as Values, where they are no constants and the result has to follow them.
    """

    axis: int
    old: int
    new: int
    scale: float
    start: float = 0.0
    end: float = 1.0
    computed: tuple[Any, Any, Any] | None = None

    def coordinates(self, mode: str) -> Value:
        """Where in the input each element of the result lies, by ONNX's `coordinate_transformation_mode`: float64 [new]."""
        i = g.constant(np.arange(self.new, dtype=np.float64))
        scale, start, end = self.computed or (self.scale, self.start, self.end)
        length = scale * self.old
        single = self.scale * self.old == 1
        if mode == "half_pixel" or (mode == "pytorch_half_pixel" and self.new > 1):
            return (i + 0.5) / scale - 0.5
        if mode == "pytorch_half_pixel":
            return i * 0.0
        if mode == "half_pixel_symmetric":
            return self.old / 2 * (1 - self.new / length) + (i + 0.5) / scale - 0.5
        if mode == "align_corners":
            return i * 0.0 if single else i * (self.old - 1) / (length - 1)
        if mode == "tf_half_pixel_for_nn":
            return (i + 0.5) / scale
        if mode == "asymmetric":
            return i / scale
        if mode == "tf_crop_and_resize":
            if single:
                return i * 0.0 + (start + end) / 2 * (self.old - 1)
            return start * (self.old - 1) + i * ((end - start) * (self.old - 1)) / (length - 1)
        raise InvalidModel(f"coordinate_transformation_mode {mode!r} is unknown")


def _elements(value: Value) -> list[Value]:
    """A 1-D Value's elements as float64 scalars."""
    return [ops.cast(ops.reshape(narrow(value, 0, i, 1), shape=()), to=dtypes.float64) for i in range(value.shape[0])]


def scaled(ctx: Context, x: Value, axes: Sequence[int], scales: Value) -> list[Axis]:
    """Resized axes from a tensor of their scales."""
    resized = by_scales(x, axes, ctx.contents(scales).tolist())
    if scales.node.known:
        return resized
    return [r._replace(computed=(s, r.start, r.end)) for r, s in zip(resized, _elements(scales), strict=True)]


def cropped(ctx: Context, resized: Sequence[Axis], roi: Value) -> list[Axis]:
    """The axes with the start and end that `roi` gives them: all starts, then all ends."""
    found = ctx.contents(roi).astype(np.float64).tolist()
    n = len(resized)
    resized = [r._replace(start=s, end=e) for r, s, e in zip(resized, found[:n], found[n:], strict=True)]
    if roi.node.known and all(r.computed is None for r in resized):
        return resized
    ends = _elements(roi)
    return [
        r._replace(computed=(r.computed[0] if r.computed else r.scale, s, e))
        for r, s, e in zip(resized, ends[:n], ends[n:], strict=True)
    ]


def by_scales(x: Value, axes: Sequence[int], scales: Sequence[float]) -> list[Axis]:
    """Resized axes from their scales. The new size is ⌊old · scale⌋ in float32, as ONNX's shape inference has it."""
    if len(scales) != len(axes) or min(scales, default=1) <= 0:
        raise ShapeError(f"scales {list(scales)} must be positive, one for each of the axes {list(axes)}")
    return [
        Axis(a, x.shape[a], math.floor(np.float32(x.shape[a]) * np.float32(s)), float(s))
        for a, s in zip(axes, scales, strict=True)
    ]


def by_sizes(x: Value, axes: Sequence[int], sizes: Sequence[int], policy: str) -> list[Axis]:
    """Resized axes from their new sizes, as they are or shrunk or grown to one scale for all."""
    if len(sizes) != len(axes) or min(sizes, default=0) < 0:
        raise ShapeError(f"sizes {list(sizes)} must be one for each of the axes {list(axes)}")
    scales = [n / x.shape[a] if x.shape[a] else 1.0 for a, n in zip(axes, sizes, strict=True)]
    if policy == "stretch":
        return [Axis(a, x.shape[a], n, s) for a, n, s in zip(axes, sizes, scales, strict=True)]
    if policy not in ("not_larger", "not_smaller"):
        raise InvalidModel(f"keep_aspect_ratio_policy {policy!r} is unknown")
    scale = min(scales) if policy == "not_larger" else max(scales)
    return [Axis(a, x.shape[a], math.floor(scale * x.shape[a] + 0.5), scale) for a in axes]


def resize(
    ctx: Context,
    x: Value,
    resized: Sequence[Axis],
    *,
    mode: str,
    coordinates: str = "asymmetric",
    nearest: Callable[[np.ndarray], np.ndarray] = np.floor,
    cubic_coeff_a: float = -0.75,
    exclude_outside: bool = False,
    antialias: bool = False,
    extrapolation_value: float = 0.0,
) -> Value:
    """x with these axes resized, in ops: gathers for "nearest", `resample` for "linear" and "cubic"."""
    cropping = coordinates == "tf_crop_and_resize"
    resized = [r for r in resized if r.new != r.old or r.scale != 1 or (cropping and (r.start, r.end) != (0, 1))]
    at = [r.coordinates(coordinates) for r in resized]
    places = [ctx.contents(v) for v in at]
    if any(r.new and not r.old for r in resized):
        raise ShapeError(f"{x} is empty along an axis that should grow")
    if mode == "nearest":
        y = _pick(x, resized, [np.clip(nearest(p), 0, max(r.old - 1, 0)) for r, p in zip(resized, places, strict=True)])
    elif mode in ("linear", "bilinear", "cubic", "bicubic"):
        shape, reach = (cubic(cubic_coeff_a), 2) if "cubic" in mode else (triangle, 1)
        taps = []
        for r, v, p in zip(resized, at, places, strict=True):
            shrunk = antialias and r.scale < 1
            wider = {"shrink": r.computed[0] if r.computed else r.scale} if shrunk else {}
            taps.append(
                taps_at(v, p, r.old, shape, reach / r.scale if shrunk else reach, **wider, exclude_outside=exclude_outside)
            )
        y = _blend(x, resized, taps)
    else:
        raise InvalidModel(f"mode {mode!r} is none of nearest, linear, cubic")
    if not cropping:
        return y
    outside = [(p < 0) | (p > r.old - 1) for r, p in zip(resized, places, strict=True)]
    for r, out in zip(resized, outside, strict=True):
        if out.any():
            mask = g.constant(out.reshape([-1 if i == r.axis else 1 for i in range(x.rank)]))
            y = ops.where(mask, g.constant(np.array(extrapolation_value).astype(x.dtype)), y)
    return y


def _pick(x: Value, resized: Sequence[Axis], index: Sequence[np.ndarray]) -> Value:
    """Elements of x by index along each axis; plain repetition, the common case, as one broadcast copy."""
    factors = [r.new // r.old if r.old and r.new % r.old == 0 else 0 for r in resized]
    if all(f and (i == np.arange(r.old).repeat(f)).all() for r, f, i in zip(resized, factors, index, strict=True)):
        times = {r.axis: f for r, f in zip(resized, factors, strict=True)}
        return ops.repeat(x, repeats=tuple(times.get(a, 1) for a in range(x.rank)))
    for r, i in sorted(zip(resized, index, strict=True), key=lambda pair: pair[0].scale):
        x = ops.gather(x, g.constant(i, np.int64), axis=r.axis)
    return x


def _blend(x: Value, resized: Sequence[Axis], taps: Sequence[tuple[np.ndarray, Value]]) -> Value:
    """Weighted sums of x's elements along each axis; integers are computed as floats, rounded and saturated."""
    if not resized:
        return x
    if x.dtype in dtypes.STANDARD_FLOAT:
        wide = dtypes.accumulator(x.dtype)
    else:
        wide = dtypes.float32 if x.dtype.itemsize < 4 else dtypes.float64
    pairs: list[Value] = []
    for index, weight in taps:
        weight = ops.cast(weight, to=wide)
        pairs += [g.constant(index), g.constant(value_of(weight)) if weight.node.known else weight]
    axes = tuple(r.axis for r in resized)
    if x.dtype in dtypes.STANDARD_FLOAT:
        return ops.resample(x, *pairs, axes=axes)
    y = ops.resample(ops.cast(x, to=wide), *pairs, axes=axes)
    if x.dtype in dtypes.INTEGER:
        limits = ml_dtypes.iinfo(x.dtype)
        high = float(limits.max)
        # The greatest 64-bit integers round up to a float that is one too many.
        y = ops.clip(ops.round(y), float(limits.min), high if high <= limits.max else math.nextafter(high, 0))
    return ops.cast(y, to=x.dtype)


@converter("Resize", 11)
def _(
    ctx: Context,
    x: Value,
    roi: Value | None = None,
    scales: Value | None = None,
    sizes: Value | None = None,
    *,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Value:
    """An absent or empty `scales` means that `sizes` are given."""
    over = axes_in(axes, x.rank) if axes is not None else tuple(range(x.rank))
    if nearest_mode not in NEAREST:
        raise InvalidModel(f"nearest_mode {nearest_mode!r} is unknown")
    if scales is not None and scales.type.size:
        resized = scaled(ctx, x, over, scales)
    elif sizes is not None and sizes.type.size:
        resized = by_sizes(x, over, ctx.ints(sizes) or (), keep_aspect_ratio_policy)
    elif not over:
        resized = []
    else:
        raise ShapeError("neither scales nor sizes are given")
    if coordinate_transformation_mode == "tf_crop_and_resize":
        if roi is None or roi.type.size != 2 * len(over):
            raise ShapeError(f"tf_crop_and_resize needs a roi of {2 * len(over)} numbers")
        resized = cropped(ctx, resized, roi)
    return resize(
        ctx,
        x,
        resized,
        mode=mode,
        coordinates=coordinate_transformation_mode,
        nearest=NEAREST[nearest_mode],
        cubic_coeff_a=cubic_coeff_a,
        exclude_outside=bool(exclude_outside),
        antialias=bool(antialias),
        extrapolation_value=extrapolation_value,
    )


@converter("Resize", 10)
@converter("Upsample", 9)
def _(ctx: Context, x: Value, scales: Value, *, mode: str = "nearest") -> Value:
    return _upsample(ctx, x, scaled(ctx, x, range(x.rank), scales), mode)


@converter("Upsample", 7)
def _(ctx: Context, x: Value, *, scales: Sequence[float], mode: str = "nearest") -> Value:
    return _upsample(ctx, x, by_scales(x, range(x.rank), scales), mode)


@converter("Upsample", 1)
def _(ctx: Context, x: Value, *, height_scale: float, width_scale: float, mode: str = "nearest") -> Value:
    return _upsample(ctx, x, by_scales(x, range(x.rank), [1.0, 1.0, height_scale, width_scale]), mode)


def _upsample(ctx: Context, x: Value, resized: Sequence[Axis], mode: str) -> Value:
    """Before opset 11, result i lies at i / scale; the nearest element is the one before, or after where an axis shrinks."""
    if mode != "nearest":
        return resize(ctx, x, resized, mode=mode)
    for r in resized:
        x = resize(ctx, x, [r], mode=mode, nearest=np.floor if r.scale >= 1 else np.ceil)
    return x
