"""Ops that treat every element alone: arithmetic, functions of one number, comparisons, logic, select, activations."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from flamert import dtypes
from flamert.graph import TensorType
from flamert.ops.op import Op, Site, composite, kernel, op
from flamert.ops.rules import broadcast, require, same_dtype

NUMERIC = (dtypes.FLOAT | dtypes.INTEGER | dtypes.COMPLEX) - {dtypes.float8_e8m0fnu}


def ufunc(target: Op, name: str) -> None:
    """The kernel of an op that a NumPy and CuPy ufunc computes."""

    @kernel(target, bind=True)
    def bound(site: Site, out: Any, *inputs: Any) -> Callable[[], Any]:
        return functools.partial(getattr(site.xp, name), *inputs, out=out)


@op(inplace=(0, 1))
def add(a: TensorType, b: TensorType) -> TensorType:
    """a + b, broadcast. Numeric, one type for both; integers wrap around. Source: ONNX Add-14."""
    require(a, NUMERIC, "numeric")
    return TensorType(broadcast(a.shape, b.shape), same_dtype(a, b))


@op(inplace=(0, 1))
def mul(a: TensorType, b: TensorType) -> TensorType:
    """a · b, broadcast. Numeric, one type for both; integers wrap around. Source: ONNX Mul-14."""
    require(a, NUMERIC, "numeric")
    return TensorType(broadcast(a.shape, b.shape), same_dtype(a, b))


@op(inplace=(0, 1))
def maximum(a: TensorType, b: TensorType) -> TensorType:
    """max(a, b), broadcast; NaN where either is NaN. Real, one type for both. Source: ONNX Max-13."""
    return TensorType(broadcast(a.shape, b.shape), same_dtype(a, b))


@op(inplace=(0,))
def erf(x: TensorType) -> TensorType:
    """2/√π ∫₀ˣ exp(−t²) dt. Floating; returns x's type. Source: ONNX Erf-13."""
    require(x, dtypes.STANDARD_FLOAT, "floating")
    return x


for _op, _name in ((add, "add"), (mul, "multiply"), (maximum, "maximum")):
    ufunc(_op, _name)


@kernel(erf)
def _(xp: Any, out: Any, x: Any) -> None:
    """Python's erf, element by element: exact to the last bit, and slow. Faster kernels are in ops/cpu and ops/cuda."""
    if xp is not np:
        from cupyx.scipy.special import erf as gpu_erf

        out[...] = gpu_erf(x.astype(xp.float32) if x.dtype.itemsize < 4 else x)
        return
    out.reshape(-1)[...] = [math.erf(float(v)) for v in x.reshape(-1)]


@composite
def relu(x: Any) -> Any:
    """max(x, 0). Real; returns x's type. Source: ONNX Relu-14."""
    return maximum(x, 0)


@composite
def gelu(x: Any) -> Any:
    """x · Φ(x), Φ the normal distribution function. Source: ONNX Gelu-20, Hendrycks & Gimpel 2016."""
    return x * (erf(x * math.sqrt(0.5)) + 1) * 0.5
