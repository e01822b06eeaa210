/* Convolutions over NHWC images. Included once per instruction set, after gemm.h. */

/* conv: p = out[B, OH, OW, N], x[B, H, W, C], packed weights [G][panels][KH·KW·C/G][NR], bias[N] or 0, residual or 0, work;
   i = B, H, W, C, OH, OW, N, KH, KW, stride y, x, pad top, left, dilation y, x, groups, activation, rows per block, workers;
   f = activation parameters. work holds rows per block · KH·KW·C/G floats for each worker; pointwise convolutions need none. */

/* Copy the patches under output rows [m, m + rows) of one group into consecutive rows of `to`. */
static void gather_patches(const args *g, int64_t group, int64_t m, int64_t rows, float *to) {
    int64_t H = g->i[1], W = g->i[2], C = g->i[3], OH = g->i[4], OW = g->i[5], KH = g->i[7], KW = g->i[8];
    int64_t sy = g->i[9], sx = g->i[10], dy = g->i[13], dx = g->i[14], cg = C / g->i[15];
    int64_t ox = m % OW, oy = m / OW % OH, b = m / OW / OH;
    for (int64_t r = 0; r < rows; r++) {
        const float *image = (const float *)g->p[1] + b * H * W * C + group * cg;
        int64_t y0 = oy * sy - g->i[11], x0 = ox * sx - g->i[12];
        for (int64_t ky = 0; ky < KH; ky++, to += KW * cg) {
            int64_t y = y0 + ky * dy;
            if (y < 0 || y >= H) {
                memset(to, 0, KW * cg * 4);
            } else if (dx == 1 && cg == C && x0 >= 0 && x0 + KW <= W) {
                memcpy(to, image + (y * W + x0) * C, KW * cg * 4);
            } else {
                for (int64_t kx = 0; kx < KW; kx++) {
                    int64_t x = x0 + kx * dx;
                    if (x < 0 || x >= W)
                        memset(to + kx * cg, 0, cg * 4);
                    else
                        memcpy(to + kx * cg, image + (y * W + x) * C, cg * 4);
                }
            }
        }
        if (++ox == OW) {
            ox = 0;
            if (++oy == OH) oy = 0, b++;
        }
    }
}

static void conv_blocks(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = context;
    int64_t C = g->i[3], N = g->i[6], G = g->i[15], K = g->i[7] * g->i[8] * (C / G), ng = N / G, block = g->i[17];
    int64_t M = g->i[0] * g->i[4] * g->i[5], panels = (ng + NR - 1) / NR;
    int direct = g->i[7] == 1 && g->i[8] == 1 && g->i[9] == 1 && g->i[10] == 1 && !g->i[11] && !g->i[12] && g->i[1] == g->i[4] && g->i[2] == g->i[5];
    float *work = (float *)g->p[5] + worker * block * K;
    for (int64_t t = begin; t < end; t++) {
        int64_t m = t * block, rows = M - m < block ? M - m : block;
        float *c = (float *)g->p[0] + m * N;
        for (int64_t group = 0; group < G; group++) {
            const float *a = direct ? (const float *)g->p[1] + m * C + group * K : work;
            if (!direct) gather_patches(g, group, m, rows, work);
            product(a, direct ? C : K, rows, (const float *)g->p[2] + group * panels * K * NR, K, c + group * ng, N, 0, ng,
                    g->p[3] ? (const float *)g->p[3] + group * ng : 0);
        }
        finish(c, N, rows, N, g->p[4] ? (const float *)g->p[4] + m * N : 0, (int)g->i[16], g->f[0], g->f[1]);
    }
}

static void conv(const args *g) {
    int64_t M = g->i[0] * g->i[4] * g->i[5], block = g->i[17], flops = block * g->i[7] * g->i[8] * g->i[3] / g->i[15] * g->i[6];
    parallel_for((M + block - 1) / block, 1 + 60000 / (flops + 1), (int)g->i[18], conv_blocks, (void *)g);
}

/* depthwise: as conv with C = N = groups; weights are [KH·KW][C]; no work. Splits over output rows. */
static inline __attribute__((always_inline)) void depthwise_run(const args *g, const int vectors, const float *image, int64_t y0, int64_t x0,
                                                                int64_t c, float *out) {
    int64_t H = g->i[1], W = g->i[2], C = g->i[3], KH = g->i[7], KW = g->i[8], dy = g->i[13], dx = g->i[14];
    const float *w = g->p[2], *bias = g->p[3];
    vec acc[4];
#pragma GCC unroll 4
    for (int j = 0; j < vectors; j++) acc[j] = bias ? load(bias + c + j * VL) : splat(0.0f);
    for (int64_t ky = 0; ky < KH; ky++) {
        int64_t y = y0 + ky * dy;
        if (y < 0 || y >= H) continue;
        for (int64_t kx = 0; kx < KW; kx++) {
            int64_t x = x0 + kx * dx;
            if (x < 0 || x >= W) continue;
            const float *in = image + (y * W + x) * C + c, *tap = w + (ky * KW + kx) * C + c;
#pragma GCC unroll 4
            for (int j = 0; j < vectors; j++) acc[j] += load(in + j * VL) * load(tap + j * VL);
        }
    }
#pragma GCC unroll 4
    for (int j = 0; j < vectors; j++) store(out + c + j * VL, acc[j]);
}

static void depthwise_rows(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = context;
    (void)worker;
    int64_t H = g->i[1], W = g->i[2], C = g->i[3], OH = g->i[4], OW = g->i[5], KH = g->i[7], KW = g->i[8];
    const float *w = g->p[2], *bias = g->p[3];
    for (int64_t t = begin; t < end; t++) {
        const float *image = (const float *)g->p[1] + t / OH * H * W * C;
        float *row = (float *)g->p[0] + t * OW * C;
        int64_t y0 = t % OH * g->i[9] - g->i[11];
        for (int64_t ox = 0; ox < OW; ox++) {
            float *out = row + ox * C;
            int64_t x0 = ox * g->i[10] - g->i[12], c = 0;
            for (; c + 4 * VL <= C; c += 4 * VL) depthwise_run(g, 4, image, y0, x0, c, out);
            for (; c + VL <= C; c += VL) depthwise_run(g, 1, image, y0, x0, c, out);
            for (; c < C; c++) {
                float sum = bias ? bias[c] : 0.0f;
                for (int64_t ky = 0; ky < KH; ky++)
                    for (int64_t kx = 0; kx < KW; kx++) {
                        int64_t y = y0 + ky * g->i[13], x = x0 + kx * g->i[14];
                        if (y >= 0 && y < H && x >= 0 && x < W) sum += image[(y * W + x) * C + c] * w[(ky * KW + kx) * C + c];
                    }
                out[c] = sum;
            }
        }
        finish(row, C, OW, C, g->p[4] ? (const float *)g->p[4] + t * OW * C : 0, (int)g->i[16], g->f[0], g->f[1]);
    }
}

static void depthwise(const args *g) {
    int64_t work = g->i[5] * g->i[3] * g->i[7] * g->i[8];
    parallel_for(g->i[0] * g->i[4], 1 + 30000 / (work + 1), 64, depthwise_rows, (void *)g);
}
