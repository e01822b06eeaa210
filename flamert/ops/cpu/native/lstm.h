/* LSTMs with the usual activations, one direction: forward, and back through time. Gates lie in the order i, o, f, c̃. Work is
   split by hidden units, a panel of R's columns for each of the four gates at a time. Included once per instruction set, after
   gemm.h. */

#define LSTM_ROWS 48 /* of a task where all steps are known */

/* One step, for units of panel u: what R makes of the hidden states `h` in front of it (0: there are none) into
   gates[4][rows][NR], plus what lies at `inward` [rows, 4H] and the biases, activated. */
static void lstm_gates(const float *h, int64_t rows, int64_t H, const float *R, const float *bias, const float *inward, int64_t u,
                       float *gates) {
    int64_t panels = (H + NR - 1) / NR, j0 = u * NR, width = H - j0 < NR ? H - j0 : NR;
    for (int64_t k = 0; k < 4; k++) {
        float *to = gates + k * rows * NR;
        if (h && width == NR)
            product(matrix(h, H, H), rows, R + (k * panels + u) * H * NR, H, to, NR, 0, NR, 0);
        else
            memset(to, 0, rows * NR * sizeof(float));
        if (h && width < NR) product(matrix(h, H, H), rows, R + (k * panels + u) * H * NR, H, to, NR, 0, width, 0);
        for (int64_t r = 0; r < rows; r++) {
            const float *x = inward + (r * 4 + k) * H + j0;
            if (bias)
                for (int64_t j = 0; j < width; j++) to[r * NR + j] += x[j] + (bias[k * H + j0 + j] + bias[(4 + k) * H + j0 + j]);
            else
                for (int64_t j = 0; j < width; j++) to[r * NR + j] += x[j];
        }
    }
    activate(gates, 3 * rows * NR, ACT_SIGMOID, 0, 0);
    activate(gates + 3 * rows * NR, rows * NR, ACT_TANH, 0, 0);
}

typedef struct {
    const args *g;
    int64_t t, other; /* the step, and the one before it, or −1 */
} lstm_step;

/* lstm: p = y, c (c_0 before, c_n behind), inward [T, B, 4H], R packed for each gate [4][panels][H][NR], bias [8H] or 0, h_0 or 0,
   work; i = T, B, H, elements from one step of y to the next, reverse, workers. work holds 4 · B · NR floats for each worker. */
static void lstm_units(void *context, int64_t begin, int64_t end, int worker) {
    const lstm_step *s = context;
    const args *g = s->g;
    int64_t B = g->i[1], H = g->i[2], step = g->i[3];
    float *gates = (float *)g->p[6] + worker * 4 * B * NR, *y = (float *)g->p[0] + s->t * step;
    const float *h = s->other < 0 ? g->p[5] : (const float *)g->p[0] + s->other * step;
    for (int64_t u = begin; u < end; u++) {
        int64_t j0 = u * NR, width = H - j0 < NR ? H - j0 : NR;
        lstm_gates(h, B, H, g->p[3], g->p[4], (const float *)g->p[2] + s->t * B * 4 * H, u, gates);
        for (int64_t b = 0; b < B; b++) {
            const float *in = gates + b * NR, *out = in + B * NR, *forget = out + B * NR, *cell = forget + B * NR;
            float *c = (float *)g->p[1] + b * H + j0, *to = y + b * H + j0;
            for (int64_t j = 0; j < width; j++) {
                c[j] = forget[j] * c[j] + in[j] * cell[j];
                to[j] = out[j] * vtanh(c[j]);
            }
        }
    }
}

static void lstm(const args *g) {
    int64_t T = g->i[0], B = g->i[1], H = g->i[2];
    for (int64_t n = 0; n < T; n++) {
        lstm_step s = {g, g->i[4] ? T - 1 - n : n, n == 0 ? -1 : g->i[4] ? T - n : n - 1};
        parallel_for((H + NR - 1) / NR, 1 + 60000 / (4 * B * (H + 16) * NR), (int)g->i[5], lstm_units, &s);
    }
}

