"""Reductions on the CPU over neighbouring axes, with many partial sums at once."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from flamert.graph import Node
from flamert.ops.cpu.library import library, native
from flamert.ops.op import Op, Site, kernel
from flamert.ops.reduce import all_finite, reduce_max, reduce_mean, reduce_min, reduce_sum


def _neighbouring(node: Node) -> bool:
    """Whether the reduced axes follow each other, so that x is [outer, n, inner]; axes of size 1 do not matter."""
    x = node.inputs[0]
    assert x is not None
    axes = [a for a in sorted(node.attrs["axes"]) if x.shape[a] != 1]
    between = [a for a in range(x.rank) if axes and axes[0] <= a <= axes[-1] and x.shape[a] != 1]
    return x.type.size > 0 and axes == between


def _register(op: Op, kind: int) -> None:
    @kernel(op, "numpy", when=native(_neighbouring), bind=True, contiguous=True)
    def _(site: Site, out: Any, x: Any, *, axes: tuple[int, ...], keepdims: bool) -> Callable[[], None]:
        lib = library()
        assert lib is not None
        reduced = [a for a in sorted(axes) if x.shape[a] != 1]
        first, last = (reduced[0], reduced[-1]) if reduced else (x.ndim, x.ndim - 1)
        outer, n, inner = (math.prod(x.shape[s]) for s in (slice(0, first), slice(first, last + 1), slice(last + 1, None)))
        return lib.call("reduce", [out, x], [outer, n, inner, kind])


for _op, _kind in ((reduce_sum, 0), (reduce_mean, 1), (reduce_max, 2), (reduce_min, 3)):
    _register(_op, _kind)


STRETCH = 16384
"""Elements that one task looks at, as in reduce.h."""


def _floats(node: Node) -> bool:
    return all(v is not None and v.dtype == np.float32 for v in node.inputs) and library() is not None


@kernel(all_finite, "numpy", when=_floats, bind=True, contiguous=True)
def _(site: Site, out: Any, *xs: Any) -> Callable[[], None]:
    lib = library()
    assert lib is not None
    tensors = (ctypes.c_void_p * len(xs))(*[x.__array_interface__["data"][0] for x in xs])
    sizes = (ctypes.c_int64 * len(xs))(*[x.size for x in xs])
    call = lib.call("all_finite", [out], [len(xs), sum(-(-x.size // STRETCH) for x in xs)])
    call.arguments[0].p[1], call.arguments[0].p[2] = ctypes.addressof(tensors), ctypes.addressof(sizes)
    call.kept = (call.kept, xs, tensors, sizes)
    return call
