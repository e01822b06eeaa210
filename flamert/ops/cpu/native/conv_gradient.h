/* The gradient of a convolution's weights, over NHWC images: a matrix product that sums over pixels. Included once per
   instruction set, after conv.h.

   dy is packed into panels of NR output channels, [panel][pixel][NR]; x into strips of up to MR input channels,
   [strip][line][pixel][width]. For one panel, one strip and one tap of the kernel, MR · NR sums stay in registers while pixels
   pass by. Every sum is made by one thread in an order that depends on the shapes alone. */

#define PIXELS 256 /* of a panel that stay in the first-level cache while strips pass over them */

/* Where few channels have many taps, the strip is the padded line, and its rows are all that a line of the kernel covers. */
static int by_lines(const args *g) {
    return g->i[8] > 1 && g->i[14] == 1 && 2 * (g->i[3] / g->i[15]) <= MR;
}

/* Pixels of a line of packed x. */
static int64_t line_width(const args *g) { return by_lines(g) ? (g->i[5] - 1) * g->i[10] + g->i[8] : g->i[2]; }

static inline int64_t panels_of(const args *g) { return (g->i[6] / g->i[15] + NR - 1) / NR; }

/* n floats in whole vectors: what lies behind them is read and overwritten too. */
static inline void copy_vectors(float *to, const float *from, int64_t n) {
    for (int64_t k = 0; k < n; k += VL) store(to + k, load(from + k));
}

static void pack_lines(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = context;
    (void)worker;
    int64_t lines = g->i[0] * g->i[1], W = g->i[2], C = g->i[3], G = g->i[15], cg = C / G, width = line_width(g), left = g->i[12];
    float *packed = g->p[4];
    for (int64_t line = begin; line < end; line++)
        for (int64_t group = 0; group < G; group++) {
            const float *from = (const float *)g->p[1] + line * W * C + group * cg;
            float *to = packed + (group * lines + line) * width * cg;
            for (int64_t q = 0; q < width; q++, to += cg)
                for (int64_t c = 0; c < cg; c++) to[c] = q >= left && q < left + W ? from[(q - left) * C + c] : 0.0f;
        }
}

static void pack_strips(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = context;
    (void)worker;
    int64_t pixels = g->i[0] * g->i[1] * g->i[2], C = g->i[3], G = g->i[15], cg = C / G, strips = (cg + MR - 1) / MR;
    float *packed = g->p[4];
    for (int64_t t = begin; t < end; t++) {
        int64_t q0 = t * 16, q1 = q0 + 16 < pixels ? q0 + 16 : pixels;
        for (int64_t group = 0; group < G; group++)
            for (int64_t s = 0; s < strips; s++) {
                int64_t c0 = s * cg / strips, w = (s + 1) * cg / strips - c0;
                const float *from = (const float *)g->p[1] + group * cg + c0;
                float *to = packed + (group * cg + c0) * pixels;
                int64_t wide = (w + VL - 1) / VL * VL, q = q0; /* floats that are copied at once, where that stays inside */
                for (; (q1 - q) * w >= wide && (pixels - q) * C >= group * cg + c0 + wide; q++) copy_vectors(to + q * w, from + q * C, w);
                for (; q < q1; q++)
                    for (int64_t k = 0; k < w; k++) to[q * w + k] = from[q * C + k];
            }
    }
}

static void pack_upstream(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = context;
    (void)worker;
    int64_t pixels = g->i[0] * g->i[4] * g->i[5], N = g->i[6], G = g->i[15], ng = N / G, panels = panels_of(g);
    float *packed = g->p[5];
    for (int64_t t = begin; t < end; t++) {
        int64_t q0 = t * 16, q1 = q0 + 16 < pixels ? q0 + 16 : pixels;
        for (int64_t group = 0; group < G; group++)
            for (int64_t j = 0; j < panels; j++) {
                int64_t w = ng - j * NR < NR ? ng - j * NR : NR;
                const float *from = (const float *)g->p[2] + group * ng + j * NR;
                float *to = packed + (group * panels + j) * pixels * NR;
                for (int64_t q = q0; q < q1; q++)
                    if (w == NR)
                        copy_vectors(to + q * NR, from + q * N, NR);
                    else
                        for (int64_t k = 0; k < NR; k++) to[q * NR + k] = k < w ? from[q * N + k] : 0.0f;
            }
    }
}

