"""CUDA C that kernels of attention in float32 begin with: products of tiles on tensor cores, and where tiles come from."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from flamert.ops.cuda.emit import HEADER

STATIC_BYTES = 48 << 10
"""Shared memory that a kernel may have without asking for more."""


class Form(NamedTuple):
    """What a kernel is made for. Rows belong to warps, which hold them in registers; columns come by in tiles.

    d, dv: sizes of the heads of q and k, and of v. warps: of a block. spans: groups of 16 rows that a warp has. exact: whether
    products are as good as float32's, and not TF32's. low, high: whether row r sees no column before r + low, none after
    r + high. mask: "", "float" or "bool". by_row: whether the mask differs from row to row.
    """

    d: int
    dv: int
    warps: int
    spans: int = 1
    exact: bool = False
    low: bool = False
    high: bool = False
    mask: str = ""
    by_row: bool = True

    @property
    def rows(self) -> int:
        """Rows of a block."""
        return 16 * self.warps * self.spans

    @property
    def tile(self) -> int:
        """Columns of a tile, of which there are two in shared memory, and a little beside them."""
        return 32 if 2 * 32 * 4 * (self.d + self.dv + 10) <= STATIC_BYTES else 16


def lying(*names: str) -> str:
    """Parameters for how arrays [batch, heads, length, size] lie: three steps in elements; in the last axis it is 1."""
    return ", ".join(f"long long {name}_{axis}" for name in names for axis in "bhl")


MASK = "const Mask* mask, long long mask_b, long long mask_h, long long mask_l, long long mask_s"

SIZES = "u32 heads, u32 H, u32 group, u32 n, u32 m, int low, int high, float scale"
"""Heads over all of the batch and in each entry, as many as there are for blocks; those of q for each of k; rows, columns."""


def prelude(form: Form) -> str:
    """What kernels for this form begin with."""
    flags = {"EXACT": form.exact, "LOW": form.low, "HIGH": form.high, "MASKED": bool(form.mask), "BY_ROW": form.by_row}
    sizes = {"D": form.d, "DV": form.dv, "WARPS": form.warps, "SPANS": form.spans, "ROWS": form.rows, "TILE": form.tile}
    said = [f"constexpr bool {name} = {str(value).lower()};" for name, value in flags.items()]
    said += [f"constexpr int {name} = {value};" for name, value in sizes.items()]
    kind = "unsigned char" if form.mask == "bool" else "float"
    return "\n".join([HEADER, *said, f"typedef {kind} Mask;", PRODUCTS, TILES])


def mask_type(dtype: np.dtype | None) -> str:
    return "" if dtype is None else "bool" if dtype == np.bool_ else "float"


PRODUCTS = """
constexpr int THREADS = WARPS * 32;
constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f, LARGEST = 3.4028234e38f;
__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }
__device__ __forceinline__ float power(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ u32 tf32(float x) {
  u32 y;
#if __CUDA_ARCH__ >= 900
  asm("cvt.rn.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));  // one instruction, where the other one is two
#else
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
#endif
  return y;
}
// Part of an operand, rounded to TF32; where products are exact, also what rounding took away.
template <int N> struct Fragment {
  u32 hi[N], lo[EXACT ? N : 1];
  __device__ __forceinline__ void set(int i, float x) {
    hi[i] = tf32(x);
    if constexpr (EXACT) lo[i] = tf32(x - __uint_as_float(hi[i]));
  }
};
// What is used again and again is rounded but once. What rounding takes away would need as many registers again: it is made
// anew each time, and what says "" keeps the compiler from making it all ahead.
__device__ __forceinline__ float held(float x) { return EXACT ? x : __uint_as_float(tf32(x)); }
__device__ __forceinline__ Fragment<4> fragment(const float (&x)[4]) {
  Fragment<4> f;
  #pragma unroll
  for (int i = 0; i < 4; i++) {
    if constexpr (EXACT) {
      float y = x[i];
      asm volatile("" : "+f"(y));
      f.set(i, y);
    } else f.hi[i] = __float_as_uint(x[i]);
  }
  return f;
}
// c += a b, 16x8 += 16x8 8x8, by a warp. Lane 4g + j has of a the rows g, g+8, g, g+8 of the columns j, j, j+4, j+4; of b the
// rows j, j+4 of column g; of c the columns 2j, 2j+1 of row g, then of g+8.
__device__ __forceinline__ void mma(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void multiply(float (&c)[4], const Fragment<4>& a, const Fragment<2>& b) {
  if constexpr (EXACT) {
    // Tensor cores cut off what they add to: over many steps that is more than float32 loses, so the sum is made elsewhere.
    float sum[4] = {};
    mma(sum, reinterpret_cast<const u32(&)[4]>(a.lo), b.hi);
    mma(sum, a.hi, reinterpret_cast<const u32(&)[2]>(b.lo));
    mma(sum, a.hi, b.hi);
    #pragma unroll
    for (int i = 0; i < 4; i++) c[i] += sum[i];
  } else mma(c, a.hi, b.hi);
}
// A result of `multiply` as the left operand of the next: its columns 2j and 2j+1 stand where j and j+4 would, so the right
// operand's rows must be taken in that order, too.
__device__ __forceinline__ Fragment<4> turned(const float (&c)[4]) {
  Fragment<4> f;
  f.set(0, c[0]);
  f.set(1, c[2]);
  f.set(2, c[1]);
  f.set(3, c[3]);
  return f;
}
"""
"""Products of a warp. Shared memory's rows are 4 longer than they need be: so no two lanes meet in a bank, either way."""

TILES = """
__device__ __forceinline__ void fetch16(float* to, const float* from, bool there) {
  const u32 at = (u32)__cvta_generic_to_shared(to);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(at), "l"(from), "r"(there ? 16 : 0) : "memory");
}
__device__ __forceinline__ void fetch4(float* to, const float* from, bool there) {
  const u32 at = (u32)__cvta_generic_to_shared(to);
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" :: "r"(at), "l"(from), "r"(there ? 4 : 0) : "memory");
}
__device__ __forceinline__ void fetched() { asm volatile("cp.async.wait_all;" ::: "memory"); }
// Rows of n from `first` on, zeros behind the last.
template <int WIDTH>
__device__ __forceinline__ void fetch(float (&to)[TILE][WIDTH + 4], const float* from, long long step, int first, int n) {
  #pragma unroll
  for (int i = threadIdx.x; i < TILE * WIDTH / 4; i += THREADS) {
    const int row = i / (WIDTH / 4), column = i % (WIDTH / 4) * 4;
    const bool there = first + row < n;
    fetch16(&to[row][column], from + (there ? first + row : n - 1) * step + column, there);
  }
}
// A warp's 16 rows from `first` on, as left operands.
template <int STEPS>
__device__ __forceinline__ void hold(float (&to)[STEPS][4], const float* from, long long step, int first, int n, int g, int j) {
  #pragma unroll
  for (int k = 0; k < STEPS; k++)
    #pragma unroll
    for (int i = 0; i < 4; i++) {
      const int row = first + g + i % 2 * 8;
      to[k][i] = row < n ? held(from[row * step + k * 8 + j + i / 2 * 4]) : 0.0f;
    }
}
// A pair of columns of rows g and g + 8, multiplied.
__device__ __forceinline__ void store(float* to, long long step, const float (&x)[4], int row, int n, int column,
                                      const float (&by)[2]) {
  #pragma unroll
  for (int half = 0; half < 2; half++)
    if (row + half * 8 < n) {
      const float2 pair = {x[2 * half] * by[half], x[2 * half + 1] * by[half]};
      *(float2*)(to + (row + half * 8) * step + column) = pair;
    }
}
// What a mask adds to a score, both for powers of two. A large negative number stays a number: where there is nothing else,
// keys weigh the same, and are not hidden.
__device__ __forceinline__ float addend(const Mask* at) {
  if constexpr (sizeof(Mask) == 1) return *at ? 0.0f : -infinity();
  else return *at < -LARGEST ? *at : fmaxf(*at * LOG2E, -LARGEST);
}
// Whether column c, of m, is there for row r.
__device__ __forceinline__ bool seen(int r, int c, int m, int low, int high) {
  return c < m && (!LOW || c >= r + low) && (!HIGH || c <= r + high);
}
// What the tiles of a block have in common: the mask of its head, rows and columns, whom rows see, the lane, what scores are
// multiplied with.
struct Setting { const Mask* mask; long long mask_l, mask_s; int n, m, low, high, g, j; float scale; };
// Which columns any of the rows first … last sees: the tiles that these lie in.
struct Reach {
  int begin, end, tiles;
  __device__ __forceinline__ Reach(int first, int last, int m, int low, int high) {
    begin = LOW ? max(first + low, 0) / TILE * TILE : 0;
    end = HIGH ? min(m, last + high + 1) : m;
    tiles = end > begin ? (end - begin + TILE - 1) / TILE : 0;
  }
};
// Which block this is: blocks of heads that have most to do come first, so that the last ones are short.
struct Place {
  int head, first;
  __device__ __forceinline__ Place(int heads, int n) {
    const int blocks = (n + ROWS - 1) / ROWS, number = blockIdx.x;
    const int block = LOW || HIGH ? number / heads : number % blocks;
    head = LOW || HIGH ? number % heads : number / blocks;
    first = (HIGH && !LOW ? blocks - 1 - block : block) * ROWS;
  }
};
"""
