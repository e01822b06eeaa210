"""One number of many tensors on the GPU, in one launch: whether all elements are finite, and the sum of their squares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flamert import dtypes
from flamert.graph import Node, TensorType
from flamert.ops.cuda.copy import copier
from flamert.ops.cuda.emit import HEADER, STORED
from flamert.ops.cuda.emit_reduce import LAST
from flamert.ops.cuda.emit_rows import REDUCERS
from flamert.ops.cuda.launch import Launch, compiled, extent, table_of
from flamert.ops.op import Site, kernel
from flamert.ops.reduce import all_finite, sum_of_squares

THREADS = 256

CHUNK = THREADS * 16 * 8
"""Bytes of a tensor that one block looks at."""

KINDS = (dtypes.float16, dtypes.bfloat16, dtypes.float32, dtypes.float64)

WALK = f"""
struct Entry {{ const char* x; u64 bytes; u64 kind; }};
// What f makes of the elements that a thread meets in one chunk of a tensor, sixteen bytes at a time where they lie so.
template <typename T, typename F> __device__ __forceinline__ void over_chunk(const char* x, u64 bytes, F& f) {{
  constexpr int N = 16 / sizeof(T);
  u64 done = 0;
  if ((u64)x % 16 == 0) {{
    const Pack<T, N>* packs = (const Pack<T, N>*)x;
    const u32 count = bytes / 16;
    #pragma unroll 8
    for (u32 i = threadIdx.x; i < count; i += {THREADS}) f(packs[i]);
    done = (u64)count * 16;
  }}
  for (u64 at = done + threadIdx.x * sizeof(T); at < bytes; at += {THREADS} * sizeof(T)) f(*(const Pack<T, 1>*)(x + at));
}}
template <typename F> __device__ __forceinline__ void over_block(const Entry* table, const uint2* owners, F& f) {{
  const uint2 owner = owners[blockIdx.x];
  const Entry entry = table[owner.x];
  const u64 first = (u64)owner.y * {CHUNK};
  const u64 bytes = entry.bytes - first < {CHUNK} ? entry.bytes - first : {CHUNK};
  switch (entry.kind) {{
    {" ".join(f"case {i}: over_chunk<{STORED[dtype]}>(entry.x + first, bytes, f); break;" for i, dtype in enumerate(KINDS))}
  }}
}}
"""
"""How blocks go over a table of tensors."""

FINITE = f"""{HEADER}{LAST}{WALK}
struct Finite {{
  bool bad = false;
  // Infinity and NaN have an exponent of ones alone.
  __device__ __forceinline__ void see(u32 bits, u32 ones) {{ bad |= (bits & ones) == ones; }}
  template <typename T, int N> __device__ __forceinline__ void operator()(const Pack<T, N>& x) {{
    #pragma unroll
    for (int v = 0; v < N; v++) one(x.v[v]);
  }}
  __device__ __forceinline__ void one(__half x) {{ see(*(const unsigned short*)&x, 0x7c00u); }}
  __device__ __forceinline__ void one(__nv_bfloat16 x) {{ see(*(const unsigned short*)&x, 0x7f80u); }}
  __device__ __forceinline__ void one(float x) {{ see(*(const u32*)&x, 0x7f800000u); }}
  __device__ __forceinline__ void one(double x) {{ see(((const u32*)&x)[1], 0x7ff00000u); }}
}};
extern "C" __global__ void __launch_bounds__({THREADS}) all_finite(
    const Entry* table, const uint2* owners, u32 blocks, u32* state, bool* out) {{
  Finite f;
  over_block(table, owners, f);
  if (__syncthreads_or(f.bad) && threadIdx.x == 0) atomicOr(state + 1, 1u);
  if (last_of(blocks, state) && threadIdx.x == 0) *out = atomicExch(state + 1, 0u) == 0u;
}}
"""

SQUARES = f"""{HEADER}{REDUCERS}{LAST}{WALK}
typedef RESULT Result;
struct Squares {{
  Result sum = 0;
  template <typename T, int N> __device__ __forceinline__ void operator()(const Pack<T, N>& x) {{
    #pragma unroll
    for (int v = 0; v < N; v++) {{
      const Result y = (Result)load(x.v[v]);
      sum += y * y;
    }}
  }}
}};
extern "C" __global__ void __launch_bounds__({THREADS}) sum_of_squares(
    const Entry* table, const uint2* owners, u32 blocks, u32* state, double* parts, Result* out) {{
  Squares f;
  over_block(table, owners, f);
  const double sum = over_row<Sum, {THREADS}>((double)f.sum);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
  if (!last_of(blocks, state)) return;
  double total = 0;
  for (u32 i = threadIdx.x; i < blocks; i += {THREADS}) total += __ldcg(parts + i);
  total = over_row<Sum, {THREADS}>(total);
  if (threadIdx.x == 0) *out = (Result)total;
}}
"""
"""Which block adds which elements depends on sizes alone, and the last one adds what they found in one order."""


def squares(result: np.dtype) -> str:
    """The source of the kernel that adds up squares in this type."""
    return SQUARES.replace("RESULT", STORED[result])


def _suits(node: Node) -> bool:
    return len(node.inputs) > 0 and all(v is not None and v.dtype in dtypes.STANDARD_FLOAT for v in node.inputs)


def _in_one_piece(x: Any) -> bool:
    """Whether an array's elements fill the memory between the first and the last one, in whatever order."""
    expected = x.itemsize
    for stride, d in sorted((s, d) for d, s in zip(x.shape, x.strides, strict=True) if d != 1):
        if stride != expected:
            return False
        expected *= d
    return True


