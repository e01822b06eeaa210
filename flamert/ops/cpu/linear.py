"""Matrix products on the CPU: against weights that were packed once, with what follows in the same pass; and of any two."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flamert.graph import Node, TensorType, Value
from flamert.ops.cpu.library import library, native
from flamert.ops.fused import ACTIVATIONS, linear
from flamert.ops.linear import matmul
from flamert.ops.op import Site, kernel

ROWS = 96
"""Rows of the left operand that are worked on while they are in the cache."""


def pack(w: np.ndarray) -> np.ndarray:
    """w [K, N], of any strides, in panels [panel][K][columns]; missing columns of the last panel are zero."""
    lib = library()
    assert lib is not None
    k, n = w.shape
    out = np.empty((-(-n // lib.panel), k, lib.panel), np.float32)
    call = lib.call("pack", [out], [k, n, w.strides[0] // 4, w.strides[1] // 4])
    call.arguments[0].p[1] = w.__array_interface__["data"][0]
    call()
    return out


def _constant_weights(node: Node) -> bool:
    return node.inputs[1] is not None and node.inputs[1].rank == 2 and node.inputs[1].constant is not None


@kernel(linear, "numpy", when=native(_constant_weights), bind=True, contiguous=(0, 2, 3))
def _(
    site: Site, out: Any, x: Any, w: Any, bias: Any = None, residual: Any = None, *, activation: str, alpha: float, beta: float
) -> Callable[[], None]:
    lib = library()
    assert lib is not None
    k, n = w.shape
    m = out.size // n if n else 0
    weights = site.prepacked("gemm", 1, lambda: pack(w))
    return lib.call(
        "gemm",
        [out, x, weights, bias, residual],
        [m, n, k, k, ACTIVATIONS.index(activation), ROWS],
        [alpha, beta],
    )


MAX_BATCH_AXES = 5
TASKS = 4
"""Parts that a product is split into for each thread, so that all have something to do to the end."""


def _matrices(node: Node) -> bool:
    a, b = node.inputs
    assert a is not None and b is not None
    return min(a.rank, b.rank) >= 2 and node.types[0].size > 0 and a.type.size > 0 and node.types[0].rank <= MAX_BATCH_AXES + 2


def _scratch(node: Node) -> Sequence[TensorType]:
    """Room to pack the right operand, and to turn the left one where it may not lie in rows."""
    lib = library()
    a, b = node.inputs
    assert lib is not None and a is not None and b is not None
    packed = math.prod(b.shape[:-1]) * -(-b.shape[-1] // lib.panel) * lib.panel
    turned = math.prod(node.types[0].shape[:-1]) * a.shape[-1] if _moved(a) else 0
    return tuple([TensorType((n,), np.dtype(np.float32)) for n in (packed, turned)])


def _moved(x: Value) -> bool:
    """Whether a value may be a view whose rows are no runs."""
    node = x.node
    while getattr(node.op, "view", None) is not None and node.op.name == "reshape":
        node = node.inputs[0].node  # type: ignore[union-attr]
    return getattr(node.op, "view", None) is not None


@kernel(matmul, "numpy", when=native(_matrices), bind=True, workspace=_scratch)
def _(site: Site, out: Any, a: Any, b: Any) -> Callable[[], Any]:
    return product(out, a, b, *site.work)


def product(out: Any, a: Any, b: Any, packed: Any, turned: Any) -> Callable[[], Any]:
    """A call that puts a · b into `out`, for float32 operands of any strides. packed, turned: scratch; see `_scratch`."""
    lib = library()
    assert lib is not None
    rows = _rows(a) if math.prod(b.shape[:-2]) == 1 else None
    if rows is not None:
        a, b, out = rows, b.reshape(b.shape[-2:]), out.reshape(-1, out.shape[-1])
    *batch, m, n = out.shape
    k, count = a.shape[-1], math.prod(batch)
    strides = [_batch_strides(x, len(batch)) for x in (a, b)]
    matrices = count if any(strides[1]) else 1
    turns = a.strides[-1] != 4
    if (turns and turned.size < count * m * k) or packed.size < matrices * k * -(-n // lib.panel) * lib.panel:
        return functools.partial(np.matmul, a, b, out=out)
    integers = [m, n, k, *[s // 4 for s in (*a.strides[-2:], *b.strides[-2:])], *_split(lib, count, m, n)]
    integers += [matrices, count, len(batch), *[number for axis in zip(batch, *strides, strict=True) for number in axis]]
    call = lib.call("matmul", [out, None, None, packed, turned], integers)
    for i, x in ((1, a), (2, b)):
        call.arguments[0].p[i] = x.__array_interface__["data"][0]
    call.kept = (call.kept, a, b)
    return call


def _batch_strides(x: np.ndarray, axes: int) -> list[int]:
    """Elements from one matrix to the next along each axis of a batch; 0 where x is broadcast."""
    own = [0 if d == 1 else s // 4 for d, s in zip(x.shape[:-2], x.strides, strict=False)]
    return [0] * (axes - len(own)) + own


def _rows(a: np.ndarray) -> np.ndarray | None:
    """A batch of matrices as one on top of each other, where that is only a view."""
    if a.ndim == 2:
        return a
    size = a.strides[-2]
    for length, stride in zip(a.shape[-2:0:-1], a.strides[-3::-1], strict=True):
        size *= length
        if stride != size:
            return None
    return np.lib.stride_tricks.as_strided(a, (math.prod(a.shape[:-1]), a.shape[-1]), a.strides[-2:])


def _split(lib: Any, batch: int, m: int, n: int) -> tuple[int, int]:
    """Rows and columns of a task: whole panels, and as large as leaves enough tasks for all threads."""
    rows, columns = min(m, ROWS), n
    wanted = 1 if lib.threads == 1 else TASKS * lib.threads
    while batch * -(-m // rows) * -(-n // columns) < wanted and columns > 4 * lib.panel:
        columns = -(-columns // (2 * lib.panel)) * lib.panel
    while batch * -(-m // rows) * -(-n // columns) < wanted and rows > 24:
        rows = max(24, -(-rows // 24) * 12)
    return rows, columns
