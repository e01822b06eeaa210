/* Kernels for x86-64 with AVX2 and FMA. Elsewhere the table is empty. */
#include "native.h"
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define SET(name) name##_avx2
#define VL 8
#define MR 6
#include "kernels.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
const int64_t panel_avx2 = 0;
const entry kernels_avx2[] = {{0, 0}};
#endif
