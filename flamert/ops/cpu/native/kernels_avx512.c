/* Kernels for x86-64 with AVX-512. Elsewhere the table is empty. */
#include "native.h"
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")
#endif
#define SET(name) name##_avx512
#define VL 16
#define MR 12
#include "kernels.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
const int64_t panel_avx512 = 0;
const entry kernels_avx512[] = {{0, 0}};
#endif
