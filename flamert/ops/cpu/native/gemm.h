/* float matrix products against packed weights, and convolutions made of them. Included once per instruction set, which
   sets VL (floats in a vector) and MR (rows of a tile). Weights are packed into panels of NR = 2·VL columns, [panel][K][NR]. */

typedef float vec __attribute__((vector_size(4 * VL), aligned(4), may_alias));

#define NR (2 * VL)
#define KC 384 /* rows of a panel that stay in the L1 cache while tiles pass over them */

static inline vec load(const float *p) { return *(const vec *)p; }
static inline void store(float *p, vec v) { *(vec *)p = v; }
static inline vec splat(float x) {
    return x - (vec){0}; /* x − 0 is x, signed zeros included, so only the broadcast remains */
}

/* The left operand. A row is `runs` runs of `k` neighbours, `pitch` apart; row r + 1 lies `lda` behind row r. An ordinary matrix
   has one run; the patches of a convolution, in the image itself, have one for each line of the kernel. */
typedef struct {
    const float *at;
    int64_t lda, k, runs, pitch;
} left;

static inline left matrix(const float *a, int64_t lda, int64_t k) { return (left){a, lda, k, 1, 0}; }

#define HALF 12 /* rows of a tile that is one vector wide: enough sums for additions not to wait for each other */

/* C[rows, vectors·VL] (+)= A · B from row m of A on, all loops known to the compiler so that C stays in registers. */
static inline __attribute__((always_inline)) void tile(const int rows, const int vectors, const left *A, int64_t m, const float *b,
                                                       int64_t panel, float *c, int64_t ldc, const float *bias, int first) {
    int64_t lda = A->lda, k = A->k;
    vec acc[HALF][8];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int j = 0; j < vectors; j++) acc[r][j] = splat(0.0f);
    for (int64_t run = 0; run < A->runs; run++, b += k * NR) {
        const float *a = A->at + m * lda + run * A->pitch;
        for (int64_t i = 0; i < k; i++) {
            vec w[8];
#pragma GCC unroll 8
            for (int j = 0; j < vectors; j++) w[j] = load(b + (j / 2) * panel + i * NR + (j % 2) * VL);
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++) {
                vec x = splat(a[r * lda + i]);
#pragma GCC unroll 8
                for (int j = 0; j < vectors; j++) acc[r][j] += x * w[j];
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int j = 0; j < vectors; j++) { /* each stretch of k is summed from zero, which keeps rounding errors small */
            vec before = !first ? load(c + r * ldc + j * VL) : bias ? load(bias + j * VL) : splat(0.0f);
            store(c + r * ldc + j * VL, before + acc[r][j]);
        }
}

#define TILE(ROWS, VECTORS)                                                                                              \
    static __attribute__((noinline)) void tile_##ROWS##_##VECTORS(const left *A, int64_t m, const float *b, int64_t panel, float *c, \
                                                                  int64_t ldc, const float *bias, int first) {           \
        tile(ROWS, VECTORS, A, m, b, panel, c, ldc, bias, first);                                                        \
    }
typedef void (*tile_fn)(const left *, int64_t, const float *, int64_t, float *, int64_t, const float *, int);

TILE(1, 1) TILE(2, 1) TILE(3, 1) TILE(4, 1) TILE(5, 1) TILE(6, 1) TILE(7, 1) TILE(8, 1) TILE(9, 1) TILE(10, 1) TILE(11, 1) TILE(12, 1)
static const tile_fn half_tiles[HALF + 1] = {0, tile_1_1, tile_2_1, tile_3_1, tile_4_1, tile_5_1, tile_6_1,
                                             tile_7_1, tile_8_1, tile_9_1, tile_10_1, tile_11_1, tile_12_1};
TILE(1, 2) TILE(2, 2) TILE(3, 2) TILE(4, 2) TILE(5, 2) TILE(6, 2) TILE(1, 8) TILE(2, 4)
#if MR > 6
TILE(7, 2) TILE(8, 2) TILE(9, 2) TILE(10, 2) TILE(11, 2) TILE(12, 2)
static const tile_fn tiles[MR + 1] = {0, tile_1_2, tile_2_2, tile_3_2, tile_4_2, tile_5_2, tile_6_2,
                                      tile_7_2, tile_8_2, tile_9_2, tile_10_2, tile_11_2, tile_12_2};
#else
static const tile_fn tiles[MR + 1] = {0, tile_1_2, tile_2_2, tile_3_2, tile_4_2, tile_5_2, tile_6_2};
#endif

