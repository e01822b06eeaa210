/* Chains of elementwise operations, a block at a time, so that intermediate results never leave the first-level cache.
   Included once per instruction set. */

#define BLOCK 1024 /* elements */

enum pointwise_op {
    PW_ADD, PW_SUB, PW_MUL, PW_DIV, PW_MAXIMUM, PW_MINIMUM, PW_POW, PW_LESS, PW_LESS_EQUAL, PW_GREATER, PW_GREATER_EQUAL, PW_EQUAL,
    PW_NOT_EQUAL, PW_AND, PW_OR, PW_WHERE, PW_NEG, PW_ABS, PW_SQRT, PW_RECIPROCAL, PW_EXP, PW_LOG, PW_TANH, PW_ERF, PW_SIGMOID, PW_RELU,
    PW_CLIP, PW_LEAKY_RELU, PW_HARD_SIGMOID, PW_HARD_SWISH, PW_SWISH, PW_GELU, PW_GELU_TANH, PW_ELU, PW_SOFTPLUS, PW_FLOOR, PW_CEIL,
    PW_ROUND, PW_NOT, PW_SIN, PW_COS, PW_COPY,
};

/* One instruction: r[to] = op(r[a], r[b], r[c]), with parameters. Registers below `inputs` are operands, those from `registers`
   on are results. scalars: bits that say which of a, b, c are the same number throughout. */
typedef struct {
    int32_t op, to, a, b, c, scalars;
    float f0, f1;
} instruction;

/* An operand: element i of the result reads x[j / outer · period + j % period], where j = i / inner. */
typedef struct {
    const void *x;
    int64_t outer, period, inner;
    int64_t is_bool; /* bytes, read as 0 and 1 */
} operand;

/* A result. Booleans are made as floats, in a register behind those of the instructions. */
typedef struct {
    void *y;
    int64_t is_bool;
} result;

/* pointwise: p = results, instructions, operands, work; i = elements, instructions, operands, registers, results, workers.
   work holds (registers + results) · BLOCK floats for each worker. Operands that lie as the results do are read in place; a
   result may take an operand's place if no instruction reads that operand after the result was made. */
static void fill(const operand *o, int64_t i, int64_t n, float *to) {
    while (n > 0 && o->inner > 1) {
        int64_t j = i / o->inner, at = j / o->outer * o->period + j % o->period, run = o->inner - i % o->inner;
        float x = o->is_bool ? (float)((const uint8_t *)o->x)[at] : ((const float *)o->x)[at];
        if (run > n) run = n;
        for (int64_t k = 0; k < run; k++) to[k] = x;
        to += run, i += run, n -= run;
    }
    while (n > 0) {
        int64_t at = i % o->period, run = o->period - at;
        int64_t base = i / o->outer * o->period + at;
        if (o->period == 1) run = o->outer - i % o->outer;
        if (run > n) run = n;
        if (o->is_bool) {
            const uint8_t *x = (const uint8_t *)o->x + base;
            if (o->period == 1)
                for (int64_t k = 0; k < run; k++) to[k] = x[0];
            else
                for (int64_t k = 0; k < run; k++) to[k] = x[k];
        } else {
            const float *x = (const float *)o->x + base;
            if (o->period == 1)
                for (int64_t k = 0; k < run; k++) to[k] = x[0];
            else
                for (int64_t k = 0; k < run; k++) to[k] = x[k];
        }
        to += run, i += run, n -= run;
    }
}

