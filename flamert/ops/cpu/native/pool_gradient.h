/* Gradients of pooling over NHWC images. Included once per instruction set, after pool.h. */

/* pool_gradient: p = dy[B, OH, OW, C], dx[B, H, W, C], x[B, H, W, C] (for maxima); i = as pool. Each window's share goes to the
   first of its maxima, or evenly to all that it has a mean of. Splits over images, and over channels where these are few. */

/* `vectors` of channels of one window. */
static inline __attribute__((always_inline)) void spread_vectors(const args *g, const int vectors, const int mean, const float *dy,
                                                                 const float *x, float *dx, int64_t ky0, int64_t ky1, int64_t kx0,
                                                                 int64_t kx1, float scale) {
    int64_t line = g->i[12] * g->i[2] * g->i[3], pixel = g->i[13] * g->i[3];
    vec share[2], best[2];
    bits first[2], none = {0};
    int32_t tap = 0;
#pragma GCC unroll 2
    for (int j = 0; j < vectors; j++) {
        share[j] = load(dy + j * VL);
        if (mean) share[j] *= splat(scale);
        if (!mean) best[j] = load(x + ky0 * line + kx0 * pixel + j * VL);
        first[j] = none;
    }
    if (!mean)
        for (int64_t ky = ky0; ky < ky1; ky++)
            for (int64_t kx = kx0; kx < kx1; kx++, tap++) {
                const float *from = x + ky * line + kx * pixel;
#pragma GCC unroll 2
                for (int j = 0; j < vectors; j++) {
                    vec v = load(from + j * VL);
                    bits take = ~(bits)(v <= best[j]) & (bits)(best[j] == best[j]); /* greater, or the first NaN */
                    best[j] = (vec)(((bits)v & take) | ((bits)best[j] & ~take));
                    first[j] = ((none + tap) & take) | (first[j] & ~take);
                }
            }
    tap = 0;
    for (int64_t ky = ky0; ky < ky1; ky++)
        for (int64_t kx = kx0; kx < kx1; kx++, tap++) {
            float *to = dx + ky * line + kx * pixel;
#pragma GCC unroll 2
            for (int j = 0; j < vectors; j++)
                store(to + j * VL, load(to + j * VL) + (mean ? share[j] : (vec)((bits)share[j] & (bits)(first[j] == none + tap))));
        }
}

static void spread_number(const args *g, int mean, float share, const float *x, float *dx, int64_t ky0, int64_t ky1, int64_t kx0, int64_t kx1,
                          float scale) {
    int64_t line = g->i[12] * g->i[2] * g->i[3], pixel = g->i[13] * g->i[3], best = ky0 * line + kx0 * pixel;
    for (int64_t ky = ky0; ky < ky1; ky++)
        for (int64_t kx = kx0; kx < kx1; kx++) {
            int64_t at = ky * line + kx * pixel;
            if (mean)
                dx[at] += share * scale;
            else if (x[at] > x[best] || (x[at] != x[at] && x[best] == x[best]))
                best = at;
        }
    if (!mean) dx[best] += share;
}

/* How many channels are taken at once. */
typedef struct {
    const args *g;
    int64_t channels;
} stripe;

static void pool_gradients(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = ((const stripe *)context)->g;
    (void)worker;
    int64_t H = g->i[1], W = g->i[2], C = g->i[3], OH = g->i[4], OW = g->i[5], wide = ((const stripe *)context)->channels;
    int64_t stripes = (C + wide - 1) / wide;
    int mean = g->i[14] == RED_MEAN;
    for (int64_t t = begin; t < end; t++) {
        int64_t b = t / stripes, c0 = t % stripes * wide, c1 = c0 + wide < C ? c0 + wide : C;
        float *image = (float *)g->p[1] + b * H * W * C;
        for (int64_t q = 0; q < H * W; q++) memset(image + q * C + c0, 0, (c1 - c0) * 4);
        for (int64_t o = 0; o < OH * OW; o++) {
            int64_t y = o / OW * g->i[8] - g->i[10], x = o % OW * g->i[9] - g->i[11], ky0, ky1, kx0, kx1, none, rows, columns, c = c0;
            taps_inside(y, H, g->i[6], g->i[12], &ky0, &ky1);
            taps_inside(x, W, g->i[7], g->i[13], &kx0, &kx1);
            taps_inside(y, H + g->i[16], g->i[6], g->i[12], &none, &rows);
            taps_inside(x, W + g->i[17], g->i[7], g->i[13], &none, &columns);
            if (ky1 == ky0 || kx1 == kx0) continue;
            float scale = 1.0f / (float)(g->i[15] ? rows * columns : (ky1 - ky0) * (kx1 - kx0));
            const float *dy = (const float *)g->p[0] + (b * OH * OW + o) * C;
            int64_t at = (y * W + x) * C;
            const float *in = (const float *)g->p[2] + b * H * W * C + at;
            for (; !mean && c + 2 * VL <= c1; c += 2 * VL)
                spread_vectors(g, 2, 0, dy + c, in + c, image + at + c, ky0, ky1, kx0, kx1, scale);
            for (; !mean && c + VL <= c1; c += VL) spread_vectors(g, 1, 0, dy + c, in + c, image + at + c, ky0, ky1, kx0, kx1, scale);
            for (; mean && c + VL <= c1; c += VL) spread_vectors(g, 1, 1, dy + c, 0, image + at + c, ky0, ky1, kx0, kx1, scale);
            for (; c < c1; c++) spread_number(g, mean, dy[c], mean ? 0 : in + c, image + at + c, ky0, ky1, kx0, kx1, scale);
        }
    }
}

static void pool_gradient(const args *g) {
    int64_t C = g->i[3], parts = (4 * flamert_threads() + g->i[0] - 1) / g->i[0], most = (C + 2 * VL - 1) / (2 * VL);
    stripe channels = {g, parts < most ? (most + parts - 1) / parts * 2 * VL : 2 * VL};
    int64_t stripes = (C + channels.channels - 1) / channels.channels;
    parallel_for(g->i[0] * stripes, 1 + 16384 / (g->i[4] * g->i[5] * g->i[6] * g->i[7] * VL + 1), 64, pool_gradients, &channels);
}
