"""Matrix products on the GPU through cuBLASLt: CuPy's own refuse stream capture and mistreat 16-bit batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from flamert import dtypes
from flamert.graph import Node, TensorType
from flamert.ops.cuda.cublaslt import WORKSPACE_BYTES, Matrix, Product
from flamert.ops.linear import matmul
from flamert.ops.op import Site, kernel

TYPES = frozenset({dtypes.float16, dtypes.bfloat16, dtypes.float32, dtypes.float64})


def _suits(node: Node) -> bool:
    a, b = node.inputs
    assert a is not None and b is not None
    return a.dtype in TYPES and node.types[0].size > 0 and a.shape[-1] > 0


def _workspace(node: Node) -> tuple[TensorType, ...]:
    return (TensorType((WORKSPACE_BYTES,), dtypes.uint8),)


@kernel(matmul, "cupy", when=_suits, bind=True, workspace=_workspace)
def _(site: Site, out: Any, a: Any, b: Any) -> Callable[[], None]:
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
    tf32 = bool(getattr(site.device, "allow_tf32", False))
    copies: list[tuple[Any, Any]] = []
    a, b = (_multipliable(m, xp, copies) for m in (a, b))
    stride = _batch_stride(a), _batch_stride(b)
    device = xp.cuda.Device().id
    if None in stride:
        product = Product(_matrix(a, 0), _matrix(b, 0), 1, out.dtype, tf32=tf32, device=device)
        places = [(a[i].data.ptr, b[i].data.ptr, out[i].data.ptr) for i in np.ndindex(*batch)]
    else:
        product = Product(_matrix(a, stride[0]), _matrix(b, stride[1]), math.prod(batch), out.dtype, tf32=tf32, device=device)
        places = [(a.data.ptr, b.data.ptr, out.data.ptr)]
    work = site.work[0].data.ptr
    current = xp.cuda.get_current_stream

    def run() -> None:
        for to, of in copies:
            to[...] = of
        stream = current().ptr
        for at in places:
            product(*at, work, stream)

    return run


def _rows_merge(a: Any) -> bool:
    """Whether leading axes and rows form one axis of constant stride."""
    expected = a.strides[-2]
    for d, s in zip(a.shape[-2::-1], a.strides[-2::-1], strict=True):
        if d != 1 and s != expected:
            return False
        expected *= d
    return a.strides[-1] == a.itemsize


def _multipliable(m: Any, xp: Any, copies: list[tuple[Any, Any]]) -> Any:
    """m itself where one of its last two axes is dense, else a buffer that is filled from it before each product."""
    rows, columns = m.strides[-2:]
    item = m.itemsize
    if (columns == item or m.shape[-1] == 1) and (rows >= m.shape[-1] * item or m.shape[-2] == 1):
        return m
    if (rows == item or m.shape[-2] == 1) and (columns >= m.shape[-2] * item or m.shape[-1] == 1):
        return m
    buffer = xp.empty(m.shape, m.dtype)
    copies.append((buffer, m))
    return buffer


def _batch_stride(m: Any) -> int | None:
    """Elements between consecutive matrices, or None where they do not lie evenly."""
    steps = [(d, s) for d, s in zip(m.shape[:-2], m.strides[:-2], strict=True) if d != 1]
    if not steps:
        return 0
    expected = steps[-1][1]
    for d, s in reversed(steps):
        if s != expected:
            return None
        expected *= d
    return steps[-1][1] // m.itemsize


def _matrix(m: Any, batch_stride: int | None) -> Matrix:
    rows, columns = m.shape[-2:]
    item = m.itemsize
    if (m.strides[-1] == item or columns == 1) and (m.strides[-2] >= columns * item or rows == 1):
        return Matrix(rows, columns, columns if rows == 1 else m.strides[-2] // item, False, batch_stride or 0)
    return Matrix(rows, columns, rows if columns == 1 else m.strides[-1] // item, True, batch_stride or 0)
