"""Ops that passes put together from others because one kernel does them in one go. Their bodies say what they mean."""

from __future__ import annotations

from typing import Any

from flamert.graph import OPERATORS as ops
from flamert.graph import Value
from flamert.ops.op import composite

ACTIVATIONS = ("", "relu", "clip", "leaky_relu", "hard_sigmoid", "hard_swish", "sigmoid", "tanh", "swish", "gelu", "gelu_tanh")
"""What `activation=` may name, in the order of the native library's enum."""


def activate(x: Value, activation: str, alpha: float, beta: float) -> Value:
    """The named activation as graph. alpha, beta: clip's bounds, leaky_relu's slope, hard_sigmoid's slope and offset."""
    if not activation:
        return x
    if activation == "clip":
        return ops["minimum"](ops["maximum"](x, alpha), beta)
    if activation == "leaky_relu":
        return ops["leaky_relu"](x, alpha=alpha)
    if activation == "hard_sigmoid":
        return ops["hard_sigmoid"](x, alpha=alpha, beta=beta)
    return ops[activation](x)


@composite
def wide_matmul(a: Any, b: Any, bias: Any = None, *, to: Any, scale: float = 1.0) -> Any:
    """scale · (a · b) + bias, the product as `matmul` has it, of operands of one half type, in the floating type `to` that it
    is added up in. bias: [N], floating.
    """
    y = ops["matmul"](ops["cast"](a, to=to), ops["cast"](b, to=to))
    y = y if scale == 1 else y * scale
    return y if bias is None else y + ops["cast"](bias, to=to)


@composite
def linear(
    x: Any, w: Any, bias: Any = None, residual: Any = None, *, activation: str = "", alpha: float = 0.0, beta: float = 0.0
) -> Any:
    """activation(x · w + bias + residual). x: [..., K], w: [K, N], bias: [N], residual: [..., N]. Floating, of one type."""
    y = ops["matmul"](x, w)
    if bias is not None:
        y = y + bias
    return activate(y if residual is None else y + residual, activation, alpha, beta)
