/* Copies between strided layouts, and fills, of 4-byte elements. Included once per instruction set. */

#define SIDE 16 /* of the square tiles by which transposes go, so that both sides use whole cache lines */

/* copy: p = out, x; i = outer size, rows, columns, then for rows and columns their stride in out and in x, number of outer axes,
   then for each outer axis its size, stride in out, stride in x. Strides are in elements. */
static void copy_tiles(float *out, const float *x, const args *g) {
    int64_t rows = g->i[1], columns = g->i[2], or = g->i[3], oc = g->i[4], xr = g->i[5], xc = g->i[6];
    if (oc == 1 && xc == 1) {
        for (int64_t r = 0; r < rows; r++) {
            float *to = out + r * or;
            const float *from = x + r * xr;
            if (columns < 64)
                for (int64_t c = 0; c < columns; c++) to[c] = from[c];
            else
                memcpy(to, from, columns * 4);
        }
    } else if (xc == 0 && oc == 1) {
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < columns; c++) out[r * or + c] = x[r * xr];
    } else {
        for (int64_t r0 = 0; r0 < rows; r0 += SIDE)
            for (int64_t c0 = 0; c0 < columns; c0 += SIDE) {
                int64_t r1 = r0 + SIDE < rows ? r0 + SIDE : rows, c1 = c0 + SIDE < columns ? c0 + SIDE : columns;
                for (int64_t r = r0; r < r1; r++)
                    for (int64_t c = c0; c < c1; c++) out[r * or + c * oc] = x[r * xr + c * xc];
            }
    }
}

static void copy_range(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = context;
    (void)worker;
    int64_t axes = g->i[7];
    for (int64_t t = begin; t < end; t++) {
        int64_t rest = t, to = 0, from = 0;
        for (int64_t a = axes - 1; a >= 0; a--) {
            int64_t size = g->i[8 + 3 * a], at = rest % size;
            rest /= size;
            to += at * g->i[9 + 3 * a];
            from += at * g->i[10 + 3 * a];
        }
        copy_tiles((float *)g->p[0] + to, (const float *)g->p[1] + from, g);
    }
}

static void copy(const args *g) { parallel_for(g->i[0], 1 + 16384 / (g->i[1] * g->i[2] + 1), 64, copy_range, (void *)g); }

/* fill: p = out; i = elements; f = value. */
static void fill_range(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = context;
    (void)worker;
    float *out = g->p[0];
    for (int64_t k = begin; k < end; k++) out[k] = g->f[0];
}

static void fill_all(const args *g) { parallel_for(g->i[0], 1 << 16, 64, fill_range, (void *)g); }
