"""Exporters of random numbers. Counters are dropped: each run of the model draws new numbers of its runtime's own."""

from __future__ import annotations

from typing import Any

import numpy as np

from flamert import dtypes, ops
from flamert import graph as g
from flamert.exporters.registry import exporter, spelled
from flamert.exporters.shape import dims
from flamert.exporters.writer import Writer
from flamert.graph import Value


def _seed(seed: int | None) -> float | None:
    """ONNX's seeds are float32, which tells only so many integers apart."""
    return None if seed is None else float(seed % (1 << 24))


def _drawn(to: Writer, op_type: str, shape: tuple[int, ...], dtype: np.dtype, seed: int | None, **range: Any) -> str:
    """Random numbers; bfloat16 and scalars by way of what runtimes have."""
    kind = dtypes.float32 if dtype == dtypes.bfloat16 else dtype
    name: str = to(op_type, shape=shape or (1,), dtype=kind, seed=_seed(seed), **range)
    name = name if shape else to("Reshape", name, dims(()))
    return name if kind == dtype else to("Cast", name, to=dtype)


@exporter(ops.random_uniform)
def _(to: Writer, counter: Value | None = None, *, shape: Any, dtype: Any, low: float, high: float, seed: int | None) -> str:
    return _drawn(to, "RandomUniform", shape, np.dtype(dtype), seed, low=low, high=high)


@exporter(ops.random_normal)
def _(to: Writer, counter: Value | None = None, *, shape: Any, dtype: Any, mean: float, scale: float, seed: int | None) -> str:
    """A scale that is not positive is applied afterwards: onnxruntime ends the process that asks for one."""
    dtype = np.dtype(dtype)
    if scale > 0:
        return _drawn(to, "RandomNormal", shape, dtype, seed, mean=mean, scale=scale)
    drawn = to("Mul", _drawn(to, "RandomNormal", shape, dtype, seed, mean=0.0, scale=1.0), np.array(scale, dtype))
    return to("Add", drawn, np.array(mean, dtype))


@exporter(ops.dropout)
def _(to: Writer, x: Value, ratio: Value, counter: Value | None = None, *, seed: int | None) -> Any:
    drop: Any = to("Reshape", ratio, dims(())) if ratio.rank else ratio
    draws = np.array(True) if to.draws else None
    return to("Dropout", x, drop, draws, seed=None if seed is None else seed % (1 << 31), outputs=2)


@spelled(ops.multinomial)
def _(logits: Value, counter: Value | None = None, *, samples: int, dtype: Any, seed: int | None) -> Value:
    """How many classes' cumulated shares a uniform number has passed."""
    n, classes = logits.shape
    wide = ops.cast(logits, to=dtypes.accumulator(logits.dtype))
    share = ops.reshape(ops.cumsum(ops.softmax(wide, axis=1), axis=1), shape=(n, 1, classes))
    drawn = ops.random_uniform(counter, shape=(n, samples, 1), dtype=wide.dtype, seed=seed)
    passed = ops.reduce_sum(ops.cast(share <= drawn, to=dtypes.int64), axes=(2,))
    return ops.cast(ops.minimum(passed, g.constant(np.int64(classes - 1))), to=np.dtype(dtype))
