"""Converters of com.microsoft's convolutions and pooling: with an activation fused in, or with channels last."""

from __future__ import annotations

from collections.abc import Sequence

from flamert import ops
from flamert.errors import InvalidModel
from flamert.graph import Value
from flamert.importers.conv import conv_transposed
from flamert.importers.registry import Context, converter
from flamert.importers.windows import ceil_pads, check_kernel, geometry

MICROSOFT = "com.microsoft"

ACTIVATIONS = {
    "Relu": ("relu", ()),
    "Tanh": ("tanh", ()),
    "Sigmoid": ("sigmoid", ()),
    "HardSwish": ("hard_swish", ()),
    "LeakyRelu": ("leaky_relu", ("alpha",)),
    "HardSigmoid": ("hard_sigmoid", ("alpha", "beta")),
}
"""What a fused convolution may end with, Clip aside: the op, and its attributes that parameters are given for."""


def activated(y: Value, activation: str, parameters: Sequence[float] | None) -> Value:
    """y through the activation of this name, or none. Raises InvalidModel for a name or parameters that do not exist."""
    given = tuple(parameters or ())
    if not activation:
        return y
    if activation == "Clip" and len(given) == 2:
        return ops.clip(y, *given)
    name, attributes = ACTIVATIONS.get(activation, ("", ()))
    if not name or len(given) > len(attributes):
        raise InvalidModel(f"activation {activation!r} with parameters {list(given)} is unknown")
    return ops.OPS[name](y, **dict(zip(attributes, given, strict=False)))


def channels_first(x: Value) -> Value:
    """[N, *spatial, C] → [N, C, *spatial]."""
    return ops.transpose(x, perm=(0, x.rank - 1, *range(1, x.rank - 1)))


def channels_last(x: Value) -> Value:
    """[N, C, *spatial] → [N, *spatial, C]."""
    return ops.transpose(x, perm=(0, *range(2, x.rank), 1))


@converter("FusedConv", domain=MICROSOFT)
def _(
    ctx: Context,
    x: Value,
    w: Value,
    b: Value | None = None,
    z: Value | None = None,
    *,
    activation: str = "",
    activation_params: Sequence[float] | None = None,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Value:
    """activation(conv(x, w, b) + z)"""
    check_kernel(kernel_shape, w.shape[2:])
    y = ops.conv(x, w, b, **geometry(x.shape[2:], w.shape[2:], strides, pads, dilations, auto_pad)._asdict(), group=group)
    return activated(y if z is None else y + z, activation, activation_params)


@converter("NhwcConv", domain=MICROSOFT)
@converter("NhwcFusedConv", domain=MICROSOFT)
def _(
    ctx: Context,
    x: Value,
    w: Value,
    b: Value | None = None,
    z: Value | None = None,
    *,
    activation: str = "",
    activation_params: Sequence[float] | None = None,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Value:
    """FusedConv with channels last in x, z and the result; the weights are [M, C/group, *kernel] as ever."""
    check_kernel(kernel_shape, w.shape[2:])
    x = channels_first(x)
    windows = geometry(x.shape[2:], w.shape[2:], strides, pads, dilations, auto_pad)
    y = channels_last(ops.conv(x, w, b, **windows._asdict(), group=group))
    return activated(y if z is None else y + z, activation, activation_params)


@converter("NhwcMaxPool", domain=MICROSOFT)
def _(
    ctx: Context,
    x: Value,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Value:
    x = channels_first(x)
    windows = geometry(x.shape[2:], kernel_shape, strides, pads, dilations, auto_pad)
    if ceil_mode and auto_pad == "NOTSET":
        windows = windows._replace(pads=ceil_pads(x.shape[2:], kernel_shape, windows))
    return channels_last(ops.max_pool(x, kernel=tuple(kernel_shape), **windows._asdict()))


@converter("ConvTransposeWithDynamicPads", domain=MICROSOFT)
def _(
    ctx: Context,
    x: Value,
    w: Value,
    pads: Value | None = None,
    b: Value | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Value:
    check_kernel(kernel_shape, w.shape[2:])
    return conv_transposed(x, w, b, strides, ctx.ints(pads), dilations, auto_pad, group, output_padding, None)