/* A stretch of output lines, as a tile walks over it: n pixels of each. Their operands lie `step` floats apart in x, lines
   `pitch` apart in x and `panel` in dy; `oy` counts lines of the image that starts at line `base` of x. */
typedef struct {
    int64_t lines, n, step, pitch, panel, oy, base, OH, H, sy, shift;
} stretch;

/* C[rows, vectors·VL] += Σ x · dy over a stretch; rows of C are NR apart. */
static inline __attribute__((always_inline)) void gradient_tile(const int rows, const int vectors, const stretch *s, const float *x,
                                                                const float *dy, float *c) {
    vec acc[MR][2];
    int64_t oy = s->oy, base = s->base, step = s->step;
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++) acc[r][j] = splat(0.0f);
    for (int64_t line = 0; line < s->lines; line++, dy += s->panel) {
        int64_t y = oy * s->sy + s->shift;
        if (y >= 0 && y < s->H) {
            const float *a = x + (base + y) * s->pitch, *b = dy;
            for (int64_t k = 0; k < s->n; k++, a += step, b += NR) {
                vec w[2];
#pragma GCC unroll 2
                for (int j = 0; j < vectors; j++) w[j] = load(b + j * VL);
#pragma GCC unroll 16
                for (int r = 0; r < rows; r++) {
                    vec v = splat(a[r]);
#pragma GCC unroll 2
                    for (int j = 0; j < vectors; j++) acc[r][j] += v * w[j];
                }
            }
        }
        if (++oy == s->OH) oy = 0, base += s->H;
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++) store(c + r * NR + j * VL, load(c + r * NR + j * VL) + acc[r][j]);
}

#define GRADIENT(ROWS)                                                                                                                  \
    static __attribute__((noinline)) void gradient_##ROWS(const stretch *s, const float *x, const float *dy, float *c, int half) { \
        if (half)                                                                                                                       \
            gradient_tile(ROWS, 1, s, x, dy, c);                                                                                        \
        else                                                                                                                            \
            gradient_tile(ROWS, 2, s, x, dy, c);                                                                                        \
    }
typedef void (*gradient_fn)(const stretch *, const float *, const float *, float *, int);

GRADIENT(1) GRADIENT(2) GRADIENT(3) GRADIENT(4) GRADIENT(5) GRADIENT(6)
#if MR > 6
GRADIENT(7) GRADIENT(8) GRADIENT(9) GRADIENT(10) GRADIENT(11) GRADIENT(12)
static const gradient_fn gradients[MR + 1] = {0, gradient_1, gradient_2, gradient_3, gradient_4, gradient_5, gradient_6,
                                              gradient_7, gradient_8, gradient_9, gradient_10, gradient_11, gradient_12};
#else
static const gradient_fn gradients[MR + 1] = {0, gradient_1, gradient_2, gradient_3, gradient_4, gradient_5, gradient_6};
#endif

/* Add what output pixels [x0, x1) of the lines of `s` contribute to line ky of the kernel. c: the panel's sums of that line. */
static void add_by_lines(const args *g, stretch *s, int64_t group, const float *dy, int64_t x0, int64_t x1, float *c, int half) {
    int64_t cg = g->i[3] / g->i[15], rows = g->i[8] * cg, tiles = (rows + MR - 1) / MR;
    const float *x = (const float *)g->p[4] + group * g->i[0] * g->i[1] * line_width(g) * cg + x0 * g->i[10] * cg;
    s->n = x1 - x0, s->step = g->i[10] * cg, s->pitch = line_width(g) * cg;
    for (int64_t t = 0; t < tiles; t++) {
        int64_t r = t * rows / tiles;
        gradients[(t + 1) * rows / tiles - r](s, x + r, dy + x0 * NR, c + r * NR, half);
    }
}

/* The same for one strip; tap by tap, without the pixels where the tap lies beside the image. */
static void add_strip(const args *g, stretch *s, int64_t group, int64_t strip, const float *dy, int64_t x0, int64_t x1, float *c, int half) {
    int64_t W = g->i[2], cg = g->i[3] / g->i[15], strips = (cg + MR - 1) / MR, sx = g->i[10];
    int64_t c0 = strip * cg / strips, w = (strip + 1) * cg / strips - c0;
    const float *x = (const float *)g->p[4] + (group * cg + c0) * g->i[0] * g->i[1] * W;
    s->step = sx * w, s->pitch = W * w;
    for (int64_t kx = 0; kx < g->i[8]; kx++) {
        int64_t shift = kx * g->i[14] - g->i[12], from = shift < 0 ? (-shift + sx - 1) / sx : 0, to = (W - shift + sx - 1) / sx;
        if (from < x0) from = x0;
        if (W <= shift) to = 0;
        if (to > x1) to = x1;
        s->n = to - from;
        if (s->n > 0) gradients[w](s, x + (from * sx + shift) * w, dy + from * NR, c + (kx * cg + c0) * NR, half);
    }
}

