"""CUDA C for attention of float32, backward: gradients of queries, and of keys and values, each added up in a fixed order."""

from __future__ import annotations

from flamert.ops.cuda.emit_tiles import MASK, SIZES, Form, lying, prelude

MOST = 160
"""Sizes of both heads together up to which a warp has registers for the gradients of keys and of values."""

QUERIES, KEYS, VALUES = "queries", "keys", "values"


def parts(form: Form) -> tuple[frozenset[str], ...]:
    """What one kernel each makes: keys and values together if they can be."""
    if form.d + form.dv <= MOST:
        return frozenset({QUERIES}), frozenset({KEYS, VALUES})
    return frozenset({QUERIES}), frozenset({KEYS}), frozenset({VALUES})


def backward(form: Form, of: frozenset[str]) -> str:
    """A kernel `flash_backward`: the gradients of one of `parts`, where rows are queries or keys, columns the others.

    That of queries is launched first, given y and the sums, and leaves two numbers for each query in `kept` [2, B, Hq, L]: its
    sum's logarithm, and Σ dy⊙y.
    """
    turned = QUERIES not in of
    arrays = "const float* q, const float* k, const float* v, const float* dy, const float* y, const float* sums, float* kept"
    arrays += ", float* first_out, float* second_out"
    ways = lying("q", "k", "v", "dy", "y", "first", "second")
    said = {"TURNED": turned, "FIRST": of != {VALUES}, "SECOND": VALUES in of}
    flags = "\n".join(f"constexpr bool {name} = {str(value).lower()};" for name, value in said.items())
    return f"""{prelude(form)}
{flags}
{SEND}
extern "C" __global__ void __launch_bounds__(THREADS) flash_backward({arrays}, {MASK}, {ways}, {SIZES}) {{
{KEYS_FIRST if turned else QUERIES_FIRST}
}}
"""


SEND = """
// Rows x are queries, z what reaches their results; or keys and values. Gradients of x and of z.
struct Rows { float x[D / 8][4], z[DV / 8][4], dx[D / 8][4], dz[DV / 8][4], level[2], delta[2]; };
// Columns at a time, in groups of 8: two are twice as many products that do not wait for each other.
constexpr int GROUPS = 2;
// The product of held rows with these columns of a tile, from `from` on.
template <int STEPS, int WIDTH>
__device__ __forceinline__ void score(float (&to)[GROUPS][4], const float (&x)[STEPS][4], const float (&tile)[TILE][WIDTH],
                                      int from, int g, int j) {
  #pragma unroll
  for (int step = 0; step < STEPS; step++) {
    const Fragment<4> a = fragment(x[step]);
    #pragma unroll
    for (int u = 0; u < GROUPS; u++) {
      Fragment<2> b;
      b.set(0, tile[from + u * 8 + g][step * 8 + j]);
      b.set(1, tile[from + u * 8 + g][step * 8 + j + 4]);
      multiply(to[u], a, b);
    }
  }
}
// to += weights · tile, over these columns.
template <int STEPS, int WIDTH>
__device__ __forceinline__ void gather(float (&to)[STEPS][4], const float (&weights)[GROUPS][4],
                                       const float (&tile)[TILE][WIDTH], int from, int g, int j) {
  #pragma unroll
  for (int u = 0; u < GROUPS; u++) {
    const Fragment<4> a = turned(weights[u]);
    #pragma unroll
    for (int part = 0; part < STEPS; part++) {
      Fragment<2> b;
      b.set(0, tile[from + u * 8 + 2 * j][part * 8 + g]);
      b.set(1, tile[from + u * 8 + 2 * j + 1][part * 8 + g]);
      multiply(to[part], a, b);
    }
  }
}
// A tile of columns, the first of which is number `at`. EDGE: whether some are hidden. level, delta: of the columns if those
// are queries.
template <bool EDGE>
__device__ __forceinline__ void send(Rows& rows, const float (&xs)[TILE][D + 4], const float (&zs)[TILE][DV + 4],
                                     const float* level, const float* delta, int first, int at, const Setting& setting) {
  const auto [mask, mask_l, mask_s, n, m, low, high, g, j, scale] = setting;
  #pragma unroll
  for (int from = 0; from < TILE; from += GROUPS * 8)
    if (!EDGE || from < m - at) {
      float p[GROUPS][4] = {}, ds[GROUPS][4] = {};
      score(p, rows.x, xs, from, g, j);
      if constexpr (FIRST) score(ds, rows.z, zs, from, g, j);
      #pragma unroll
      for (int u = 0; u < GROUPS; u++)
        #pragma unroll
        for (int e = 0; e < 4; e++) {
          const int row = first + g + e / 2 * 8, near = from + u * 8 + 2 * j + e % 2, column = at + near;
          float x = p[u][e] * scale;
          if constexpr (MASKED) {
            const int query = TURNED ? column : row, key = TURNED ? row : column;
            const int i = min(query, (TURNED ? m : n) - 1), c = min(key, (TURNED ? n : m) - 1);
            x += addend(mask + (BY_ROW ? i * mask_l : 0) + c * mask_s);
          }
          x -= TURNED ? level[near] : rows.level[e / 2];
          p[u][e] = EDGE && !seen(row, column, m, low, high) ? 0.0f : power(x);
          ds[u][e] = p[u][e] * (ds[u][e] - (TURNED ? delta[near] : rows.delta[e / 2]));
        }
      if constexpr (SECOND) gather(rows.dz, p, zs, from, g, j);
      if constexpr (FIRST) gather(rows.dx, ds, xs, from, g, j);
    }
}
template <int STEPS> __device__ __forceinline__ void clear(float (&x)[STEPS][4]) {
  #pragma unroll
  for (int i = 0; i < STEPS * 4; i++) x[i / 4][i % 4] = 0.0f;
}
"""

