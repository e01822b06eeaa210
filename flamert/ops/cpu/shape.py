"""Moving elements on the CPU: strided copies that go by cache-sized tiles where an axis order changes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flamert.graph import Node
from flamert.ops.cpu.library import NativeCall, library
from flamert.ops.op import Site, kernel
from flamert.ops.shape import concat, pad, repeat

MAX_OUTER = 6
"""Axes around the two innermost that the native copy walks."""


def copier(out: np.ndarray, x: np.ndarray) -> Callable[[], Any]:
    """A call that copies x into out (same shape and type, any strides): native for 4-byte elements, NumPy's otherwise."""
    lib = library()
    if lib is None or out.itemsize != 4 or not out.size or out.dtype.hasobject:
        return functools.partial(np.copyto, out, x)
    axes = _merged(out, x)
    # The axis along which `out` is dense comes last, then the one along which x is: tiles of these two are transposed.
    axes.sort(key=lambda axis: axis[1], reverse=True)
    axes = [axes[-1]] if len(axes) == 1 else _dense_last(axes)
    columns = axes[-1]
    rows = axes[-2] if len(axes) > 1 else (1, 0, 0)
    outer = axes[:-2]
    if len(outer) > MAX_OUTER:
        return functools.partial(np.copyto, out, x)
    integers = [math.prod(n for n, _, _ in outer), rows[0], columns[0], rows[1], columns[1], rows[2], columns[2], len(outer)]
    call = lib.call("copy", [], [*integers, *[number for axis in outer for number in axis]])
    call.arguments[0].p[0], call.arguments[0].p[1] = (a.__array_interface__["data"][0] for a in (out, x))
    call.kept = (out, x)
    return call


def _merged(out: np.ndarray, x: np.ndarray) -> list[tuple[int, int, int]]:
    """(size, stride in out, stride in x) of each axis, in elements; axes that continue each other in both are one."""
    axes: list[tuple[int, int, int]] = []
    for n, to, of in zip(out.shape, out.strides, x.strides, strict=True):
        to, of = to // 4, of // 4
        if n == 1:
            continue
        if axes and axes[-1][1] == n * to and axes[-1][2] == n * of:
            axes[-1] = (axes[-1][0] * n, to, of)
        else:
            axes.append((n, to, of))
    return axes or [(1, 1, 1)]


def _dense_last(axes: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Order the axes so that x's densest, if it is not the last one already, comes second to last."""
    dense = min(range(len(axes) - 1), key=lambda i: (abs(axes[i][2]) != 1, abs(axes[i][2])))
    if abs(axes[-1][2]) <= 1 or abs(axes[dense][2]) != 1:
        return axes
    return [*axes[:dense], *axes[dense + 1 : -1], axes[dense], axes[-1]]


def sequence(calls: Sequence[Callable[[], Any]]) -> Callable[[], Any]:
    """These calls as one."""
    if all(isinstance(c, NativeCall) for c in calls):
        return NativeCall.chain(calls)  # type: ignore[arg-type]

    def run() -> None:
        for call in calls:
            call()

    return run


def _four_bytes(node: Node) -> bool:
    return node.types[0].dtype.itemsize == 4 and node.types[0].size > 0 and library() is not None


@kernel(concat, "numpy", when=_four_bytes, bind=True)
def _(site: Site, out: Any, *xs: Any, axis: int) -> Callable[[], Any]:
    starts = np.cumsum([0, *[x.shape[axis] for x in xs]])
    whole = (slice(None),) * axis
    return sequence([copier(out[(*whole, slice(i, i + x.shape[axis]))], x) for i, x in zip(starts, xs, strict=False) if x.size])


@kernel(repeat, "numpy", when=_four_bytes, bind=True, contiguous=True)
def _(site: Site, out: Any, x: Any, *, repeats: tuple[int, ...]) -> Callable[[], Any]:
    spread = [n for d, r in zip(x.shape, repeats, strict=True) for n in (d, r)]
    apart = [n for d in x.shape for n in (d, 1)]
    return copier(out.reshape(spread), np.broadcast_to(x.reshape(apart), spread))


@kernel(pad, "numpy", when=lambda node: _four_bytes(node) and len(node.inputs) == 1, bind=True)
def _(site: Site, out: Any, x: Any, *, pads: tuple[int, ...]) -> Callable[[], Any]:
    lib = library()
    assert lib is not None
    inner = out[(*[slice(before, before + d) for before, d in zip(pads, x.shape, strict=False)], ...)]
    return sequence([lib.call("fill", [out], [out.size], [0.0]), *([copier(inner, x)] if x.size else [])])