/* lstm_gradient: p = sent [T, B, 4H], before [T, B, H], cells [T, B, H], R packed for each gate, R packed whole [panels][4H][NR],
   bias or 0, c_0 or 0, dy or 0, dh_n or 0, dc (dc_n before, dc_0 behind), dh_0, work; i = T, B, H, elements from one step of dy
   to the next, reverse, workers. sent holds x·Wᵀ before, and the gradients of what goes into the gates behind; before: h of the
   step in front of each; work: 4 · max(B, LSTM_ROWS) · NR floats for each worker. */
static void lstm_all_gates(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = context;
    int64_t B = g->i[1], H = g->i[2], all = g->i[0] * B;
    float *gates = (float *)g->p[11] + worker * 4 * (B > LSTM_ROWS ? B : LSTM_ROWS) * NR;
    for (int64_t n = begin; n < end; n++) {
        int64_t first = n * LSTM_ROWS, rows = all - first < LSTM_ROWS ? all - first : LSTM_ROWS;
        float *sent = (float *)g->p[0] + first * 4 * H;
        for (int64_t u = 0; u * NR < H; u++) {
            int64_t j0 = u * NR, width = H - j0 < NR ? H - j0 : NR;
            lstm_gates((const float *)g->p[1] + first * H, rows, H, g->p[3], g->p[5], sent, u, gates);
            for (int64_t k = 0; k < 4; k++)
                for (int64_t r = 0; r < rows; r++) memcpy(sent + (r * 4 + k) * H + j0, gates + (k * rows + r) * NR, width * sizeof(float));
        }
    }
}

static void lstm_cells(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = context;
    (void)worker;
    int64_t T = g->i[0], B = g->i[1], H = g->i[2];
    for (int64_t b = begin; b < end; b++) {
        const float *c = g->p[6] ? (const float *)g->p[6] + b * H : 0;
        for (int64_t n = 0; n < T; n++) {
            int64_t at = (g->i[4] ? T - 1 - n : n) * B + b;
            const float *gates = (const float *)g->p[0] + at * 4 * H;
            float *to = (float *)g->p[2] + at * H;
            if (c)
                for (int64_t j = 0; j < H; j++) to[j] = gates[2 * H + j] * c[j] + gates[j] * gates[3 * H + j];
            else
                for (int64_t j = 0; j < H; j++) to[j] = gates[j] * gates[3 * H + j];
            c = to;
        }
    }
}

/* The gradient of h for units of panel u, which later steps sent: that of the last state, or what R sends back. */
static void lstm_arriving(const lstm_step *s, int64_t u, float *dh) {
    const args *g = s->g;
    int64_t B = g->i[1], H = g->i[2], j0 = u * NR, width = H - j0 < NR ? H - j0 : NR;
    if (s->other >= 0)
        product(matrix((const float *)g->p[0] + s->other * B * 4 * H, 4 * H, 4 * H), B, (const float *)g->p[4] + u * 4 * H * NR, 4 * H, dh, NR,
                0, width, 0);
    else
        for (int64_t b = 0; b < B; b++)
            for (int64_t j = 0; j < width; j++) dh[b * NR + j] = g->p[8] ? ((const float *)g->p[8])[b * H + j0 + j] : 0.0f;
}

