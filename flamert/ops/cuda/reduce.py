"""Reductions on the GPU, of columns and of long rows, in two stages where one would keep few multiprocessors busy.

The order of summation depends on shapes alone, so that every run gives the same bits. Short rows are `rows`' business.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from flamert import dtypes
from flamert.graph import Node, TensorType
from flamert.ops.cuda.emit import COMPUTED, HEADER, STORED
from flamert.ops.cuda.emit_rows import FOLDS, REDUCERS
from flamert.ops.cuda.pointwise import compiled
from flamert.ops.op import Site, kernel
from flamert.ops.reduce import reduce_max, reduce_mean, reduce_min, reduce_sum

BLOCKS = 1056
"""Eight for each multiprocessor of a large GPU: enough to hide its memory's latency."""

COLUMNS, LANES = 32, 8
"""A block that reduces columns: how many, and how many threads share one."""

THREADS = 256
"""A block that reduces rows."""


class Layout(NamedTuple):
    """x as [outer, length, inner], of which `length` is reduced, in `splits` parts first."""

    outer: int
    length: int
    inner: int
    splits: int

    @property
    def chunk(self) -> int:
        """Elements along `length` in one part."""
        return -(-self.length // self.splits)


def layout_of(shape: tuple[int, ...], axes: tuple[int, ...]) -> Layout | None:
    """None where the reduced axes are not neighbours, or there is nothing to do."""
    axes = tuple(a for a in sorted(axes) if shape[a] != 1)
    if not axes or any(shape[i] != 1 for i in range(axes[0], axes[-1]) if i not in axes) or not math.prod(shape):
        return None
    outer, inner = math.prod(shape[: axes[0]]), math.prod(shape[axes[-1] + 1 :])
    length = math.prod(shape[axes[0] : axes[-1] + 1])
    blocks = outer * (-(-inner // COLUMNS) if inner > 1 else 1)
    least = 16 * LANES if inner > 1 else 16 * THREADS
    splits = max(1, min(BLOCKS // blocks, length // least))
    return Layout(outer, length, inner, -(-length // -(-length // splits)))


def source(name: str, of: np.dtype, to: np.dtype, divisor: int | None, columns: bool) -> str:
    """A kernel `reduce(x, out, …)`. of, to: element types. divisor: of a mean, in its last stage."""
    c, computed = STORED[of], COMPUTED[of]
    fold, _, start = FOLDS[name]
    scale = f" / ({computed}){divisor}" if divisor else ""
    stored = f"Store<{STORED[to]}, {computed}>::as(y{scale})"
    begin = f"{computed} y = ({computed})({start});"
    if columns:
        return f"""{HEADER}{REDUCERS}
extern "C" __global__ void __launch_bounds__({COLUMNS * LANES}) reduce(
    const {c}* x, {STORED[to]}* out, u64 length, u64 inner, u64 chunk, u32 splits) {{
  __shared__ {computed} parts[{LANES}][{COLUMNS}];
  const u32 across = threadIdx.x % {COLUMNS}, down = threadIdx.x / {COLUMNS};
  const u64 column = blockIdx.x * (u64){COLUMNS} + across, part = blockIdx.y, outer = blockIdx.z;
  const u64 first = part * chunk, last = first + chunk < length ? first + chunk : length;
  {begin}
  if (column < inner) {{
    const {c}* at = x + outer * length * inner + column;
    #pragma unroll 4
    for (u64 i = first + down; i < last; i += {LANES}) y = {fold}::of(y, ({computed})load(at[i * inner]));
  }}
  parts[down][across] = y;
  __syncthreads();
  if (down == 0 && column < inner) {{
    #pragma unroll
    for (int i = 1; i < {LANES}; i++) y = {fold}::of(y, parts[i][across]);
    out[(outer * splits + part) * inner + column] = {stored};
  }}
}}
"""
    return f"""{HEADER}{REDUCERS}
extern "C" __global__ void __launch_bounds__({THREADS}) reduce(
    const {c}* x, {STORED[to]}* out, u64 length, u64 inner, u64 chunk, u32 splits) {{
  const u64 part = blockIdx.y, outer = blockIdx.z;
  const u64 first = part * chunk, last = first + chunk < length ? first + chunk : length;
  const {c}* at = x + outer * length;
  {begin}
  #pragma unroll 4
  for (u64 i = first + threadIdx.x; i < last; i += {THREADS}) y = {fold}::of(y, ({computed})load(at[i]));
  y = over_row<{fold}, {THREADS}>(y);
  if (threadIdx.x == 0) out[outer * splits + part] = {stored};
}}
"""


def _layout(node: Node) -> Layout | None:
    x = node.inputs[0]
    assert x is not None
    return layout_of(x.shape, node.attrs["axes"]) if x.dtype in dtypes.STANDARD_FLOAT else None


def _suits(node: Node) -> bool:
    layout = _layout(node)
    return layout is not None and layout.outer <= 65535


def _parts(node: Node) -> list[TensorType]:
    """What the first of two stages leaves."""
    layout, x = _layout(node), node.inputs[0]
    assert layout is not None and x is not None
    if layout.splits == 1:
        return []
    return [TensorType((layout.outer * layout.splits * layout.inner,), dtypes.accumulator(x.dtype))]


def _launch(layout: Layout, name: str, x: Any, out: Any, of: np.dtype, to: np.dtype, divisor: int | None) -> Callable[[], None]:
    columns = layout.inner > 1
    run = compiled(source(name, of, to, divisor, columns), "reduce")
    grid = (-(-layout.inner // COLUMNS) if columns else 1, layout.splits, layout.outer)
    arguments = (x, out, *map(np.uint64, (layout.length, layout.inner, layout.chunk)), np.uint32(layout.splits))
    return functools.partial(run, grid, (COLUMNS * LANES if columns else THREADS,), arguments)


def _register(op: Any) -> None:
    @kernel(op, "cupy", when=_suits, bind=True, contiguous=True, workspace=_parts)
    def _(site: Site, out: Any, x: Any, *, axes: tuple[int, ...], keepdims: bool) -> Callable[[], None]:
        layout = _layout(site.node)
        assert layout is not None
        of, to = site.node.inputs[0].dtype, site.node.types[0].dtype  # type: ignore[union-attr]
        divisor = layout.length if op is reduce_mean else None
        if layout.splits == 1:
            return _launch(layout, op.name, x, out, of, to, divisor)
        [parts], wide = site.work, dtypes.accumulator(of)
        first = _launch(layout, op.name, x, parts, of, wide, None)
        second = _launch(Layout(layout.outer, layout.splits, layout.inner, 1), op.name, parts, out, wide, to, divisor)

        def run() -> None:
            first()
            second()

        return run


for _op in (reduce_sum, reduce_mean, reduce_max, reduce_min):
    _register(_op)
