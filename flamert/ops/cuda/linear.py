"""Matrix products on the GPU through cuBLASLt: CuPy's own refuse stream capture and mistreat 16-bit batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flamert import dtypes
from flamert.errors import DeviceError
from flamert.graph import Node, TensorType
from flamert.ops.cuda.copy import copier
from flamert.ops.cuda.cublaslt import ACTIVATIONS, MOST_ALIGNED, WORKSPACE_BYTES, Matrix, Product, version
from flamert.ops.cuda.launch import Extent, Launch, extent, meet
from flamert.ops.cuda.pointwise import launch
from flamert.ops.cuda.tuning import choices, fastest
from flamert.ops.fused import linear, wide_matmul
from flamert.ops.linear import matmul
from flamert.ops.op import Site, kernel
from flamert.ops.pointwise import Instruction

ALIGNMENT = 16
"""Bytes that a bias must lie on a multiple of."""

TYPES = frozenset({dtypes.float16, dtypes.bfloat16, dtypes.float32, dtypes.float64})


def suits(node: Node) -> bool:
    """Whether cuBLASLt has such a product."""
    a, b = node.inputs[:2]
    assert a is not None and b is not None
    return a.dtype in TYPES and node.types[0].size > 0 and a.shape[-1] > 0


def scratch(node: Node) -> tuple[TensorType, ...]:
    """cuBLASLt's own memory."""
    return (TensorType((WORKSPACE_BYTES,), dtypes.uint8),)


TURNED_BYTES = 128 << 20
"""The largest operand that is turned before a product, where that is faster."""


def _tuned_workspace(node: Node) -> tuple[TensorType, ...]:
    """And room for the smaller operand, where it may be turned."""
    a, b = node.inputs[:2]
    assert a is not None and b is not None
    smaller = min(a.type, b.type, key=lambda t: t.size)
    turnable = b.rank == 2 and a.dtype == dtypes.float32 and smaller.rank > 1 and smaller.nbytes <= TURNED_BYTES
    return (*scratch(node), TensorType((smaller.size if turnable else 0,), dtypes.float32))


def _biased(node: Node) -> bool:
    """Whether this is a product with a bias, and no more than an activation that cuBLASLt has, as exact as halves need it."""
    bias, dtype = node.inputs[2] if len(node.inputs) == 3 else None, node.types[0].dtype
    plain = not node.attrs["activation"] or (node.attrs["activation"] in ACTIVATIONS and dtype in dtypes.HALF)
    return plain and bias is not None and dtype != dtypes.float64 and suits(node)


def _widened(node: Node) -> bool:
    """Whether cuBLASLt writes this product of halves wider."""
    a, to, bias = node.inputs[0], node.types[0], node.inputs[2] if len(node.inputs) == 3 else None
    added = bias is None or (to.rank > 1 and bias.dtype == to.dtype)
    return a is not None and a.dtype in dtypes.HALF and to.dtype == dtypes.float32 and suits(node) and added


for _op, _when in ((matmul, suits), (linear, _biased), (wide_matmul, _widened)):

    @kernel(_op, "cupy", when=_when, bind=True, workspace=scratch)
    def _(site: Site, out: Any, *operands: Any, **attrs: Any) -> Callable[[], None]:
        return _bound(site, out, *operands, activation=attrs.get("activation", ""), factor=attrs.get("scale", 1.0))

    @kernel(_op, "cupy", when=_when, bind=True, workspace=_tuned_workspace, hot=True)
    def _(site: Site, out: Any, *operands: Any, **attrs: Any) -> Callable[[], None]:
        """With the fastest of several algorithms, of operands as they lie or one of them turned."""
        given = {"activation": attrs.get("activation", ""), "factor": attrs.get("scale", 1.0)}
        return _bound(site, out, *operands, **given, tuned=True)