START = """
  alignas(16) __shared__ float xs[2][TILE][D + 4], zs[2][TILE][DV + 4];
  const int lane = threadIdx.x % 32, g = lane / 4, j = lane % 4;
  const Place place(heads, n);
  const int b = place.head / H, h = place.head % H, first = place.first + threadIdx.x / 32 * 16;
  const int last = min(first + 16, (int)n) - 1;
  const Reach reach(place.first, min(place.first + ROWS, (int)n) - 1, m, low, high);
  Rows rows;
  clear(rows.dx);
  clear(rows.dz);"""

CHOICE = """
    if (first > last || (HIGH && at > last + high) || (LOW && at + TILE <= first + low)) continue;
    if (at + TILE > m || (HIGH && at + TILE - 1 > first + high) || (LOW && at < last + low))
      send<true>(rows, xs[now], zs[now], LEVELS, first, at, setting);
    else
      send<false>(rows, xs[now], zs[now], LEVELS, first, at, setting);
  }"""

QUERIES_FIRST = f"""{START}
  q += b * q_b + h * q_h;
  dy += b * dy_b + h * dy_h;
  y += b * y_b + h * y_h;
  k += b * k_b + h / group * k_h;
  v += b * v_b + h / group * v_h;
  if constexpr (MASKED) mask += b * mask_b + h * mask_h;
  if (reach.tiles) {{
    fetch<D>(xs[0], k, k_l, reach.begin, m);
    fetch<DV>(zs[0], v, v_l, reach.begin, m);
  }}
  hold(rows.x, q, q_l, first, n, g, j);
  hold(rows.z, dy, dy_l, first, n, g, j);
  #pragma unroll
  for (int half = 0; half < 2; half++) {{
    const int row = first + g + half * 8;
    float delta = 0.0f, level = 0.0f;
    if (row < n) {{
      // dy is rounded as in the products with values, which this is the mean of: what all of these have in common goes.
      // A query that no mask leaves anything, be it by large numbers alone, sends nothing back.
      level = sums[(size_t)place.head * n + row];
      level = level < -1e30f ? infinity() : level * LOG2E;
      #pragma unroll
      for (int i = 0; i < DV / 4; i++) delta += held(dy[row * dy_l + i * 4 + j]) * y[row * y_l + i * 4 + j];
    }}
    delta += __shfl_xor_sync(0xffffffffu, delta, 1);
    delta += __shfl_xor_sync(0xffffffffu, delta, 2);
    rows.level[half] = level;
    rows.delta[half] = delta;
    if (j == 0 && row < n) {{
      kept[(size_t)place.head * n + row] = level;
      kept[((size_t)heads + place.head) * n + row] = delta;
    }}
  }}
  const Setting setting = {{mask, mask_l, mask_s, (int)n, (int)m, low, high, g, j, scale * LOG2E}};
  for (int tile = 0; tile < reach.tiles; tile++) {{
    const int at = reach.begin + tile * TILE, now = tile % 2;
    fetched();
    __syncthreads();
    if (tile + 1 < reach.tiles) {{
      fetch<D>(xs[1 - now], k, k_l, at + TILE, m);
      fetch<DV>(zs[1 - now], v, v_l, at + TILE, m);
    }}{CHOICE.replace("LEVELS", "nullptr, nullptr")}
  const float by[2] = {{scale, scale}};
  first_out += b * first_b + h * first_h;
  #pragma unroll
  for (int part = 0; part < D / 8; part++) store(first_out, first_l, rows.dx[part], first + g, n, part * 8 + 2 * j, by);"""

