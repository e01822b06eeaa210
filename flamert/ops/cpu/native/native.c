/* The library's entry points: find a kernel for this processor, and run a list of kernel calls. */
#include "native.h"

#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef struct {
    kernel_fn fn;
    const args *arguments;
} call;

static const entry *table(int64_t *panel) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw")) {
        *panel = panel_avx512;
        return kernels_avx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        *panel = panel_avx2;
        return kernels_avx2;
    }
#endif
    *panel = panel_baseline;
    return kernels_baseline;
}

/* The kernel of this name, or 0. */
EXPORT kernel_fn flamert_kernel(const char *name) {
    int64_t panel;
    for (const entry *e = table(&panel); e->name; e++)
        if (!strcmp(e->name, name)) return e->fn;
    return 0;
}

/* Columns of a panel of packed weights. */
EXPORT int64_t flamert_panel(void) {
    int64_t panel;
    table(&panel);
    return panel;
}

/* Run kernel calls one after the other. */
EXPORT void flamert_run(const call *calls, int64_t n) {
    for (int64_t i = 0; i < n; i++) calls[i].fn(calls[i].arguments);
}

/* What Python looks for when it imports an extension module; the library is loaded with ctypes instead. */
EXPORT void *PyInit__native(void) { return 0; }
