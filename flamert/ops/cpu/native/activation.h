/* Activations over runs of floats, in place. Included once per instruction set. */

static inline void activate(float *x, int64_t n, int kind, float a, float b) {
#define EACH(expression)                        \
    for (int64_t i = 0; i < n; i++) {           \
        float v = x[i];                         \
        x[i] = (expression);                    \
    }                                           \
    break
    switch (kind) {
    case ACT_RELU: EACH(v > 0.0f || v != v ? v : 0.0f);
    case ACT_CLIP: EACH(v < a ? a : v > b ? b : v);
    case ACT_LEAKY_RELU: EACH(v < 0.0f ? v * a : v);
    case ACT_HARD_SIGMOID: EACH(vmin(vmax(v * a + b, 0.0f), 1.0f));
    case ACT_HARD_SWISH: EACH(v * vmin(vmax(v * (1.0f / 6.0f) + 0.5f, 0.0f), 1.0f));
    case ACT_SIGMOID: EACH(vsigmoid(v));
    case ACT_TANH: EACH(vtanh(v));
    case ACT_SILU: EACH(v * vsigmoid(v));
    case ACT_GELU: EACH(0.5f * v * (1.0f + verf(v * 0.70710678f)));
    case ACT_GELU_TANH: EACH(0.5f * v * (1.0f + vtanh(0.79788456f * (v + 0.044715f * v * v * v))));
    default: break;
    }
#undef EACH
}
