/* Depthwise convolutions over NHWC images. Included once per instruction set, after conv.h. */

/* depthwise: as conv with C = N = groups; weights are [KH·KW][C]; work holds OW · C floats for each worker where results lie
   apart. Splits over output rows. */

/* `vectors` of channels of neighbouring pixels; taps [ky0, ky1) × [kx0, kx1) are inside the image for all of them. */
static inline __attribute__((always_inline)) void depthwise_tile(const args *g, const int pixels, const int vectors, const float *in,
                                                                 int64_t ky0, int64_t ky1, int64_t kx0, int64_t kx1, int64_t c, float *out) {
    int64_t W = g->i[2], C = g->i[3], KW = g->i[8], step = g->i[10] * C, dy = g->i[13], dx = g->i[14];
    const float *w = g->p[2], *bias = g->p[3];
    vec acc[4][2];
#pragma GCC unroll 4
    for (int p = 0; p < pixels; p++)
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++) acc[p][j] = bias ? load(bias + c + j * VL) : splat(0.0f);
    for (int64_t ky = ky0; ky < ky1; ky++)
        for (int64_t kx = kx0; kx < kx1; kx++) {
            const float *x = in + (ky * dy * W + kx * dx) * C + c, *tap = w + (ky * KW + kx) * C + c;
#pragma GCC unroll 2
            for (int j = 0; j < vectors; j++) {
                vec weight = load(tap + j * VL);
#pragma GCC unroll 4
                for (int p = 0; p < pixels; p++) acc[p][j] += load(x + p * step + j * VL) * weight;
            }
        }
#pragma GCC unroll 4
    for (int p = 0; p < pixels; p++)
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++) store(out + p * C + c + j * VL, acc[p][j]);
}

/* The channels that are no whole vector. */
static void depthwise_rest(const args *g, const float *in, int64_t ky0, int64_t ky1, int64_t kx0, int64_t kx1, int64_t c, float *out) {
    int64_t W = g->i[2], C = g->i[3], KW = g->i[8];
    const float *w = g->p[2], *bias = g->p[3];
    for (; c < C; c++) {
        float sum = bias ? bias[c] : 0.0f;
        for (int64_t ky = ky0; ky < ky1; ky++)
            for (int64_t kx = kx0; kx < kx1; kx++)
                sum += in[(ky * g->i[13] * W + kx * g->i[14]) * C + c] * w[(ky * KW + kx) * C + c];
        out[c] = sum;
    }
}

static void depthwise_row(const args *g, const float *image, int64_t y0, float *row) {
    int64_t H = g->i[1], W = g->i[2], C = g->i[3], OW = g->i[5], KW = g->i[8], sx = g->i[10], left = g->i[12], dx = g->i[14];
    int64_t ky0, ky1, kx0, kx1;
    taps_inside(y0, H, g->i[7], g->i[13], &ky0, &ky1);
    for (int64_t ox = 0; ox < OW;) {
        int64_t x0 = ox * sx - left, pixels = 1;
        taps_inside(x0, W, KW, dx, &kx0, &kx1);
        if (ox + 4 <= OW && x0 >= 0 && x0 + 3 * sx + (KW - 1) * dx < W) pixels = 4;
        const float *in = image + (y0 * W + x0) * C;
        float *out = row + ox * C;
        int64_t c = 0;
        if (pixels == 4) {
            for (; c + 2 * VL <= C; c += 2 * VL) depthwise_tile(g, 4, 2, in, ky0, ky1, kx0, kx1, c, out);
            for (; c + VL <= C; c += VL) depthwise_tile(g, 4, 1, in, ky0, ky1, kx0, kx1, c, out);
        } else {
            for (; c + 2 * VL <= C; c += 2 * VL) depthwise_tile(g, 1, 2, in, ky0, ky1, kx0, kx1, c, out);
            for (; c + VL <= C; c += VL) depthwise_tile(g, 1, 1, in, ky0, ky1, kx0, kx1, c, out);
        }
        if (c < C)
            for (int64_t p = 0; p < pixels; p++) depthwise_rest(g, in + p * sx * C, ky0, ky1, kx0, kx1, c, out + p * C);
        ox += pixels;
    }
}

static void depthwise_rows(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = context;
    int64_t H = g->i[1], W = g->i[2], C = g->i[3], OH = g->i[4], OW = g->i[5], apart = g->i[20];
    for (int64_t t = begin; t < end; t++) {
        float *row = apart ? (float *)g->p[5] + worker * OW * C : (float *)g->p[0] + t * OW * C;
        depthwise_row(g, (const float *)g->p[1] + t / OH * H * W * C, t % OH * g->i[9] - g->i[11], row);
        if (apart)
            place_rows(g, t * OW, OW, row);
        else
            finish_at(g, t * OW * C, OW, C);
    }
}

static void depthwise(const args *g) {
    int64_t work = g->i[5] * g->i[3] * g->i[7] * g->i[8];
    parallel_for(g->i[0] * g->i[4], 1 + 30000 / (work + 1), (int)g->i[18], depthwise_rows, (void *)g);
}