/* Sums of one panel over units [begin, end): strips, or lines of the kernel. */
static void gradient_of_panel(const args *g, int64_t group, int64_t panel, int64_t begin, int64_t end) {
    int64_t H = g->i[1], OH = g->i[4], OW = g->i[5], KH = g->i[7], KW = g->i[8], cg = g->i[3] / g->i[15], ng = g->i[6] / g->i[15];
    int64_t all = g->i[0] * OH, lines = OW >= PIXELS ? 1 : PIXELS / OW, columns = OW < 2 * PIXELS ? OW : PIXELS;
    int half = ng - panel * NR <= VL, lying = by_lines(g);
    float *sums = (float *)g->p[3] + (group * panels_of(g) + panel) * KH * KW * cg * NR;
    const float *upstream = (const float *)g->p[5] + (group * panels_of(g) + panel) * all * OW * NR;
    for (int64_t line = 0; line < all; line += lines)
        for (int64_t x0 = 0; x0 < OW; x0 += columns) {
            int64_t x1 = x0 + columns < OW ? x0 + columns : OW;
            stretch s = {.lines = all - line < lines ? all - line : lines, .panel = OW * NR, .oy = line % OH, .base = line / OH * H,
                         .OH = OH, .H = H, .sy = g->i[9]};
            const float *dy = upstream + line * OW * NR;
            for (int64_t u = begin; u < end; u++)
                for (int64_t ky = lying ? u : 0; ky < (lying ? u + 1 : KH); ky++) {
                    s.shift = ky * g->i[13] - g->i[11];
                    if (lying)
                        add_by_lines(g, &s, group, dy, x0, x1, sums + ky * KW * cg * NR, half);
                    else
                        add_strip(g, &s, group, u, dy, x0, x1, sums + ky * KW * cg * NR, half);
                }
        }
}

static int64_t units_of(const args *g) { return by_lines(g) ? g->i[7] : (g->i[3] / g->i[15] + MR - 1) / MR; }

/* In how many parts the units of a panel are dealt with. */
typedef struct {
    const args *g;
    int64_t parts;
} division;

static void gradient_parts(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = ((const division *)context)->g;
    (void)worker;
    int64_t parts = ((const division *)context)->parts, units = units_of(g), panels = panels_of(g);
    for (int64_t t = begin; t < end; t++)
        gradient_of_panel(g, t / parts / panels, t / parts % panels, t % parts * units / parts, (t % parts + 1) * units / parts);
}

/* Sums [group][panel][KH·KW][C/G][NR] → out[N, C/G, KH, KW]. */
static void unpack_sums(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = context;
    (void)worker;
    int64_t G = g->i[15], cg = g->i[3] / G, ng = g->i[6] / G, taps = g->i[7] * g->i[8], panels = panels_of(g);
    int64_t step = turned_at_once(taps), blocks = (cg + step - 1) / step;
    float buffer[BUFFER * NR];
    for (int64_t t = begin; t < end; t++) {
        int64_t c0 = t % blocks * step, n = cg - c0 < step ? cg - c0 : step, j = t / blocks % panels, group = t / blocks / panels;
        int64_t width = ng - j * NR < NR ? ng - j * NR : NR, pitch = taps > BUFFER ? cg * NR : n * NR;
        const float *sums = (const float *)g->p[3] + (t / blocks * taps * cg + c0) * NR, *from = taps > BUFFER ? sums : buffer;
        float *out = (float *)g->p[0] + ((group * ng + j * NR) * cg + c0) * taps;
        if (taps <= BUFFER)
            for (int64_t k = 0; k < taps; k++) copy_run(buffer + k * n * NR, sums + k * cg * NR, n * NR);
        for (int64_t m = 0; m < width; m++)
            if (taps == 1)
                copy_strided(out + m * cg, 1, from + m, NR, n);
            else if (taps == 9)
                for (int64_t c = 0; c < n; c++) copy_strided(out + (m * cg + c) * 9, 1, from + c * NR + m, pitch, 9);
            else
                for (int64_t c = 0; c < n; c++) copy_strided(out + (m * cg + c) * taps, 1, from + c * NR + m, pitch, taps);
    }
}

