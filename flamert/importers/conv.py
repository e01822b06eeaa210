"""Converters. Convolutions: plain, transposed, deformable, in any number of dimensions."""

from __future__ import annotations

from collections.abc import Sequence

from flamert import ops
from flamert.graph import Value
from flamert.importers.registry import Context, converter
from flamert.importers.windows import check_kernel, geometry, split
from flamert.ops.windows import extent


@converter("Conv")
def _(
    ctx: Context,
    x: Value,
    w: Value,
    b: Value | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Value:
    check_kernel(kernel_shape, w.shape[2:])
    windows = geometry(x.shape[2:], w.shape[2:], strides, pads, dilations, auto_pad)
    return ops.conv(x, w, b, **windows._asdict(), group=group)


@converter("ConvTranspose")
def _(
    ctx: Context,
    x: Value,
    w: Value,
    b: Value | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Value:
    check_kernel(kernel_shape, w.shape[2:])
    return conv_transposed(x, w, b, strides, pads, dilations, auto_pad, group, output_padding, output_shape)


def conv_transposed(
    x: Value,
    w: Value,
    b: Value | None,
    strides: Sequence[int] | None,
    pads: Sequence[int] | None,
    dilations: Sequence[int] | None,
    auto_pad: str,
    group: int,
    output_padding: Sequence[int] | None,
    output_shape: Sequence[int] | None,
) -> Value:
    """A transposed convolution from the attributes of a node, with what it leaves out filled in."""
    spatial, kernel = x.shape[2:], w.shape[2:]
    same = auto_pad in ("SAME_UPPER", "SAME_LOWER")
    windows = geometry(spatial, kernel, strides, pads, dilations, "NOTSET" if same else auto_pad)
    extra = tuple(output_padding or [0] * len(spatial))
    if output_shape or same:
        # The result's size is prescribed: either outright, or as input · stride. What is too much becomes padding.
        wanted = (
            output_shape[-len(spatial) :] if output_shape else [d * s for d, s in zip(spatial, windows.strides, strict=True)]
        )
        reach = extent(kernel, windows.dilations)
        total = [(d - 1) * s + e + p - o for d, s, e, p, o in zip(spatial, windows.strides, reach, extra, wanted, strict=True)]
        windows = windows._replace(pads=split(total, auto_pad))
    return ops.conv_transpose(x, w, b, **windows._asdict(), group=group, output_padding=extra)


@converter("Col2Im", 18)
def _(
    ctx: Context,
    x: Value,
    image_shape: Value,
    block_shape: Value,
    *,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Value:
    image, block = ctx.ints(image_shape) or (), ctx.ints(block_shape) or ()
    windows = geometry(image, block, strides, pads, dilations)
    return ops.col2im(x, image=image, block=block, **windows._asdict())


@converter("DeformConv", 19)
def _(
    ctx: Context,
    x: Value,
    w: Value,
    offset: Value,
    b: Value | None = None,
    mask: Value | None = None,
    *,
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    offset_group: int = 1,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Value:
    check_kernel(kernel_shape, w.shape[2:])
    windows = geometry(x.shape[2:], w.shape[2:], strides, pads, dilations)
    return ops.deform_conv(x, w, offset, b, mask, **windows._asdict(), group=group, offset_group=offset_group)
