"""Attention on the GPU: cuDNN's flash attention for half types, forward and backward. Other forms are computed op by op."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from flamert import dtypes
from flamert.graph import Node, TensorType
from flamert.ops.attention import attention, attention_gradient
from flamert.ops.cuda.cudnn import Attention, Tensor, available
from flamert.ops.op import Site, kernel

LARGEST_HEAD = 128
"""Elements of a head that the backward engines take."""

SCRATCH = 32 << 20


def flash(node: Node, q: TensorType, k: TensorType, v: TensorType, mask: TensorType | None, lengths: Any) -> bool:
    """Whether cuDNN has attention of this form, of half types: whole or causal, with an additive mask at most."""
    attrs = node.attrs
    causal = attrs["right"] == 0 and attrs["offset"] == 0 and q.shape[2] == k.shape[2]
    plain = attrs["softcap"] == 0 and attrs["left"] is None and (attrs["right"] is None or causal) and lengths is None
    heads = max(q.shape[3], v.shape[3]) <= LARGEST_HEAD and q.shape[3] % 8 == 0 and v.shape[3] % 8 == 0
    fits = plain and heads and min(*q.shape, *k.shape) > 0 and (mask is None or (mask.dtype != dtypes.bool_ and mask.rank == 4))
    return fits and available()


def _types(node: Node, first: int) -> tuple[Any, ...]:
    found = [None if v is None else v.type for v in node.inputs[first:]]
    return (*found, None, None)[:5]


def _forward(node: Node) -> bool:
    q, k, v, mask, lengths = _types(node, 0)
    return q.dtype in dtypes.HALF and flash(node, q, k, v, mask, lengths)


def _backward(node: Node) -> bool:
    q, k, v, mask, lengths = _types(node, 2)
    return q.dtype in dtypes.HALF and flash(node, q, k, v, mask, lengths)


def _scratch(node: Node) -> list[TensorType]:
    return [TensorType((SCRATCH,), dtypes.uint8)]


@kernel(attention, "cupy", when=_forward, bind=True, workspace=_scratch)
def _(
    site: Site,
    out: Any,
    q: Any,
    k: Any,
    v: Any,
    mask: Any = None,
    lengths: Any = None,
    *,
    scale: float,
    right: int | None,
    **_: Any,
) -> Callable[[], None]:
    copies, (q, k, v) = _dense(site.xp, q, k, v)
    made = Attention(
        [Tensor.as_it_lies(x) for x in (q, k, v)],
        Tensor.as_it_lies(out),
        site.node.types[0].dtype,
        scale=scale,
        causal=right == 0,
        mask=None if mask is None else Tensor.as_it_lies(mask),
        device=site.device.index,
    )
    run = made.forward((q, k, v), mask, out, None, site.work[0], site.xp.cuda.get_current_stream)
    return _after(copies, run)


def _backward_scratch(node: Node) -> list[TensorType]:
    """cuDNN's own, which holds dq in float32; the forward pass's result, and its logarithms of sums."""
    q, k, v, _, _ = _types(node, 2)
    b, h, l = q.shape[:3]
    own = SCRATCH + 8 * math.prod(q.shape) + 8 * b * h * l + 8 * (k.size + v.size)
    return [
        TensorType((own,), dtypes.uint8),
        TensorType((b, h, l, v.shape[3]), q.dtype),
        TensorType((b, h, l, 1), dtypes.float32),
    ]


@kernel(attention_gradient, "cupy", when=_backward, bind=True, workspace=_backward_scratch)
def _(
    site: Site,
    out: Any,
    dy: Any,
    y: Any,
    q: Any,
    k: Any,
    v: Any,
    mask: Any = None,
    lengths: Any = None,
    *,
    scale: float,
    right: int | None,
    **_: Any,
) -> Callable[[], None]:
    work, again, stats = site.work
    copies, (dy, q, k, v) = _dense(site.xp, dy, q, k, v)
    made = Attention(
        [Tensor.as_it_lies(x) for x in (q, k, v)],
        Tensor.as_it_lies(again),
        site.node.types[0].dtype,
        scale=scale,
        causal=right == 0,
        mask=None if mask is None else Tensor.as_it_lies(mask),
        stats=True,
        device=site.device.index,
    )
    stream = site.xp.cuda.get_current_stream
    forward = made.forward((q, k, v), mask, again, stats, work, stream)
    backward = made.backward((q, k, v), mask, again, stats, dy, out, work, stream, site.device.deterministic)

    return _after([*copies, forward], backward)


def _dense(xp: Any, *operands: Any) -> tuple[list[Callable[[], None]], tuple[Any, ...]]:
    """Operands whose heads lie in one piece, and what copies those that did not."""
    copies: list[Callable[[], None]] = []
    found = []
    for x in operands:
        if x.strides[-1] != x.itemsize:
            copy = xp.empty(x.shape, x.dtype)
            copies.append(functools.partial(xp.copyto, copy, x))
            x = copy
        found.append(x)
    return copies, tuple(found)


def _after(first: list[Callable[[], None]], last: Callable[[], None]) -> Callable[[], None]:
    """One call of all of these."""

    def run() -> None:
        for call in first:
            call()
        last()

    return run if first else last
