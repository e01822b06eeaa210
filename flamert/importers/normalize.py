"""Converters of normalisations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from flamert import ops
from flamert.graph import Value
from flamert.importers.registry import Context, converter
from flamert.importers.tensors import DTYPES
from flamert.ops.cast import cast
from flamert.ops.reduce import cast_like
from flamert.ops.rules import axes_in, axis_in


def _register(op_type: str, along: Callable[..., Value]) -> None:
    """Softmax and its kin: along one axis since opset 13, before that along all axes from `axis` on, taken as one."""

    @converter(op_type, 13)
    def one_axis(ctx: Context, x: Value, *, axis: int = -1) -> Value:
        return along(x, axis=axis_in(axis, x.rank))

    @converter(op_type, 1)
    def as_matrix(ctx: Context, x: Value, *, axis: int = 1) -> Value:
        axis = axis + x.rank if axis < 0 else axis
        rows = math.prod(x.shape[:axis])
        matrix = ops.reshape(x, shape=(rows, math.prod(x.shape[axis:])))
        return ops.reshape(along(matrix, axis=1), shape=x.shape)


_register("Softmax", ops.softmax)
_register("LogSoftmax", ops.log_softmax)


_register("Hardmax", ops.hardmax)


def _statistics(ctx: Context, x: Value, axis: int, epsilon: float, stash_type: int) -> list[Value | None]:
    """Mean and 1/√(var + ε) over the axes from `axis` on, where somebody reads them, in the type that `stash_type` numbers."""
    if not (ctx.wants(1) or ctx.wants(2)):
        return [None, None]
    mean, var = ops.moments(x, axes=tuple(range(axis, x.rank)))
    return [cast(v, to=DTYPES[stash_type]) for v in (mean, ops.reciprocal(ops.sqrt(var + epsilon)))]


@converter("LayerNormalization", 1)  # ONNX has it since opset 17, ONNX Runtime in all opsets
def _(
    ctx: Context,
    x: Value,
    scale: Value,
    bias: Value | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Sequence[Value | None]:
    axis = axis_in(axis, x.rank)
    return [ops.layer_norm(x, scale, bias, axis=axis, epsilon=epsilon), *_statistics(ctx, x, axis, epsilon, stash_type)]


@converter("RMSNormalization", 23)
def _(ctx: Context, x: Value, scale: Value, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> Value:
    return ops.rms_norm(x, scale, axis=axis_in(axis, x.rank), epsilon=epsilon)


@converter("BatchNormalization", 14)
def _(
    ctx: Context,
    x: Value,
    scale: Value,
    bias: Value,
    mean: Value,
    var: Value,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Sequence[Value]:
    return _batch_norm(ctx, x, (scale, bias, mean, var), epsilon, momentum, bool(training_mode))[:3]


@converter("BatchNormalization", 1)
def _(
    ctx: Context,
    x: Value,
    scale: Value,
    bias: Value,
    mean: Value,
    var: Value,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    is_test: int | None = None,
    spatial: int = 1,
    consumed_inputs: Sequence[int] = (),
) -> Sequence[Value]:
    """Before opset 14 a node trains if it names the outputs of training; up to opset 6 `is_test` can forbid it."""
    trains = not is_test and any(ctx.wants(i) for i in range(1, ctx.n_outputs))
    operands = (scale, bias, mean, var)
    if spatial:
        return _batch_norm(ctx, x, operands, epsilon, momentum, trains)
    # Statistics for each activation: every one becomes a channel.
    y, *rest = _batch_norm(ctx, ops.reshape(x, shape=(x.shape[0], scale.type.size)), operands, epsilon, momentum, trains)
    return [ops.reshape(y, shape=x.shape), *rest]


def _batch_norm(
    ctx: Context, x: Value, operands: Sequence[Value], epsilon: float, momentum: float, trains: bool
) -> list[Value]:
    """y alone, or, of a node that trains, also the running and the batch's statistics. A 1-D x has one channel.

    In a model that is being trained every node trains, except where the batch has a single number for each channel, of
    which there is no spread to measure.
    """
    image = ops.reshape(x, shape=(*x.shape, 1)) if x.rank == 1 else x
    statistics = operands[2:]
    if ctx.training is not None:
        trains = image.type.size > image.shape[1]
        operands = (*operands[:2], *map(ctx.training.current, statistics))
    channels = [p if p.rank == 1 else ops.reshape(p, shape=(p.type.size,)) for p in operands]
    if not trains:
        return [ops.reshape(ops.batch_norm(image, *channels, epsilon=epsilon), shape=x.shape)]
    y, *found = ops.batch_norm_training(image, *channels, epsilon=epsilon, momentum=momentum)
    found = [ops.reshape(cast_like(v, statistics[0]), shape=statistics[0].shape) for v in found]
    if ctx.training is not None:
        ctx.training.moved.update(zip(statistics, found, strict=False))
    return [ops.reshape(y, shape=x.shape), *found]


@converter("InstanceNormalization", 1)
def _(
    ctx: Context, x: Value, scale: Value, bias: Value, *, epsilon: float = 1e-5, consumed_inputs: Sequence[int] = ()
) -> Value:
    return ops.instance_norm(x, scale, bias, epsilon=epsilon)


@converter("GroupNormalization", 21)
def _(
    ctx: Context, x: Value, scale: Value, bias: Value, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Value:
    return ops.group_norm(x, scale, bias, groups=num_groups, epsilon=epsilon)


@converter("GroupNormalization", 18)
def _(ctx: Context, x: Value, scale: Value, bias: Value, *, num_groups: int, epsilon: float = 1e-5) -> Value:
    """Scale and bias are given for each group, not for each channel."""
    shape = (num_groups, x.shape[1] // num_groups)
    wide = [ops.expand(ops.reshape(p, shape=(num_groups, 1)), shape=shape) for p in (scale, bias)]
    wide = [ops.reshape(p, shape=(x.shape[1],)) for p in wide]
    return ops.group_norm(x, *wide, groups=num_groups, epsilon=epsilon)


@converter("LpNormalization", 1)
def _(ctx: Context, x: Value, *, axis: int = -1, p: int = 2) -> Value:
    if p not in (1, 2):
        raise ctx.unsupported(f"p is {p}; ONNX defines 1 and 2")
    return ops.lp_normalize(x, axis=axis_in(axis, x.rank), p=p)


@converter("MeanVarianceNormalization", 9)
def _(ctx: Context, x: Value, *, axes: Sequence[int] = (0, 2, 3)) -> Value:
    return ops.mean_variance_normalize(x, axes=axes_in(axes, x.rank))


@converter("LRN", 1)
def _(ctx: Context, x: Value, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Value:
    return ops.local_response_norm(x, size=size, alpha=alpha, beta=beta, bias=bias)
