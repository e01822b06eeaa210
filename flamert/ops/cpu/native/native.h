/* What every kernel file shares: the argument block, the table of kernels, activations. */
#ifndef FLAMERT_NATIVE_H
#define FLAMERT_NATIVE_H

#include <stdint.h>

/* Arguments of a kernel: pointers, integers and floats, in the order that the kernel's comment gives. */
typedef struct {
    void *p[12];
    int64_t i[28];
    float f[12];
} args;

typedef void (*kernel_fn)(const args *);

typedef struct {
    const char *name;
    kernel_fn fn;
} entry;

/* One table per instruction set, ended by an entry without name; the files are the same code compiled three times. */
extern const entry kernels_baseline[], kernels_avx2[], kernels_avx512[];
extern const int64_t panel_baseline, panel_avx2, panel_avx512;

enum activation {
    ACT_NONE,
    ACT_RELU,
    ACT_CLIP,         /* f[0] ≤ x ≤ f[1] */
    ACT_LEAKY_RELU,   /* slope f[0] */
    ACT_HARD_SIGMOID, /* max(0, min(1, f[0]·x + f[1])) */
    ACT_HARD_SWISH,   /* x · max(0, min(1, x/6 + 1/2)) */
    ACT_SIGMOID,
    ACT_TANH,
    ACT_SILU,
    ACT_GELU,
    ACT_GELU_TANH,
};

#endif
