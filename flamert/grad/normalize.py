"""Gradients of normalisations. Means and variances are taken again, which costs less than keeping what they normalised."""

from __future__ import annotations

from typing import Any

from flamert import ops
from flamert.grad.elementwise import wide, widened
from flamert.grad.registry import gradient
from flamert.graph import Value
from flamert.ops.reduce import cast_like
from flamert.ops.shape import narrow


def _mean(x: Value, axes: tuple[int, ...]) -> Value:
    return ops.reduce_mean(x, axes=axes, keepdims=True)


def _rsqrt(x: Value) -> Value:
    return ops.reciprocal(ops.sqrt(x))


@gradient(ops.softmax)
@widened
def _(dy: Any, y: Any, x: Any, *, axis: int) -> Any:
    """dx = y · (dy − Σ dy · y)"""
    return (dy - ops.reduce_sum(dy * y, axes=(axis % x.rank,), keepdims=True)) * y


@gradient(ops.log_softmax)
@widened
def _(dy: Any, y: Any, x: Any, *, axis: int) -> Any:
    """dx = dy − exp(y) · Σ dy"""
    return dy - ops.exp(y) * ops.reduce_sum(dy, axes=(axis % x.rank,), keepdims=True)


@gradient(ops.layer_norm)
@widened
def _(dy: Any, y: Any, x: Any, scale: Any = None, bias: Any = None, *, axis: int, epsilon: float) -> Any:
    """With n = (x − mean) · r, r = 1 / √(var + ε), d = dy · scale: dx = r · (d − mean d − n · mean(d · n)), dscale = dy · n"""
    dx, normal = _standardised(dy if scale is None else dy * scale, x, tuple(range(axis % x.rank, x.rank)), epsilon)
    return dx, dy * normal, dy


def _standardised(d: Value, x: Value, axes: tuple[int, ...], epsilon: float) -> tuple[Value, Value]:
    """dx where d reaches n = (x − mean) / √(var + ε) over `axes`; and n."""
    mean, var = ops.moments(x, axes=axes)
    r = _rsqrt(var + epsilon)
    normal = (x - mean) * r
    return (d - _mean(d, axes) - normal * _mean(d * normal, axes)) * r, normal


@gradient(ops.rms_norm)
@widened
def _(dy: Any, y: Any, x: Any, scale: Any = None, *, axis: int, epsilon: float) -> Any:
    """With n = x · r, r = 1 / √(mean x² + ε), d = dy · scale: dx = r · (d − n · mean(d · n)), dscale = dy · n"""
    axes = tuple(range(axis % x.rank, x.rank))
    r = _rsqrt(_mean(x * x, axes) + epsilon)
    normal = x * r
    d = dy if scale is None else dy * scale
    return (d - normal * _mean(d * normal, axes)) * r, dy * normal


def channels(p: Value, x: Value) -> Value:
    """One number for each channel of x: [N, C, …], so that it broadcasts."""
    return ops.reshape(p, shape=(x.shape[1], *[1] * (x.rank - 2)))


def _by_channel(v: Value) -> Value:
    """Σ v for each channel."""
    return ops.reduce_sum(v, axes=tuple(i for i in range(v.rank) if i != 1))


@gradient(ops.batch_norm)
@widened
def _(dy: Any, y: Any, x: Any, scale: Any, bias: Any, mean: Any, var: Any, *, epsilon: float) -> Any:
    """With r = 1 / √(var + ε), sums for each channel: dx = dy · scale · r, dscale = r · Σ dy · (x − mean), dbias = Σ dy,

    dmean = −scale · r · Σ dy, dvar = −scale · r³ / 2 · Σ dy · (x − mean).
    """
    r = _rsqrt(var + epsilon)
    factor = scale * r
    total, moment = _by_channel(dy), _by_channel(dy * (x - channels(mean, x)))
    return dy * channels(factor, x), moment * r, total, -factor * total, moment * factor * r * r * -0.5


