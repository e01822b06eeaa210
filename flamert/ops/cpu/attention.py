"""Attention on the CPU: scores are made, weighed and used a block of queries at a time, without leaving the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flamert.graph import Node, TensorType
from flamert.ops.attention import attention
from flamert.ops.cpu.library import library
from flamert.ops.op import Site, kernel

QUERIES = 24
"""Queries per block, as in attention.h."""


def _suits(node: Node) -> bool:
    """float32 throughout, all sequences of full length."""
    q, k, v, mask, lengths = (*node.inputs, None, None)[:5]
    assert q is not None and k is not None and v is not None
    masks = (np.dtype(np.float32), np.dtype(np.bool_))
    if q.dtype != np.float32 or lengths is not None or (mask is not None and mask.dtype not in masks):
        return False
    return k.type.size > 0 and node.types[0].size > 0 and library() is not None


def _workspace(node: Node) -> Sequence[TensorType]:
    lib = library()
    k, v = node.inputs[1:3]
    assert lib is not None and k is not None and v is not None
    s, d, dv = k.shape[2], k.shape[3], v.shape[3]
    keys, columns = (-(-n // lib.panel) * lib.panel for n in (s, dv))
    return (TensorType((lib.threads * (keys * d + columns * s + QUERIES * (d + keys)),), np.dtype(np.float32)),)


@kernel(attention, "numpy", when=_suits, bind=True, workspace=_workspace)
def _(
    site: Site,
    out: Any,
    q: Any,
    k: Any,
    v: Any,
    mask: Any = None,
    *,
    scale: float,
    softcap: float,
    left: int | None,
    right: int | None,
    offset: int,
) -> Callable[[], None]:
    lib = library()
    assert lib is not None
    (b, hq, l, d), (hkv, s), dv = q.shape, k.shape[1:3], v.shape[3]
    strides = [n // 4 for x in (q, k, v) for n in x.strides]
    if mask is None:
        strides += [0, 0, 0, 0]
    else:
        strides += [n // mask.itemsize for n in np.broadcast_to(mask, (b, hq, l, s)).strides]
    kind = 0 if mask is None else 2 if mask.dtype == np.bool_ else 1
    bounds = [-1 if n is None else n for n in (left, right)]
    integers = [b, hq, hq // hkv, l, s, d, dv, *strides, kind, *bounds, offset]
    call = lib.call("attention", [out, None, None, None, None, site.work[0]], integers, [scale, softcap, lib.threads])
    for i, x in enumerate((q, k, v, mask)):
        if x is not None:
            call.arguments[0].p[1 + i] = x.__array_interface__["data"][0]
    call.kept = (call.kept, q, k, v, mask)
    return call
