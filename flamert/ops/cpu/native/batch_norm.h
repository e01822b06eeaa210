/* Means and variances for each channel of x[outer, C, inner], and the gradient of normalising by them. Channels last is
   inner = 1. Included once per instruction set, after reduce.h.

   Rows are taken by chunks that stay in the cache: sums of a chunk are floats, of chunks doubles, in an order that depends on
   the shape alone. */

#define CHUNK 16384 /* floats of a chunk */

static inline int64_t chunk_rows(const args *g) {
    int64_t rows = CHUNK / g->i[1];
    return rows < 8 ? 8 : rows > 512 ? 512 : rows;
}

static inline int64_t chunks_of(const args *g) { return (g->i[0] + chunk_rows(g) - 1) / chunk_rows(g); }

/* moments: p = mean[C], var[C], x, work; i = outer, C, inner. With inner = 1 work holds 2 C floats for each chunk of rows. */
static void chunk_moments(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = context;
    (void)worker;
    int64_t P = g->i[0], C = g->i[1], rows = chunk_rows(g);
    for (int64_t t = begin; t < end; t++) {
        int64_t n = P - t * rows < rows ? P - t * rows : rows;
        const float *x = (const float *)g->p[2] + t * rows * C;
        float *mean = (float *)g->p[3] + t * 2 * C, *square = mean + C;
        for (int64_t c0 = 0; c0 < C; c0 += 32) {
            int64_t m = C - c0 < 32 ? C - c0 : 32;
            float sum[32] = {0}, middle[32] = {0}, spread[32] = {0};
            if (m == 32) {
                for (int64_t r = 0; r < n; r++)
                    for (int j = 0; j < 32; j++) sum[j] += x[r * C + c0 + j];
                for (int j = 0; j < 32; j++) middle[j] = sum[j] / (float)n;
                for (int64_t r = 0; r < n; r++)
                    for (int j = 0; j < 32; j++) {
                        float d = x[r * C + c0 + j] - middle[j];
                        spread[j] += d * d;
                    }
            } else {
                for (int64_t r = 0; r < n; r++)
                    for (int64_t j = 0; j < m; j++) sum[j] += x[r * C + c0 + j];
                for (int64_t j = 0; j < m; j++) middle[j] = sum[j] / (float)n;
                for (int64_t r = 0; r < n; r++)
                    for (int64_t j = 0; j < m; j++) {
                        float d = x[r * C + c0 + j] - middle[j];
                        spread[j] += d * d;
                    }
            }
            memcpy(mean + c0, middle, m * 4);
            memcpy(square + c0, spread, m * 4);
        }
    }
}

/* Means and squares of chunks, put together: Chan, Golub & LeVeque 1979. */
static void join_moments(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = context;
    (void)worker;
    int64_t P = g->i[0], C = g->i[1], rows = chunk_rows(g), chunks = chunks_of(g);
    const float *work = g->p[3];
    for (int64_t c = begin; c < end; c++) {
        double total = 0, square = 0, mean;
        for (int64_t t = 0; t < chunks; t++) total += (double)work[t * 2 * C + c] * (P - t * rows < rows ? P - t * rows : rows);
        mean = total / P;
        for (int64_t t = 0; t < chunks; t++) {
            double d = work[t * 2 * C + c] - mean;
            square += work[(t * 2 + 1) * C + c] + d * d * (P - t * rows < rows ? P - t * rows : rows);
        }
        ((float *)g->p[0])[c] = (float)mean;
        ((float *)g->p[1])[c] = (float)(square / P);
    }
}

static double sum_of_squares(const float *x, int64_t n, float mean) {
    double total = 0;
    for (int64_t start = 0; start < n; start += 8192) {
        int64_t m = n - start < 8192 ? n - start : 8192, k = 0;
        float lane[LANES] = {0};
        for (; k + LANES <= m; k += LANES)
            for (int j = 0; j < LANES; j++) {
                float d = x[start + k + j] - mean;
                lane[j] += d * d;
            }
        for (int j = 0; k + j < m; j++) lane[j] += (x[start + k + j] - mean) * (x[start + k + j] - mean);
        for (int j = 0; j < LANES; j++) total += lane[j];
    }
    return total;
}

/* A channel of images with channels first: its mean over all rows, then the squares around it. */
static void channel_moments(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = context;
    (void)worker;
    int64_t outer = g->i[0], C = g->i[1], inner = g->i[2];
    for (int64_t c = begin; c < end; c++) {
        double total = 0, square = 0;
        for (int64_t n = 0; n < outer; n++) total += row_sum((const float *)g->p[2] + (n * C + c) * inner, inner);
        float mean = (float)(total / ((double)outer * inner));
        for (int64_t n = 0; n < outer; n++) square += sum_of_squares((const float *)g->p[2] + (n * C + c) * inner, inner, mean);
        ((float *)g->p[0])[c] = mean;
        ((float *)g->p[1])[c] = (float)(square / ((double)outer * inner));
    }
}

static void moments(const args *g) {
    if (g->i[2] > 1) {
        parallel_for(g->i[1], 1 + 16384 / (g->i[0] * g->i[2] + 1), 64, channel_moments, (void *)g);
        return;
    }
    parallel_for(chunks_of(g), 1, 64, chunk_moments, (void *)g);
    parallel_for(g->i[1], 1 + 16384 / chunks_of(g), 64, join_moments, (void *)g);
}

/* batch_norm_gradient: p = dx, dscale[C], dbias[C], dy, x, scale[C], mean[C], var[C], work; i = outer, C, inner; f = epsilon.
   With r = 1 / √(var + ε) and n elements for each channel: dbias = Σ dy, dscale = r · Σ dy · (x − mean),
   dx = scale · r · (dy − dbias / n − (x − mean) · r · dscale / n). work holds 3 C floats, and 2 C for each chunk of rows. */
