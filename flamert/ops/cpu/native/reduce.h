/* Reductions of [outer, n, inner] over n, softmax and layer normalization over rows. Included once per instruction set. */

enum reduction { RED_SUM, RED_MEAN, RED_MAX, RED_MIN };

static inline float greater(float a, float b) { return a > b || a != a ? a : b; } /* NaN wins, as in NumPy */
static inline float lesser(float a, float b) { return a < b || a != a ? a : b; }

#define LANES 32 /* independent partial results, so that additions need not wait for each other and errors stay small */

static inline float row_sum(const float *x, int64_t n) {
    if (n < LANES) { /* short rows: lanes would cost more to set up than they save */
        float sum = 0;
        for (int64_t k = 0; k < n; k++) sum += x[k];
        return sum;
    }
    double total = 0;
    for (int64_t start = 0; start < n; start += 8192) { /* partial sums in float over short stretches only */
        int64_t m = n - start < 8192 ? n - start : 8192, k = 0;
        float lane[LANES] = {0};
        for (; k + LANES <= m; k += LANES)
            for (int j = 0; j < LANES; j++) lane[j] += x[start + k + j];
        for (int j = 0; k + j < m; j++) lane[j] += x[start + k + j];
        for (int j = 0; j < LANES; j++) total += lane[j];
    }
    return (float)total;
}

static inline float row_extremum(const float *x, int64_t n, int kind) {
    if (n < LANES) {
        float best = x[0];
        for (int64_t k = 1; k < n; k++) best = kind == RED_MAX ? greater(best, x[k]) : lesser(best, x[k]);
        return best;
    }
    float lane[LANES];
    for (int j = 0; j < LANES; j++) lane[j] = x[j < n ? j : 0];
    int64_t k = 0;
    if (kind == RED_MAX) {
        for (; k + LANES <= n; k += LANES)
            for (int j = 0; j < LANES; j++) lane[j] = greater(lane[j], x[k + j]);
        for (int j = 0; k + j < n; j++) lane[j] = greater(lane[j], x[k + j]);
        for (int j = 1; j < LANES; j++) lane[0] = greater(lane[0], lane[j]);
    } else {
        for (; k + LANES <= n; k += LANES)
            for (int j = 0; j < LANES; j++) lane[j] = lesser(lane[j], x[k + j]);
        for (int j = 0; k + j < n; j++) lane[j] = lesser(lane[j], x[k + j]);
        for (int j = 1; j < LANES; j++) lane[0] = lesser(lane[0], lane[j]);
    }
    return lane[0];
}

/* Columns [from, to) of one outer index: running results, with sums carried over every 256 rows to keep errors small. */
static void reduce_columns(float *out, const float *x, int64_t n, int64_t inner, int64_t from, int64_t to, int kind) {
    for (int64_t c0 = from; c0 < to; c0 += 64) {
        int64_t m = to - c0 < 64 ? to - c0 : 64;
        float total[64] = {0}, part[64];
        for (int64_t r0 = 0; r0 < n; r0 += 256) {
            int64_t r1 = r0 + 256 < n ? r0 + 256 : n;
            memcpy(part, x + r0 * inner + c0, m * 4);
            for (int64_t r = r0 + 1; r < r1; r++) {
                const float *row = x + r * inner + c0;
                if (kind == RED_MAX)
                    for (int64_t j = 0; j < m; j++) part[j] = greater(part[j], row[j]);
                else if (kind == RED_MIN)
                    for (int64_t j = 0; j < m; j++) part[j] = lesser(part[j], row[j]);
                else
                    for (int64_t j = 0; j < m; j++) part[j] += row[j];
            }
            for (int64_t j = 0; j < m; j++)
                total[j] = !r0 ? part[j] : kind == RED_MAX ? greater(total[j], part[j]) : kind == RED_MIN ? lesser(total[j], part[j]) : total[j] + part[j];
        }
        for (int64_t j = 0; j < m; j++) out[c0 + j] = kind == RED_MEAN ? total[j] / (float)n : total[j];
    }
}

/* reduce: p = out[outer, inner], x[outer, n, inner]; i = outer, n, inner, kind. n > 0. */
static void reduce_rows(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = context;
    (void)worker;
    int64_t n = g->i[1], inner = g->i[2], stripes = (inner + 63) / 64;
    int kind = (int)g->i[3];
    float *out = g->p[0];
    const float *x = g->p[1];
    for (int64_t t = begin; t < end; t++) {
        if (inner == 1) {
            float r = kind == RED_MAX || kind == RED_MIN ? row_extremum(x + t * n, n, kind) : row_sum(x + t * n, n);
            out[t] = kind == RED_MEAN ? r / (float)n : r;
        } else {
            int64_t o = t / stripes, from = t % stripes * 64, to = from + 64 < inner ? from + 64 : inner;
            reduce_columns(out + o * inner, x + o * n * inner, n, inner, from, to, kind);
        }
    }
}

