"""CUDA C on the CPU: a kernel compiled as C++ and its blocks run one after another, for tests of what kernels compute."""

import atexit
import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

SHIM = r"""
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>
#include <math.h>
#include <stdlib.h>
#include <ucontext.h>
#define __global__
#define __device__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __shared__ static
#define __restrict__
struct dim3_ { unsigned x, y, z; };
static dim3_ threadIdx, blockIdx, blockDim, gridDim;
struct float2 { float x, y; };
struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };
struct __half { _Float16 v; __half() = default; explicit __half(float x) : v((_Float16)x) {} };
struct __nv_bfloat16 { uint16_t v; };
static inline float __half2float(__half x) { return (float)x.v; }
static inline __half __float2half_rn(float x) { return __half(x); }
static inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  uint32_t u; memcpy(&u, &x, 4);
  if (x != x) return {0x7fff};
  return {(uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}
static inline float __int_as_float(int x) { float f; memcpy(&f, &x, 4); return f; }
static inline float __uint_as_float(unsigned x) { return __int_as_float((int)x); }
static inline unsigned __float_as_uint(float f) { unsigned x; memcpy(&x, &f, 4); return x; }
static inline float __bfloat162float(__nv_bfloat16 x) { return __int_as_float((int)((uint32_t)x.v << 16)); }
static inline float __fdividef(float a, float b) { return a / b; }
template <typename T> static inline T __ldcg(const T* x) { return *x; }
static inline void __threadfence() {}
static inline unsigned atomicInc(unsigned* at, unsigned most) {
  unsigned old = *at;
  *at = old >= most ? 0 : old + 1;
  return old;
}
static inline unsigned atomicOr(unsigned* at, unsigned x) { unsigned old = *at; *at |= x; return old; }
static inline unsigned atomicExch(unsigned* at, unsigned x) { unsigned old = *at; *at = x; return old; }
template <typename T> static inline T atomicCAS(T* at, T is, T x) { T old = *at; if (old == is) *at = x; return old; }
template <typename T> static inline T atomicMin(T* at, T x) { T old = *at; *at = std::min(old, x); return old; }
template <typename T> static inline T atomicMax(T* at, T x) { T old = *at; *at = std::max(old, x); return old; }
using std::max; using std::min;

// Threads are contexts; each runs until it waits for others: for those of its warp, or of the whole block.
struct Barrier { unsigned arrived, turn; };
struct Fiber { ucontext_t context; char* stack; bool done; };
static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static unsigned current;
static const std::function<void()>* body;
static Barrier all, warps[32];
static char exchanged[2][1024][32];
static void yield_() { swapcontext(&fibers[current].context, &scheduler); }
static void entry() { (*body)(); fibers[current].done = true; yield_(); }
// Threads that have ended are not waited for.
static void wait_for(Barrier& barrier, unsigned first, unsigned last) {
  const unsigned turn = barrier.turn;
  for (barrier.arrived++; barrier.turn == turn;) {
    unsigned running = 0;
    for (unsigned i = first; i < last; i++) running += !fibers[i].done;
    if (barrier.arrived == running) { barrier.arrived = 0; barrier.turn++; } else yield_();
  }
}
static void wait_all() { wait_for(all, 0, fibers.size()); }
static void wait_warp() {
  const unsigned first = current / 32 * 32;
  wait_for(warps[current / 32], first, std::min(first + 32, (unsigned)fibers.size()));
}
// What threads tell each other lies in two places by turns, so that one wait is enough.
static unsigned told[1024];
template <typename T> static char (*tell(T x))[32] {
  char (*place)[32] = exchanged[told[current]++ % 2];
  memcpy(place[current], &x, sizeof x);
  return place;
}
template <typename T> static T heard(char (*place)[32], unsigned from) { T x; memcpy(&x, place[from], sizeof x); return x; }
static inline void __syncthreads() { wait_all(); }
static inline int __syncthreads_or(int x) {
  static int asked[1024];
  asked[current] = x; wait_all();
  int found = 0;
  for (unsigned i = 0; i < fibers.size(); i++) found |= asked[i];
  wait_all();
  return found != 0;
}
template <typename T> static inline T __shfl_xor_sync(unsigned, T x, int step) {
  char (*place)[32] = tell(x);
  wait_warp();
  return heard<T>(place, current ^ step);
}

// Tensor cores: operands are floats whose last 13 bits count for nothing.
static inline unsigned rounded_tf32(float x) {
  unsigned u = __float_as_uint(x);
  return std::isfinite(x) ? (u + 0x1000) & 0xffffe000 : u;
}
struct Operands { unsigned a[4], b[2]; };
static inline void multiplied(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  Operands mine;
  memcpy(mine.a, a, sizeof a); memcpy(mine.b, b, sizeof b);
  char (*place)[32] = tell(mine);
  wait_warp();
  const unsigned warp = current / 32 * 32, g = current % 32 / 4, j = current % 4;
  const auto number = [](unsigned x) { return (double)__uint_as_float(x & 0xffffe000); };
  for (unsigned e = 0; e < 4; e++) {
    const unsigned column = 2 * j + e % 2;
    double sum = c[e];
    for (unsigned k = 0; k < 8; k++) {
      const unsigned left = heard<Operands>(place, warp + g * 4 + k % 4).a[e / 2 + k / 4 * 2];
      const unsigned right = heard<Operands>(place, warp + column * 4 + k % 4).b[k / 4];
      sum += number(left) * number(right);
    }
    c[e] = (float)sum;
  }
}

// Copies that go on while a thread does other things: until it waits for them, their places hold nothing of use.
struct Fetch { char* to; const char* from; unsigned size; bool there; };
static std::vector<Fetch> fetches[1024];
static inline size_t __cvta_generic_to_shared(const void*) { return 0; }
static inline void fetching(void* to, const void* from, unsigned size, bool there) {
  if ((size_t)to % size || (size_t)from % size) abort();
  memset(to, 0xff, size);
  fetches[current].push_back({(char*)to, (const char*)from, size, there});
}
static inline void fetched_all() {
  for (auto& f : fetches[current]) if (f.there) memcpy(f.to, f.from, f.size); else memset(f.to, 0, f.size);
  fetches[current].clear();
}
static void run_grid(unsigned gx, unsigned gy, unsigned gz, unsigned threads, const std::function<void()>& kernel) {
  const size_t size = 1 << 16;
  body = &kernel; gridDim = {gx, gy, gz}; blockDim = {threads, 1, 1};
  fibers.resize(threads);
  for (auto& f : fibers) f.stack = (char*)malloc(size);
  for (unsigned z = 0; z < gz; z++) for (unsigned y = 0; y < gy; y++) for (unsigned x = 0; x < gx; x++) {
    blockIdx = {x, y, z};
    all = {}; memset(warps, 0, sizeof warps); memset(told, 0, sizeof told);
    for (unsigned t = 0; t < threads; t++) {
      Fiber& f = fibers[t];
      getcontext(&f.context); f.context.uc_stack.ss_sp = f.stack; f.context.uc_stack.ss_size = size;
      f.context.uc_link = nullptr; f.done = false; makecontext(&f.context, entry, 0);
    }
    for (unsigned left = threads; left;) {
      left = 0;
      for (unsigned t = 0; t < threads; t++) if (!fibers[t].done) {
        current = t; threadIdx = {t, 0, 0};
        swapcontext(&scheduler, &fibers[t].context);
        left += !fibers[t].done;
      }
    }
  }
  for (auto& f : fibers) free(f.stack);
}
"""

