"""Batch normalisation: by statistics that are given, by those of the batch, and the gradient of the latter."""

from __future__ import annotations

from typing import Any

from flamert.errors import ShapeError
from flamert.graph import TensorType
from flamert.ops.functions import sqrt
from flamert.ops.normalize import as_channels, float32_copy, per_channel
from flamert.ops.op import composite, kernel, op
from flamert.ops.reduce import accumulating, cast_like, moments, reduce_sum
from flamert.ops.shape import reshape


@op
def batch_norm(
    x: TensorType, scale: TensorType, bias: TensorType, mean: TensorType, var: TensorType, *, epsilon: float = 1e-5
) -> TensorType:
    """(x − mean) / √(var + ε) · scale + bias, with statistics that are given, for each channel.

    x: floating [N, C, …]. scale, bias, mean, var: floating [C], of any floating type. Returns x's type; half types are
    computed in float32. Source: ONNX BatchNormalization-15 with training_mode=0, Ioffe & Szegedy 2015.
    """
    per_channel(x, scale, bias, mean, var)
    return x


@kernel(batch_norm, workspace=float32_copy)
def _(xp: Any, out: Any, x: Any, scale: Any, bias: Any, mean: Any, var: Any, *, epsilon: float, work: tuple[Any, ...]) -> None:
    y = work[0] if work else out
    scale, bias, mean, var = (as_channels(p, y) for p in (scale, bias, mean, var))
    factor = scale / xp.sqrt(var + y.dtype.type(epsilon))
    xp.subtract(x, mean, out=y)
    xp.multiply(y, factor, out=y)
    xp.add(y, bias, out=out)


@composite
def batch_norm_training(
    x: Any, scale: Any, bias: Any, mean: Any, var: Any, *, epsilon: float = 1e-5, momentum: float = 0.9
) -> Any:
    """batch_norm with the batch's own statistics: (y, running mean, running variance, batch mean, batch variance).

    Statistics are over all axes but the channels'; the variance is biased. running = mean · momentum + batch mean ·
    (1 − momentum), in mean's type; likewise var. x: floating [N, C, …]; the others: floating [C]. Batch statistics are
    float32 for half types. Source: ONNX BatchNormalization-15 with training_mode=1.
    """
    batch = [reshape(m, shape=mean.shape) for m in moments(x, axes=tuple(i for i in range(x.rank) if i != 1))]
    running = [
        cast_like(accumulating(old) * momentum + cast_like(new, accumulating(old)) * (1 - momentum), old)
        for old, new in zip((mean, var), batch, strict=True)
    ]
    return batch_norm(x, scale, bias, *batch, epsilon=epsilon), *running, *batch


@composite
def batch_norm_gradient(dy: Any, x: Any, scale: Any, mean: Any, var: Any, *, axis: int = 1, epsilon: float = 1e-5) -> Any:
    """What flows from batch_norm_training's y to x, scale and bias: (dx, dscale, dbias).

    With r = 1 / √(var + ε), n = (x − mean) · r and sums and means for each channel: dx = scale · r · (dy − mean dy −
    n · mean(dy · n)), dscale = Σ dy · n, dbias = Σ dy. x, dy: floating, of one shape, channels along `axis`; scale, and
    mean and var of the batch: [C]; one type for all. Source: Ioffe & Szegedy 2015.
    """
    if {v.shape for v in (scale, mean, var)} != {x.shape[axis : axis + 1]} or dy.type != x.type:
        raise ShapeError(f"{dy.type}, {scale.type}, {mean.type} and {var.type} do not fit {x.type} with channels along {axis}")
    others = tuple(i for i in range(x.rank) if i != axis)
    count = max(1, x.type.size // max(1, x.shape[axis]))

    def along(p: Any) -> Any:
        return reshape(p, shape=tuple(d if i == axis else 1 for i, d in enumerate(x.shape)))

    r, centred = 1 / sqrt(var + epsilon), x - along(mean)
    total = reduce_sum(dy, axes=others)
    moment = reduce_sum(dy * centred, axes=others) * r
    dx = (dy - along(total / count) - centred * along(moment * r / count)) * along(scale * r)
    return dx, moment, total
