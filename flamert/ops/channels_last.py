"""Convolutions, pooling and their gradients on [N, spatial…, C], made by the layout pass. Bodies say what they mean."""

from __future__ import annotations

from typing import Any

from flamert.graph import OPERATORS as ops
from flamert.graph import Value
from flamert.ops.fused import activate
from flamert.ops.op import composite


def to_channels_last(x: Value) -> Value:
    """[N, C, spatial…] → [N, spatial…, C]."""
    return ops["transpose"](x, perm=(0, *range(2, x.rank), 1))


def to_channels_first(x: Value) -> Value:
    """[N, spatial…, C] → [N, C, spatial…]."""
    return ops["transpose"](x, perm=(0, x.rank - 1, *range(1, x.rank - 1)))


def _finished(y: Value, residual: Value | None, gate: Value | None, activation: str, alpha: float, beta: float) -> Value:
    y = activate(y if residual is None else y + residual, activation, alpha, beta)
    return y if gate is None else ops["where"](gate > 0, y, 0)


@composite
def conv_channels_last(
    x: Any,
    w: Any,
    bias: Any = None,
    residual: Any = None,
    gate: Any = None,
    *,
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
    group: int = 1,
    activation: str = "",
    alpha: float = 0.0,
    beta: float = 0.0,
) -> Any:
    """activation(conv(x, w) + bias + residual) with channels last; 0 where `gate` is not positive.

    x: [N, spatial…, C], w: [M, C/group, kernel…] as in `conv`, bias: [M], residual, gate: like the result. Returns
    [N, out…, M]. pads: begins, then ends. Floating, one type for all.
    """
    y = ops["conv"](to_channels_first(x), w, bias, strides=strides, pads=pads, dilations=dilations, group=group)
    return _finished(to_channels_last(y), residual, gate, activation, alpha, beta)


@composite
def conv_transpose_channels_last(
    x: Any,
    w: Any,
    bias: Any = None,
    residual: Any = None,
    gate: Any = None,
    *,
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
    group: int = 1,
    output_padding: tuple[int, ...],
    activation: str = "",
    alpha: float = 0.0,
    beta: float = 0.0,
) -> Any:
    """activation(conv_transpose(x, w) + bias + residual) with channels last; 0 where `gate` is not positive.

    x: [N, spatial…, C], w: [C, M/group, kernel…] as in `conv_transpose`, the others as in `conv_channels_last`.
    """
    windows = {"strides": strides, "pads": pads, "dilations": dilations, "output_padding": output_padding}
    y = ops["conv_transpose"](to_channels_first(x), w, bias, **windows, group=group)
    return _finished(to_channels_last(y), residual, gate, activation, alpha, beta)


@composite
def conv_weight_gradient_channels_last(
    x: Any,
    dy: Any,
    *,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
    group: int = 1,
) -> Any:
    """conv_weight_gradient of x: [N, spatial…, C] and dy: [N, windows…, M]; returns [M, C/group, kernel…]."""
    windows = {"kernel": kernel, "strides": strides, "pads": pads, "dilations": dilations}
    return ops["conv_weight_gradient"](to_channels_first(x), to_channels_first(dy), **windows, group=group)


@composite
def max_pool_channels_last(
    x: Any, *, kernel: tuple[int, ...], strides: tuple[int, ...], pads: tuple[int, ...], dilations: tuple[int, ...]
) -> Any:
    """max_pool of [N, spatial…, C]; returns [N, windows…, C]."""
    y = ops["max_pool"](to_channels_first(x), kernel=kernel, strides=strides, pads=pads, dilations=dilations)
    return to_channels_last(y)


@composite
def max_pool_gradient_channels_last(
    dy: Any, x: Any, *, kernel: tuple[int, ...], strides: tuple[int, ...], pads: tuple[int, ...], dilations: tuple[int, ...]
) -> Any:
    """max_pool_gradient of dy: [N, windows…, C] and x: [N, spatial…, C]; returns x's type."""
    windows = {"kernel": kernel, "strides": strides, "pads": pads, "dilations": dilations}
    return to_channels_last(ops["max_pool_gradient"](to_channels_first(dy), to_channels_first(x), **windows))


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


@composite
def average_pool_gradient_channels_last(
    dy: Any,
    *,
    spatial: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
    counted: tuple[int, ...],
) -> Any:
    """average_pool_gradient of [N, windows…, C]; returns [N, spatial…, C]."""
    windows = {"kernel": kernel, "strides": strides, "pads": pads, "dilations": dilations, "counted": counted}
    return to_channels_last(ops["average_pool_gradient"](to_channels_first(dy), spatial=spatial, **windows))