def _bound(
    site: Site, out: Any, a: Any, b: Any, bias: Any = None, *, activation: str, factor: float, tuned: bool = False
) -> Callable[[], None]:
    xp = site.xp
    if a.ndim == 1:
        a, out = a[None], out[..., None, :] if b.ndim > 1 else out[None]
    if b.ndim == 1:
        b, out = b[:, None], out[..., None]
    batch = out.shape[:-2]
    a, b = (xp.broadcast_to(m, (*batch, *m.shape[-2:])) for m in (a, b))
    if len(batch) and b.strides[:-2] == (0,) * len(batch) and _rows_merge(a):
        # One matrix for all: the batch is just more rows.
        a, b, out, batch = a.reshape(-1, a.shape[-1]), b[(0,) * len(batch)], out.reshape(-1, out.shape[-1]), ()
    copies: list[Callable[[], Any]] = []
    reads = [extent(x) for x in (a, b, bias) if x is not None]
    a, b = (multipliable(m, xp, copies) for m in (a, b))
    if bias is not None and (bias.strides[0] != bias.itemsize or bias.data.ptr % ALIGNMENT):
        dense = xp.empty(bias.shape, bias.dtype)
        copies.append(copier(dense, bias))
        bias = dense

    def way(operands: tuple[Any, Any], *before: Callable[[], Any], ends: str = activation) -> Way:
        product = product_of(*operands, out, math.prod(batch), site.device, bias, ends, factor)
        after = (_activated(out, activation),) if ends != activation else ()
        current = site.xp.cuda.get_current_stream
        return Way(product, operands, out, site.work[0], current, (*copies, *before), after, tuple(reads))

    def of(operands: tuple[Any, Any], *before: Callable[[], Any]) -> list[Way]:
        """With the activation in the product, where there is such an algorithm, and behind it."""
        found = []
        for ends in dict.fromkeys((activation, "")):
            try:
                found.append(way(operands, *before, ends=ends))
            except DeviceError:
                if not ends:
                    raise
        return found

    ways = of((a, b))
    # Times differ from process to process, and algorithms in the order of their sums.
    if not tuned or site.device.deterministic:
        return ways[0]
    turned = _turned(site, a, b) if ways[0].product.tf32 and not batch else None
    return fastest_way([*ways, *([] if turned is None else of(*turned))], xp)


def _activated(out: Any, activation: str) -> Launch:
    """The launch of an activation in place."""
    type, program = TensorType(out.shape, out.dtype), (Instruction(activation, (0,), ()),)
    return launch([out], [out], [type], [None], program, (0,))


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """One way to a product, which calling it takes. before: what makes the operands. after: launches that finish the result
    where it lies. reads: what all of these read. As a `Launch`, it can be asked to write elsewhere.
    """

    product: Product
    operands: tuple[Any, Any]
    out: Any
    work: Any
    stream: Callable[[], Any]
    before: tuple[Callable[[], Any], ...] = ()
    after: tuple[Launch, ...] = ()
    reads: tuple[Extent, ...] = ()

    def __call__(self) -> None:
        for call in self.before:
            call()
        a, b = self.operands
        self.product(a.data.ptr, b.data.ptr, self.out.data.ptr, self.work.data.ptr, self.stream().ptr)
        for call in self.after:
            call()

    @property
    def writes(self) -> tuple[Extent, ...]:
        """The result's memory: scratch is nobody else's."""
        return (extent(self.out),)

    def writes_alone(self, address: int) -> bool:
        """Whether the result lies there."""
        return bool(self.out.data.ptr == address)

    def reads_of(self, other: Any) -> bool:
        """Whether it reads what another call writes."""
        return meet(self.reads, other.writes)

    def onto(self, address: int, result: Any) -> Way:
        """This way to another array, which lies as the result does."""
        out = result.reshape(self.out.shape)
        return replace(self, out=out, after=tuple([call.onto(address, out) for call in self.after]))


def _turned(site: Site, a: Any, b: Any) -> tuple[tuple[Any, Any], Callable[[], Any]] | None:
    """The operands with the smaller one turned so that the summed axis is innermost, and the call that turns it.

    Tensor cores read float32 so; what lies otherwise passes through registers. None where that is no gain, or no room is left.
    """
    side = int(b.size < a.size)
    operands = [a, b]
    summed = (-1, -2)[side]
    x = operands[side]
    if site.work[1].size != x.size or x.strides[summed] == x.itemsize or x.shape[summed] * x.itemsize % ALIGNMENT:
        return None
    buffer = site.work[1].reshape(x.shape if side == 0 else x.shape[::-1])
    operands[side] = buffer if side == 0 else buffer.T
    return (operands[0], operands[1]), copier(operands[side], x)


def product_of(
    a: Any, b: Any, out: Any, batch: int, device: Any, bias: Any = None, activation: str = "", factor: float = 1.0
) -> Product:
    """The product of two arrays as they lie, in TF32 where the device may. out: where it is wanted, or one that lies so."""
    tf32 = bool(device.allow_tf32) and a.dtype == dtypes.float32
    at = None if bias is None else bias.data.ptr
    lie = _matrix(a), _matrix(b)
    more: dict[str, Any] = {
        "factor": factor,
        "bias": at,
        "activation": activation,
        "alignments": (_aligned(a), _aligned(b), _aligned(out)),
    }
    return Product(*lie, batch, a.dtype, result=out.dtype, tf32=tf32, device=device.index, **more)


