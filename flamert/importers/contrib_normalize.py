"""Converters of ONNX Runtime's own normalisations: with a residual (skip) added first, without centring, channels last."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flamert import graph as g
from flamert import ops
from flamert.graph import Value
from flamert.importers.registry import Context, converter
from flamert.importers.tensors import DTYPES
from flamert.ops.cast import cast
from flamert.ops.reduce import accumulating
from flamert.ops.rules import axis_in

CONTRIB = "com.microsoft"


def _inverse_rms(x: Value, axis: int, epsilon: float) -> Value:
    """1 / √(mean x² + ε) over the axes from `axis` on, in the accumulating type."""
    wide = accumulating(x)
    return ops.reciprocal(ops.sqrt(ops.reduce_mean(wide * wide, axes=tuple(range(axis, x.rank)), keepdims=True) + epsilon))


def _simplified(
    ctx: Context, x: Value, scale: Value, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Sequence[Value | None]:
    axis = axis_in(axis, x.rank)
    y = cast(ops.rms_norm(x, scale, axis=axis, epsilon=epsilon), to=scale.dtype)
    return [y, cast(_inverse_rms(x, axis, epsilon), to=DTYPES[stash_type]) if ctx.wants(1) else None]


for _domain in ("", CONTRIB):
    converter("SimplifiedLayerNormalization", domain=_domain)(_simplified)


def _residual(x: Value, skip: Value, bias: Value | None) -> Value:
    """x + skip + bias; a skip without batch, or with a batch of one, serves all of x's batch."""
    total = x + skip
    return total if bias is None else total + bias


@converter("SkipLayerNormalization", domain=CONTRIB)
def _(
    ctx: Context,
    x: Value,
    skip: Value,
    gamma: Value,
    beta: Value | None = None,
    bias: Value | None = None,
    *,
    epsilon: float = 1e-12,
) -> Sequence[Value | None]:
    total = _residual(x, skip, bias)
    y = ops.layer_norm(total, gamma, beta, axis=total.rank - 1, epsilon=epsilon)
    if not (ctx.wants(1) or ctx.wants(2)):
        return [y, None, None, total]
    mean, var = ops.moments(total, axes=(total.rank - 1,))
    return [y, mean, ops.reciprocal(ops.sqrt(var + epsilon)), total]


@converter("SkipSimplifiedLayerNormalization", domain=CONTRIB)
def _(
    ctx: Context, x: Value, skip: Value, gamma: Value, bias: Value | None = None, *, epsilon: float = 1e-12
) -> Sequence[Value | None]:
    total = _residual(x, skip, bias)
    y = ops.rms_norm(total, gamma, axis=total.rank - 1, epsilon=epsilon)
    # No mean is taken; ONNX Runtime gives zeros for it.
    mean = g.constant(np.zeros((*total.shape[:-1], 1), np.float32)) if ctx.wants(1) else None
    return [y, mean, _inverse_rms(total, total.rank - 1, epsilon) if ctx.wants(2) else None, total]


def _group_norm(x: Value, gamma: Value, beta: Value, groups: int, epsilon: float, activation: int, channels_last: int) -> Value:
    """Group norm of NHWC (or NCHW) images, then SiLU where `activation` is 1."""
    last = x.rank - 1
    if channels_last:
        x = ops.transpose(x, perm=(0, last, *range(1, last)))
    y = ops.group_norm(x, gamma, beta, groups=groups, epsilon=epsilon)
    if activation:
        y = ops.swish(y)
    return ops.transpose(y, perm=(0, *range(2, last + 1), 1)) if channels_last else y


@converter("GroupNorm", domain=CONTRIB)
def _(
    ctx: Context,
    x: Value,
    gamma: Value,
    beta: Value,
    *,
    groups: int,
    activation: int,
    epsilon: float = 1e-5,
    channels_last: int = 1,
) -> Value:
    return _group_norm(x, gamma, beta, groups, epsilon, activation, channels_last)


@converter("SkipGroupNorm", domain=CONTRIB)
def _(
    ctx: Context,
    x: Value,
    gamma: Value,
    beta: Value,
    skip: Value,
    bias: Value | None = None,
    *,
    groups: int,
    activation: int,
    epsilon: float = 1e-5,
    channels_last: int = 1,
) -> Sequence[Value]:
    if skip.rank == 2:
        skip = ops.reshape(skip, shape=(skip.shape[0], 1, 1, skip.shape[1]))
    total = _residual(x, skip, bias)
    return [_group_norm(total, gamma, beta, groups, epsilon, activation, channels_last), total]
