/* Products of matrices that no one has packed, of any strides, one or a batch. Included once per instruction set, after gemm.h. */

/* matmul: p = out[batch, M, N], a, b, packed, turned; i = M, N, K, strides of a along M and K, of b along K and N, rows and
   columns per task, b's matrices to pack, batch, number of batch axes, then for each its size, stride in a, stride in b.
   packed holds `matrices` · ⌈N / NR⌉ · NR · K floats; turned, needed where a's rows are no runs, batch · M · K. */

static int64_t batch_offset(const args *g, int64_t n, int operand) {
    int64_t at = 0;
    for (int64_t axis = g->i[11] - 1; axis >= 0; axis--) {
        at += n % g->i[12 + 3 * axis] * g->i[12 + 3 * axis + operand];
        n /= g->i[12 + 3 * axis];
    }
    return at;
}

static void matmul_pack(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = context;
    (void)worker;
    int64_t N = g->i[1], K = g->i[2], panels = (N + NR - 1) / NR;
    for (int64_t t = begin; t < end; t++) {
        int64_t j = t % panels * NR;
        const float *b = (const float *)g->p[2] + batch_offset(g, t / panels, 2) + j * g->i[6];
        pack_panels((float *)g->p[3] + t * K * NR, b, K, N - j < NR ? N - j : NR, g->i[5], g->i[6]);
    }
}

static void matmul_turn(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = context;
    (void)worker;
    int64_t M = g->i[0], K = g->i[2], sm = g->i[3], sk = g->i[4], groups = (M + SIDE - 1) / SIDE;
    for (int64_t t = begin; t < end; t++) {
        int64_t m0 = t % groups * SIDE, m1 = m0 + SIDE < M ? m0 + SIDE : M;
        const float *a = (const float *)g->p[1] + batch_offset(g, t / groups, 1);
        float *out = (float *)g->p[4] + t / groups * M * K;
        for (int64_t k0 = 0; k0 < K; k0 += SIDE) {
            int64_t k1 = k0 + SIDE < K ? k0 + SIDE : K;
            for (int64_t m = m0; m < m1; m++)
                for (int64_t k = k0; k < k1; k++) out[m * K + k] = a[m * sm + k * sk];
        }
    }
}

static void matmul_tasks(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = context;
    (void)worker;
    int64_t M = g->i[0], N = g->i[1], K = g->i[2], rows = g->i[7], columns = g->i[8];
    int64_t blocks = (M + rows - 1) / rows, stripes = (N + columns - 1) / columns, packed = (N + NR - 1) / NR * NR * K;
    for (int64_t t = begin; t < end; t++) {
        int64_t from = t % stripes * columns, m = t / stripes % blocks * rows, n = t / stripes / blocks;
        left A = g->i[4] == 1 ? matrix((const float *)g->p[1] + batch_offset(g, n, 1) + m * g->i[3], g->i[3], K)
                              : matrix((const float *)g->p[4] + (n * M + m) * K, K, K);
        product(A, M - m < rows ? M - m : rows, (const float *)g->p[3] + (g->i[9] > 1 ? n * packed : 0), K,
                (float *)g->p[0] + (n * M + m) * N, N, from, from + columns < N ? from + columns : N, 0);
    }
}

static void matmul(const args *g) {
    int64_t M = g->i[0], N = g->i[1], K = g->i[2], rows = g->i[7], columns = g->i[8], batch = g->i[10];
    parallel_for(g->i[9] * ((N + NR - 1) / NR), 1 + 8192 / (K * NR), 64, matmul_pack, (void *)g);
    if (g->i[4] != 1) parallel_for(batch * ((M + SIDE - 1) / SIDE), 1 + 8192 / (K * SIDE), 64, matmul_turn, (void *)g);
    parallel_for(batch * ((M + rows - 1) / rows) * ((N + columns - 1) / columns), 1 + 60000 / (rows * (K + 1) * columns + 1), 64,
                 matmul_tasks, (void *)g);
}
