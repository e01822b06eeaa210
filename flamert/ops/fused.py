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


def to_channels_last(x: Value) -> Value:
    """[N, C, spatial…] → [N, spatial…, C]."""
    return ops["transpose"](x, perm=(0, *range(2, x.rank), 1))


def to_channels_first(x: Value) -> Value:
    """[N, spatial…, C] → [N, C, spatial…]."""
    return ops["transpose"](x, perm=(0, x.rank - 1, *range(1, x.rank - 1)))


@composite
def conv_channels_last(
    x: Any,
    w: Any,
    bias: Any = None,
    residual: Any = None,
    *,
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
    group: int = 1,
    activation: str = "",
    alpha: float = 0.0,
    beta: float = 0.0,
) -> Any:
    """activation(conv(x, w) + bias + residual) with channels last.

    x: [N, spatial…, C], w: [M, C/group, kernel…] as in `conv`, bias: [M], residual: like the result. Returns [N, out…, M].
    pads: begins, then ends. Floating, one type for all.
    """
    y = ops["conv"](to_channels_first(x), w, bias, strides=strides, pads=pads, dilations=dilations, group=group)
    y = to_channels_last(y)
    return activate(y if residual is None else y + residual, activation, alpha, beta)


@composite
def linear(
    x: Any, w: Any, bias: Any = None, residual: Any = None, *, activation: str = "", alpha: float = 0.0, beta: float = 0.0
) -> Any:
    """activation(x · w + bias + residual). x: [..., K], w: [K, N], bias: [N], residual: [..., N]. Floating, of one type."""
    y = ops["matmul"](x, w)
    if bias is not None:
        y = y + bias
    return activate(y if residual is None else y + residual, activation, alpha, beta)


@composite
def max_pool_channels_last(
    x: Any, *, kernel: tuple[int, ...], strides: tuple[int, ...], pads: tuple[int, ...], dilations: tuple[int, ...]
) -> Any:
    """max_pool of [N, spatial…, C]; returns [N, windows…, C]."""
    y = ops["max_pool"](to_channels_first(x), kernel=kernel, strides=strides, pads=pads, dilations=dilations)
    return to_channels_last(y)


@composite
def average_pool_channels_last(
    x: Any,
    *,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
    counted: tuple[int, ...],
) -> Any:
    """average_pool of [N, spatial…, C]; returns [N, windows…, C]."""
    y = ops["average_pool"](
        to_channels_first(x), kernel=kernel, strides=strides, pads=pads, dilations=dilations, counted=counted
    )
    return to_channels_last(y)