static void execute(const instruction *s, float *restrict y, const float *a, const float *b, const float *c, int64_t n) {
    const float f0 = s->f0, f1 = s->f1;
#define EACH(expression)                            \
    for (int64_t i = 0; i < n; i++) y[i] = (expression); \
    break
#define ARITHMETIC(operation)                                        \
    if (s->scalars & 2)                                              \
        for (int64_t i = 0; i < n; i++) y[i] = a[i] operation b[0];  \
    else if (s->scalars & 1)                                         \
        for (int64_t i = 0; i < n; i++) y[i] = a[0] operation b[i];  \
    else                                                             \
        for (int64_t i = 0; i < n; i++) y[i] = a[i] operation b[i];  \
    break
    switch (s->op) {
    case PW_ADD: ARITHMETIC(+);
    case PW_SUB: ARITHMETIC(-);
    case PW_MUL: ARITHMETIC(*);
    case PW_DIV: ARITHMETIC(/);
    case PW_MAXIMUM: EACH(a[i] > b[i] || a[i] != a[i] ? a[i] : b[i]);
    case PW_MINIMUM: EACH(a[i] < b[i] || a[i] != a[i] ? a[i] : b[i]);
    case PW_POW: EACH(powf(a[i], b[i]));
    case PW_LESS: EACH(a[i] < b[i] ? 1.0f : 0.0f);
    case PW_LESS_EQUAL: EACH(a[i] <= b[i] ? 1.0f : 0.0f);
    case PW_GREATER: EACH(a[i] > b[i] ? 1.0f : 0.0f);
    case PW_GREATER_EQUAL: EACH(a[i] >= b[i] ? 1.0f : 0.0f);
    case PW_EQUAL: EACH(a[i] == b[i] ? 1.0f : 0.0f);
    case PW_NOT_EQUAL: EACH(a[i] != b[i] ? 1.0f : 0.0f);
    case PW_AND: EACH(a[i] * b[i]);
    case PW_OR: EACH(vmax(a[i], b[i]));
    case PW_WHERE:
        if (s->scalars == 1) {
            memmove(y, a[0] != 0.0f ? b : c, n * sizeof(float));
            break;
        }
        EACH(a[i] != 0.0f ? b[i] : c[i]);
    case PW_NEG: EACH(-a[i]);
    case PW_ABS: EACH(vabs(a[i]));
    case PW_SQRT: EACH(sqrtf(a[i]));
    case PW_RECIPROCAL: EACH(1.0f / a[i]);
    case PW_EXP: EACH(vexp(a[i]));
    case PW_LOG: EACH(vlog(a[i]));
    case PW_TANH: EACH(vtanh(a[i]));
    case PW_ERF: EACH(verf(a[i]));
    case PW_SIGMOID: EACH(vsigmoid(a[i]));
    case PW_RELU: EACH(a[i] > 0.0f || a[i] != a[i] ? a[i] : 0.0f);
    case PW_CLIP: EACH(a[i] < f0 ? f0 : a[i] > f1 ? f1 : a[i]);
    case PW_LEAKY_RELU: EACH(a[i] < 0.0f ? a[i] * f0 : a[i]);
    case PW_HARD_SIGMOID: EACH(vmin(vmax(a[i] * f0 + f1, 0.0f), 1.0f));
    case PW_HARD_SWISH: EACH(a[i] * vmin(vmax(a[i] * (1.0f / 6.0f) + 0.5f, 0.0f), 1.0f));
    case PW_SWISH: EACH(a[i] * vsigmoid(a[i] * f0));
    case PW_GELU: EACH(0.5f * a[i] * (1.0f + verf(a[i] * 0.70710678f)));
    case PW_GELU_TANH: EACH(0.5f * a[i] * (1.0f + vtanh(0.79788456f * (a[i] + 0.044715f * a[i] * a[i] * a[i]))));
    case PW_ELU: EACH(a[i] < 0.0f ? f0 * (vexp(a[i]) - 1.0f) : a[i]);
    case PW_SOFTPLUS: EACH(vmax(a[i], 0.0f) + vlog(1.0f + vexp(-vabs(a[i]))));
    case PW_FLOOR: EACH(floorf(a[i]));
    case PW_CEIL: EACH(ceilf(a[i]));
    case PW_ROUND: EACH(rintf(a[i]));
    case PW_NOT: EACH(1.0f - a[i]);
    case PW_SIN: EACH(sinf(a[i]));
    case PW_COS: EACH(cosf(a[i]));
    case PW_COPY: EACH(a[i]);
    }
#undef ARITHMETIC
#undef EACH
}

static void pointwise_blocks(void *context, int64_t begin, int64_t end, int worker) {
    const args *g = context;
    const result *results = g->p[0];
    const instruction *program = g->p[1];
    const operand *operands = g->p[2];
    int64_t total = g->i[0], steps = g->i[1], inputs = g->i[2], registers = g->i[3], outs = g->i[4];
    float *work = (float *)g->p[3] + worker * (registers + outs) * BLOCK, *r[80];
    for (int64_t k = 0; k < registers + outs; k++) r[k] = work + k * BLOCK;
    for (int64_t t = begin; t < end; t++) {
        int64_t i = t * BLOCK, n = total - i < BLOCK ? total - i : BLOCK;
        for (int64_t k = 0; k < inputs; k++) {
            const operand *o = operands + k;
            if (o->period == total && !o->is_bool)
                r[k] = (float *)o->x + i;
            else if (t == begin || n < BLOCK || o->inner > 1 || o->outer < total || BLOCK % o->period) /* else it lies there already */
                fill(o, i, n, r[k]);
        }
        for (int64_t k = 0; k < outs; k++)
            if (!results[k].is_bool) r[registers + k] = (float *)results[k].y + i;
        for (const instruction *s = program; s < program + steps; s++) execute(s, r[s->to], r[s->a], r[s->b], r[s->c], n);
        for (int64_t k = 0; k < outs; k++)
            if (results[k].is_bool)
                for (int64_t j = 0; j < n; j++) ((uint8_t *)results[k].y)[i + j] = r[registers + k][j] != 0.0f;
    }
}

static void pointwise(const args *g) {
    parallel_for((g->i[0] + BLOCK - 1) / BLOCK, 1 + 8 / (g->i[1] + 1), (int)g->i[5], pointwise_blocks, (void *)g);
}
