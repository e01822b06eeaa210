/* Convolutions over NHWC images. Included once per instruction set, after gemm.h. */

/* conv: p = out[B, OH, OW, N], x[B, H, W, C], packed weights [G][panels][KH·KW·C/G][NR], bias[N] or 0, residual or 0, work,
   gate or 0; i = B, H, W, C, OH, OW, N, KH, KW, stride y, x, pad top, left, dilation y, x, groups, activation, rows per block,
   workers, few columns, pixels of out from one result to the next, from line to line, from image to image (0, …: results lie
   side by side); f = activation parameters. work holds rows per block · KH·KW·C/G floats for each worker, and rows per block · N
   more where results lie apart; pointwise convolutions need none of the former. With few columns the weights are
   [G][N/G][KH·KW·C/G]. Where the gate is not positive, the result is 0. Residual and gate lie as out does. */

/* Residual, activation and gate for n results that lie `at` floats into out. */
static void finish_at(const args *g, int64_t at, int64_t rows, int64_t n) {
    float *c = (float *)g->p[0] + at;
    finish(c, n, rows, n, g->p[4] ? (const float *)g->p[4] + at : 0, (int)g->i[16], g->f[0], g->f[1]);
    if (g->p[6]) {
        const float *gate = (const float *)g->p[6] + at;
        for (int64_t k = 0; k < rows * n; k++) c[k] = gate[k] > 0.0f ? c[k] : 0.0f;
    }
}

/* Put results m, m + 1, … where they belong, if they lie apart, and finish them. */
static void place_rows(const args *g, int64_t m, int64_t rows, const float *c) {
    int64_t OH = g->i[4], OW = g->i[5], N = g->i[6];
    for (int64_t r = 0; r < rows; r++, m++, c += N) {
        int64_t at = (m / OW / OH * g->i[22] + m / OW % OH * g->i[21] + m % OW * g->i[20]) * N;
        memcpy((float *)g->p[0] + at, c, N * 4);
        finish_at(g, at, 1, N);
    }
}

/* Runs are mostly short and of one length, so that a loop beats a call. */
static inline void copy_run(float *to, const float *from, int64_t n) {
    int64_t k = 0;
    for (; k + VL <= n; k += VL) store(to + k, load(from + k));
    for (; k < n; k++) to[k] = from[k];
}

