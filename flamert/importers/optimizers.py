"""Converters of ONNX's optimizers (domain ai.onnx.preview.training): one step on parameters, as ordinary ops."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flamert import ops
from flamert.graph import Value
from flamert.importers.registry import Context, converter
from flamert.ops.cast import cast

TRAINING = "ai.onnx.preview.training"


def _each(ctx: Context, tensors: Sequence[Value], kinds: int, step: Callable[..., Sequence[Value]]) -> list[Value]:
    """Apply `step` to each parameter. Inputs come kind by kind: all parameters, all gradients, all states of each sort.

    `step` gives the new parameter and its new states; the node's outputs again come kind by kind.
    """
    n, rest = divmod(len(tensors), kinds)
    if rest:
        raise ctx.unsupported(f"{len(tensors)} tensors are not {kinds} for each parameter")
    updated = [step(*tensors[i::n]) for i in range(n)]
    return [new for kind in zip(*updated, strict=True) for new in kind]


@converter("Adam", domain=TRAINING)
def _(
    ctx: Context,
    rate: Value,
    count: Value,
    *tensors: Value,
    alpha: float = 0.9,
    beta: float = 0.999,
    epsilon: float = 1e-6,
    norm_coefficient: float = 0.0,
    norm_coefficient_post: float = 0.0,
) -> list[Value]:
    # Without a step taken there is no bias to correct; counting one nevertheless keeps the other branch finite.
    t = cast(ops.maximum(count, 1), to=rate.dtype)
    corrected = rate * ops.sqrt(1 - ops.pow(beta, t)) / (1 - ops.pow(alpha, t))
    rate = ops.where(ops.greater(count, 0), corrected, rate)

    def step(x: Value, g: Value, v: Value, h: Value) -> tuple[Value, Value, Value]:
        g = g + x * norm_coefficient
        v = v * alpha + g * (1 - alpha)
        h = h * beta + g * g * (1 - beta)
        x = x - cast(rate, to=x.dtype) * v / (ops.sqrt(h) + epsilon)
        return x * (1 - norm_coefficient_post), v, h

    return _each(ctx, tensors, 4, step)


@converter("Adagrad", domain=TRAINING)
def _(
    ctx: Context,
    rate: Value,
    count: Value,
    *tensors: Value,
    decay_factor: float = 0.0,
    epsilon: float = 1e-6,
    norm_coefficient: float = 0.0,
) -> list[Value]:
    rate = rate / (cast(count, to=rate.dtype) * decay_factor + 1)

    def step(x: Value, g: Value, h: Value) -> tuple[Value, Value]:
        g = g + x * norm_coefficient
        h = h + g * g
        return x - cast(rate, to=x.dtype) * g / (ops.sqrt(h) + epsilon), h

    return _each(ctx, tensors, 3, step)


@converter("Momentum", domain=TRAINING)
def _(
    ctx: Context,
    rate: Value,
    count: Value,
    *tensors: Value,
    alpha: float,
    beta: float,
    mode: str,
    norm_coefficient: float,
) -> list[Value]:
    if mode not in ("standard", "nesterov"):
        raise ctx.unsupported(f"mode {mode!r} is neither 'standard' nor 'nesterov'")
    first = cast(ops.greater(count, 0), to=rate.dtype)
    damping = first * beta + (1 - first)

    def step(x: Value, g: Value, v: Value) -> tuple[Value, Value]:
        g = g + x * norm_coefficient
        v = v * alpha + cast(damping, to=g.dtype) * g
        direction = g + v * alpha if mode == "nesterov" else v
        return x - cast(rate, to=x.dtype) * direction, v

    return _each(ctx, tensors, 3, step)
