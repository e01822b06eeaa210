"""Attention of half types on the GPU: cuDNN's flash attention, forward and backward. Other forms are computed op by op."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from flamert import dtypes
from flamert.graph import Node, TensorType
from flamert.ops.attention import attention, attention_gradient
from flamert.ops.attention_blhd import PERM, attention_blhd, attention_gradient_blhd
from flamert.ops.cuda.copy import copier
from flamert.ops.cuda.cudnn import Attention, Tensor, available
from flamert.ops.op import Site, kernel

LARGEST_HEAD = 128
"""Elements of a head that the backward engines take."""

SCRATCH = 32 << 20

ALIGNMENT = 16
"""Bytes that cuDNN takes arrays, and heads in them, to begin on multiples of."""


def takes(node: Node, q: TensorType, k: TensorType, v: TensorType, mask: TensorType | None, lengths: Any) -> bool:
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
    return q.dtype in dtypes.HALF and takes(node, q, k, v, mask, lengths)


def _backward(node: Node) -> bool:
    q, k, v, mask, lengths = _types(node, 2)
    return q.dtype in dtypes.HALF and takes(node, q, k, v, mask, lengths)


def _scratch(node: Node) -> list[TensorType]:
    return [TensorType((SCRATCH,), dtypes.uint8)]


def _bound(
    site: Site, out: Any, sums: Any, operands: tuple[Any, ...], mask: Any, scale: float, right: int | None
) -> Callable[[], None]:
    """The launch of the forward pass; out: [B, H, L, D], however it lies."""
    copies, operands = _dense(site.xp, *operands)
    mask = _begun(site.xp, mask, copies)
    made = Attention(
        *(tuple(map(Tensor.as_it_lies, operands)), Tensor.as_it_lies(out), site.node.types[0].dtype),
        scale=scale,
        causal=right == 0,
        mask=None if mask is None else Tensor.as_it_lies(mask),
        stats=sums is not None,
        device=site.device.index,
    )
    return _after(copies, made.forward(operands, mask, out, sums, site.work[0], site.xp.cuda.get_current_stream))


def _bound_back(
    site: Site, outs: tuple[Any, ...], y: Any, sums: Any, flows: tuple[Any, ...], mask: Any, scale: float, right: int | None
) -> Callable[[], None]:
    """The launch of the backward pass; outs: dq, dk, dv. flows: dy, q, k, v. All [B, H, L, D], however they lie."""
    copies, (dy, *operands) = _dense(site.xp, *flows)
    mask = _begun(site.xp, mask, copies)
    made = Attention(
        *(tuple(map(Tensor.as_it_lies, operands)), Tensor.as_it_lies(y), site.node.types[0].dtype),
        scale=scale,
        causal=right == 0,
        mask=None if mask is None else Tensor.as_it_lies(mask),
        stats=True,
        device=site.device.index,
    )
    stream = site.xp.cuda.get_current_stream
    run = made.backward(tuple(operands), mask, y, sums, dy, outs, site.work[0], stream, site.device.deterministic)
    return _after(copies, run)


def _heads_first(x: Any) -> Any:
    """[B, L, H, D] seen as [B, H, L, D]."""
    return x.transpose(PERM)


@kernel(attention, "cupy", when=_forward, bind=True, workspace=_scratch)
def _(site: Site, out: Any, *operands: Any, scale: float, right: int | None, **_: Any) -> Callable[[], None]:
    q, k, v, mask, _lengths = (*operands, None, None)[:5]
    return _bound(site, out, None, (q, k, v), mask, scale, right)


@kernel(attention_blhd, "cupy", when=_forward, bind=True, workspace=_scratch)
def _(site: Site, out: Any, *operands: Any, scale: float, right: int | None, sums: bool, **_: Any) -> Callable[[], None]:
    q, k, v, mask, _lengths = (*operands, None, None)[:5]
    y, logs = out if sums else (out, None)
    return _bound(site, _heads_first(y), logs, (q, k, v), mask, scale, right)


def _own_scratch(node: Node, first: int) -> TensorType:
    """cuDNN's own, which holds dq in float32."""
    q, k, v, _, _ = _types(node, first)
    b, h, l = q.shape[:3]
    return TensorType((SCRATCH + 8 * math.prod(q.shape) + 8 * b * h * l + 8 * (k.size + v.size),), dtypes.uint8)


def _backward_scratch(node: Node) -> list[TensorType]:
    """cuDNN's own; the forward pass's result, and its logarithms of sums."""
    q, _, v, _, _ = _types(node, 2)
    again = TensorType((*q.shape[:3], v.shape[3]), q.dtype)
    return [_own_scratch(node, 2), again, TensorType((*q.shape[:3], 1), dtypes.float32)]


@kernel(attention_gradient, "cupy", when=_backward, bind=True, workspace=_backward_scratch, strided=True)
def _(site: Site, out: Any, dy: Any, y: Any, *operands: Any, scale: float, right: int | None, **_: Any) -> Callable[[], None]:
    """With the forward pass once more, for what it knew."""
    q, k, v, mask, _lengths = (*operands, None, None)[:5]
    _, again, sums = site.work
    forward = _bound(site, again, sums, (q, k, v), mask, scale, right)
    return _after([forward], _bound_back(site, out, again, sums, (dy, q, k, v), mask, scale, right))


def _backward_blhd(node: Node) -> bool:
    q, k, v, mask, lengths = _types(node, 3)
    return q.dtype in dtypes.HALF and takes(node, q, k, v, mask, lengths)


@kernel(
    attention_gradient_blhd,
    "cupy",
    when=_backward_blhd,
    bind=True,
    workspace=lambda node: [_own_scratch(node, 3)],
    strided=True,
)
def _(
    site: Site, out: Any, dy: Any, y: Any, sums: Any, *operands: Any, scale: float, right: int | None, **_: Any
) -> Callable[[], None]:
    q, k, v, mask, _lengths = (*operands, None, None)[:5]
    outs = tuple([_heads_first(x) for x in out])
    return _bound_back(site, outs, y, sums, (dy, q, k, v), mask, scale, right)


def _dense(xp: Any, *operands: Any) -> tuple[list[Callable[[], None]], tuple[Any, ...]]:
    """Operands whose heads lie in one piece and begin where wide accesses can, and what copies those that did not."""
    copies: list[Callable[[], None]] = []
    found = []
    for x in operands:
        steps = [s for d, s in zip(x.shape[:-1], x.strides[:-1], strict=True) if d > 1]
        if x.strides[-1] != x.itemsize or any(s % ALIGNMENT for s in (x.data.ptr, *steps)):
            copy = xp.empty(x.shape, x.dtype)
            copies.append(copier(copy, x))
            x = copy
        found.append(x)
    return copies, tuple(found)


def _begun(xp: Any, mask: Any, copies: list[Callable[[], None]]) -> Any:
    """The mask, or a copy if it begins where wide accesses cannot; `copies` takes what makes it."""
    if mask is None or mask.data.ptr % ALIGNMENT == 0:
        return mask
    copy = xp.empty(mask.shape, mask.dtype)
    copies.append(copier(copy, mask))
    return copy


def _after(first: list[Callable[[], None]], last: Callable[[], None]) -> Callable[[], None]:
    """One call of all of these."""

    def run() -> None:
        for call in first:
            call()
        last()

    return run if first else last
