"""Cross-entropy on the GPU: scores are read once for the losses, and once more for the gradient, in the type they have."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from flamert import dtypes
from flamert.graph import Node
from flamert.ops.cross_entropy import cross_entropy, cross_entropy_gradient
from flamert.ops.cuda.copy import copier
from flamert.ops.cuda.emit import COMPUTED, HEADER, STORED
from flamert.ops.cuda.emit_rows import REDUCERS
from flamert.ops.cuda.gather import INDICES, WRAPPED
from flamert.ops.cuda.launch import Launch, compiled, extent
from flamert.ops.cuda.row_plan import WARP
from flamert.ops.op import Site, kernel

MOST = 512
"""Threads that a row is given if it is long enough."""

BATCH = 4
"""Accesses that a thread has on their way at once."""

SHARED = f"""
#define INFINITE (A)__int_as_float(0x7f800000)
// What underflows counts for nothing among terms of which one is 1.
__device__ __forceinline__ float power(float x) {{
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * {math.log2(math.e)!r}f));
  return y;
}}
__device__ __forceinline__ double power(double x) {{ return exp(x); }}
// The class of a row; −1, noted once, where there is none of this number.
__device__ __forceinline__ long long class_of(I t, u32 length, long long* record, long long place) {{
  const long long at = t < 0 ? t + (long long)length : (long long)t;
  if (0 <= at && at < length) return at;
  if (threadIdx.x % THREADS == 0) outside(t, record, place);
  return -1;
}}
// Elements of a row before the first that wide accesses can begin with.
__device__ __forceinline__ u32 before_packs(const T* row, u32 length) {{
  const u32 head = (16 - (u64)row % 16) % 16 / sizeof(T);
  return head < length ? head : length;
}}
"""

FORWARD = """
// Σ exp(x − most), both over what has been seen so far.
struct Running {
  A most, sum;
  template <int M> __device__ __forceinline__ void see(const Pack<T, M>& x) {
    A top = most;
    #pragma unroll
    for (int v = 0; v < M; v++) top = fmax(top, (A)load(x.v[v]));
    shift_to(top);
    #pragma unroll
    for (int v = 0; v < M; v++) sum += power((A)load(x.v[v]) - base(top));
  }
  // What −∞ alone is compared with, lest it become NaN.
  __device__ __forceinline__ A base(A top) { return top == -INFINITE ? (A)0 : top; }
  __device__ __forceinline__ void shift_to(A top) {
    if (top != most) sum *= power(most - base(top));
    most = top;
  }
};
extern "C" __global__ void __launch_bounds__(THREADS * ROWS) cross_entropy(
    const T* x, const I* t, A* losses, A* sums, u32 rows, u32 length, u64 step, long long* record, long long place) {
  const u32 row = blockIdx.x * ROWS + threadIdx.x / THREADS, thread = threadIdx.x % THREADS;
  if (row >= rows) return;
  const T* at = x + row * step;
  const u32 head = before_packs(at, length), packs = (length - head) / N;
  Running running = {-INFINITE, 0};
  if (thread < head) running.see(*(const Pack<T, 1>*)(at + thread));
  const Pack<T, N>* wide = (const Pack<T, N>*)(at + head);
  for (u32 i = thread; i < packs; i += THREADS * BATCH) {
    Pack<T, N> held[BATCH];
    #pragma unroll
    for (int k = 0; k < BATCH; k++) if (i + k * THREADS < packs) held[k] = wide[i + k * THREADS];
    #pragma unroll
    for (int k = 0; k < BATCH; k++) if (i + k * THREADS < packs) running.see(held[k]);
  }
  const u32 tail = head + packs * N + thread;
  if (tail < length) running.see(*(const Pack<T, 1>*)(at + tail));
  running.shift_to(over_row<Greatest, THREADS>(running.most));
  const A total = log(over_row<Sum, THREADS>(running.sum));
  if (thread == 0) {
    const long long label = class_of(t[row], length, record, place);
    losses[row] = label < 0 ? (A)__int_as_float(0x7fffffff) : total - ((A)load(at[label]) - running.most);
    sums[row] = total + running.base(running.most);
  }
}
"""

BACKWARD = """
template <int M> __device__ __forceinline__ Pack<T, M> made(const Pack<T, M>& x, u32 at, A sum, A share, A label, A own) {
  Pack<T, M> dx;
  #pragma unroll
  for (int v = 0; v < M; v++) {
    const A flow = power((A)load(x.v[v]) - sum) * share;
    dx.v[v] = Store<T, A>::as(at + v == label ? flow - own : flow);
  }
  return dx;
}
extern "C" __global__ void __launch_bounds__(THREADS * ROWS) cross_entropy_gradient(
    const T* x, const I* t, const A* sums, const A* dlosses, const A* dsums, T* out, u32 rows, u32 length, u64 step,
    u32 width, long long* record, long long place) {
  const u32 row = blockIdx.x * ROWS + threadIdx.x / THREADS, thread = threadIdx.x % THREADS;
  if (row >= rows) return;
  const T* from = x + row * step;
  T* to = out + (u64)row * width;
  const A sum = sums[row], own = dlosses[row], share = SHARE;
  const u32 label = (u32)class_of(t[row], length, record, place);
  const u32 head = before_packs(to, length), packs = (length - head) / N;
  if (thread < head) *(Pack<T, 1>*)(to + thread) = made(*(const Pack<T, 1>*)(from + thread), thread, sum, share, label, own);
  // Rows of x and of the result need not lie alike.
  const bool alike = (u64)(from + head) % 16 == 0;
  for (u32 i = thread; i < packs; i += THREADS * BATCH) {
    Pack<T, N> held[BATCH];
    #pragma unroll
    for (int k = 0; k < BATCH; k++) {
      const u32 pack = i + k * THREADS;
      if (pack >= packs) continue;
      const T* at = from + head + pack * N;
      if (alike) {
        held[k] = *(const Pack<T, N>*)at;
      } else {
        #pragma unroll
        for (int v = 0; v < N; v++) held[k].v[v] = at[v];
      }
    }
    #pragma unroll
    for (int k = 0; k < BATCH; k++) {
      const u32 at = head + (i + k * THREADS) * N;
      if (i + k * THREADS < packs) *(Pack<T, N>*)(to + at) = made(held[k], at, sum, share, label, own);
    }
  }
  // What is left of the classes, and zeros behind them.
  for (u32 at = head + packs * N + thread; at < width; at += THREADS) {
    Pack<T, 1> dx;
    dx.v[0] = Store<T, A>::as((A)0);
    if (at < length) dx = made(*(const Pack<T, 1>*)(from + at), at, sum, share, label, own);
    *(Pack<T, 1>*)(to + at) = dx;
  }
}
"""


def threads_of(length: int, size: int) -> int:
    """Threads for a row of so many elements of `size` bytes: a batch of wide accesses each, if there are enough."""
    threads = WARP
    while threads < MOST and threads * 2 * BATCH * 16 <= length * size:
        threads *= 2
    return threads


def rows_of(threads: int) -> int:
    """Rows of one block."""
    return 8 if threads == WARP else 1


def source(dtype: np.dtype, index: np.dtype, threads: int, dsums: bool | None = None) -> str:
    """The kernel `cross_entropy`, or `cross_entropy_gradient` where `dsums` says whether it is given them."""
    constants = f"constexpr int THREADS = {threads}, ROWS = {rows_of(threads)}, BATCH = {BATCH}, N = {16 // dtype.itemsize};"
    types = f"typedef {STORED[dtype]} T; typedef {COMPUTED[dtype]} A; typedef {INDICES[index]} I;"
    text = FORWARD if dsums is None else BACKWARD.replace("SHARE", "own + dsums[row]" if dsums else "own")
    return f"{HEADER}{WRAPPED}{REDUCERS}{constants}\n{types}{SHARED}{text}"


def _suits(node: Node) -> bool:
    x, t = node.inputs[:2]
    assert x is not None and t is not None
    rows = x.rank == 2 and x.type.size > 0 and max(*x.shape, node.types[0].shape[-1]) < 1 << 31
    return rows and x.dtype in dtypes.STANDARD_FLOAT and t.dtype in INDICES


def _launch(
    site: Site, x: Any, t: Any, read: tuple[Any, ...], written: tuple[Any, ...], dsums: bool | None
) -> Callable[[], None]:
    """x: its rows may lie apart."""
    copies = []
    if x.shape[1] > 1 and x.strides[1] != x.itemsize:
        scattered, x = x, site.xp.empty(x.shape, x.dtype)
        copies.append(copier(x, scattered))
    rows, length = x.shape
    dtype, index = (site.node.inputs[i].dtype for i in (0, 1))  # type: ignore[union-attr]
    threads, faults = threads_of(length, x.itemsize), site.device.faults
    name = "cross_entropy" if dsums is None else "cross_entropy_gradient"
    run = compiled(source(dtype, index, threads, dsums), name)
    sizes = (np.uint32(rows), np.uint32(length), np.uint64(x.strides[0] // x.itemsize))
    width = () if dsums is None else (np.uint32(written[0].shape[1]),)
    arguments = (x, t, *read, *written, *sizes, *width, faults.record, np.int64(faults.place(site.node, length)))
    per = rows_of(threads)
    reads, writes = [extent(a) for a in (x, t, *read)], [extent(a) for a in written]
    launch = Launch(run, (-(-rows // per),), threads * per, arguments, reads, writes)
    if not copies:
        return launch

    def after() -> None:
        copies[0]()
        launch()

    return after


@kernel(cross_entropy, "cupy", when=_suits, bind=True, contiguous=(1,))
def _(site: Site, out: Any, x: Any, t: Any) -> Callable[[], None]:
    return _launch(site, x, t, (), tuple(out), None)


@kernel(cross_entropy_gradient, "cupy", when=_suits, bind=True, contiguous=(1, 2, 3, 4))
def _(
    site: Site, out: Any, x: Any, t: Any, sums: Any, dlosses: Any, dsums: Any = None, *, zeros: int = 0
) -> Callable[[], None]:
    """The result's rows tell how many zeros there are."""
    return _launch(site, x, t, (sums, dlosses, dlosses if dsums is None else dsums), (out,), dsums is not None)
