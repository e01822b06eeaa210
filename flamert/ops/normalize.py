"""Normalisations: softmax and its logarithm, and layer, RMS, group and instance norm. Batch norm has a module of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flamert import dtypes
from flamert.errors import ShapeError
from flamert.graph import Node, TensorType
from flamert.ops.functions import sqrt
from flamert.ops.logic import equal, where
from flamert.ops.op import composite, kernel, op
from flamert.ops.reduce import accumulating, cast_like, moments, reduce_l1, reduce_l2
from flamert.ops.rules import axis_in, broadcast, require


def float32_copy(node: Node) -> Sequence[TensorType]:
    """Workspace of kernels that build their result in float32 where the result itself is narrower."""
    result = node.types[0]
    return (TensorType(result.shape, dtypes.float32),) if result.dtype in dtypes.HALF else ()


def affine(x: TensorType, *operands: TensorType | None) -> None:
    """Raise unless x is floating and each operand broadcasts to x's shape without enlarging it."""
    require(x, dtypes.STANDARD_FLOAT, "floating")
    for p in operands:
        if p is not None:
            require(p, dtypes.STANDARD_FLOAT, "floating")
            if broadcast(x.shape, p.shape) != x.shape:
                raise ShapeError(f"{p} does not broadcast to {list(x.shape)}")


def per_channel(x: TensorType, *operands: TensorType) -> None:
    """Raise unless x: [N, C, …] is floating and each operand is floating of shape [C]."""
    require(x, dtypes.STANDARD_FLOAT, "floating")
    if x.rank < 2:
        raise ShapeError(f"{x} has no channel axis 1")
    for p in operands:
        require(p, dtypes.STANDARD_FLOAT, "floating")
        if p.shape != x.shape[1:2]:
            raise ShapeError(f"{p} is not one number for each of the {x.shape[1]} channels of {x}")


def mean_square(xp: Any, rows: Any) -> Any:
    """Σⱼ rows[i,j]² / n, as a column. NumPy's einsum needs no temporary; CuPy's cannot be captured."""
    total = np.einsum("ij,ij->i", rows, rows) if xp is np else xp.sum(rows * rows, axis=1)
    return (total / rows.dtype.type(rows.shape[1])).reshape(-1, 1)


def standardise(xp: Any, y: Any, x: Any, axes: tuple[int, ...], epsilon: float, *, centre: bool = True) -> None:
    """y = (x − mean x) / √(var x + ε) over the trailing `axes`; without `centre`, y = x / √(mean x² + ε). y is contiguous."""
    if not x.size:
        return
    if centre:
        xp.subtract(x, xp.mean(x, axis=axes, dtype=y.dtype, keepdims=True), out=y)
    else:
        y[...] = x
    rows = y.reshape(-1, int(np.prod(x.shape[axes[0] :])))
    scale = mean_square(xp, rows)
    scale += y.dtype.type(epsilon)
    xp.sqrt(scale, out=scale)
    xp.divide(rows, scale, out=rows)


def _affinely(xp: Any, out: Any, y: Any, scale: Any, bias: Any) -> None:
    """out = y · scale + bias, computed in y, which may be out."""
    if scale is not None:
        xp.multiply(y, scale.astype(y.dtype, copy=False), out=y)
    if bias is not None:
        xp.add(y, bias.astype(y.dtype, copy=False), out=y)
    if y is not out:
        out[...] = y


@op(inplace=(0,))
def softmax(x: TensorType, *, axis: int = -1) -> TensorType:
    """exp(x) / Σ exp(x) along `axis`, shifted by max(x) so that it cannot overflow.

    x: floating, any shape. Returns x's type; half types are computed in float32. Source: ONNX Softmax-13.
    """
    require(x, dtypes.STANDARD_FLOAT, "floating")
    axis_in(axis, x.rank)
    return x


@kernel(softmax, workspace=float32_copy)
def _(xp: Any, out: Any, x: Any, *, axis: int, work: tuple[Any, ...]) -> None:
    if x.size:
        y = work[0] if work else out
        xp.subtract(x, xp.max(x, axis=axis, keepdims=True), out=y, dtype=y.dtype)
        xp.exp(y, out=y)
        xp.divide(y, xp.sum(y, axis=axis, keepdims=True), out=out)


@op
def log_softmax(x: TensorType, *, axis: int = -1) -> TensorType:
    """x − max x − log Σ exp(x − max x) along `axis`: the logarithm of softmax, exact where softmax underflows.

    x: floating, any shape. Returns x's type; half types are computed in float32. Source: ONNX LogSoftmax-13.
    """
    require(x, dtypes.STANDARD_FLOAT, "floating")
    axis_in(axis, x.rank)
    return x


@kernel(log_softmax, workspace=float32_copy)
def _(xp: Any, out: Any, x: Any, *, axis: int, work: tuple[Any, ...]) -> None:
    if x.size:
        y = work[0] if work else out
        largest = xp.max(x, axis=axis, keepdims=True)
        xp.subtract(x, largest, out=y, dtype=y.dtype)
        xp.exp(y, out=y)
        log_sum = xp.log(xp.sum(y, axis=axis, keepdims=True))
        xp.subtract(x, largest, out=y, dtype=y.dtype)
        xp.subtract(y, log_sum, out=out)


@op
def layer_norm(
    x: TensorType, scale: TensorType | None = None, bias: TensorType | None = None, *, axis: int = -1, epsilon: float = 1e-5
) -> TensorType:
    """(x − mean) / √(var + ε) · scale + bias, with mean and variance (biased) over the axes from `axis` to the last.

    x: floating, any shape. scale, bias: broadcast to x. Returns x's type; half types are computed in float32.
    Source: ONNX LayerNormalization-17, Ba et al. 2016.
    """
    axis_in(axis, x.rank)
    affine(x, scale, bias)
    return x


