/* Pooling over NHWC images. Included once per instruction set, after reduce.h. */

/* pool: p = out[B, OH, OW, C], x[B, H, W, C]; i = B, H, W, C, OH, OW, KH, KW, stride y, x, pad top, left, dilation y, x, kind
   (RED_MAX or RED_MEAN), padding counts, pad bottom, right. The mean divides by the window's pixels inside the image, or, where
   padding counts, inside the image and its padding. */
typedef int32_t bits __attribute__((vector_size(4 * VL), may_alias));

static inline vec greater_vec(vec a, vec b) {
    bits take = (bits)(a > b) | (bits)(a != a);
    return (vec)(((bits)a & take) | ((bits)b & ~take));
}

/* `vectors` of channels of one pixel; taps [ky0, ky1) × [kx0, kx1) are inside the image, and at least one of them. */
static inline __attribute__((always_inline)) void pool_tile(const args *g, const int vectors, const int mean, const float *in, int64_t ky0,
                                                            int64_t ky1, int64_t kx0, int64_t kx1, float scale, float *out) {
    int64_t W = g->i[2], C = g->i[3], dy = g->i[12], dx = g->i[13];
    vec acc[4];
#pragma GCC unroll 4
    for (int j = 0; j < vectors; j++) {
        if (mean)
            acc[j] = splat(0.0f);
        else
            acc[j] = load(in + (ky0 * dy * W + kx0 * dx) * C + j * VL);
    }
    for (int64_t ky = ky0; ky < ky1; ky++)
        for (int64_t kx = kx0; kx < kx1; kx++) {
            const float *x = in + (ky * dy * W + kx * dx) * C;
#pragma GCC unroll 4
            for (int j = 0; j < vectors; j++) {
                if (mean)
                    acc[j] += load(x + j * VL);
                else
                    acc[j] = greater_vec(acc[j], load(x + j * VL));
            }
        }
#pragma GCC unroll 4
    for (int j = 0; j < vectors; j++) {
        if (mean) acc[j] *= splat(scale);
        store(out + j * VL, acc[j]);
    }
}

/* All channels of one pixel; what is no whole vector one by one. */
static inline __attribute__((always_inline)) void pool_pixel(const args *g, const int mean, const float *in, int64_t ky0, int64_t ky1,
                                                             int64_t kx0, int64_t kx1, float scale, float *out) {
    int64_t W = g->i[2], C = g->i[3], dy = g->i[12], dx = g->i[13], c = 0;
    for (; c + 4 * VL <= C; c += 4 * VL) pool_tile(g, 4, mean, in + c, ky0, ky1, kx0, kx1, scale, out + c);
    for (; c + VL <= C; c += VL) pool_tile(g, 1, mean, in + c, ky0, ky1, kx0, kx1, scale, out + c);
    for (; c < C; c++) {
        float y = mean ? 0.0f : in[(ky0 * dy * W + kx0 * dx) * C + c];
        for (int64_t ky = ky0; ky < ky1; ky++)
            for (int64_t kx = kx0; kx < kx1; kx++) {
                float x = in[(ky * dy * W + kx * dx) * C + c];
                y = mean ? y + x : greater(y, x);
            }
        out[c] = mean ? y * scale : y;
    }
}

static void pool_rows(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = context;
    (void)worker;
    int64_t H = g->i[1], W = g->i[2], C = g->i[3], OH = g->i[4], OW = g->i[5], KH = g->i[6], KW = g->i[7], dy = g->i[12], dx = g->i[13];
    int mean = g->i[14] == RED_MEAN;
    for (int64_t t = begin; t < end; t++) {
        const float *image = (const float *)g->p[1] + t / OH * H * W * C;
        int64_t y0 = t % OH * g->i[8] - g->i[10], ky0, ky1, kx0, kx1, none, rows, columns;
        taps_inside(y0, H, KH, dy, &ky0, &ky1);
        taps_inside(y0, H + g->i[16], KH, dy, &none, &rows);
        for (int64_t ox = 0; ox < OW; ox++) {
            float *out = (float *)g->p[0] + (t * OW + ox) * C;
            int64_t x0 = ox * g->i[9] - g->i[11];
            taps_inside(x0, W, KW, dx, &kx0, &kx1);
            taps_inside(x0, W + g->i[17], KW, dx, &none, &columns);
            int64_t inside = (ky1 - ky0) * (kx1 - kx0);
            const float *in = image + (y0 * W + x0) * C;
            if (!inside)
                for (int64_t c = 0; c < C; c++) out[c] = mean ? 0.0f : bits_to_float((int32_t)0xff800000);
            else if (mean)
                pool_pixel(g, 1, in, ky0, ky1, kx0, kx1, 1.0f / (float)(g->i[15] ? rows * columns : inside), out);
            else
                pool_pixel(g, 0, in, ky0, ky1, kx0, kx1, 1.0f, out);
        }
    }
}

static void pool(const args *g) {
    parallel_for(g->i[0] * g->i[4], 1 + 16384 / (g->i[5] * g->i[3] * g->i[6] * g->i[7] + 1), 64, pool_rows, (void *)g);
}