/* One panel of C for all rows. The last panel may be narrower than NR: half of one is left out if that is enough, and what is
   no whole vector goes through a buffer. */
static void panel_product(const left *A, int64_t rows, const float *b, int64_t panel, float *c, int64_t ldc, int64_t width,
                          const float *bias, int first) {
    const tile_fn *table = width <= VL ? half_tiles : tiles;
    int64_t step = width <= VL ? HALF : MR, full = width <= VL ? VL : NR;
    float edge[HALF * NR], edge_bias[NR] = {0};
    if (width < full && bias) memcpy(edge_bias, bias, width * 4);
    for (int64_t m = 0; m < rows; m += step) {
        int64_t r = rows - m < step ? rows - m : step;
        if (width == full) {
            table[r](A, m, b, panel, c + m * ldc, ldc, bias, first);
            continue;
        }
        if (!first)
            for (int64_t i = 0; i < r; i++) memcpy(edge + i * full, c + (m + i) * ldc, width * 4);
        table[r](A, m, b, panel, edge, full, bias ? edge_bias : 0, first);
        for (int64_t i = 0; i < r; i++)
            for (int64_t j = 0; j < width; j++) c[(m + i) * ldc + j] = edge[i * full + j];
    }
}

/* C[rows, n] = A · Bᵀ + bias for very few columns: b is [n, `depth`], and sums run along it, eight rows at a time. */
static void dots(left A, int64_t rows, const float *b, int64_t depth, float *c, int64_t ldc, int64_t n, const float *bias) {
    for (int64_t m = 0; m < rows; m += 8) {
        int64_t last = rows - 1 - m;
        for (int64_t j = 0; j < n; j++) {
            vec acc[8];
            float rest[8] = {0};
#pragma GCC unroll 8
            for (int r = 0; r < 8; r++) acc[r] = splat(0.0f);
            for (int64_t run = 0; run < A.runs; run++) {
                const float *w = b + j * depth + run * A.k, *row[8];
                for (int r = 0; r < 8; r++) row[r] = A.at + (m + (r < last ? r : last)) * A.lda + run * A.pitch;
                int64_t i = 0;
                for (; i + VL <= A.k; i += VL) {
                    vec x = load(w + i);
#pragma GCC unroll 8
                    for (int r = 0; r < 8; r++) acc[r] += load(row[r] + i) * x;
                }
                for (; i < A.k; i++)
                    for (int r = 0; r < 8; r++) rest[r] += row[r][i] * w[i];
            }
            for (int r = 0; r < 8 && r <= last; r++) {
                float lanes[VL];
                store(lanes, acc[r]);
                for (int width = VL / 2; width; width /= 2)
                    for (int l = 0; l < width; l++) lanes[l] += lanes[l + width];
                c[(m + r) * ldc + j] = (bias ? bias[j] : 0.0f) + lanes[0] + rest[r];
            }
        }
    }
}

/* C[rows, n] (+)= A · B over the columns [from, to), which start on a panel; B's panels are `depth` rows high, of which A's
   k · runs are used. Small enough for the rows of a panel to stay in the first-level cache. */
static void product_part(const left *A, int64_t rows, const float *b, int64_t depth, float *c, int64_t ldc, int64_t from, int64_t to,
                         const float *bias, int first) {
    int64_t j = from;
    if (rows <= 2) { /* few rows: several panels at once, or the additions would wait for each other */
        int64_t step = rows == 1 ? 4 * NR : 2 * NR;
        tile_fn wide = rows == 1 ? tile_1_8 : tile_2_4;
        for (; j + step <= to; j += step) wide(A, 0, b + j * depth, depth * NR, c + j, ldc, bias ? bias + j : 0, first);
    }
    for (; j < to; j += NR)
        panel_product(A, rows, b + j * depth, depth * NR, c + j, ldc, to - j < NR ? to - j : NR, bias ? bias + j : 0, first);
}

/* C[rows, n] = A · B + bias over the columns [from, to). */
static void product(left A, int64_t rows, const float *b, int64_t depth, float *c, int64_t ldc, int64_t from, int64_t to,
                    const float *bias) {
    int first = 1;
    if (!A.k || !A.runs)
        for (int64_t m = 0; m < rows; m++)
            for (int64_t j = from; j < to; j++) c[m * ldc + j] = bias ? bias[j] : 0.0f;
    else if (A.k <= KC)
        for (int64_t run = 0, some = KC / A.k; run < A.runs; run += some, first = 0) {
            left part = {A.at + run * A.pitch, A.lda, A.k, A.runs - run < some ? A.runs - run : some, A.pitch};
            product_part(&part, rows, b + run * A.k * NR, depth, c, ldc, from, to, bias, first);
        }
    else
        for (int64_t run = 0; run < A.runs; run++)
            for (int64_t k0 = 0; k0 < A.k; k0 += KC, first = 0) {
                left part = matrix(A.at + run * A.pitch + k0, A.lda, A.k - k0 < KC ? A.k - k0 : KC);
                product_part(&part, rows, b + (run * A.k + k0) * NR, depth, c, ldc, from, to, bias, first);
            }
}