INSTRUCTIONS = {
    r'\("ex2.*"f"\((.*)\)\);': r"y = exp2f(\1);",
    r'\("cvt\.rna?\.tf32.*"f"\((.*)\)\);': r"y = rounded_tf32(\1);",
    r'\("mma\.sync\.[^;]*;"[^;]*;': "multiplied(c, a, b);",
    r'\("cp\.async\.c.\.shared[^;]*;".*there \? (\d+) .*;': r"fetching(to, from, \1, there);",
    r'\("cp\.async\.wait_all;".*?;': "fetched_all();",
    r'\("" : .*?\);': "",
}
"""What stands for instructions that kernels write in PTX; operands that are not found in these have the kernels' own names."""


OPTIONS = (
    *("-O1", "-std=c++17", "-fPIC", "-w", "-ffp-contract=off"),
    *("-fsanitize=bounds", "-fsanitize-undefined-trap-on-error"),  # what passes an array's end ends the process
)


@functools.cache
def _folder(compiler):
    """Where this process keeps what it compiles, with what all kernels share compiled ahead."""
    folder = Path(tempfile.mkdtemp(prefix="emulated-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "shim.h").write_text(SHIM)
    subprocess.run([compiler, *OPTIONS, "-x", "c++-header", "shim.h"], cwd=folder, check=True)
    return folder


@functools.cache
def emulated(source):
    """`call(grid, threads, *arguments)`: arrays go by address, NumPy scalars by value."""
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs g++ on Linux")
    text = re.sub(r"#include <cuda_\w+\.h>", "", source)
    for instruction, call in INSTRUCTIONS.items():
        text = re.sub(r"asm(?: volatile)?" + instruction, call, text)
    name, parameters = re.search(r"(\w+)\(([^)]*)\) \{", text[text.index('extern "C"') :].replace("\n", " ")).groups()
    names = [re.search(r"(\w+)$", p.strip()).group(1) for p in parameters.split(",")]
    launch = f"""
extern "C" void emulate(unsigned gx, unsigned gy, unsigned gz, unsigned threads, {parameters}) {{
  run_grid(gx, gy, gz, threads, [&] {{ {name}({", ".join(names)}); }});
}}
"""
    stem = _folder(compiler) / hashlib.sha256(text.encode()).hexdigest()[:16]
    stem.with_suffix(".cc").write_text('#include "shim.h"\n' + text + launch)
    command = [compiler, *OPTIONS, "-shared", "-o", f"{stem}.so", f"{stem}.cc"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stderr}\n{source}"
    entry = ctypes.CDLL(f"{stem}.so").emulate

    def call(grid, threads, *arguments):
        given = []
        for x in arguments:
            if isinstance(x, int):
                given.append(ctypes.c_void_p(x))
            elif isinstance(x, np.generic):
                given.append(np.ctypeslib.as_ctypes_type(x.dtype)(x.item()))
            else:
                given.append(ctypes.c_void_p(x.data.ptr if hasattr(x, "handed") else x.__array_interface__["data"][0]))
        entry(*[ctypes.c_uint(g) for g in (*grid, 1, 1)[:3]], ctypes.c_uint(threads), *given)

    return call


class Memory:
    """What a kernel's binding asks of an array on a GPU, of an array in host memory."""

    handed = True

    class _Pointer:
        def __init__(self, ptr):
            self.ptr = ptr

    def __init__(self, array):
        self.array = array
        self.data = self._Pointer(array.__array_interface__["data"][0])
        self.shape, self.strides, self.dtype, self.size = array.shape, array.strides, array.dtype, array.size
        self.itemsize, self.ndim = array.itemsize, array.ndim


class Kernel:
    """In place of a compiled kernel: `kernel(grid, block, arguments)` on the CPU."""

    def __init__(self, source, name):
        assert f" {name}(" in source
        self.name, self.call = name, emulated(source)

    def __call__(self, grid, block, arguments):
        assert len(block) == 1
        self.call(grid, block[0], *arguments)