static void reduce(const args *g) {
    int64_t stripes = g->i[2] == 1 ? 1 : (g->i[2] + 63) / 64;
    parallel_for(g->i[0] * stripes, 1 + 16384 / (g->i[1] * (g->i[2] < 64 ? g->i[2] : 64) + 1), 64, reduce_rows, (void *)g);
}

#define STRETCH_OF_FINITE 16384 /* elements that are looked at before anyone asks whether the answer is known already */

/* all_finite: p = out (one byte), addresses of tensors, their sizes; i = tensors, elements altogether in stretches. */
static void all_finite_stretches(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = context;
    (void)worker;
    const float *const *tensors = g->p[1];
    const int64_t *sizes = g->p[2];
    uint8_t *out = g->p[0];
    int64_t k = 0, before = 0; /* the tensor that stretch t is in, and the stretches in front of it */
    for (int64_t t = begin; t < end && __atomic_load_n(out, __ATOMIC_RELAXED); t++) {
        int64_t own;
        while (own = (sizes[k] + STRETCH_OF_FINITE - 1) / STRETCH_OF_FINITE, t >= before + own) before += own, k++;
        int64_t from = (t - before) * STRETCH_OF_FINITE, n = sizes[k] - from < STRETCH_OF_FINITE ? sizes[k] - from : STRETCH_OF_FINITE;
        const float *x = tensors[k] + from;
        int32_t wrong = 0;
        for (int64_t i = 0; i < n; i++) wrong |= (float_to_bits(x[i]) & 0x7f800000) == 0x7f800000;
        if (wrong) __atomic_store_n(out, 0, __ATOMIC_RELAXED);
    }
}

static void all_finite(const args *g) {
    *(uint8_t *)g->p[0] = 1;
    parallel_for(g->i[1], 4, 64, all_finite_stretches, (void *)g);
}

/* softmax: p = out[rows, n], x[rows, n]; i = rows, n, logarithm wanted. */
static void softmax_rows(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = context;
    (void)worker;
    int64_t n = g->i[1];
    for (int64_t r = begin; r < end; r++) {
        float *y = (float *)g->p[0] + r * n;
        const float *x = (const float *)g->p[1] + r * n;
        float top = row_extremum(x, n, RED_MAX);
        for (int64_t j = 0; j < n; j++) y[j] = vexp(x[j] - top);
        float sum = row_sum(y, n);
        if (g->i[2]) {
            float shift = top + vlog(sum);
            for (int64_t j = 0; j < n; j++) y[j] = x[j] - shift;
        } else {
            for (int64_t j = 0; j < n; j++) y[j] /= sum;
        }
    }
}

static void softmax(const args *g) { parallel_for(g->i[0], 1 + 4096 / (g->i[1] + 1), 64, softmax_rows, (void *)g); }

/* layer_norm: p = out[rows, n], x[rows, n], scale[n] or 0, bias[n] or 0; i = rows, n, centred; f = epsilon. */
static void layer_norm_rows(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = context;
    (void)worker;
    int64_t n = g->i[1];
    const float *scale = g->p[2], *bias = g->p[3];
    for (int64_t r = begin; r < end; r++) {
        float *y = (float *)g->p[0] + r * n;
        const float *x = (const float *)g->p[1] + r * n;
        float mean = g->i[2] ? row_sum(x, n) / (float)n : 0.0f;
        float lane[LANES] = {0}, square = 0;
        int64_t k = 0;
        for (; k + LANES <= n; k += LANES)
            for (int j = 0; j < LANES; j++) {
                float d = x[k + j] - mean;
                lane[j] += d * d;
            }
        for (int j = 0; k + j < n; j++) lane[j] += (x[k + j] - mean) * (x[k + j] - mean);
        for (int j = 0; j < LANES; j++) square += lane[j];
        float factor = 1.0f / sqrtf(square / (float)n + g->f[0]);
        if (scale && bias)
            for (int64_t j = 0; j < n; j++) y[j] = (x[j] - mean) * factor * scale[j] + bias[j];
        else if (scale)
            for (int64_t j = 0; j < n; j++) y[j] = (x[j] - mean) * factor * scale[j];
        else
            for (int64_t j = 0; j < n; j++) y[j] = (x[j] - mean) * factor;
    }
}

static void layer_norm(const args *g) { parallel_for(g->i[0], 1 + 8192 / (g->i[1] + 1), 64, layer_norm_rows, (void *)g); }