static void lstm_back_units(void *context, int64_t begin, int64_t end, int worker) {
    const lstm_step *s = context;
    const args *g = s->g;
    int64_t T = g->i[0], B = g->i[1], H = g->i[2], t = s->t, before = g->i[4] ? t + 1 : t - 1;
    float *dh = (float *)g->p[11] + worker * 4 * (B > LSTM_ROWS ? B : LSTM_ROWS) * NR, zeros[NR] = {0};
    for (int64_t u = begin; u < end; u++) {
        int64_t j0 = u * NR, width = H - j0 < NR ? H - j0 : NR;
        lstm_arriving(s, u, dh);
        for (int64_t b = 0; b < B; b++) {
            float *sent = (float *)g->p[0] + (t * B + b) * 4 * H + j0, *dc = (float *)g->p[9] + b * H + j0;
            const float *c = (const float *)g->p[2] + (t * B + b) * H + j0, *arrived = dh + b * NR;
            const float *dy = g->p[7] ? (const float *)g->p[7] + t * g->i[3] + b * H + j0 : zeros;
            const float *last = before >= 0 && before < T ? (const float *)g->p[2] + (before * B + b) * H + j0
                                : g->p[6]                 ? (const float *)g->p[6] + b * H + j0
                                                          : zeros;
            for (int64_t j = 0; j < width; j++) {
                float i = sent[j], o = sent[H + j], f = sent[2 * H + j], cell = sent[3 * H + j];
                float shown = vtanh(c[j]), d = arrived[j] + dy[j], total = dc[j] + d * o * (1.0f - shown * shown);
                sent[j] = total * cell * i * (1.0f - i);
                sent[H + j] = d * shown * o * (1.0f - o);
                sent[2 * H + j] = total * last[j] * f * (1.0f - f);
                sent[3 * H + j] = total * i * (1.0f - cell * cell);
                dc[j] = total * f;
            }
        }
    }
}

static void lstm_first(void *context, int64_t begin, int64_t end, int worker) {
    const lstm_step *s = context;
    const args *g = s->g;
    int64_t B = g->i[1], H = g->i[2];
    float *dh = (float *)g->p[11] + worker * 4 * (B > LSTM_ROWS ? B : LSTM_ROWS) * NR;
    for (int64_t u = begin; u < end; u++) {
        int64_t j0 = u * NR, width = H - j0 < NR ? H - j0 : NR;
        lstm_arriving(s, u, dh);
        for (int64_t b = 0; b < B; b++) memcpy((float *)g->p[10] + b * H + j0, dh + b * NR, width * sizeof(float));
    }
}

static void lstm_gradient(const args *g) {
    int64_t T = g->i[0], B = g->i[1], H = g->i[2], grain = 1 + 60000 / (4 * B * (H + 16) * NR), panels = (H + NR - 1) / NR;
    parallel_for((T * B + LSTM_ROWS - 1) / LSTM_ROWS, 1, (int)g->i[5], lstm_all_gates, (void *)g);
    parallel_for(B, 1 + 16384 / (T * H), 64, lstm_cells, (void *)g);
    lstm_step s = {g, 0, -1};
    for (int64_t n = T - 1; n >= 0; n--, s.other = s.t) {
        s.t = g->i[4] ? T - 1 - n : n;
        parallel_for(panels, grain, (int)g->i[5], lstm_back_units, &s);
    }
    parallel_for(panels, grain, (int)g->i[5], lstm_first, &s);
}

/* lstm_peepholes: p = dp [3H], sent, cells, c_0 or 0; i = T, B, H, reverse. Gradients of peepholes, which need not be there. */
static void lstm_peephole_units(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = context;
    (void)worker;
    int64_t T = g->i[0], B = g->i[1], H = g->i[2], step = g->i[3] ? 1 : -1;
    for (int64_t u = begin; u < end; u++) {
        int64_t j0 = u * NR, width = H - j0 < NR ? H - j0 : NR;
        float sums[3][NR] = {{0}}, zeros[NR] = {0};
        for (int64_t t = 0; t < T; t++)
            for (int64_t b = 0; b < B; b++) {
                const float *sent = (const float *)g->p[1] + (t * B + b) * 4 * H + j0, *c = (const float *)g->p[2] + (t * B + b) * H + j0;
                int there = t + step >= 0 && t + step < T;
                const float *last = there ? c + step * B * H : g->p[3] ? (const float *)g->p[3] + b * H + j0 : zeros;
                for (int64_t j = 0; j < width; j++) {
                    sums[0][j] += sent[j] * last[j];
                    sums[1][j] += sent[H + j] * c[j];
                    sums[2][j] += sent[2 * H + j] * last[j];
                }
            }
        for (int64_t k = 0; k < 3; k++) memcpy((float *)g->p[0] + k * H + j0, sums[k], width * sizeof(float));
    }
}

static void lstm_peepholes(const args *g) { parallel_for((g->i[2] + NR - 1) / NR, 1, 64, lstm_peephole_units, (void *)g); }