/* conv_gradient: p = out[N, C/G, KH, KW], x[B, H, W, C], dy[B, OH, OW, N], sums, packed x, packed dy; i = as conv up to groups.
   Sums hold G · panels · KH·KW·C/G · NR floats, packed dy G · panels · NR · B·OH·OW, packed x C · B·H · the line's width. */
static void conv_gradient(const args *g) {
    int64_t G = g->i[15], panels = G * panels_of(g), taps = g->i[7] * g->i[8], cg = g->i[3] / G;
    int64_t pixels = g->i[0] * g->i[4] * g->i[5], parts = (8 * flamert_threads() + panels - 1) / panels;
    int64_t step = turned_at_once(taps);
    division whole = {g, parts < units_of(g) ? parts : units_of(g)};
    memset(g->p[3], 0, panels * taps * cg * NR * 4);
    if (by_lines(g))
        parallel_for(g->i[0] * g->i[1], 1 + 16384 / (g->i[2] * g->i[3] + 1), 64, pack_lines, (void *)g);
    else
        parallel_for((g->i[0] * g->i[1] * g->i[2] + 15) / 16, 1 + 1024 / (g->i[3] + 1), 64, pack_strips, (void *)g);
    parallel_for((pixels + 15) / 16, 1 + 1024 / (g->i[6] + 1), 64, pack_upstream, (void *)g);
    parallel_for(panels * whole.parts, 1 + 60000 / (pixels * NR * taps * cg / whole.parts + 1), 64, gradient_parts, &whole);
    parallel_for(panels * ((cg + step - 1) / step), 1 + 8192 / (step * taps * NR), 64, unpack_sums, (void *)g);
}

/* depthwise_gradient: p = out[C, 1, KH, KW], x, dy; i = as conv, with C = N = groups; KH·KW ≤ MOST_TAPS. */
#define MOST_TAPS 256

static void depthwise_gradients(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = context;
    (void)worker;
    int64_t B = g->i[0], H = g->i[1], W = g->i[2], C = g->i[3], OH = g->i[4], OW = g->i[5], KH = g->i[7], KW = g->i[8], sx = g->i[10];
    for (int64_t t = begin; t < end; t++) {
        int64_t c = t * VL, width = C - c < VL ? C - c : VL;
        vec total[MOST_TAPS];
        for (int64_t k = 0; k < KH * KW; k++) total[k] = splat(0.0f);
        for (int64_t line = 0; line < B * OH; line++)
            for (int64_t k = 0; k < KH * KW; k++) {
                int64_t y = line % OH * g->i[9] + k / KW * g->i[13] - g->i[11], shift = k % KW * g->i[14] - g->i[12];
                int64_t from = shift < 0 ? (-shift + sx - 1) / sx : 0, to = W <= shift ? 0 : (W - shift + sx - 1) / sx;
                if (y < 0 || y >= H) continue;
                if (to > OW) to = OW;
                const float *x = (const float *)g->p[1] + ((line / OH * H + y) * W + shift) * C + c;
                const float *dy = (const float *)g->p[2] + line * OW * C + c;
                vec acc[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
                if (width < VL) {
                    for (int64_t o = from; o < to; o++)
                        for (int64_t l = 0; l < width; l++) acc[0][l] += x[o * sx * C + l] * dy[o * C + l];
                } else {
                    int64_t o = from;
                    for (; o + 4 <= to; o += 4)
#pragma GCC unroll 4
                        for (int p = 0; p < 4; p++) acc[p] += load(x + (o + p) * sx * C) * load(dy + (o + p) * C);
                    for (; o < to; o++) acc[0] += load(x + o * sx * C) * load(dy + o * C);
                }
                total[k] += (acc[0] + acc[1]) + (acc[2] + acc[3]);
            }
        for (int64_t l = 0; l < width; l++)
            for (int64_t k = 0; k < KH * KW; k++) ((float *)g->p[0])[(c + l) * KH * KW + k] = total[k][l];
    }
}

static void depthwise_gradient(const args *g) {
    parallel_for((g->i[3] + VL - 1) / VL, 1 + 30000 / (g->i[0] * g->i[4] * g->i[5] * g->i[7] * g->i[8] * VL + 1), 64, depthwise_gradients,
                 (void *)g);
}
