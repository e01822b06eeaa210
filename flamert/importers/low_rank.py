"""Converters of low-rank terms beside weights. No file holds these nodes: `graft` puts them into models that are adapted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from flamert import graph as g
from flamert import ops
from flamert.graph import Value
from flamert.importers.registry import Context, converter, find

DOMAIN = "flamert"


def _dropped(ctx: Context, x: Value, ratio: float) -> Value:
    """x, of which training drops some elements."""
    if ctx.training is None or not ratio:
        return x
    counter, seed = ctx.training.draw()
    return ops.dropout(x, g.constant(np.float32(ratio)), counter, seed=seed)[0]


@converter("LowRank", domain=DOMAIN)
def _(ctx: Context, y: Value, x: Value, a: Value, b: Value, *, scale: float, dropout: float) -> Value:
    """y + scale · x·Aᵀ·Bᵀ, beside y = x·W. a: [rank, in], b: [out, rank]."""
    low = ops.matmul(_dropped(ctx, x, dropout), ops.transpose(a, perm=(1, 0)))
    return y + ops.matmul(low, ops.transpose(b, perm=(1, 0))) * scale


@converter("LowRankConv", domain=DOMAIN)
def _(
    ctx: Context,
    y: Value,
    x: Value,
    a: Value,
    b: Value,
    *,
    scale: float,
    dropout: float,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Value:
    """y + scale · B∗(A∗x), beside y = W∗x. a: [rank, in, *kernel], b: [out, rank, 1, …]."""
    plain = find("", "Conv", 1)
    assert plain is not None
    windows = {"auto_pad": auto_pad, "dilations": dilations, "pads": pads, "strides": strides}
    low = plain.run(ctx, _dropped(ctx, x, dropout), a, **windows)
    return y + plain.run(ctx, low, b) * scale


@converter("LowRankWeight", domain=DOMAIN)
def _(ctx: Context, w: Value, a: Value, b: Value, *, scale: float, inputs_first: int) -> Value:
    """W + scale · B·A, or its transpose, for weights that no single product takes."""
    rank = b.shape[1]
    low = ops.matmul(ops.reshape(b, shape=(b.shape[0], rank)), ops.reshape(a, shape=(rank, math.prod(a.shape[1:]))))
    low = ops.transpose(low, perm=(1, 0)) if inputs_first else low
    return w + ops.reshape(low, shape=w.shape) * scale
