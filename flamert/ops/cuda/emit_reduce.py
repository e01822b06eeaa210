"""CUDA C for reductions of columns and of long rows: many blocks take parts, and the last one to end puts these together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flamert import dtypes
from flamert.graph import TensorType
from flamert.ops.cuda.emit import COMPUTED, HEADER, STORED, named
from flamert.ops.cuda.emit_rows import FOLDS, REDUCERS

THREADS = 256

BLOCKS = 264
"""Two for each multiprocessor of a large GPU: with all that they have on their way they fill its memory's pipes, and the last
one, which puts together what they found, has less to read."""

BATCH = 4
"""Accesses that a thread has on their way at once."""

LINE = 128
"""Bytes of a row that one block reads of columns: as memory hands them out."""

LAST = """
// Whether all other blocks are done; their results are there then. The counter starts from zero again by itself.
__device__ __forceinline__ bool last_of(u32 blocks, u32* counter) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicInc(counter, blocks - 1) == blocks - 1;
  __syncthreads();
  __threadfence();
  return last;
}
"""
"""How one block comes to know that it is the last."""

LANES = """
// What thread c of the first C has of column c of so many rows, which the others have a part in.
template <typename F, int C, int L, typename T, typename G> __device__ __forceinline__ T over_rows(u32 rows, T y, G get) {
  __shared__ T lanes[L][C];
  const u32 c = threadIdx.x % C, lane = threadIdx.x / C;
  #pragma unroll 8
  for (u32 r = lane; r < rows; r += L) y = F::of(y, get(r, c));
  lanes[lane][c] = y;
  __syncthreads();
  if (lane == 0) {
    #pragma unroll
    for (int i = 1; i < L; i++) y = F::of(y, lanes[i][c]);
  }
  return y;
}
"""


class Layout(NamedTuple):
    """x as [outer, length, inner], of which `length` is reduced in `splits` parts. width: elements taken at once."""

    outer: int
    length: int
    inner: int
    splits: int
    width: int = 1

    @property
    def chunk(self) -> int:
        """Elements along `length` in one part."""
        each = -(-self.length // self.splits)
        return -(-each // self.width) * self.width if self.inner == 1 else each

    def across(self, size: int) -> int:
        """Threads of a block side by side, of elements of so many bytes."""
        most = min(32, max(1, LINE // (self.width * size)))
        threads = 1
        while threads < most and threads * self.width < self.inner:
            threads *= 2
        return threads

    def blocks(self, size: int) -> int:
        """Blocks side by side."""
        return -(-self.inner // (self.across(size) * self.width)) if self.inner > 1 else 1


def laid(outer: int, length: int, inner: int, size: int) -> Layout:
    """The layout for elements of so many bytes: in parts where blocks would be few and have much to do."""
    width = 16 // size
    while (inner if inner > 1 else length) % width:
        width //= 2
    whole = Layout(outer, length, inner, 1, width)
    least = BATCH * (THREADS // whole.across(size) if inner > 1 else THREADS * width)
    splits = max(1, min(BLOCKS // (outer * whole.blocks(size)), length // least))
    return whole._replace(splits=-(-length // whole._replace(splits=splits).chunk))


def kernel_name(name: str, layout: Layout) -> str:
    return named(name, "columns" if layout.inner > 1 else "rows")


def source(name: str, of: np.dtype, to: np.dtype, layout: Layout) -> str:
    """A kernel `…(x, parts, counters, out, length, inner, chunk, splits)`. of, to: element types.

    Parts have the type that sums are kept in; counters are zero before every launch, and after it.
    """
    make = _columns if layout.inner > 1 else _rows
    return make(name, of, to, layout, layout.length if name == "reduce_mean" else None)


def _parameters(of: np.dtype, to: np.dtype) -> str:
    pointers = f"const {STORED[of]}* x, {COMPUTED[dtypes.accumulator(of)]}* parts, u32* counters, {STORED[to]}* out"
    return f"{pointers}, u64 length, u64 inner, u64 chunk, u32 splits"


def _stored(of: np.dtype, to: np.dtype, divisor: int | None) -> str:
    """The result y as it is stored."""
    scale = f" / ({COMPUTED[of]}){divisor}" if divisor else ""
    return f"Store<{STORED[to]}, {COMPUTED[of]}>::as(y{scale})"


def _columns(name: str, of: np.dtype, to: np.dtype, layout: Layout, divisor: int | None) -> str:
    computed, (fold, _, start) = COMPUTED[of], FOLDS[name]
    width, across = layout.width, layout.across(of.itemsize)
    down, columns = THREADS // across, across * layout.width
    pack, stored = f"Pack<{STORED[of]}, {width}>", _stored(of, to, divisor)
    over = f"over_rows<{fold}, {columns}, {THREADS // columns}>"
    if layout.splits == 1:
        end = f"if (mine) out[outer * inner + column] = {stored};"
    else:
        end = f"""if (mine) parts[(outer * splits + part) * inner + column] = y;
  if (!last_of(splits, counters + outer * gridDim.x + blockIdx.x)) return;
  const {computed}* at = parts + outer * splits * inner + blockIdx.x * {columns};
  y = {over}(splits, ({computed})({start}), [&](u32 r, u32 c) {{
    return blockIdx.x * {columns} + c < inner ? __ldcg(at + r * inner + c) : ({computed})({start});
  }});
  if (mine) out[outer * inner + column] = {stored};"""
    return f"""{HEADER}{REDUCERS}{LAST}{LANES}
