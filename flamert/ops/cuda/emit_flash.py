"""CUDA C for attention of float32 that keeps no scores in memory: the forward pass."""

from __future__ import annotations

from flamert.ops.cuda.emit_tiles import MASK, SIZES, Form, lying, prelude


def forward(form: Form) -> str:
    """A kernel `flash_forward`: y and, unless `sums` is null, the logarithms of what probabilities were divided by."""
    arrays = "const float* q, const float* k, const float* v, float* y, float* sums"
    ways = lying("q", "k", "v", "y")
    return f"""{prelude(form)}
{ATTEND}
extern "C" __global__ void __launch_bounds__(THREADS) flash_forward({arrays}, {MASK}, {ways}, {SIZES}) {{
{FORWARD}
}}
"""


ATTEND = """
struct Rows { float q[SPANS][D / 8][4], y[SPANS][DV / 8][4], top[SPANS][2], sum[SPANS][2]; };
// A tile of keys, the first of which is number `at`: probabilities so far, and values by them. EDGE: are some hidden?
template <bool EDGE>
__device__ __forceinline__ void attend(Rows& rows, const float (&k)[TILE][D + 4], const float (&v)[TILE][DV + 4], int first,
                                       int at, const Setting& setting) {
  const auto [mask, mask_l, mask_s, n, m, low, high, g, j, scale] = setting;
  constexpr int GROUPS = TILE / 8;
  const int left = m - at;
  float s[SPANS][GROUPS][4] = {};
  #pragma unroll
  for (int step = 0; step < D / 8; step++) {
    Fragment<4> a[SPANS];
    #pragma unroll
    for (int span = 0; span < SPANS; span++) a[span] = fragment(rows.q[span][step]);
    #pragma unroll
    for (int group = 0; group < GROUPS; group++)
      if (!EDGE || group * 8 < left) {
        Fragment<2> b;
        b.set(0, k[group * 8 + g][step * 8 + j]);
        b.set(1, k[group * 8 + g][step * 8 + j + 4]);
        #pragma unroll
        for (int span = 0; span < SPANS; span++) multiply(s[span][group], a[span], b);
      }
  }
  float common[GROUPS][2];
  if constexpr (MASKED && !BY_ROW) {
    #pragma unroll
    for (int i = 0; i < GROUPS * 2; i++)
      common[i / 2][i % 2] = addend(mask + min(at + i / 2 * 8 + 2 * j + i % 2, m - 1) * mask_s);
  }
  #pragma unroll
  for (int span = 0; span < SPANS; span++)
    #pragma unroll
    for (int half = 0; half < 2; half++) {
      const int row = first + span * 16 + half * 8 + g;
      float top = rows.top[span][half];
      #pragma unroll
      for (int i = 0; i < GROUPS * 2; i++) {
        float& x = s[span][i / 2][2 * half + i % 2];
        const int key = at + i / 2 * 8 + 2 * j + i % 2;
        x *= scale;
        if constexpr (MASKED && !BY_ROW) x += common[i / 2][i % 2];
        if constexpr (MASKED && BY_ROW) x += addend(mask + min(row, n - 1) * mask_l + min(key, m - 1) * mask_s);
        if (EDGE && !seen(row, key, m, low, high)) x = -infinity();
        top = fmaxf(top, x);
      }
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
      const float base = top == -infinity() ? 0.0f : top, fade = power(rows.top[span][half] - base);
      rows.top[span][half] = top;
      float sum = rows.sum[span][half] * fade;
      #pragma unroll
      for (int i = 0; i < GROUPS * 2; i++) {
        float& x = s[span][i / 2][2 * half + i % 2];
        // What values are multiplied by is what must add up to 1: where weights are alike, rounding them all errs one way.
        x = held(power(x - base));
        sum += x;
      }
      rows.sum[span][half] = sum;
      #pragma unroll
      for (int i = 0; i < DV / 8 * 2; i++) rows.y[span][i / 2][2 * half + i % 2] *= fade;
    }
  #pragma unroll
  for (int group = 0; group < GROUPS; group++)
    if (!EDGE || group * 8 < left) {
      Fragment<4> a[SPANS];
      #pragma unroll
      for (int span = 0; span < SPANS; span++) a[span] = turned(s[span][group]);
      #pragma unroll
      for (int part = 0; part < DV / 8; part++) {
        Fragment<2> b;
        b.set(0, v[group * 8 + 2 * j][part * 8 + g]);
        b.set(1, v[group * 8 + 2 * j + 1][part * 8 + g]);
        #pragma unroll
        for (int span = 0; span < SPANS; span++) multiply(rows.y[span][part], a[span], b);
      }
    }
}
"""

FORWARD = """
  alignas(16) __shared__ float ks[2][TILE][D + 4], vs[2][TILE][DV + 4];
  const int lane = threadIdx.x % 32, g = lane / 4, j = lane % 4;
  const Place place(heads, n);
  const int b = place.head / H, h = place.head % H, first = place.first + threadIdx.x / 32 * SPANS * 16;
  const int last = min(first + SPANS * 16, (int)n) - 1;
  q += b * q_b + h * q_h;
  k += b * k_b + h / group * k_h;
  v += b * v_b + h / group * v_h;
  if constexpr (MASKED) mask += b * mask_b + h * mask_h;
  const Reach reach(place.first, min(place.first + ROWS, (int)n) - 1, m, low, high);
  if (reach.tiles) {
    fetch<D>(ks[0], k, k_l, reach.begin, m);
    fetch<DV>(vs[0], v, v_l, reach.begin, m);
  }
  Rows rows;
  #pragma unroll
  for (int span = 0; span < SPANS; span++) {
    hold(rows.q[span], q, q_l, first + span * 16, n, g, j);
    #pragma unroll
    for (int i = 0; i < DV / 8 * 4; i++) rows.y[span][i / 4][i % 4] = 0.0f;
    rows.top[span][0] = rows.top[span][1] = -infinity();
    rows.sum[span][0] = rows.sum[span][1] = 0.0f;
  }
  const Setting setting = {mask, mask_l, mask_s, (int)n, (int)m, low, high, g, j, scale * LOG2E};
  for (int tile = 0; tile < reach.tiles; tile++) {
    const int at = reach.begin + tile * TILE, now = tile % 2;
    fetched();
    __syncthreads();
    if (tile + 1 < reach.tiles) {
      fetch<D>(ks[1 - now], k, k_l, at + TILE, m);
      fetch<DV>(vs[1 - now], v, v_l, at + TILE, m);
    }
    if (first > last || (HIGH && at > last + high) || (LOW && at + TILE <= first + low)) continue;
    if (at + TILE > m || (HIGH && at + TILE - 1 > first + high) || (LOW && at < last + low))
      attend<true>(rows, ks[now], vs[now], first, at, setting);
    else
      attend<false>(rows, ks[now], vs[now], first, at, setting);
  }
  y += b * y_b + h * y_h;
  #pragma unroll
  for (int span = 0; span < SPANS; span++) {
    const int row = first + span * 16 + g;
    float by[2];
    #pragma unroll
    for (int half = 0; half < 2; half++) {
      float sum = rows.sum[span][half];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      by[half] = sum == 0.0f ? 0.0f : 1.0f / sum;
      if (sums && j == 0 && row + half * 8 < n)
        sums[(size_t)place.head * n + row + half * 8] = sum == 0.0f ? infinity() : (rows.top[span][half] + log2f(sum)) * LN2;
    }
    #pragma unroll
    for (int part = 0; part < DV / 8; part++) store(y, y_l, rows.y[span][part], row, n, part * 8 + 2 * j, by);
  }"""