static void chunk_sums(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = context;
    (void)worker;
    int64_t P = g->i[0], C = g->i[1], rows = chunk_rows(g);
    for (int64_t t = begin; t < end; t++) {
        int64_t n = P - t * rows < rows ? P - t * rows : rows;
        const float *dy = (const float *)g->p[3] + t * rows * C, *x = (const float *)g->p[4] + t * rows * C, *mean = g->p[6];
        float *sums = (float *)g->p[8] + (3 + 2 * t) * C;
        for (int64_t c0 = 0; c0 < C; c0 += 32) {
            int64_t m = C - c0 < 32 ? C - c0 : 32;
            float plain[32] = {0}, weighted[32] = {0}, middle[32] = {0};
            memcpy(middle, mean + c0, m * 4);
            if (m == 32)
                for (int64_t r = 0; r < n; r++)
                    for (int j = 0; j < 32; j++) {
                        float d = dy[r * C + c0 + j];
                        plain[j] += d;
                        weighted[j] += d * (x[r * C + c0 + j] - middle[j]);
                    }
            else
                for (int64_t r = 0; r < n; r++)
                    for (int64_t j = 0; j < m; j++) {
                        float d = dy[r * C + c0 + j];
                        plain[j] += d;
                        weighted[j] += d * (x[r * C + c0 + j] - middle[j]);
                    }
            memcpy(sums + c0, plain, m * 4);
            memcpy(sums + C + c0, weighted, m * 4);
        }
    }
}

/* dscale and dbias, and of dx = (dy − a − (x − mean) · b) · k the numbers a, b and k. */
static void coefficients(const args *g, int64_t c, double plain, double weighted) {
    double n = (double)g->i[0] * g->i[2], r = 1.0 / sqrt((double)((const float *)g->p[7])[c] + g->f[0]);
    float *work = (float *)g->p[8] + c;
    int64_t C = g->i[1];
    ((float *)g->p[1])[c] = (float)(weighted * r);
    ((float *)g->p[2])[c] = (float)plain;
    work[0] = (float)(plain / n);
    work[C] = (float)(weighted * r * r / n);
    work[2 * C] = (float)(((const float *)g->p[5])[c] * r);
}

static void join_sums(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = context;
    (void)worker;
    int64_t C = g->i[1], chunks = chunks_of(g);
    const float *work = (const float *)g->p[8] + 3 * C;
    for (int64_t c = begin; c < end; c++) {
        double plain = 0, weighted = 0;
        for (int64_t t = 0; t < chunks; t++) plain += work[2 * t * C + c], weighted += work[(2 * t + 1) * C + c];
        coefficients(g, c, plain, weighted);
    }
}

static void channel_sums(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = context;
    (void)worker;
    int64_t C = g->i[1], inner = g->i[2];
    for (int64_t c = begin; c < end; c++) {
        double plain = 0, weighted = 0;
        float mean = ((const float *)g->p[6])[c];
        for (int64_t n = 0; n < g->i[0]; n++) {
            const float *dy = (const float *)g->p[3] + (n * C + c) * inner, *x = (const float *)g->p[4] + (n * C + c) * inner;
            for (int64_t start = 0; start < inner; start += 8192) {
                int64_t m = inner - start < 8192 ? inner - start : 8192, k = 0;
                float one[LANES] = {0}, two[LANES] = {0};
                for (; k + LANES <= m; k += LANES)
                    for (int j = 0; j < LANES; j++) {
                        one[j] += dy[start + k + j];
                        two[j] += dy[start + k + j] * (x[start + k + j] - mean);
                    }
                for (int j = 0; k + j < m; j++) {
                    one[j] += dy[start + k + j];
                    two[j] += dy[start + k + j] * (x[start + k + j] - mean);
                }
                for (int j = 0; j < LANES; j++) plain += one[j], weighted += two[j];
            }
        }
        coefficients(g, c, plain, weighted);
    }
}

static void spread_rows(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = context;
    (void)worker;
    int64_t C = g->i[1], inner = g->i[2];
    const float *mean = g->p[6], *a = g->p[8], *b = a + C, *k = b + C;
    if (inner == 1) {
        for (int64_t t = begin; t < end; t++) {
            float *restrict dx = (float *)g->p[0] + t * C;
            const float *dy = (const float *)g->p[3] + t * C, *x = (const float *)g->p[4] + t * C;
            for (int64_t c = 0; c < C; c++) dx[c] = (dy[c] - a[c] - (x[c] - mean[c]) * b[c]) * k[c];
        }
        return;
    }
    for (int64_t t = begin; t < end; t++) {
        int64_t c = t % C;
        float *dx = (float *)g->p[0] + t * inner, ac = a[c], bc = b[c], kc = k[c], mc = mean[c];
        const float *dy = (const float *)g->p[3] + t * inner, *x = (const float *)g->p[4] + t * inner;
        for (int64_t i = 0; i < inner; i++) dx[i] = (dy[i] - ac - (x[i] - mc) * bc) * kc;
    }
}

static void batch_norm_gradient(const args *g) {
    int64_t outer = g->i[0], C = g->i[1], inner = g->i[2];
    if (inner > 1) {
        parallel_for(C, 1 + 16384 / (outer * inner + 1), 64, channel_sums, (void *)g);
        parallel_for(outer * C, 1 + 16384 / (inner + 1), 64, spread_rows, (void *)g);
    } else {
        parallel_for(chunks_of(g), 1, 64, chunk_sums, (void *)g);
        parallel_for(C, 1 + 16384 / chunks_of(g), 64, join_sums, (void *)g);
        parallel_for(outer, 1 + 16384 / (C + 1), 64, spread_rows, (void *)g);
    }
}
