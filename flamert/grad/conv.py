"""Gradients of convolutions: each of conv, conv_transpose and conv_weight_gradient has its own in terms of the other two."""

from __future__ import annotations

from typing import Any

from flamert import ops
from flamert.grad.registry import gradient
from flamert.graph import Value
from flamert.ops.windows import extent


def _leftover(spatial: Any, kernel: Any, counts: Any, strides: Any, pads: Any, dilations: Any) -> tuple[int, ...]:
    """Elements at the end of each padded axis that no window reaches."""
    n = len(spatial)
    reach = extent(kernel, dilations)
    return tuple(
        d + pads[i] + pads[n + i] - (counts[i] - 1) * strides[i] - reach[i] if counts[i] else 0 for i, d in enumerate(spatial)
    )


def _spread(dy: Value, w: Value, spatial: Any, **windows: Any) -> Value:
    """The adjoint of conv in x: dy spread over `spatial` elements."""
    group = windows.pop("group")
    extra = _leftover(spatial, w.shape[2:], dy.shape[2:], **windows)
    return ops.conv_transpose(dy, w, **windows, group=group, output_padding=extra)


def _bias(dy: Value) -> Value:
    return ops.reduce_sum(dy, axes=(0, *range(2, dy.rank)))


@gradient(ops.conv)
def _(dy: Any, y: Any, x: Any, w: Any, b: Any = None, **windows: Any) -> Any:
    """dx = conv_transpose(dy, w), dw[m, c, k] = Σ dy[n, m, o] · x[n, c, o·strides + k·dilations − pads], db = Σ dy"""
    dw = ops.conv_weight_gradient(x, dy, kernel=w.shape[2:], **windows)
    return _spread(dy, w, x.shape[2:], **windows), dw, _bias(dy)


@gradient(ops.conv_weight_gradient)
def _(dv: Any, v: Any, x: Any, dy: Any, *, kernel: Any, **windows: Any) -> Any:
    """⟨dv, v⟩ = ⟨dy, conv(x, dv)⟩, which is linear in x and in dy."""
    return _spread(dy, dv, x.shape[2:], **windows), ops.conv(x, dv, **windows)


@gradient(ops.conv_transpose)
def _(dy: Any, y: Any, x: Any, w: Any, b: Any = None, *, pads: Any, output_padding: Any, **windows: Any) -> Any:
    """dx = conv(dy, w), dw[c, m, k] = Σ x[n, c, i] · dy[n, m, i·strides + k·dilations − pads], db = Σ dy"""
    if 0 in x.shape[2:]:
        return None, None, _bias(dy)
    n = len(output_padding)
    # Without what was added at the ends there are exactly as many windows as x has elements.
    ends = tuple(p - extra for p, extra in zip(pads[n:], output_padding, strict=True))
    windows["pads"] = (*pads[:n], *ends)
    dw = ops.conv_weight_gradient(dy, x, kernel=w.shape[2:], **windows)
    return ops.conv(dy, w, **windows), dw, _bias(dy)


@gradient(ops.col2im)
def _(dy: Any, y: Any, x: Any, *, image: Any, **windows: Any) -> Any:
    """dx = im2col(dy)"""
    return ops.im2col(dy, **windows)


@gradient(ops.im2col)
def _(dy: Any, y: Any, x: Any, **windows: Any) -> Any:
    """dx = col2im(dy)"""
    return ops.col2im(dy, image=x.shape[2:], **windows)
