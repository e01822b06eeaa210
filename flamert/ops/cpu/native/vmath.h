/* float functions written so that compilers vectorise loops over them: no branches, no tables, no libm.
   Errors are a few units in the last place over the whole range (erf, tanh, sigmoid: under 2e-7 absolute). */
#ifndef FLAMERT_VMATH_H
#define FLAMERT_VMATH_H

#include <stdint.h>
#include <string.h>

static inline float bits_to_float(int32_t i) {
    float f;
    memcpy(&f, &i, 4);
    return f;
}

static inline int32_t float_to_bits(float f) {
    int32_t i;
    memcpy(&i, &f, 4);
    return i;
}

static inline float vmin(float a, float b) { return a < b ? a : b; }
static inline float vmax(float a, float b) { return a > b ? a : b; }
static inline float vabs(float x) { return bits_to_float(float_to_bits(x) & 0x7fffffff); }
static inline float vcopysign(float x, float s) {
    return bits_to_float((float_to_bits(x) & 0x7fffffff) | (float_to_bits(s) & (int32_t)0x80000000));
}

/* Nearest integer, for |x| < 2^22: adding 1.5·2^23 leaves the rounded value in the low mantissa bits. */
static inline float vround(float x) {
    const float magic = 12582912.0f;
    return (x + magic) - magic;
}

/* e^x; 0 under −87.3, +inf over 88.72, NaN for NaN. Cephes-style: 2^n times a polynomial on |r| ≤ ln2/2. */
static inline float vexp(float x) {
    float c = x < -87.33654f ? -87.33654f : x > 88.72283f ? 88.72283f : x;
    float n = vround(c * 1.44269504f);
    float r = c - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t half = (int32_t)n >> 1; /* two steps, since 2^128 is no float */
    float y = p * bits_to_float((half + 127) << 23) * bits_to_float(((int32_t)n - half + 127) << 23);
    y = x < -87.33654f ? 0.0f : y;
    return x > 88.72283f ? bits_to_float(0x7f800000) : y;
}

/* Natural logarithm of x > 0; −inf at 0, NaN below. Subnormals count as 0. */
static inline float vlog(float x) {
    int32_t i = float_to_bits(x);
    int32_t e = (i - 0x3f3504f3) >> 23; /* mantissa brought into [√½, √2) */
    float m = bits_to_float(i - (e << 23)) - 1.0f;
    float p = 7.0376836292e-2f;
    p = p * m - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    float m2 = m * m, ef = (float)e;
    float y = p * m * m2 + ef * -2.12194440e-4f - 0.5f * m2 + m + ef * 0.693359375f;
    y = x < 1.17549435e-38f ? bits_to_float((int32_t)0xff800000) : y;
    y = x == bits_to_float(0x7f800000) ? x : y;
    return x < 0.0f || x != x ? bits_to_float(0x7fc00000) : y;
}

static inline float vsigmoid(float x) {
    float e = vexp(-vabs(x));
    float s = e / (1.0f + e);
    return x >= 0.0f ? 1.0f - s : s;
}

/* tanh: a rational function up to 0.625, 1 − 2/(e^2x + 1) above. */
static inline float vtanh(float x) {
    float a = vabs(x), z = x * x;
    float p = -5.70498872745e-3f;
    p = p * z + 2.06390887954e-2f;
    p = p * z - 5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z - 3.33332819422e-1f;
    float small = p * z * x + x;
    float large = vcopysign(1.0f - 2.0f / (vexp(2.0f * vmin(a, 10.0f)) + 1.0f), x);
    float y = a < 0.625f ? small : large;
    return x != x ? x : y;
}

/* erf: an odd polynomial up to 0.92 (Taylor, economised), 1 − e^(polynomial) above. Fitted for float. */
static inline float verf(float x) {
    float a = vabs(x), z = x * x;
    float p = -5.96761703e-4f;
    p = p * z + 4.99119423e-3f;
    p = p * z - 2.67681349e-2f;
    p = p * z + 1.12819925e-1f;
    p = p * z - 3.76125336e-1f;
    p = p * z + 1.28379166e-1f;
    float small = p * x + x;
    float t = vmin(a, 4.0f);
    float q = -1.72853470e-5f;
    float u = 3.83197126e-4f;
    q = q * t + u;
    q = q * t - 3.88396438e-3f;
    q = q * t + 2.42546219e-2f;
    q = q * t - 1.06777877e-1f;
    q = q * t - 6.34846687e-1f;
    q = q * t - 1.28717512e-1f;
    q = q * t - t;
    float large = vcopysign(1.0f - vexp(q), x);
    float y = a < 0.921875f ? small : large;
    return x != x ? x : y;
}

#endif