/* Add the residual to finished rows of C and apply the activation, while they are in the cache. */
static void finish(float *c, int64_t ldc, int64_t rows, int64_t n, const float *residual, int kind, float f0, float f1) {
    if (ldc == n && n < 64) { /* short rows that follow each other are one long one */
        ldc = n *= rows;
        rows = 1;
    }
    if (!residual && kind == ACT_NONE) return;
    if (ldc == n) n *= rows, rows = 1;
    for (int64_t m = 0; m < rows; m++) {
        float *row = c + m * ldc;
        if (residual) {
            const float *r = residual + m * ldc;
            for (int64_t j = 0; j < n; j++) row[j] += r[j];
        }
        activate(row, n, kind, f0, f1);
    }
}

/* gemm: p = out[M, N], x[M, K], packed weights, bias[N] or 0, residual[M, N] or 0; i = M, N, K, stride of x's rows,
   activation, rows per block; f = activation parameters. Splits over rows, or over columns where there are few rows. */
static void gemm_rows(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = context;
    (void)worker;
    int64_t M = g->i[0], N = g->i[1], K = g->i[2], lda = g->i[3], block = g->i[5];
    for (int64_t t = begin; t < end; t++) {
        int64_t m = t * block, rows = M - m < block ? M - m : block;
        float *c = (float *)g->p[0] + m * N;
        product(matrix((const float *)g->p[1] + m * lda, lda, K), rows, g->p[2], K, c, N, 0, N, g->p[3]);
        finish(c, N, rows, N, g->p[4] ? (const float *)g->p[4] + m * N : 0, (int)g->i[4], g->f[0], g->f[1]);
    }
}

static void gemm_columns(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = context;
    (void)worker;
    int64_t M = g->i[0], N = g->i[1], from = begin * NR, to = end * NR < N ? end * NR : N;
    float *c = g->p[0];
    product(matrix(g->p[1], g->i[3], g->i[2]), M, g->p[2], g->i[2], c, N, from, to, g->p[3]);
    for (int64_t m = 0; m < M; m++)
        finish(c + m * N + from, to - from, 1, to - from, g->p[4] ? (const float *)g->p[4] + m * N + from : 0, (int)g->i[4], g->f[0],
               g->f[1]);
}

static void gemm(const args *g) {
    int64_t M = g->i[0], N = g->i[1], K = g->i[2], block = g->i[5], blocks = (M + block - 1) / block;
    int64_t panels = (N + NR - 1) / NR, worth = 1 + 60000 / (NR * (K + 1) * (M < block ? M : block) + 1);
    if (blocks >= 2 * flamert_threads() || M > 4 * MR)
        parallel_for(blocks, 1 + 60000 / (block * (K + 1) * N + 1), 64, gemm_rows, (void *)g);
    else
        parallel_for(panels, worth, 64, gemm_columns, (void *)g);
}

/* w [K, N], of any strides, in panels [panels][K][NR], read in the order in which it lies. */
static void pack_panels(float *out, const float *w, int64_t K, int64_t N, int64_t sk, int64_t sn) {
    for (int64_t j = 0; j < N; j += NR, out += K * NR) {
        int64_t width = N - j < NR ? N - j : NR;
        if (sk == 1 && sn != 1)
            for (int64_t k0 = 0; k0 < K; k0 += 16) /* so few rows of the panel that they stay in the cache */
                for (int64_t c = 0; c < width; c++)
                    for (int64_t k = k0; k < K && k < k0 + 16; k++) out[k * NR + c] = w[k + (j + c) * sn];
        else
            for (int64_t k = 0; k < K; k++)
                for (int64_t c = 0; c < width; c++) out[k * NR + c] = w[k * sk + (j + c) * sn];
        for (int64_t k = 0; k < K; k++)
            for (int64_t c = width; c < NR; c++) out[k * NR + c] = 0.0f;
    }
}

/* pack: p = packed[panels][K][NR], w; i = K, N, stride of w along K, stride of w along N. */
static void pack(const args *g) { pack_panels(g->p[0], g->p[1], g->i[0], g->i[1], g->i[2], g->i[3]); }
