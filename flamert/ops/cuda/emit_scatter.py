"""CUDA C for writing by index: each update among few, the last of sorted ones, and sums of sorted ones."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from flamert.ops.cuda.emit import COMPUTED, HEADER, STORED
from flamert.ops.cuda.gather import THREADS

FOLDS = {"add": "(T)(a + b)", "mul": "(T)(a * b)", "min": "least<T>(a, b)", "max": "greatest<T>(a, b)"}
"""Reductions of two numbers of type T."""


class Key(NamedTuple):
    """Where updates go: C parameters of a function `destination(u)` → row, or −1; its text; and arguments for them."""

    parameters: str
    passed: str
    text: str
    arguments: tuple[Any, ...]


def folding(dtype: np.dtype, width: int, reduction: str) -> str:
    """C for `width` elements at once: as they are stored, as they are reduced, and how."""
    fold = FOLDS.get(reduction, "b").replace("T", COMPUTED[dtype])
    return f"""
typedef {COMPUTED[dtype]} Number;
typedef Pack<{STORED[dtype]}, {width}> Stored;
typedef Pack<Number, {width}> Sums;
__device__ __forceinline__ Number fold(Number a, Number b) {{ return {fold}; }}
__device__ __forceinline__ Sums widened(const Stored& x) {{
  Sums y;
  #pragma unroll
  for (int i = 0; i < {width}; i++) y.v[i] = load(x.v[i]);
  return y;
}}
__device__ __forceinline__ Sums folded(Sums x, const Sums& more) {{
  #pragma unroll
  for (int i = 0; i < {width}; i++) x.v[i] = fold(x.v[i], more.v[i]);
  return x;
}}
__device__ __forceinline__ Stored rounded(const Sums& x) {{
  Stored y;
  #pragma unroll
  for (int i = 0; i < {width}; i++) y.v[i] = Store<{STORED[dtype]}, Number>::as(x.v[i]);
  return y;
}}
"""


def few_source(dtype: np.dtype, width: int, reduction: str, key: Key) -> str:
    """A kernel `few(updates, y, …)`: an update looks at those of its line; the first of equals (or last) writes for all."""
    body = f"""for (u32 i = 0; i < member; i++) if (destination(start + i * step, {key.passed}) == to) return;
  Sums sum = folded(widened(y[at]), widened(updates[t]));
  for (u32 i = member + 1; i < line; i++) {{
    const u32 other = start + i * step;
    if (destination(other, {key.passed}) == to) sum = folded(sum, widened(updates[(size_t)other * columns + column]));
  }}
  y[at] = rounded(sum);"""
    if reduction == "none":
        body = f"""for (u32 i = member + 1; i < line; i++) if (destination(start + i * step, {key.passed}) == to) return;
  y[at] = updates[t];"""
    return f"""{HEADER}{key.text}{folding(dtype, width, reduction)}
extern "C" __global__ void __launch_bounds__({THREADS}) few(
    const Stored* __restrict__ updates, Stored* y, u32 n, u32 columns, u32 line, u32 step, {key.parameters}) {{
  const u32 t = blockIdx.x * {THREADS}u + threadIdx.x;
  if (t >= n) return;
  const u32 u = t / columns, column = t - u * columns, member = u / step % line, start = u - member * step;
  const long long to = destination(u, {key.passed});
  if (to < 0) return;
  const size_t at = (size_t)to * columns + column;
  {body}
}}
"""


def last_source(dtype: np.dtype, width: int) -> str:
    """A kernel `last(keys, order, updates, y, n, rows, columns)`: of sorted updates of one row the last is written."""
    return f"""{HEADER}{folding(dtype, width, "none")}
extern "C" __global__ void __launch_bounds__({THREADS}) last(
    const u32* __restrict__ keys, const u32* __restrict__ order, const Stored* __restrict__ updates, Stored* y, u32 n, u32 rows,
    u32 columns) {{
  const u32 t = blockIdx.x * {THREADS}u + threadIdx.x, s = t / columns, column = t - s * columns;
  if (s >= n) return;
  const u32 key = keys[s];
  if (key >= rows || (s + 1 < n && keys[s + 1] == key)) return;
  y[(size_t)key * columns + column] = updates[(size_t)order[s] * columns + column];
}}
"""


def reduce_source(dtype: np.dtype, width: int, reduction: str) -> str:
    """Two kernels on sorted updates. A run is what goes to one row.

    `reduce`: a thread reduces one chunk in one column. Runs that lie within it are finished. Of others it leaves the part at
    its head, if the run began before it, or at its tail, if it goes on behind.
    `join`: where a run leaves the chunk that it began in, the parts of all chunks that it reaches are put together.
    """
    parameters = "const u32* __restrict__ keys, const u32* __restrict__ order, const Stored* __restrict__ updates, Stored* y"
    parameters += ", Sums* heads, Sums* tails, u32 n, u32 rows, u32 columns, u32 chunk, u32 chunks"
    begin = f"""const u32 t = blockIdx.x * {THREADS}u + threadIdx.x, c = t / columns, column = t - c * columns;
  if (c >= chunks) return;
  const u32 first = c * chunk, last = first + chunk < n ? first + chunk : n;"""
    return f"""{HEADER}{folding(dtype, width, reduction)}
extern "C" __global__ void __launch_bounds__({THREADS}) reduce({parameters}) {{
  {begin}
  u32 key = keys[first];
  bool leading = first > 0 && keys[first - 1] == key, open = false;
  Sums sum;
  for (u32 s = first; s < last; s += 4) {{
    u32 k[4];
    Stored found[4];
    #pragma unroll
    for (u32 b = 0; b < 4; b++) {{
      const u32 at = s + b < last ? s + b : last - 1;
      k[b] = s + b < last ? keys[at] : rows;
      found[b] = updates[(size_t)order[at] * columns + column];
    }}
    #pragma unroll
    for (u32 b = 0; b < 4; b++) {{
      if (open && k[b] != key && s + b < last) {{
        if (leading) heads[(size_t)c * columns + column] = sum;
        else y[(size_t)key * columns + column] = rounded(sum);
        open = leading = false;
      }}
      if (k[b] >= rows) continue;
      const Sums more = widened(found[b]);
      if (open || leading) sum = open ? folded(sum, more) : more;
      else sum = folded(widened(y[(size_t)k[b] * columns + column]), more);
      key = k[b];
      open = true;
    }}
  }}
  if (!open) return;
  if (leading) heads[(size_t)c * columns + column] = sum;
  else if (last < n && keys[last] == key) tails[(size_t)c * columns + column] = sum;
  else y[(size_t)key * columns + column] = rounded(sum);
}}
extern "C" __global__ void __launch_bounds__({THREADS}) join({parameters}) {{
  {begin}
  if (last >= n) return;
  const u32 key = keys[last];
  if (key >= rows || keys[last - 1] != key || (keys[first] == key && first > 0 && keys[first - 1] == key)) return;
  u32 end = c + 2;
  for (u32 beyond = chunks; end < beyond;) {{
    const u32 middle = end + (beyond - end) / 2;
    if (keys[(size_t)middle * chunk] == key) end = middle + 1;
    else beyond = middle;
  }}
  Sums sum = tails[(size_t)c * columns + column];
  #pragma unroll 8
  for (u32 i = c + 1; i < end; i++) sum = folded(sum, heads[(size_t)i * columns + column]);
  y[(size_t)key * columns + column] = rounded(sum);
}}
"""
