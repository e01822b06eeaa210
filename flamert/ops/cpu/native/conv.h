/* Convolutions over NHWC images. Included once per instruction set, after gemm.h. */

/* conv: p = out[B, OH, OW, N], x[B, H, W, C], packed weights [G][panels][KH·KW·C/G][NR], bias[N] or 0, residual or 0, work;
   i = B, H, W, C, OH, OW, N, KH, KW, stride y, x, pad top, left, dilation y, x, groups, activation, rows per block, workers;
   few columns; f = activation parameters. work holds rows per block · KH·KW·C/G floats for each worker; pointwise convolutions
   need none. With few columns the weights are [G][N/G][KH·KW·C/G]. */

/* Runs are mostly short and of one length, so that a loop beats a call. */
static inline void copy_run(float *to, const float *from, int64_t n) {
    int64_t k = 0;
    for (; k + VL <= n; k += VL) store(to + k, load(from + k));
    for (; k < n; k++) to[k] = from[k];
}

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
                copy_run(to, image + (y * W + x0) * C, KW * cg);
            } else {
                for (int64_t kx = 0; kx < KW; kx++) {
                    int64_t x = x0 + kx * dx;
                    if (x < 0 || x >= W)
                        memset(to + kx * cg, 0, cg * 4);
                    else
                        copy_run(to + kx * cg, image + (y * W + x) * C, cg);
                }
            }
        }
        if (++ox == OW) {
            ox = 0;
            if (++oy == OH) oy = 0, b++;
        }
    }
}

/* Where a block's patches lie in the image itself, `*lda` apart; 0 where they must be gathered. That is so for pointwise
   convolutions, and for kernels of height one while the block stays inside one row. */
static const float *patches_in_place(const args *g, int64_t m, int64_t rows, int64_t *lda) {
    int64_t H = g->i[1], W = g->i[2], C = g->i[3], OH = g->i[4], OW = g->i[5], KW = g->i[8], sx = g->i[10];
    const float *x = g->p[1];
    if (g->i[7] != 1) return 0;
    if (KW == 1 && g->i[9] == 1 && sx == 1 && !g->i[11] && !g->i[12] && H == OH && W == OW) {
        *lda = C;
        return x + m * C;
    }
    int64_t ox = m % OW, oy = m / OW % OH, b = m / OW / OH, x0 = ox * sx - g->i[12], y = oy * g->i[9] - g->i[11];
    if (g->i[15] != 1 || (KW > 1 && g->i[14] != 1) || ox + rows > OW || x0 < 0 || x0 + (rows - 1) * sx + KW > W || y < 0 || y >= H) return 0;
    *lda = sx * C;
    return x + ((b * H + y) * W + x0) * C;
}

static void conv_blocks(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = context;
    int64_t C = g->i[3], N = g->i[6], G = g->i[15], K = g->i[7] * g->i[8] * (C / G), ng = N / G, block = g->i[17];
    int64_t M = g->i[0] * g->i[4] * g->i[5], columns = g->i[19] ? ng : (ng + NR - 1) / NR * NR;
    float *work = (float *)g->p[5] + worker * block * K;
    for (int64_t t = begin; t < end; t++) {
        int64_t m = t * block, rows = M - m < block ? M - m : block, lda = K;
        float *c = (float *)g->p[0] + m * N;
        const float *there = patches_in_place(g, m, rows, &lda);
        for (int64_t group = 0; group < G; group++) {
            const float *a = there ? there + group * K : work, *b = (const float *)g->p[2] + group * columns * K;
            const float *bias = g->p[3] ? (const float *)g->p[3] + group * ng : 0;
            if (!there) gather_patches(g, group, m, rows, work);
            if (g->i[19])
                dots(a, lda, rows, b, K, c + group * ng, N, ng, bias);
            else
                product(a, lda, rows, b, K, c + group * ng, N, 0, ng, bias);
        }
        finish(c, N, rows, N, g->p[4] ? (const float *)g->p[4] + m * N : 0, (int)g->i[16], g->f[0], g->f[1]);
    }
}

static void conv(const args *g) {
    int64_t M = g->i[0] * g->i[4] * g->i[5], block = g->i[17], flops = block * g->i[7] * g->i[8] * g->i[3] / g->i[15] * g->i[6];
    parallel_for((M + block - 1) / block, 1 + 60000 / (flops + 1), (int)g->i[18], conv_blocks, (void *)g);
}