def _aligned(x: Any) -> int:
    """The power of two that an array's address is a multiple of, as far as cuBLASLt asks."""
    return math.gcd(x.data.ptr, MOST_ALIGNED)


def fastest_way(ways: Sequence[Way], xp: Any) -> Way:
    """The fastest way with the fastest algorithm for it, measured now or before; in TF32, of those that round."""

    def measured() -> str:
        def under(way: Way, algorithm: Any) -> Callable[[], None]:
            def launch() -> None:
                way.product.algorithm = algorithm
                way()

            return launch

        tried = [(i, algorithm) for i, way in enumerate(ways) for algorithm in rounding(way, xp)]
        i, algorithm = tried[fastest([under(ways[i], algorithm) for i, algorithm in tried])]
        ways[i].product.algorithm = algorithm
        return f"{i} {ways[i].product.choice}"

    key = " or ".join([way.product.key for way in ways]) + (" rounded" if ways[0].product.tf32 else "")
    number, algorithm = choices("cublaslt", version(), ways[0].product.device).find(key, measured).split()
    way = ways[int(number)]
    way.product.recall(algorithm)
    return way


TIE = 1 + 2.0**-11 + 2.0**-12
"""A number above the middle between two that TF32 has, 1 and 1 + 2⁻¹⁰."""


def rounding(way: Way, xp: Any) -> list[Any]:
    """Algorithms for a product in TF32 that round its operands, and do not cut off what there is no room for; all of them where
    none does, or where no memory is left to try them in.

    What is cut off makes every product smaller, by 2⁻¹¹ on average, and so all that is made of it from layer to layer; what is
    rounded errs either way.
    """
    product, found = way.product, []
    if not product.tf32:
        return product.candidates
    try:
        a, b = (xp.full((end - start) // 4, TIE, np.float32) for start, end in map(extent, way.operands))
    except MemoryError:
        return product.candidates
    for algorithm in product.candidates:
        product.algorithm = algorithm
        try:
            with product.without_bias(xp):
                product(a.data.ptr, b.data.ptr, way.out.data.ptr, way.work.data.ptr, way.stream().ptr)
                mean = float(way.out[(0,) * way.out.ndim]) / way.operands[0].shape[-1]
        except DeviceError:  # cuBLASLt takes it back; `fastest` says so where nothing else works
            continue
        if mean > 1 + 2.0**-10:
            found.append(algorithm)
    return found or product.candidates


def _rows_merge(a: Any) -> bool:
    """Whether leading axes and rows form one axis of constant stride."""
    expected = a.strides[-2]
    for d, s in zip(a.shape[-2::-1], a.strides[-2::-1], strict=True):
        if d != 1 and s != expected:
            return False
        expected *= d
    return a.strides[-1] == a.itemsize


def multipliable(m: Any, xp: Any, copies: list[Callable[[], Any]]) -> Any:
    """m itself where matrices lie evenly and one of their axes is dense, else a buffer that is filled from it each time."""
    if _dense(m, -1, -2) or _dense(m, -2, -1):
        steps = [(d, s) for d, s in zip(m.shape[:-2], m.strides[:-2], strict=True) if d != 1]
        if all(s == inner * d for (_, s), (d, inner) in itertools.pairwise(steps)):
            return m
    buffer = xp.empty(m.shape, m.dtype)
    copies.append(copier(buffer, m))
    return buffer


def _dense(m: Any, inner: int, outer: int) -> bool:
    """Whether elements along one of a matrix's two axes are neighbours, and the other axis steps over them."""
    item = m.itemsize
    return (m.strides[inner] == item or m.shape[inner] == 1) and (
        m.strides[outer] >= m.shape[inner] * item or m.shape[outer] == 1
    )


def _matrix(m: Any) -> Matrix:
    rows, columns = m.shape[-2:]
    item = m.itemsize
    apart = next((s // item for d, s in zip(m.shape[-3::-1], m.strides[-3::-1], strict=True) if d != 1), 0)
    if _dense(m, -1, -2):
        return Matrix(rows, columns, columns if rows == 1 else m.strides[-2] // item, False, apart)
    return Matrix(rows, columns, rows if columns == 1 else m.strides[-1] // item, True, apart)
