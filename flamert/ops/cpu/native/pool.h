/* Pooling over NHWC images. Included once per instruction set, after reduce.h. */

/* pool: p = out[B, OH, OW, C], x[B, H, W, C]; i = B, H, W, C, OH, OW, KH, KW, stride y, x, pad top, left, dilation y, x, kind
   (RED_MAX or RED_MEAN), padding counts, pad bottom, right. The mean divides by the window's pixels inside the image, or, where
   padding counts, inside the image and its padding. */
static void pool_rows(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = context;
    (void)worker;
    int64_t H = g->i[1], W = g->i[2], C = g->i[3], OH = g->i[4], OW = g->i[5], KH = g->i[6], KW = g->i[7];
    int64_t dy = g->i[12], dx = g->i[13];
    int mean = g->i[14] == RED_MEAN;
    for (int64_t t = begin; t < end; t++) {
        const float *image = (const float *)g->p[1] + t / OH * H * W * C;
        int64_t y0 = t % OH * g->i[8] - g->i[10];
        for (int64_t ox = 0; ox < OW; ox++) {
            float *out = (float *)g->p[0] + (t * OW + ox) * C;
            int64_t x0 = ox * g->i[9] - g->i[11], inside = 0, counted = 0;
            for (int64_t ky = 0; ky < KH; ky++)
                for (int64_t kx = 0; kx < KW; kx++) {
                    int64_t y = y0 + ky * dy, x = x0 + kx * dx;
                    counted += y < H + g->i[16] && x < W + g->i[17];
                    if (y < 0 || y >= H || x < 0 || x >= W) continue;
                    const float *in = image + (y * W + x) * C;
                    if (!inside++)
                        memcpy(out, in, C * 4);
                    else if (mean)
                        for (int64_t c = 0; c < C; c++) out[c] += in[c];
                    else
                        for (int64_t c = 0; c < C; c++) out[c] = greater(out[c], in[c]);
                }
            if (!inside)
                for (int64_t c = 0; c < C; c++) out[c] = mean ? 0.0f : bits_to_float((int32_t)0xff800000);
            if (mean) {
                float scale = 1.0f / (float)(g->i[15] ? counted : inside ? inside : 1);
                for (int64_t c = 0; c < C; c++) out[c] *= scale;
            }
        }
    }
}

static void pool(const args *g) {
    parallel_for(g->i[0] * g->i[4], 1 + 16384 / (g->i[5] * g->i[3] * g->i[6] * g->i[7] + 1), 64, pool_rows, (void *)g);
}