def _blocks(sizes: Sequence[int]) -> int:
    """sizes: in bytes. One block has to say so where there is nothing to look at."""
    return max(1, sum(-(-n // CHUNK) for n in sizes))


def over_tensors(source: str, name: str, xp: Any, out: Any, xs: Sequence[Any], parts: Sequence[Any] = ()) -> Callable[[], Any]:
    """A launch of one of this file's kernels, after copies of tensors that lie scattered."""
    copies, whole = [], []
    for x in xs:
        if x.size and not _in_one_piece(x):
            copy = xp.empty(x.shape, x.dtype)
            copies.append(copier(copy, x))
            x = copy
        whole.append(x)
    sizes = [x.size * x.itemsize for x in whole]
    table, owners = table_of([[x] for x in whole], sizes, CHUNK)
    kinds = np.array([[_kind(x.dtype)] for x in whole], np.uint64)
    blocks = _blocks(sizes)
    if not len(owners):
        owners = np.zeros((1, 2), np.uint32)
    rows = (xp.asarray(np.concatenate([table, kinds], axis=1)), xp.asarray(owners))
    arguments = (*rows, np.uint32(blocks), xp.zeros(2, np.uint32), *parts, out)
    writes = [extent(x) for x in (*parts, out)]
    launch = Launch(compiled(source, name), (blocks,), THREADS, arguments, [extent(x) for x in whole], writes)
    launch.held = whole
    if not copies:
        return launch

    def run() -> None:
        for copy in copies:
            copy()
        launch()

    return run


def _kind(dtype: Any) -> int:
    return next(i for i, kind in enumerate(KINDS) if kind == dtype)


@kernel(all_finite, "cupy", when=_suits, bind=True)
def _(site: Site, out: Any, *xs: Any) -> Callable[[], Any]:
    """Elements decide, not sums."""
    return over_tensors(FINITE, "all_finite", site.xp, out, xs)


def _parts(node: Node) -> list[TensorType]:
    sizes = [v.type.size * v.dtype.itemsize for v in node.inputs if v is not None]
    return [TensorType((_blocks(sizes),), dtypes.float64)]


@kernel(sum_of_squares, "cupy", when=_suits, bind=True, workspace=_parts)
def _(site: Site, out: Any, *xs: Any) -> Callable[[], Any]:
    return over_tensors(squares(site.node.types[0].dtype), "sum_of_squares", site.xp, out, xs, site.work)
