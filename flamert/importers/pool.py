"""Converters. Pooling over windows, over everything, over regions, and max pooling undone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flamert import ops
from flamert.graph import Value
from flamert.importers.registry import Context, converter
from flamert.importers.windows import ceil_pads, geometry
from flamert.ops.windows import extent


def _windows(
    x: Value,
    kernel: Sequence[int],
    strides: Sequence[int] | None,
    pads: Sequence[int] | None,
    dilations: Sequence[int] | None,
    auto_pad: str,
    ceil_mode: int,
) -> tuple[dict[str, Any], tuple[int, ...]]:
    """The window attributes of a pooling op, and the padding before `ceil_mode` extended it."""
    found = geometry(x.shape[2:], kernel, strides, pads, dilations, auto_pad)
    asked = found.pads
    if ceil_mode and auto_pad in ("NOTSET", ""):
        found = found._replace(pads=ceil_pads(x.shape[2:], kernel, found))
    return {"kernel": tuple(kernel), **found._asdict()}, asked


@converter("MaxPool")
def _(
    ctx: Context,
    x: Value,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    storage_order: int = 0,
    strides: Sequence[int] | None = None,
) -> Any:
    windows, _ = _windows(x, kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
    if ctx.wants(1):
        return ops.max_pool_with_indices(x, **windows, column_major=bool(storage_order))
    return ops.max_pool(x, **windows)


@converter("AveragePool")
def _(
    ctx: Context,
    x: Value,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Value:
    windows, asked = _windows(x, kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
    return ops.average_pool(x, **windows, counted=asked if count_include_pad else (0,) * len(asked))


@converter("LpPool")
def _(
    ctx: Context,
    x: Value,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    p: float = 2,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Value:
    windows, _ = _windows(x, kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
    return ops.lp_pool(x, **windows, p=p)


@converter("GlobalAveragePool")
def _(ctx: Context, x: Value) -> Value:
    return ops.global_average_pool(x)


@converter("GlobalMaxPool")
def _(ctx: Context, x: Value) -> Value:
    return ops.global_max_pool(x)


@converter("GlobalLpPool")
def _(ctx: Context, x: Value, *, p: float = 2) -> Value:
    return ops.global_lp_pool(x, p=p)


@converter("MaxUnpool")
def _(
    ctx: Context,
    x: Value,
    places: Value,
    output_shape: Value | None = None,
    *,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Value:
    """Places count in the shape that the windows imply; an `output_shape` that differs crops that or adds zeros at the ends."""
    n = len(kernel_shape)
    windows = geometry(x.shape[2:], kernel_shape, strides, pads, None)
    implied = x.shape[:2] + tuple(
        (d - 1) * windows.strides[i] + e - windows.pads[i] - windows.pads[n + i]
        for i, (d, e) in enumerate(zip(x.shape[2:], extent(kernel_shape, windows.dilations), strict=True))
    )
    y = ops.max_unpool(x, places, shape=implied)
    wanted = ctx.ints(output_shape)
    if wanted is None or wanted == implied:
        return y
    return ops.pad(y, pads=(0,) * x.rank + tuple(want - have for have, want in zip(implied, wanted, strict=True)))