extern "C" __global__ void __launch_bounds__({THREADS}) {kernel_name(name, layout)}({_parameters(of, to)}) {{
  __shared__ {computed} held[{down}][{columns}];
  const u32 beside = threadIdx.x % {across} * {width}, line = threadIdx.x / {across};
  const u64 part = blockIdx.y, outer = blockIdx.z, left = blockIdx.x * (u64){columns} + beside;
  const u64 first = part * chunk, last = first + chunk < length ? first + chunk : length;
  {computed} sums[{width}];
  #pragma unroll
  for (int v = 0; v < {width}; v++) sums[v] = {start};
  if (left < inner) {{
    const {STORED[of]}* at = x + outer * length * inner + left;
    for (u64 i = first + line; i < last; i += {down * BATCH}) {{
      {pack} packs[{BATCH}];
      #pragma unroll
      for (int k = 0; k < {BATCH}; k++)  // what is not there is read from where something is: to skip it takes registers
        packs[k] = *(const {pack}*)(at + (i + k * {down} < last ? i + k * {down} : i) * inner);
      #pragma unroll
      for (int k = 0; k < {BATCH}; k++)
        if (i + k * {down} < last) {{
          #pragma unroll
          for (int v = 0; v < {width}; v++) sums[v] = {fold}::of(sums[v], ({computed})load(packs[k].v[v]));
        }}
    }}
  }}
  #pragma unroll
  for (int v = 0; v < {width}; v++) held[line][beside + v] = sums[v];
  __syncthreads();
  {computed} y = {over}({down}, ({computed})({start}), [&](u32 r, u32 c) {{ return held[r][c]; }});
  const u64 column = blockIdx.x * (u64){columns} + threadIdx.x;
  const bool mine = threadIdx.x < {columns} && column < inner;
  {end}
}}
"""


def _rows(name: str, of: np.dtype, to: np.dtype, layout: Layout, divisor: int | None) -> str:
    computed, (fold, _, start) = COMPUTED[of], FOLDS[name]
    width, stored = layout.width, _stored(of, to, divisor)
    pack, over = f"Pack<{STORED[of]}, {width}>", f"over_row<{fold}, {THREADS}>"
    if layout.splits == 1:
        end = f"if (threadIdx.x == 0) out[outer] = {stored};"
    else:
        end = f"""if (threadIdx.x == 0) parts[outer * splits + part] = y;
  if (!last_of(splits, counters + outer)) return;
  y = {start};
  for (u32 i = threadIdx.x; i < splits; i += {THREADS}) y = {fold}::of(y, __ldcg(parts + outer * splits + i));
  y = {over}(y);
  if (threadIdx.x == 0) out[outer] = {stored};"""
    return f"""{HEADER}{REDUCERS}{LAST}
extern "C" __global__ void __launch_bounds__({THREADS}) {kernel_name(name, layout)}({_parameters(of, to)}) {{
  const u64 part = blockIdx.y, outer = blockIdx.z;
  const u64 first = part * chunk, last = first + chunk < length ? first + chunk : length;
  const {STORED[of]}* at = x + outer * length;
  {computed} y = {start};
  for (u64 i = first + threadIdx.x * {width}; i < last; i += {THREADS * BATCH * width}) {{
    {pack} packs[{BATCH}];
    #pragma unroll
    for (int k = 0; k < {BATCH}; k++)
      packs[k] = *(const {pack}*)(at + (i + k * {THREADS * width} < last ? i + k * {THREADS * width} : i));
    #pragma unroll
    for (int k = 0; k < {BATCH}; k++)
      if (i + k * {THREADS * width} < last) {{
        #pragma unroll
        for (int v = 0; v < {width}; v++) y = {fold}::of(y, ({computed})load(packs[k].v[v]));
      }}
  }}
  y = {over}(y);
  {end}
}}
"""


TOTALS = 32, 16
"""Columns of a block that puts sums together, and threads for each of them."""


def totals_kernel(types: Sequence[TensorType]) -> str:
    """The source of a kernel `rows_totals(parts, results…, blocks, length)`: results[j][c] = Σ parts[j][block][c]."""
    across, down = TOTALS
    parameters = ["const float* parts", *[f"{STORED[t.dtype]}* o{j}" for j, t in enumerate(types)], "u32 blocks", "u32 length"]
    stores = "\n    ".join(
        f"if (blockIdx.y == {j}) o{j}[column] = Store<{STORED[t.dtype]}, float>::as(y);" for j, t in enumerate(types)
    )
    return f"""{HEADER}{REDUCERS}{LANES}
extern "C" __global__ void __launch_bounds__({across * down}) rows_totals({", ".join(parameters)}) {{
  const u32 column = blockIdx.x * {across}u + threadIdx.x % {across};
  const float* at = parts + blockIdx.y * blocks * length + blockIdx.x * {across}u;
  const float y = over_rows<Sum, {across}, {down}>(blocks, 0.0f, [&](u32 r, u32 c) {{
    return column < length ? at[r * length + c] : 0.0f;
  }});
  if (threadIdx.x < {across} && column < length) {{
    {stores}
  }}
}}
"""
