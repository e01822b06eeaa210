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


def _seed(seed: float | None) -> int | None:
    """ONNX's seeds are floats; whole ones stand for themselves."""
    if seed is None or float(seed).is_integer():
        return None if seed is None else int(seed)
    return int(np.float64(seed).view(np.uint64))


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
    return ops.random_normal(shape=tuple(shape), dtype=dtype_of(dtype), mean=mean, scale=scale, seed=_seed(seed))


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
    return ops.random_uniform(shape=tuple(shape), dtype=dtype_of(dtype), low=low, high=high, seed=_seed(seed))


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
    return ops.random_normal(**_like(x, dtype), mean=mean, scale=scale, seed=_seed(seed))


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
    return ops.random_uniform(**_like(x, dtype), low=low, high=high, seed=_seed(seed))


@converter("Bernoulli", 15)
def _(ctx: Context, p: Value, *, dtype: int | None = None, seed: float | None = None) -> Value:
    return ops.bernoulli(p, dtype=p.dtype if dtype is None else dtype_of(dtype), seed=_seed(seed))


@converter("Multinomial", 7)
def _(ctx: Context, logits: Value, *, dtype: int = 6, sample_size: int = 1, seed: float | None = None) -> Value:
    return ops.multinomial(logits, samples=sample_size, dtype=dtype_of(dtype), seed=_seed(seed))


def _kept(x: Value, mask: np.dtype) -> tuple[Value, ...]:
    """Dropout outside training: everything passes."""
    return x, ops.expand(g.constant(np.ones((), mask)), shape=x.shape)


def _legacy(x: Value, ratio: float, is_test: int) -> tuple[Value, ...]:
    if is_test:
        return _kept(x, x.dtype)
    y, mask = ops.dropout(x, g.constant(np.float32(ratio)))
    return y, ops.cast(mask, to=x.dtype)


@converter("Dropout", 1)
def _(ctx: Context, x: Value, *, ratio: float = 0.5, is_test: int = 0, consumed_inputs: Any = None) -> tuple[Value, ...]:
    return _legacy(x, ratio, is_test)


@converter("Dropout", 6)
def _(ctx: Context, x: Value, *, ratio: float = 0.5, is_test: int = 0) -> tuple[Value, ...]:
    return _legacy(x, ratio, is_test)


@converter("Dropout", 7)
def _(ctx: Context, x: Value, *, ratio: float = 0.5) -> tuple[Value, ...]:
    """From here to opset 11 the op is for inference only."""
    return _kept(x, x.dtype)


@converter("Dropout", 10)
def _(ctx: Context, x: Value, *, ratio: float = 0.5) -> tuple[Value, ...]:
    return _kept(x, dtypes.bool_)


@converter("Dropout", 12)
def _(
    ctx: Context, x: Value, ratio: Value | None = None, training_mode: Value | None = None, *, seed: int | None = None
) -> tuple[Value, ...]:
    if training_mode is None or not ctx.value(training_mode).all():
        return _kept(x, dtypes.bool_)
    if ratio is None:
        ratio = g.constant(np.float32(0.5))
    known = ctx.known(ratio)
    if known is not None and not known.any():
        return _kept(x, dtypes.bool_)
    return ops.dropout(x, ops.reshape(ratio, shape=()), seed=seed)
