/* float functions written so that compilers vectorise loops over them: no branches, no tables, no libm.
   Errors are a few units in the last place over the whole range (erf, tanh, sigmoid: under 4e-7, absolute and relative). */
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

/* tanh and erf: x times a rational function of x², fitted up to where float rounds to ±1 (Lawson's iteration in double). */
static inline float vtanh(float x) {
    float c = x < -8.5f ? -8.5f : x > 8.5f ? 8.5f : x, z = c * c;
    float p = -9.693971399e-14f;
    p = p * z + 5.714967750e-11f;
    p = p * z - 2.107711113e-08f;
    p = p * z + 1.135432143e-05f;
    p = p * z + 3.122550795e-03f;
    p = p * z + 1.310050808e-01f;
    p = p * z + 9.999999832e-01f;
    float q = 2.573529731e-04f;
    q = q * z + 2.456875824e-02f;
    q = q * z + 4.643383404e-01f;
    q = q * z + 1.0f;
    float y = c * p / q;
    return y < -1.0f ? -1.0f : y > 1.0f ? 1.0f : y;
}

static inline float verf(float x) {
    float c = x < -3.92f ? -3.92f : x > 3.92f ? 3.92f : x, z = c * c;
    float p = 2.034735207e-06f;
    p = p * z + 2.874798314e-04f;
    p = p * z + 3.868339535e-03f;
    p = p * z + 5.306051902e-02f;
    p = p * z + 1.927643209e-01f;
    p = p * z + 1.128379022e+00f;
    float q = 3.807066648e-05f;
    q = q * z + 1.188118398e-03f;
    q = q * z + 1.517232009e-02f;
    q = q * z + 1.150847307e-01f;
    q = q * z + 5.041645979e-01f;
    q = q * z + 1.0f;
    float y = c * p / q;
    return y < -1.0f ? -1.0f : y > 1.0f ? 1.0f : y;
}

#endif