@kernel(layer_norm, workspace=float32_copy)
def _(
    xp: Any, out: Any, x: Any, scale: Any = None, bias: Any = None, *, axis: int, epsilon: float, work: tuple[Any, ...]
) -> None:
    y = work[0] if work else out
    standardise(xp, y, x, tuple(range(axis % x.ndim, x.ndim)), epsilon)
    _affinely(xp, out, y, scale, bias)


@op
def rms_norm(x: TensorType, scale: TensorType | None = None, *, axis: int = -1, epsilon: float = 1e-5) -> TensorType:
    """x / √(mean x² + ε) · scale, with the mean over the axes from `axis` to the last.

    x: floating, any shape. scale: broadcast to x. Returns x's type; half types are computed in float32.
    Source: ONNX RMSNormalization-23, Zhang & Sennrich 2019.
    """
    axis_in(axis, x.rank)
    affine(x, scale)
    return x


@kernel(rms_norm, workspace=float32_copy)
def _(xp: Any, out: Any, x: Any, scale: Any = None, *, axis: int, epsilon: float, work: tuple[Any, ...]) -> None:
    y = work[0] if work else out
    standardise(xp, y, x, tuple(range(axis % x.ndim, x.ndim)), epsilon, centre=False)
    _affinely(xp, out, y, scale, None)


def as_channels(p: Any, y: Any) -> Any:
    """A [C] array in y's type, shaped to broadcast along y's axis 1."""
    return p.astype(y.dtype, copy=False).reshape(-1, *[1] * (y.ndim - 2))


@op
def group_norm(x: TensorType, scale: TensorType, bias: TensorType, *, groups: int, epsilon: float = 1e-5) -> TensorType:
    """(x − mean) / √(var + ε) · scale + bias, with mean and variance (biased) over each group of C / groups channels.

    x: floating [N, C, …]. scale, bias: floating [C]. Returns x's type; half types are computed in float32.
    Source: ONNX GroupNormalization-21, Wu & He 2018.
    """
    per_channel(x, scale, bias)
    if groups < 1 or x.shape[1] % groups:
        raise ShapeError(f"{x.shape[1]} channels do not divide into {groups} groups")
    return x


@kernel(group_norm, workspace=float32_copy, contiguous=True)
def _(xp: Any, out: Any, x: Any, scale: Any, bias: Any, *, groups: int, epsilon: float, work: tuple[Any, ...]) -> None:
    y = work[0] if work else out
    rows = (x.shape[0] * groups, x.size // max(1, x.shape[0] * groups))
    standardise(xp, y.reshape(rows), x.reshape(rows), (1,), epsilon)
    _affinely(xp, out, y, as_channels(scale, y), as_channels(bias, y))


@composite
def instance_norm(x: Any, scale: Any, bias: Any, *, epsilon: float = 1e-5) -> Any:
    """group_norm with a group for each channel. Source: ONNX InstanceNormalization-22, Ulyanov et al. 2016."""
    return group_norm(x, scale, bias, groups=x.shape[1], epsilon=epsilon)


@composite
def lp_normalize(x: Any, *, axis: int = -1, p: int = 2) -> Any:
    """x / (Σ |x|ᵖ)^(1/p) along `axis`; 0 where the norm is 0. p: 1 or 2.

    x: floating. Returns x's type; half types are computed in float32. Source: ONNX LpNormalization-22.
    """
    wide = accumulating(x)
    norm = (reduce_l1 if p == 1 else reduce_l2)(wide, axes=(axis % x.rank,), keepdims=True)
    return cast_like(wide / where(equal(norm, 0), 1, norm), x)


@composite
def mean_variance_normalize(x: Any, *, axes: tuple[int, ...]) -> Any:
    """(x − mean) / (√var + 1e-9), with mean and variance (biased) over `axes`.

    x: floating. Returns x's type; half types are computed in float32. Source: ONNX MeanVarianceNormalization-13.
    """
    mean, var = moments(x, axes=axes)
    return cast_like((accumulating(x) - mean) / (sqrt(var) + 1e-9), x)


@op
def local_response_norm(x: TensorType, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> TensorType:
    """x / (bias + alpha / size · Σ x²)^beta, summed over the `size` channels around each one.

    x: floating [N, C, …]; of an even `size`, the channel before is left out rather than the one behind. Returns x's type;
    half types are computed in float32. Source: ONNX LRN-13, Krizhevsky et al. 2012.
    """
    per_channel(x)
    return x


@kernel(local_response_norm, workspace=lambda node: (TensorType(node.types[0].shape, dtypes.accumulator(node.types[0].dtype)),))
def _(xp: Any, out: Any, x: Any, *, size: int, alpha: float, beta: float, bias: float, work: tuple[Any, ...]) -> None:
    y = work[0]
    squares = xp.square(x, dtype=y.dtype)
    channels = x.shape[1]
    y[...] = 0
    for shift in range(-((size - 1) // 2), size // 2 + 1):
        into = slice(max(0, -shift), max(0, channels - max(0, shift)))
        y[:, into] += squares[:, into.start + shift : into.stop + shift]
    y *= y.dtype.type(alpha / size)
    y += y.dtype.type(bias)
    xp.power(y, y.dtype.type(-beta), out=y)
    xp.multiply(y, x, out=out)
