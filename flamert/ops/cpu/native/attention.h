/* softmax(scale · q·kᵀ + mask) · v, a block of queries at a time, so that scores never leave the cache. Included once per
   instruction set, after reduce.h. */

#define QUERIES 24 /* of a block: whole tiles for every processor */
#define STRETCH 192 /* queries that share one packing of k and v */

enum mask { MASK_NONE, MASK_ADD, MASK_BOOL };

/* attention: p = out[B, HQ, L, DV], q, k, v, mask or 0, work; i = B, HQ, query heads per head of k, L, S, D, DV, then strides
   of q, k, v (batch, head, row, element) and the mask (batch, head, query, key), kind of mask, left, right (−1: unbounded),
   offset; f = scale, softcap (0: none), workers. work holds attention_work floats for each worker. */

static inline int64_t padded(int64_t n) { return (n + NR - 1) / NR * NR; }

static int64_t attention_work(int64_t S, int64_t D, int64_t DV) {
    return padded(S) * D + padded(DV) * S + QUERIES * (D + padded(S));
}

/* Keys [*from, *to) that query l may see. */
static void keys_in_sight(const args *g, int64_t l, int64_t *from, int64_t *to) {
    int64_t S = g->i[4], left = g->i[24], right = g->i[25], at = l + g->i[26];
    *from = left < 0 || at < left ? 0 : at - left;
    *to = right < 0 || at + right + 1 > S ? S : at + right + 1;
    if (*to < 0) *to = 0;
    if (*from > *to) *from = *to;
}

/* One row of scores over keys [lo, hi), of which [from, to) count: capped, masked, exponentiated. Returns their sum. */
static float exponentials(const args *g, float *x, int64_t lo, int64_t hi, int64_t from, int64_t to, const char *mask) {
    int64_t step = g->i[22], n = to - from;
    float cap = g->f[1], top = -3.4028234664e38f;
    for (int64_t j = lo; j < from; j++) x[j - lo] = 0.0f;
    for (int64_t j = to; j < hi; j++) x[j - lo] = 0.0f;
    x += from - lo;
    if (cap > 0.0f)
        for (int64_t j = 0; j < n; j++) x[j] = cap * vtanh(x[j] / cap);
    if (g->i[23] == MASK_ADD) {
        const float *m = (const float *)mask + from * step;
        for (int64_t j = 0; j < n; j++) x[j] += m[j * step];
    } else if (g->i[23] == MASK_BOOL) {
        const uint8_t *m = (const uint8_t *)mask + from * step;
        for (int64_t j = 0; j < n; j++) x[j] = m[j * step] ? x[j] : bits_to_float((int32_t)0xff800000);
    }
    if (n > 0) top = greater(row_extremum(x, n, RED_MAX), top); /* a row of −∞ alone gives zeros */
    for (int64_t j = 0; j < n; j++) x[j] = vexp(x[j] - top);
    return n > 0 ? row_sum(x, n) : 0.0f;
}

static void attention_blocks(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = context;
    const int64_t *sq = g->i + 7, *sk = g->i + 11, *sv = g->i + 15, *sm = g->i + 19;
    int64_t HQ = g->i[1], group = g->i[2], L = g->i[3], S = g->i[4], D = g->i[5], DV = g->i[6], stretches = (L + STRETCH - 1) / STRETCH;
    float *keys = (float *)g->p[5] + worker * attention_work(S, D, DV), *values = keys + padded(S) * D;
    float *queries = values + padded(DV) * S, *scores = queries + QUERIES * D;
    for (int64_t t = begin; t < end; t++) {
        int64_t l0 = t % stretches * STRETCH, l1 = l0 + STRETCH < L ? l0 + STRETCH : L, h = t / stretches % HQ, b = t / stretches / HQ;
        const float *q = (const float *)g->p[1] + b * sq[0] + h * sq[1];
        pack_panels(keys, (const float *)g->p[2] + b * sk[0] + h / group * sk[1], D, S, sk[3], sk[2]);
        pack_panels(values, (const float *)g->p[3] + b * sv[0] + h / group * sv[1], S, DV, sv[2], sv[3]);
        for (int64_t l = l0; l < l1; l += QUERIES) {
            int64_t rows = l1 - l < QUERIES ? l1 - l : QUERIES, lo, hi, from, to;
            float *out = (float *)g->p[0] + ((b * HQ + h) * L + l) * DV, sums[QUERIES];
            keys_in_sight(g, l, &lo, &to);
            keys_in_sight(g, l + rows - 1, &from, &hi);
            lo = lo / NR * NR;
            int64_t n = hi > lo ? hi - lo : 0;
            for (int64_t r = 0; r < rows; r++)
                for (int64_t d = 0; d < D; d++) queries[r * D + d] = q[(l + r) * sq[2] + d * sq[3]] * g->f[0];
            product(matrix(queries, D, D), rows, keys + lo * D, D, scores, padded(S), 0, n, 0);
            for (int64_t r = 0; r < rows; r++) {
                int64_t size = g->i[23] == MASK_BOOL ? 1 : 4;
                keys_in_sight(g, l + r, &from, &to);
                if (from < lo) from = lo;
                if (to < from) to = from;
                sums[r] = exponentials(g, scores + r * padded(S), lo, lo + n, from, to,
                                       (const char *)g->p[4] + (b * sm[0] + h * sm[1] + (l + r) * sm[2]) * size);
            }
            product(matrix(scores, padded(S), n), rows, values + lo * NR, S, out, DV, 0, DV, 0);
            for (int64_t r = 0; r < rows; r++) {
                float total = sums[r] == 0.0f ? 1.0f : sums[r];
                for (int64_t d = 0; d < DV; d++) out[r * DV + d] /= total;
            }
        }
    }
}

static void attention(const args *g) {
    int64_t stretches = (g->i[3] + STRETCH - 1) / STRETCH, work = (g->i[3] < STRETCH ? g->i[3] : STRETCH) * g->i[4] * (g->i[5] + g->i[6] + 16);
    parallel_for(g->i[0] * g->i[1] * stretches, 1 + 60000 / (work + 1), (int)g->f[2], attention_blocks, (void *)g);
}
