"""Converters of ONNX activation functions, and of those that onnxruntime's tools put into the com.microsoft domain."""

from __future__ import annotations

from typing import Any

from flamert import ops
from flamert.errors import InvalidModel, ShapeError
from flamert.graph import Value
from flamert.importers.registry import Context, converter

MICROSOFT = "com.microsoft"


def _plain(op_type: str, since: int, op: Any) -> None:
    """An activation without attributes."""
    if since == 1:

        @converter(op_type, 1)
        def legacy(ctx: Context, x: Value, *, consumed_inputs: Any = None) -> Value:
            return op(x)

    @converter(op_type, max(since, 6))
    def _(ctx: Context, x: Value) -> Value:
        return op(x)


for _name, _since, _op in (
    ("Relu", 1, ops.relu),
    ("Sigmoid", 1, ops.sigmoid),
    ("Softplus", 1, ops.softplus),
    ("Softsign", 1, ops.softsign),
    ("HardSwish", 14, ops.hard_swish),
    ("Mish", 18, ops.mish),
):
    _plain(_name, _since, _op)


def _with_alpha(op_type: str, since: int, op: Any, default: float) -> None:
    """An activation whose only attribute is alpha."""
    if since == 1:

        @converter(op_type, 1)
        def legacy(ctx: Context, x: Value, *, alpha: float = default, consumed_inputs: Any = None) -> Value:
            return op(x, alpha=alpha)

    @converter(op_type, max(since, 6))
    def _(ctx: Context, x: Value, *, alpha: float = default) -> Value:
        return op(x, alpha=alpha)


for _name, _since, _op, _alpha in (
    ("LeakyRelu", 1, ops.leaky_relu, 0.01),
    ("Elu", 1, ops.elu, 1.0),
    ("ThresholdedRelu", 10, ops.thresholded_relu, 1.0),
    ("Celu", 12, ops.celu, 1.0),
    ("Swish", 24, ops.swish, 1.0),
):
    _with_alpha(_name, _since, _op, _alpha)


@converter("ThresholdedRelu", 1)
def _(ctx: Context, x: Value, *, alpha: float = 1.0) -> Value:
    """Before opset 10 the op was experimental, yet exporters wrote it."""
    return ops.thresholded_relu(x, alpha=alpha)


@converter("Selu", 1)
def _(ctx: Context, x: Value, *, alpha: float = 1.6732, gamma: float = 1.0507, consumed_inputs: Any = None) -> Value:
    return ops.selu(x, alpha=alpha, gamma=gamma)


@converter("Selu", 6)
def _(ctx: Context, x: Value, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Value:
    return ops.selu(x, alpha=alpha, gamma=gamma)


@converter("HardSigmoid", 1)
def _(ctx: Context, x: Value, *, alpha: float = 0.2, beta: float = 0.5, consumed_inputs: Any = None) -> Value:
    return ops.hard_sigmoid(x, alpha=alpha, beta=beta)


@converter("HardSigmoid", 6)
def _(ctx: Context, x: Value, *, alpha: float = 0.2, beta: float = 0.5) -> Value:
    return ops.hard_sigmoid(x, alpha=alpha, beta=beta)


@converter("Shrink", 9)
def _(ctx: Context, x: Value, *, lambd: float = 0.5, bias: float = 0.0) -> Value:
    return ops.shrink(x, lambd=lambd, bias=bias)


def _prelu_by_channel(x: Value, slope: Value) -> Value:
    """Before opset 7 a slope with one element per channel stood at axis 1."""
    if slope.rank == 1 and slope.shape[0] > 1 and x.rank > 1:
        slope = ops.reshape(slope, shape=(*slope.shape, *[1] * (x.rank - 2)))
    return ops.prelu(x, slope)


@converter("PRelu", 1)
def _(ctx: Context, x: Value, slope: Value, *, consumed_inputs: Any = None) -> Value:
    return _prelu_by_channel(x, slope)


@converter("PRelu", 6)
def _(ctx: Context, x: Value, slope: Value) -> Value:
    return _prelu_by_channel(x, slope)


@converter("PRelu", 7)
def _(ctx: Context, x: Value, slope: Value) -> Value:
    y = ops.prelu(x, slope)
    if y.shape != x.shape:
        raise ShapeError(f"a slope of shape {list(slope.shape)} does not broadcast to {list(x.shape)}")
    return y


@converter("SwiGLU", 28)
def _(ctx: Context, a: Value, b: Value, *, alpha: float = 1.0) -> Value:
    return ops.swiglu(a, b, alpha=alpha)


@converter("Gelu", 20)
def _(ctx: Context, x: Value, *, approximate: str = "none") -> Value:
    if approximate not in ("none", "tanh"):
        raise InvalidModel(f"Gelu's approximate is 'none' or 'tanh', not {approximate!r}")
    return ops.gelu(x) if approximate == "none" else ops.gelu_tanh(x)


@converter("Gelu", domain=MICROSOFT)
def _(ctx: Context, x: Value) -> Value:
    return ops.gelu(x)


@converter("FastGelu", domain=MICROSOFT)
def _(ctx: Context, x: Value, bias: Value | None = None) -> Value:
    return ops.gelu_tanh(x if bias is None else x + bias)


@converter("BiasGelu", domain=MICROSOFT)
def _(ctx: Context, x: Value, bias: Value) -> Value:
    return ops.gelu(x + bias)


@converter("QuickGelu", domain=MICROSOFT)
def _(ctx: Context, x: Value, *, alpha: float = 1.702) -> Value:
    return ops.swish(x, alpha=alpha)
