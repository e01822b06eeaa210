"""Matrix products on the GPU through cuBLASLt: CuPy's own refuse stream capture and mistreat 16-bit batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from flamert import dtypes
from flamert.graph import Node, TensorType
from flamert.ops.cuda.copy import copier
from flamert.ops.cuda.cublaslt import WORKSPACE_BYTES, Matrix, Product, version
from flamert.ops.cuda.tuning import choices, fastest
from flamert.ops.fused import linear
from flamert.ops.linear import matmul
from flamert.ops.op import Site, kernel

ALIGNMENT = 16
"""Bytes that a bias must lie on a multiple of."""

TYPES = frozenset({dtypes.float16, dtypes.bfloat16, dtypes.float32, dtypes.float64})


def _suits(node: Node) -> bool:
    a, b = node.inputs[:2]
    assert a is not None and b is not None
    return a.dtype in TYPES and node.types[0].size > 0 and a.shape[-1] > 0


def _workspace(node: Node) -> tuple[TensorType, ...]:
    return (TensorType((WORKSPACE_BYTES,), dtypes.uint8),)


def _biased(node: Node) -> bool:
    """Whether this is a product and a bias, and no more."""
    bias = node.inputs[2] if len(node.inputs) == 3 else None
    plain = not node.attrs["activation"] and bias is not None
    return plain and node.types[0].dtype != dtypes.float64 and _suits(node)


for _op, _when in ((matmul, _suits), (linear, _biased)):

    @kernel(_op, "cupy", when=_when, bind=True, workspace=_workspace)
    def _(site: Site, out: Any, *operands: Any, **_: Any) -> Callable[[], None]:
        return _bound(site, out, *operands)

    @kernel(_op, "cupy", when=_when, bind=True, workspace=_workspace, hot=True)
    def _(site: Site, out: Any, *operands: Any, **_: Any) -> Callable[[], None]:
        """With the fastest of several algorithms."""
        return _bound(site, out, *operands, tuned=True)


def _bound(site: Site, out: Any, a: Any, b: Any, bias: Any = None, *, tuned: bool = False) -> Callable[[], None]:
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
    a, b = (_multipliable(m, xp, copies) for m in (a, b))
    if bias is not None and (bias.strides[0] != bias.itemsize or bias.data.ptr % ALIGNMENT):
        dense = xp.empty(bias.shape, bias.dtype)
        copies.append(copier(dense, bias))
        bias = dense
    product = _product(a, b, math.prod(batch), out.dtype, site.device, bias)
    work = site.work[0].data.ptr
    current = xp.cuda.get_current_stream

    def run() -> None:
        for copy in copies:
            copy()
        product(a.data.ptr, b.data.ptr, out.data.ptr, work, current().ptr)

    if tuned:
        _tune(product, run)
    return run


def _product(a: Any, b: Any, batch: int, dtype: np.dtype, device: Any, bias: Any) -> Product:
    tf32 = bool(device.allow_tf32) and dtype == dtypes.float32
    at = None if bias is None else bias.data.ptr
    return Product(_matrix(a), _matrix(b), batch, dtype, tf32=tf32, device=device.index, bias=at)


def _tune(product: Product, run: Callable[[], None]) -> None:
    """Let a product have the fastest algorithm for it, measured now or before."""

    def measured() -> str:
        def under(algorithm: Any) -> Callable[[], None]:
            def launch() -> None:
                product.algorithm = algorithm
                run()

            return launch

        product.algorithm = product.candidates[fastest([under(c) for c in product.candidates])]
        return product.choice

    product.recall(choices("cublaslt", version(), product.device).find(product.key, measured))


def _rows_merge(a: Any) -> bool:
    """Whether leading axes and rows form one axis of constant stride."""
    expected = a.strides[-2]
    for d, s in zip(a.shape[-2::-1], a.strides[-2::-1], strict=True):
        if d != 1 and s != expected:
            return False
        expected *= d
    return a.strides[-1] == a.itemsize


def _multipliable(m: Any, xp: Any, copies: list[Callable[[], Any]]) -> Any:
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
