"""Exporters of normalisations and losses."""

from __future__ import annotations

from typing import Any

import numpy as np

from flamert import dtypes, ops
from flamert.exporters.registry import exporter, plain, spelled
from flamert.exporters.writer import Writer
from flamert.graph import Value
from flamert.ops.shape import narrow

plain(ops.softmax, "Softmax", 13)
plain(ops.log_softmax, "LogSoftmax", 13)
plain(ops.batch_norm, "BatchNormalization", 9)
plain(ops.instance_norm, "InstanceNormalization")
plain(ops.group_norm, "GroupNormalization", 21, groups="num_groups")
plain(ops.mean_variance_normalize, "MeanVarianceNormalization")
plain(ops.nll_loss, "NegativeLogLikelihoodLoss")
plain(ops.softmax_cross_entropy, "SoftmaxCrossEntropyLoss")


def _over(to: Writer, op_type: str, x: Value, scale: Value | None, axis: int, epsilon: float) -> tuple[Any, Value | None]:
    """A norm over the axes from `axis` on, and the scale that is still to be applied: ONNX's has exactly those axes."""
    shape = x.shape[axis % x.rank :]
    fits = scale is not None and scale.shape == shape and scale.dtype == x.dtype
    factor: Any = scale if fits else np.ones(shape, x.dtype)
    return to(op_type, x, factor, axis=axis, epsilon=epsilon), None if fits else scale


@exporter(ops.layer_norm)
def _(to: Writer, x: Value, scale: Value | None = None, bias: Value | None = None, *, axis: int, epsilon: float) -> Any:
    shape = x.shape[axis % x.rank :]
    if scale is not None and bias is not None and scale.shape == bias.shape == shape:
        return to("LayerNormalization", x, scale, bias, axis=axis, epsilon=epsilon)
    y, factor = _over(to, "LayerNormalization", x, scale, axis, epsilon)
    y = y if factor is None else to("Mul", y, factor)
    return y if bias is None else to("Add", y, bias)


@exporter(ops.rms_norm)
def _(to: Writer, x: Value, scale: Value | None = None, *, axis: int, epsilon: float) -> Any:
    y, factor = _over(to, "RMSNormalization", x, scale, axis, epsilon)
    return y if factor is None else to("Mul", y, factor)


def _standardised(x: Value, scale: Value | None, bias: Value | None, axes: tuple[int, ...], epsilon: float) -> Value:
    mean, var = ops.moments(x, axes=axes)
    y = (ops.cast(x, to=mean.dtype) - mean) / ops.sqrt(var + epsilon)
    y = y if scale is None else y * ops.cast(scale, to=y.dtype)
    y = y if bias is None else y + ops.cast(bias, to=y.dtype)
    return ops.cast(y, to=x.dtype)


@spelled(ops.layer_norm)
def _(x: Value, scale: Value | None = None, bias: Value | None = None, *, axis: int, epsilon: float) -> Value:
    return _standardised(x, scale, bias, tuple(range(axis % x.rank, x.rank)), epsilon)


@spelled(ops.rms_norm)
def _(x: Value, scale: Value | None = None, *, axis: int, epsilon: float) -> Value:
    wide = ops.cast(x, to=dtypes.accumulator(x.dtype))
    mean = ops.reduce_mean(wide * wide, axes=tuple(range(axis % x.rank, x.rank)), keepdims=True)
    y = wide / ops.sqrt(mean + epsilon)
    return ops.cast(y if scale is None else y * ops.cast(scale, to=y.dtype), to=x.dtype)


@spelled(ops.group_norm)
def _(x: Value, scale: Value, bias: Value, *, groups: int, epsilon: float) -> Value:
    n, c, *spatial = x.shape
    apart = ops.reshape(x, shape=(n, groups, c // groups, *spatial))
    per_channel = (groups, c // groups, *[1] * len(spatial))
    scale, bias = (ops.reshape(p, shape=per_channel) for p in (scale, bias))
    return ops.reshape(_standardised(apart, scale, bias, tuple(range(2, apart.rank)), epsilon), shape=x.shape)


@spelled(ops.batch_norm)
def _(x: Value, scale: Value, bias: Value, mean: Value, var: Value, *, epsilon: float) -> Value:
    """Statistics of other types than x's."""
    wide = dtypes.accumulator(x.dtype)
    given = (ops.reshape(ops.cast(p, to=wide), shape=(x.shape[1], *[1] * (x.rank - 2))) for p in (scale, bias, mean, var))
    scale, bias, mean, var = given
    return ops.cast((ops.cast(x, to=wide) - mean) * (scale / ops.sqrt(var + epsilon)) + bias, to=x.dtype)


@exporter(ops.local_response_norm)
def _(to: Writer, x: Value, *, size: int, **attributes: Any) -> Any:
    """Runtimes have it for images; in the middle of an even number of channels they disagree."""
    return to("LRN", x, size=size, **attributes) if x.rank == 4 and size % 2 else None


@spelled(ops.local_response_norm)
def _(x: Value, *, size: int, alpha: float, beta: float, bias: float) -> Value:
    wide = ops.cast(x, to=dtypes.accumulator(x.dtype))
    before, channels = (size - 1) // 2, x.shape[1]
    around = (0, before, *[0] * (x.rank - 1), size // 2, *[0] * (x.rank - 2))
    squares = ops.pad(wide * wide, pads=around)
    total = narrow(squares, 1, 0, channels)
    for shift in range(1, size):
        total = total + narrow(squares, 1, shift, channels)
    return ops.cast(wide * (total * (alpha / size) + bias) ** -beta, to=x.dtype)
