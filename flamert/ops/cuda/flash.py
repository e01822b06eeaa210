"""Attention of float32 on the GPU: which forms our own kernels take, and their launches, forward and backward."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flamert import dtypes
from flamert.graph import Node, TensorType
from flamert.ops.attention import attention, attention_gradient
from flamert.ops.attention_blhd import PERM, attention_blhd, attention_gradient_blhd
from flamert.ops.cuda.copy import copier
from flamert.ops.cuda.emit_flash import forward
from flamert.ops.cuda.emit_flash_back import QUERIES, backward, parts
from flamert.ops.cuda.emit_tiles import Form, mask_type
from flamert.ops.cuda.launch import Launch, compiled, extent
from flamert.ops.cuda.shape import Call, in_turn
from flamert.ops.op import Site, kernel

LARGEST_HEAD = 128
"""Elements of a head for which a warp has registers."""

TWICE = 64
"""Elements of a head up to which a warp has registers for twice as many queries."""

SMALLEST_CAPABILITY = 80
"""What GPUs need to be to multiply TF32 and to copy into shared memory meanwhile."""

MULTIPROCESSORS = 132
"""Blocks that a large GPU needs to be busy."""

ALIGNMENT = 16


@functools.cache
def _able() -> bool:
    """Whether the GPU at hand is new enough; plans may be made where there is none."""
    try:
        import cupy
    except ImportError:
        return True
    return not cupy.cuda.is_available() or int(cupy.cuda.Device().compute_capability) >= SMALLEST_CAPABILITY


def takes(node: Node, q: TensorType, k: TensorType, v: TensorType, mask: TensorType | None, lengths: Any) -> bool:
    """Whether there are kernels for attention of this form, of float32: with heads of multiples of 8 elements, any window, and
    a mask of four axes, added or boolean; without a cap, and without lengths.
    """
    sizes = q.shape[3], v.shape[3]
    heads = all(size % 8 == 0 and size <= LARGEST_HEAD for size in sizes) and min(*q.shape, *k.shape, *v.shape) > 0
    plain = node.attrs["softcap"] == 0 and lengths is None and (mask is None or mask.rank == 4)
    small = max(q.size, k.size, v.size, q.shape[2] + k.shape[2]) < 1 << 31 and abs(node.attrs["offset"]) < 1 << 30
    bounded = all((node.attrs[side] or 0) < 1 << 30 for side in ("left", "right"))
    return heads and plain and small and bounded and _able()


def _types(node: Node, first: int) -> tuple[Any, ...]:
    found = [None if v is None else v.type for v in node.inputs[first:]]
    return (*found, None, None)[:5]


def _taken(first: int) -> Callable[[Node], bool]:
    """Whether kernels take a node whose operands of attention begin at number `first`."""

    def when(node: Node) -> bool:
        q, k, v, mask, lengths = _types(node, first)
        return q.dtype == dtypes.float32 and takes(node, q, k, v, mask, lengths)

    return when


def sizes_of(blocks: Callable[[int], int], wide: bool) -> tuple[int, int]:
    """Warps of a block, and groups of 16 rows of a warp: as many as leave blocks for all multiprocessors.

    blocks: how many there are of so many rows. wide: whether there are registers for two groups, which share what they read.
    """
    for warps, spans in ((4, 2), (4, 1)) if wide else ((4, 1),):
        if blocks(16 * warps * spans) >= MULTIPROCESSORS:
            return warps, spans
    return 2, 1


class _Operands:
    """Operands of attention [B, H, L, D], however they lie, and what kernels are told of them."""

    def __init__(self, site: Site, q: Any, k: Any, v: Any, mask: Any, scale: float, **window: Any) -> None:
        self.q, self.k, self.v, self.scale = q, k, v, np.float32(scale)
        (self.b, self.hq, self.l, self.d), (_, self.hkv, self.s, _), self.dv = q.shape, k.shape, v.shape[3]
        self.exact = not site.device.allow_tf32
        left, right, offset = window["left"], window["right"], window["offset"]
        self.low = None if left is None else offset - left
        self.high = None if right is None else offset + right
        self.mask = mask

    def form(self, turned: bool = False, wide: bool = False) -> Form:
        """turned: whether rows are keys. wide: whether warps may have two groups of 16."""
        heads, n = (self.hkv, self.s) if turned else (self.hq, self.l)
        low, high = self.low is not None, self.high is not None
        kind = mask_type(None if self.mask is None else self.mask.dtype)
        by_row = self.mask is not None and _steps(self.mask, self._whole)[2] != 0
        wide = wide and not self.exact and not by_row and max(self.d, self.dv) <= TWICE
        warps, spans = sizes_of(lambda rows: self.b * heads * -(-n // rows), wide)
        sides = (high, low) if turned else (low, high)
        return Form(self.d, self.dv, warps, spans, self.exact, *sides, kind, by_row)

    @property
    def _whole(self) -> tuple[int, ...]:
        return self.b, self.hq, self.l, self.s

    def launch(
        self, run: Any, form: Form, arrays: Sequence[Any], lying: Sequence[Any], outs: Any, turned: bool = False
    ) -> Launch:
        """arrays: the kernel's, None for those it does without. lying: those whose steps it is told. outs: what it writes."""
        heads, n, m = (self.hkv, self.s, self.l) if turned else (self.hq, self.l, self.s)
        low, high = self.low or 0, self.high or 0
        if turned:
            low, high = -high, -low
        mask = self.q if self.mask is None else self.mask
        steps = [0] * 4 if self.mask is None else _steps(mask, self._whole)
        steps += [step for x in lying for step in _steps(x, x.shape)[:3]]
        sizes = [*map(np.uint32, (self.b * heads, heads, self.hq // self.hkv, n, m)), np.int32(low), np.int32(high), self.scale]
        given = [np.uint64(0) if x is None else x for x in arrays]
        blocks = self.b * heads * -(-n // form.rows)
        reads = [extent(x) for x in (*arrays, self.mask) if x is not None]
        arguments = (*given, mask, *map(np.int64, steps), *sizes)
        return Launch(run, (blocks,), 32 * form.warps, arguments, reads, [extent(x) for x in outs])


def _steps(x: Any, shape: tuple[int, ...]) -> list[int]:
    """Strides in elements, 0 where an array is broadcast to the shape."""
    return [0 if d == 1 and n != 1 else s // x.itemsize for d, n, s in zip(x.shape, shape, x.strides, strict=True)]


def _forward(site: Site, y: Any, sums: Any, q: Any, k: Any, v: Any, mask: Any, **attrs: Any) -> Call:
    """The launch of the forward pass; y: [B, H, L, D], however it lies."""
    before, (q, k, v) = _readable(site.xp, q, k, v)
    after, (y,) = _writable(site.xp, y)
    of = _Operands(site, q, k, v, mask, **attrs)
    form = of.form(wide=True)
    arrays, outs = (q, k, v, y, sums), [x for x in (y, sums) if x is not None]
    run = compiled(forward(form), "flash_forward")
    return in_turn([*before, of.launch(run, form, arrays, (q, k, v, y), outs), *after])


def _backward(
    site: Site, outs: Any, y: Any, sums: Any, kept: Any, dy: Any, q: Any, k: Any, v: Any, mask: Any, **attrs: Any
) -> Call:
    """The launches of the backward pass; outs: dq, dk, dv, and all others, too, [B, H, L, D], however they lie."""
    before, (dy, y, q, k, v) = _readable(site.xp, dy, y, q, k, v)
    after, (dq, dk, dv) = _writable(site.xp, *outs)
    of = _Operands(site, q, k, v, mask, **attrs)
    calls: list[Call] = []
    for part in parts(of.form()):
        turned = QUERIES not in part
        form = of.form(turned)
        first, second = (dk, dv) if turned else (dq, dq)
        written = (dk, dv) if turned else (dq, kept)
        arrays, lying = (q, k, v, dy, y, sums, kept, first, second), (q, k, v, dy, y, first, second)
        run = compiled(backward(form, part), "flash_backward")
        calls.append(of.launch(run, form, arrays, lying, written, turned))
    return in_turn([*before, *calls, *after])


def _aligned(x: Any) -> bool:
    """Whether all rows begin where 16 bytes do, and have no gaps."""
    steps = [s for d, s in zip(x.shape[:-1], x.strides[:-1], strict=True) if d > 1]
    return x.strides[-1] == x.itemsize and not any(s % ALIGNMENT for s in (x.data.ptr, *steps))


def _readable(xp: Any, *operands: Any) -> tuple[list[Call], list[Any]]:
    """Operands as kernels can read them, and what copies those that were not like that."""
    found = [x if _aligned(x) else xp.empty(x.shape, x.dtype) for x in operands]
    return [copier(to, x) for to, x in zip(found, operands, strict=True) if to is not x], found


def _writable(xp: Any, *results: Any) -> tuple[list[Call], list[Any]]:
    """Arrays that kernels can write, and what copies them to where they are wanted."""
    found = [x if _aligned(x) else xp.empty(x.shape, x.dtype) for x in results]
    return [copier(x, of) for of, x in zip(found, results, strict=True) if of is not x], found


def _heads_first(x: Any) -> Any:
    """[B, L, H, D] seen as [B, H, L, D]."""
    return x.transpose(PERM)


@kernel(attention, "cupy", when=_taken(0), bind=True)
def _(site: Site, out: Any, *operands: Any, softcap: float, **attrs: Any) -> Call:
    return _forward(site, out, None, *(*operands, None)[:4], **attrs)


@kernel(attention_blhd, "cupy", when=_taken(0), bind=True)
def _(site: Site, out: Any, *operands: Any, softcap: float, sums: bool, **attrs: Any) -> Call:
    y, logs = out if sums else (out, None)
    return _forward(site, _heads_first(y), logs, *(*operands, None)[:4], **attrs)


def _kept(node: Node, first: int) -> TensorType:
    """Two numbers for each query."""
    q = _types(node, first)[0]
    return TensorType((2, *q.shape[:3]), dtypes.float32)


def _again(node: Node) -> list[TensorType]:
    """Besides those, the forward pass's result and sums."""
    q, _, v, _, _ = _types(node, 2)
    return [_kept(node, 2), TensorType((*q.shape[:3], v.shape[3]), q.dtype), TensorType((*q.shape[:3], 1), q.dtype)]


@kernel(attention_gradient, "cupy", when=_taken(2), bind=True, strided=True, workspace=_again)
def _(site: Site, out: Any, dy: Any, y: Any, *operands: Any, softcap: float, **attrs: Any) -> Call:
    """With the forward pass once more, for its sums."""
    kept, again, sums = site.work
    q, k, v, mask = (*operands, None)[:4]
    first = _forward(site, again, sums, q, k, v, mask, **attrs)
    return in_turn([first, _backward(site, out, y, sums, kept, dy, q, k, v, mask, **attrs)])


@kernel(
    attention_gradient_blhd,
    "cupy",
    when=_taken(3),
    bind=True,
    contiguous=(2,),
    strided=True,
    workspace=lambda node: [_kept(node, 3)],
)
def _(site: Site, out: Any, dy: Any, y: Any, sums: Any, *operands: Any, softcap: float, **attrs: Any) -> Call:
    outs = [_heads_first(x) for x in out]
    q, k, v, mask = (*operands, None)[:4]
    return _backward(site, outs, y, sums, site.work[0], dy, q, k, v, mask, **attrs)