/* The taps k of a window that starts at `at` with at + k·dilation inside [0, size). */
static inline void taps_inside(int64_t at, int64_t size, int64_t taps, int64_t dilation, int64_t *first, int64_t *end) {
    *first = at < 0 ? (-at + dilation - 1) / dilation : 0;
    *end = at >= size ? 0 : (size - at + dilation - 1) / dilation;
    if (*end > taps) *end = taps;
    if (*first > *end) *first = *end;
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

/* C = patches · weights + bias for one group, with the weights as the layer has them. */
static void weigh(const args *g, int64_t group, left A, int64_t rows, int64_t line, float *c) {
    int64_t N = g->i[6], G = g->i[15], ng = N / G, K = g->i[7] * g->i[8] * (g->i[3] / G), few = g->i[19];
    int64_t columns = few ? ng : (ng + NR - 1) / NR * NR;
    const float *b = (const float *)g->p[2] + group * columns * K, *bias = g->p[3] ? (const float *)g->p[3] + group * ng : 0;
    c += group * ng;
    if (few)
        dots(A, rows, b + line * A.k, K, c, N, ng, bias);
    else
        product(A, rows, b + line * A.k * NR, K, c, N, 0, ng, bias);
}

/* By blocks of output pixels, patches gathered: works for every convolution. Pointwise ones need no gathering. */
static void conv_blocks(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = context;
    int64_t C = g->i[3], N = g->i[6], G = g->i[15], K = g->i[7] * g->i[8] * (C / G), block = g->i[17], M = g->i[0] * g->i[4] * g->i[5];
    int64_t apart = g->i[20] ? N : 0;
    int pointwise = g->i[7] == 1 && g->i[8] == 1 && g->i[9] == 1 && g->i[10] == 1 && !g->i[11] && !g->i[12] && g->i[1] == g->i[4] &&
                    g->i[2] == g->i[5];
    float *work = (float *)g->p[5] + worker * block * (K + apart);
    for (int64_t t = begin; t < end; t++) {
        int64_t m = t * block, rows = M - m < block ? M - m : block;
        float *c = apart ? work + block * K : (float *)g->p[0] + m * N;
        for (int64_t group = 0; group < G; group++) {
            if (!pointwise) gather_patches(g, group, m, rows, work);
            left A = pointwise ? matrix((const float *)g->p[1] + m * C + group * K, C, K) : matrix(work, K, K);
            weigh(g, group, A, rows, 0, c);
        }
        if (apart)
            place_rows(g, m, rows, c);
        else
            finish_at(g, m * N, rows, N);
    }
}

#define SPAN 96 /* output pixels of a line that are worked on at once */

/* Output pixels [*from, *to) of a line: those whose patches are inside the image from left to right. */
static void inner_pixels(const args *g, int64_t *from, int64_t *to) {
    int64_t W = g->i[2], OW = g->i[5], KW = g->i[8], sx = g->i[10], left = g->i[12];
    *from = (left + sx - 1) / sx;
    *to = W + left >= KW ? (W + left - KW) / sx + 1 : 0;
    if (*to > OW) *to = OW;
}

static void gathered(const args *g, int64_t m, int64_t rows, float *work) {
    int64_t K = g->i[7] * g->i[8] * g->i[3], N = g->i[6], block = g->i[17];
    for (int64_t r = 0; r < rows; r += block) {
        int64_t some = rows - r < block ? rows - r : block;
        gather_patches(g, 0, m + r, some, work);
        weigh(g, 0, matrix(work, K, K), some, 0, (float *)g->p[0] + (m + r) * N);
    }
}

/* By spans of output lines, patches read where they lie in the image: each line of a kernel is one run of it. Only the
   pixels at the left and right edges are gathered; lines of the kernel above and below the image are left out. */
static void conv_spans(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = context;
    int64_t H = g->i[1], W = g->i[2], C = g->i[3], OH = g->i[4], OW = g->i[5], N = g->i[6], KW = g->i[8], sx = g->i[10], dy = g->i[13];
    int64_t spans = (OW + SPAN - 1) / SPAN, from, to, ky0, ky1;
    float *work = (float *)g->p[5] + worker * g->i[17] * g->i[7] * KW * C;
    inner_pixels(g, &from, &to);
    for (int64_t t = begin; t < end; t++) {
        int64_t line = t / spans, b = line / OH, x0 = t % spans * SPAN, x1 = x0 + SPAN < OW ? x0 + SPAN : OW;
        int64_t i0 = from < x0 ? x0 : from < x1 ? from : x1, i1 = to < i0 ? i0 : to < x1 ? to : x1;
        int64_t y0 = line % OH * g->i[9] - g->i[11], m = line * OW;
        taps_inside(y0, H, g->i[7], dy, &ky0, &ky1);
        const float *x = (const float *)g->p[1] + ((b * H + y0 + ky0 * dy) * W + i0 * sx - g->i[12]) * C;
        float *c = (float *)g->p[0] + m * N;
        gathered(g, m + x0, i0 - x0, work);
        if (i1 > i0) weigh(g, 0, (left){x, sx * C, KW * C, ky1 - ky0, dy * W * C}, i1 - i0, ky0, c + i0 * N);
        gathered(g, m + i1, x1 - i1, work);
        finish_at(g, (m + x0) * N, x1 - x0, N);
    }
}

static void conv(const args *g) {
    int64_t KH = g->i[7], KW = g->i[8], OW = g->i[5], block = g->i[17], K = KH * KW * g->i[3] / g->i[15], lines = g->i[0] * g->i[4], from, to;
    inner_pixels(g, &from, &to);
    if (!g->i[20] && KH * KW > 1 && g->i[15] == 1 && (KW == 1 || g->i[14] == 1) && to - from >= 2 * HALF)
        parallel_for(lines * ((OW + SPAN - 1) / SPAN), 1 + 60000 / ((OW < SPAN ? OW : SPAN) * K * g->i[6] + 1), (int)g->i[18], conv_spans,
                     (void *)g);
    else
        parallel_for((lines * OW + block - 1) / block, 1 + 60000 / (block * K * g->i[6] + 1), (int)g->i[18], conv_blocks, (void *)g);
}

#define BUFFER 96 /* rows of NR floats that weights are turned in, on their way between layouts */

/* Channels of one panel that are turned at once. */
static inline int64_t turned_at_once(int64_t taps) { return taps <= BUFFER ? BUFFER / taps : 1; }

static inline __attribute__((always_inline)) void copy_strided(float *to, int64_t to_step, const float *from, int64_t step, const int64_t n) {
    for (int64_t k = 0; k < n; k++) to[k * to_step] = from[k * step];
}

/* The taps of one weight; nine of them, which most kernels have, in code of their own. */
static inline void copy_taps(float *to, int64_t pitch, const float *from, int64_t KH, int64_t KW, int64_t sy, int64_t sx) {
    if (KH == 3 && KW == 3)
        for (int ky = 0; ky < 3; ky++) copy_strided(to + ky * 3 * pitch, pitch, from + ky * sy, sx, 3);
    else
        for (int64_t ky = 0; ky < KH; ky++) copy_strided(to + ky * KW * pitch, pitch, from + ky * sy, sx, KW);
}

/* arrange: p = packed weights [G][panels][KH·KW][C][NR], weights; i = G, columns of a group, C, KH, KW, then the strides of the
   weights along these. Columns that are missing in the last panel are zeros. */
static void arrange_channels(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = context;
    (void)worker;
    int64_t columns = g->i[1], C = g->i[2], KH = g->i[3], KW = g->i[4], taps = KH * KW, panels = (columns + NR - 1) / NR;
    int64_t step = turned_at_once(taps), blocks = (C + step - 1) / step, sk = g->i[6], sc = g->i[7], sy = g->i[8], sx = g->i[9];
    float buffer[BUFFER * NR];
    for (int64_t t = begin; t < end; t++) {
        int64_t c0 = t % blocks * step, n = C - c0 < step ? C - c0 : step, j = t / blocks % panels, group = t / blocks / panels;
        int64_t width = columns - j * NR < NR ? columns - j * NR : NR;
        const float *w = (const float *)g->p[1] + group * g->i[5] + j * NR * sk + c0 * sc;
        float *out = (float *)g->p[0] + (t / blocks * taps * C + c0) * NR, *to = taps > BUFFER ? out : buffer;
        int64_t pitch = taps > BUFFER ? C * NR : n * NR; /* from tap to tap; too many for the buffer go straight to their places */
        if (width < NR)
            for (int64_t k = 0; k < taps; k++) memset(to + k * pitch, 0, n * NR * 4);
        for (int64_t k = 0; k < width; k++)
            if (taps == 1)
                copy_strided(to + k, NR, w + k * sk, sc, n);
            else
                for (int64_t c = 0; c < n; c++) copy_taps(to + c * NR + k, pitch, w + k * sk + c * sc, KH, KW, sy, sx);
        if (taps <= BUFFER)
            for (int64_t k = 0; k < taps; k++) copy_run(out + k * C * NR, buffer + k * n * NR, n * NR);
    }
}

static void arrange(const args *g) {
    int64_t panels = (g->i[1] + NR - 1) / NR, taps = g->i[3] * g->i[4], step = turned_at_once(taps);
    parallel_for(g->i[0] * panels * ((g->i[2] + step - 1) / step), 1 + 8192 / (step * taps * NR + 1), 64, arrange_channels, (void *)g);
}