KEYS_FIRST = f"""{START}
  __shared__ float levels[2][TILE], deltas[2][TILE];
  hold(rows.x, k + b * k_b + h * k_h, k_l, first, n, g, j);
  hold(rows.z, v + b * v_b + h * v_h, v_l, first, n, g, j);
  // Tiles of all query heads of the group, one head after the other.
  const int turns = reach.tiles * group;
  const auto begin = [&](int turn, int now) {{
    const int at = reach.begin + turn % reach.tiles * TILE, head = h * group + turn / reach.tiles;
    const float* kept_here = kept + ((size_t)place.head * group + turn / reach.tiles) * m;
    fetch<D>(xs[now], q + b * q_b + head * q_h, q_l, at, m);
    fetch<DV>(zs[now], dy + b * dy_b + head * dy_h, dy_l, at, m);
    if (threadIdx.x < TILE) {{
      const bool there = at + threadIdx.x < m;
      const float* from = kept_here + (there ? at + threadIdx.x : 0);
      fetch4(&levels[now][threadIdx.x], from, there);
      fetch4(&deltas[now][threadIdx.x], from + (size_t)heads * group * m, there);
    }}
  }};
  if (turns) begin(0, 0);
  if constexpr (MASKED) mask += b * mask_b + h * group * mask_h;
  Setting setting = {{mask, mask_l, mask_s, (int)n, (int)m, low, high, g, j, scale * LOG2E}};
  for (int turn = 0; turn < turns; turn++) {{
    const int at = reach.begin + turn % reach.tiles * TILE, now = turn % 2;
    if constexpr (MASKED) setting.mask += turn && turn % reach.tiles == 0 ? mask_h : 0;
    fetched();
    __syncthreads();
    if (turn + 1 < turns) begin(turn + 1, 1 - now);{CHOICE.replace("LEVELS", "levels[now], deltas[now]")}
  const float by[2] = {{scale, scale}}, alone[2] = {{1.0f, 1.0f}};
  if constexpr (FIRST) {{
    first_out += b * first_b + h * first_h;
    #pragma unroll
    for (int part = 0; part < D / 8; part++) store(first_out, first_l, rows.dx[part], first + g, n, part * 8 + 2 * j, by);
  }}
  if constexpr (SECOND) {{
    second_out += b * second_b + h * second_h;
    #pragma unroll
    for (int part = 0; part < DV / 8; part++) store(second_out, second_l, rows.dz[part], first + g, n, part * 8 + 2 * j, alone);
  }}"""
