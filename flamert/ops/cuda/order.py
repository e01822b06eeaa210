"""A stable sort of keys on the GPU: positions ordered by key, equal ones as they came. The same bits in every run.

Radix sort, eight bits or fewer a pass. Each block counts the digits of its part of the keys; then each adds up what lies before
its part, and places its keys in order. Integers alone are added atomically.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from flamert.ops.cuda.emit import HEADER

THREADS = 256
"""Threads of a block, and values of a digit."""

LANES = 32

PART = 1024
"""Keys that a block takes at least."""

BLOCKS = 256
"""At most, since each reads what all have counted."""


class Sorting(NamedTuple):
    """n keys of `bits` bits: how they are cut up."""

    n: int
    bits: int

    @property
    def passes(self) -> int:
        """From lowest digit to highest."""
        return max(1, -(-self.bits // 8))

    @property
    def digit(self) -> int:
        """Bits that a pass sorts by."""
        return max(1, -(-self.bits // self.passes))

    @property
    def part(self) -> int:
        """Keys of one block."""
        return -(-max(PART, -(-self.n // BLOCKS)) // THREADS) * THREADS

    @property
    def blocks(self) -> int:
        """Blocks of a pass."""
        return -(-self.n // self.part)

    @property
    def words(self) -> int:
        """Scratch: keys and positions, each twice, and counts."""
        return 4 * self.n + self.blocks * THREADS

    def scratch(self, words: Any) -> tuple[tuple[Any, Any], tuple[Any, Any], Any]:
        """The two buffers of keys, the two of positions, and the counts. Keys are put into the first buffer."""
        n = self.n
        return (words[:n], words[n : 2 * n]), (words[2 * n : 3 * n], words[3 * n : 4 * n]), words[4 * n :]

    def numbers(self, turn: int) -> tuple[np.uint32, ...]:
        """What a pass's kernels are told: how many keys, how many a block has, and where the digit is."""
        return np.uint32(self.n), np.uint32(self.part), np.uint32(turn * self.digit), np.uint32((1 << self.digit) - 1)


def count_source(keys: str = "keys[u]", parameters: str = "", before: str = "") -> str:
    """A kernel `count(keys, counts, n, part, shift, mask, …)` of a pass. keys: C for key number u, which is stored as well."""
    store = "" if keys == "keys[u]" else "keys[u] = key;"
    return f"""{HEADER}{before}
extern "C" __global__ void __launch_bounds__({THREADS}) count(
    u32* keys, u32* counts, u32 n, u32 part, u32 shift, u32 mask{parameters}) {{
  __shared__ u32 bins[{THREADS}];
  const u32 tid = threadIdx.x, first = blockIdx.x * part, last = first + part < n ? first + part : n;
  bins[tid] = 0;
  __syncthreads();
  for (u32 u = first + tid; u < last; u += {THREADS}) {{
    const u32 key = {keys};
    {store}
    atomicAdd(&bins[(key >> shift) & mask], 1u);
  }}
  __syncthreads();
  counts[blockIdx.x * {THREADS} + tid] = bins[tid];
}}
"""


def place_source(numbered: bool) -> str:
    """A kernel `place(keys, positions, counts, keys after, positions after, n, part, shift, mask)`.

    numbered: positions are there; else they are 0, 1, …
    """
    warps = THREADS // LANES
    return f"""{HEADER}
extern "C" __global__ void __launch_bounds__({THREADS}) place(
    const u32* __restrict__ keys, const u32* __restrict__ positions, const u32* __restrict__ counts, u32* __restrict__ sorted,
    u32* __restrict__ order, u32 n, u32 part, u32 shift, u32 mask) {{
  __shared__ u32 totals[{THREADS}], next[{THREADS}], ranks[{warps}][{THREADS}];
  const u32 tid = threadIdx.x, lane = tid % {LANES}, warp = tid / {LANES};
  const u32 first = blockIdx.x * part, last = first + part < n ? first + part : n;
  u32 before = 0, total = 0;
  #pragma unroll 8
  for (u32 b = 0; b < gridDim.x; b++) {{
    const u32 found = counts[b * {THREADS} + tid];
    if (b < blockIdx.x) before += found;
    total += found;
  }}
  totals[tid] = total;
  __syncthreads();
  for (u32 step = 1; step < {THREADS}; step *= 2) {{
    const u32 lower = tid >= step ? totals[tid - step] : 0;
    __syncthreads();
    totals[tid] += lower;
    __syncthreads();
  }}
  next[tid] = totals[tid] - total + before;
  for (u32 at = first; at < last; at += {THREADS}) {{
    for (u32 w = 0; w < {warps}; w++) ranks[w][tid] = 0;
    __syncthreads();
    const u32 u = at + tid;
    const bool here = u < last;
    const u32 key = here ? keys[u] : 0, digit = here ? (key >> shift) & mask : {THREADS};
    const u32 peers = __match_any_sync(0xffffffffu, digit), rank = __popc(peers & ((1u << lane) - 1));
    if (here && rank == 0) ranks[warp][digit] = __popc(peers);
    __syncthreads();
    u32 start = next[tid];
    for (u32 w = 0; w < {warps}; w++) {{
      const u32 found = ranks[w][tid];
      ranks[w][tid] = start;
      start += found;
    }}
    next[tid] = start;
    __syncthreads();
    if (here) {{
      const u32 to = ranks[warp][digit] + rank;
      sorted[to] = key;
      order[to] = {"positions[u]" if numbered else "u"};
    }}
    __syncthreads();
  }}
}}
"""
