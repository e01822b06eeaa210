"""Matrix products on the CPU against weights that were packed once, with bias, residual and activation in the same pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from flamert.graph import Node
from flamert.ops.cpu.library import library, native
from flamert.ops.fused import ACTIVATIONS, linear
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


@kernel(linear, "numpy", when=native(_constant_weights), bind=True, contiguous=True)
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