@gradient(ops.batch_norm_training)
def _(dy: Any, y: Any, x: Any, scale: Any, bias: Any, mean: Any, var: Any, *, epsilon: float, momentum: float) -> Any:
    """From y as in batch_norm_gradient; from the statistics dx = dm / n + 2 (x − m) · dv / n"""
    x, drunning, dbatch = wide(x), dy[1:3], dy[3:]
    m, v = (cast_like(p, x) for p in y[3:])
    dx = dscale = dbias = None
    if dy[0] is not None:
        dx, dscale, dbias = ops.batch_norm_gradient(wide(dy[0]), x, cast_like(scale, x), m, v, epsilon=epsilon)
    count = max(1, x.type.size // max(1, x.shape[1]))
    for d, slope in zip(_to_statistics(drunning, dbatch, x, momentum), (1.0, (x - channels(m, x)) * 2), strict=True):
        if d is not None:
            part = ops.expand(channels(d / count, x), shape=x.shape) * slope
            dx = part if dx is None else dx + part
    return dx, dscale, dbias, *[None if d is None else d * momentum for d in drunning]


def _to_statistics(drunning: Any, dbatch: Any, x: Value, momentum: float) -> list[Value | None]:
    """What flows to the batch's mean and variance, from themselves and from what keeps them."""
    totals: list[Value | None] = []
    for running, batch in zip(drunning, dbatch, strict=True):
        parts = [*([] if running is None else [running * (1 - momentum)]), *([] if batch is None else [batch])]
        totals.append(cast_like(sum(parts[1:], parts[0]), x) if parts else None)
    return totals


@gradient(ops.group_norm)
@widened
def _(dy: Any, y: Any, x: Any, scale: Any, bias: Any, *, groups: int, epsilon: float) -> Any:
    """With the group's mean m and r = 1 / √(var + ε), n = (x − m) · r, and means over a group of d = dy · scale:

    dx = r · (d − mean d − n · mean(d · n)), dscale = Σ dy · n, dbias = Σ dy. All sums are had from two for each channel.
    """
    n, c = x.shape[:2]
    mean, var = ops.group_moments(x, groups=groups)
    sums = ops.group_sums(dy, x, mean, groups=groups)
    mean, r = (ops.reshape(v, shape=(n, groups, 1)) for v in (mean, _rsqrt(var + epsilon)))
    apart = (n, groups, c // groups)
    plain, moment = (ops.reshape(v, shape=apart) for v in sums)
    factor = ops.reshape(scale, shape=apart[1:]) * r
    count = max(1, x.type.size // max(1, n * groups))
    even, along = (ops.reduce_sum(factor * v, axes=(2,), keepdims=True) / count for v in (plain, moment))
    slope = along * r * r
    to_x, to_dy, rest = (
        ops.reshape(ops.expand(v, shape=apart), shape=(n, c, *[1] * (x.rank - 2))) for v in (slope, factor, mean * slope - even)
    )
    dscale, dbias = (ops.reshape(ops.reduce_sum(v, axes=(0,)), shape=(c,)) for v in (moment * r, plain))
    return dy * to_dy - x * to_x + rest, dscale, dbias


@gradient(ops.mean_variance_normalize)
@widened
def _(dy: Any, y: Any, x: Any, *, axes: Any) -> Any:
    """With s = √var, n = (x − mean) / s, or 0 where s is 0: dx = (dy − mean dy − n · mean(dy · y)) / (s + 1e-9)"""
    mean, var = ops.moments(x, axes=axes)
    s = ops.sqrt(var)
    normal = (x - mean) / ops.where(ops.equal(s, 0), 1, s)
    return (dy - _mean(dy, axes) - normal * _mean(dy * y, axes)) / (s + 1e-9)


@gradient(ops.local_response_norm)
@widened
def _(dy: Any, y: Any, x: Any, *, size: int, alpha: float, beta: float, bias: float) -> Any:
    """With b = bias + α / size · Σ x² over each window: dx = dy · b^−β − 2αβ / size · x · Σ dy · x · b^(−β−1), over the

    windows that x is in.
    """
    before, behind = (size - 1) // 2, size // 2
    base = _windowed(x * x, before, behind) * (alpha / size) + bias
    power = base ** (-beta)
    return dy * power - x * _windowed(dy * x * power / base, behind, before) * (2 * alpha * beta / size)


def _windowed(x: Value, before: int, behind: int) -> Value:
    """y[:, c] = Σ x[:, c − before : c + behind + 1]"""
    c = x.shape[1]
    before, behind = min(before, c - 1), min(behind, c - 1)
    pads = [0] * 2 * x.rank
    pads[1], pads[x.rank + 1] = before, behind
    padded = ops.pad(x, pads=tuple(pads))
    first, *others = [narrow(padded, 1, i, c) for i in range(before + behind + 1)]
    return sum(others, first)
