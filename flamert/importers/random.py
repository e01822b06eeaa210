"""Converters of ONNX's random ops and of Dropout. A seeded node goes through the same numbers in every run of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flamert import dtypes, ops
from flamert import graph as g
from flamert.graph import Value
from flamert.importers.registry import Context, converter
from flamert.importers.tensors import dtype_of


def _source(ctx: Context, seed: float | None) -> tuple[Value | None, int | None]:
    """The counter and the seed of a node's numbers. In training they are a function of the step, else a stream of their own.

    ONNX's seeds are floats; whole ones stand for themselves.
    """
    if ctx.training is not None:
        return ctx.training.draw()
    if seed is None or float(seed).is_integer():
        return None, None if seed is None else int(seed)
    return None, int(np.float64(seed).view(np.uint64))


@converter("RandomNormal")
def _(
    ctx: Context,
    *,
    shape: Sequence[int],
    dtype: int = 1,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
) -> Value:
    counter, key = _source(ctx, seed)
    return ops.random_normal(counter, shape=tuple(shape), dtype=dtype_of(dtype), mean=mean, scale=scale, seed=key)


@converter("RandomUniform")
def _(
    ctx: Context,
    *,
    shape: Sequence[int],
    dtype: int = 1,
    high: float = 1.0,
    low: float = 0.0,
    seed: float | None = None,
) -> Value:
    counter, key = _source(ctx, seed)
    return ops.random_uniform(counter, shape=tuple(shape), dtype=dtype_of(dtype), low=low, high=high, seed=key)


def _like(x: Value, dtype: int | None) -> dict[str, Any]:
    return {"shape": x.shape, "dtype": x.dtype if dtype is None else dtype_of(dtype)}


@converter("RandomNormalLike", strings=True)
def _(
    ctx: Context,
    x: Value,
    *,
    dtype: int | None = None,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
) -> Value:
    counter, key = _source(ctx, seed)
    return ops.random_normal(counter, **_like(x, dtype), mean=mean, scale=scale, seed=key)


@converter("RandomUniformLike", strings=True)
def _(
    ctx: Context,
    x: Value,
    *,
    dtype: int | None = None,
    high: float = 1.0,
    low: float = 0.0,
    seed: float | None = None,
) -> Value:
    counter, key = _source(ctx, seed)
    return ops.random_uniform(counter, **_like(x, dtype), low=low, high=high, seed=key)


@converter("Bernoulli", 15)
def _(ctx: Context, p: Value, *, dtype: int | None = None, seed: float | None = None) -> Value:
    counter, key = _source(ctx, seed)
    return ops.bernoulli(p, counter, dtype=p.dtype if dtype is None else dtype_of(dtype), seed=key)


@converter("Multinomial", 7)
def _(ctx: Context, logits: Value, *, dtype: int = 6, sample_size: int = 1, seed: float | None = None) -> Value:
    counter, key = _source(ctx, seed)
    return ops.multinomial(logits, counter, samples=sample_size, dtype=dtype_of(dtype), seed=key)


def _kept(x: Value, mask: np.dtype) -> tuple[Value, ...]:
    """Dropout outside training: everything passes."""
    return x, ops.expand(g.constant(np.ones((), mask)), shape=x.shape)


def _dropped(ctx: Context, x: Value, ratio: Value, mask: np.dtype, seed: int | None = None) -> tuple[Value, ...]:
    """Dropout in training; a ratio that is known to be zero lets everything pass."""
    known = ctx.known(ratio)
    if known is not None and not known.any():
        return _kept(x, mask)
    counter, key = _source(ctx, seed)
    y, kept = ops.dropout(x, ops.reshape(ratio, shape=()), counter, seed=key)
    return y, kept if mask == dtypes.bool_ else ops.cast(kept, to=mask)


def _legacy(ctx: Context, x: Value, ratio: float, mask: np.dtype, trains: bool) -> tuple[Value, ...]:
    if trains or ctx.training is not None:
        return _dropped(ctx, x, g.constant(np.float32(ratio)), mask)
    return _kept(x, mask)


@converter("Dropout", 1)
def _(ctx: Context, x: Value, *, ratio: float = 0.5, is_test: int = 0, consumed_inputs: Any = None) -> tuple[Value, ...]:
    return _legacy(ctx, x, ratio, x.dtype, not is_test)


@converter("Dropout", 6)
def _(ctx: Context, x: Value, *, ratio: float = 0.5, is_test: int = 0) -> tuple[Value, ...]:
    return _legacy(ctx, x, ratio, x.dtype, not is_test)


@converter("Dropout", 7)
def _(ctx: Context, x: Value, *, ratio: float = 0.5) -> tuple[Value, ...]:
    """From here to opset 11 the op by itself is for inference only."""
    return _legacy(ctx, x, ratio, x.dtype, False)


@converter("Dropout", 10)
def _(ctx: Context, x: Value, *, ratio: float = 0.5) -> tuple[Value, ...]:
    return _legacy(ctx, x, ratio, dtypes.bool_, False)


@converter("Dropout", 12)
def _(
    ctx: Context, x: Value, ratio: Value | None = None, training_mode: Value | None = None, *, seed: int | None = None
) -> tuple[Value, ...]:
    if ctx.training is None and (training_mode is None or not ctx.value(training_mode).all()):
        return _kept(x, dtypes.bool_)
    return _dropped(ctx, x, g.constant(np.float32(0.5)) if ratio is None else ratio, dtypes.bool_, seed)
