// Elementary functions as branch-free arithmetic: compilers vectorise it in a plain loop, libm's they do not.
#pragma once

#include <cstdint>

#include "simd/simd.h"

namespace fastvae {
inline namespace FASTVAE_ISA {

template <class To, class From>
FASTVAE_INLINE To bit_cast(From value) {
  return __builtin_bit_cast(To, value);
}

// Every function takes a number or a vector of numbers. Integers<V> has the layout of V.
template <class V>
struct IntegersOf;
template <>
struct IntegersOf<float> {
  using Type = int32_t;
};
template <>
struct IntegersOf<double> {
  using Type = int64_t;
};
template <>
struct IntegersOf<FloatVector> {
  using Type = I32;
};
template <>
struct IntegersOf<DoubleVector> {
  using Type = I64;
};
template <class V>
using Integers = typename IntegersOf<V>::Type;

FASTVAE_INLINE float to_floats(int32_t n) { return static_cast<float>(n); }
FASTVAE_INLINE FloatVector to_floats(I32 n) { return __builtin_convertvector(n, FloatVector); }

// p 2^n, by two factors: 2^n itself leaves the normal range at both ends. n_as_float is n.
template <class V>
FASTVAE_INLINE V scale_f32(V p, V /* n_as_float */, Integers<V> n) {
  const Integers<V> half = n >> 1;
  return p * bit_cast<V>((half + 127) << 23) * bit_cast<V>((n - half + 127) << 23);
}

template <class V>
FASTVAE_INLINE V scale_f64(V p, V /* n_as_float */, Integers<V> n) {
  const Integers<V> half = n >> 1;
  return p * bit_cast<V>((half + 1023) << 52) * bit_cast<V>((n - half + 1023) << 52);
}

#ifdef __AVX512F__
template <>
FASTVAE_INLINE FloatVector scale_f32(FloatVector p, FloatVector n_as_float, I32) {
  return (FloatVector)_mm512_scalef_ps((__m512)p, (__m512)n_as_float);
}

template <>
FASTVAE_INLINE DoubleVector scale_f64(DoubleVector p, DoubleVector n_as_float, I64) {
  return (DoubleVector)_mm512_scalef_pd((__m512d)p, (__m512d)n_as_float);
}
#endif

// x = n ln 2 + r with the integer n that leaves r within half of ln 2.
template <class V>
struct Reduced {
  V n, r;
  Integers<V> bits;  // n in the low 22 bits, in two's complement
};

template <class V>
FASTVAE_INLINE Reduced<V> reduce(V x) {
  const V shifted = fused(x, 1.44269504f, 12582912.0f);  // 1.5 * 2^23: the sum's low bits are round(x / ln 2)
  const V n = shifted - 12582912.0f;
  const V r = fused(n, 2.12194440e-4f, fused(n, -0.693359375f, x));
  return {n, r, bit_cast<Integers<V>>(shifted)};
}

// (e^r - 1 - r) / r^2 of a reduced r. The polynomial minimises the greatest relative error of e^r, 4e-9.
template <class V>
FASTVAE_INLINE V exp_rest(V r) {
  V p = fused(r, 1.38145988e-3f, 8.36871658e-3f);
  p = fused(p, r, 4.16683890e-2f);
  p = fused(p, r, 1.66665211e-1f);
  return fused(p, r, 4.99999940e-1f);
}

template <class V>
FASTVAE_INLINE V exp_f32(V x) {
  const auto [n, r, bits] = reduce(at_least(at_most(x, V{} + 90.0f), V{} - 105.0f));
  return scale_f32(fused(fused(exp_rest(r), r, 1.0f), r, 1.0f), n, bits - 0x4B400000);
}

template <class V>
FASTVAE_INLINE V exp_f64(V x) {
  x = at_least(at_most(x, V{} + 710.0), V{} - 750.0);
  const V shifted = fused(x, 1.4426950408889634, 6755399441055744.0);  // 1.5 * 2^52
  const Integers<V> n = bit_cast<Integers<V>>(shifted) - 0x4338000000000000;
  const V whole = shifted - 6755399441055744.0;
  const V r = fused(whole, -1.90821492927058770002e-10, fused(whole, -6.93147180369123816490e-01, x));
  V p = fused(r, 1.0 / 6227020800, 1.0 / 479001600);
  p = fused(p, r, 1.0 / 39916800);
  p = fused(p, r, 1.0 / 3628800);
  p = fused(p, r, 1.0 / 362880);
  p = fused(p, r, 1.0 / 40320);
  p = fused(p, r, 1.0 / 5040);
  p = fused(p, r, 1.0 / 720);
  p = fused(p, r, 1.0 / 120);
  p = fused(p, r, 1.0 / 24);
  p = fused(p, r, 1.0 / 6);
  p = fused(p, r, 0.5);
  p = fused(p * r, r, r) + 1.0;
  return scale_f64(p, whole, n);
}

// e^x to 1 or 2 ulp; overflow gives inf, underflow goes through denormals to 0, NaN stays NaN.
FASTVAE_INLINE float exp(float x) { return exp_f32(x); }
FASTVAE_INLINE double exp(double x) { return exp_f64(x); }
FASTVAE_INLINE FloatVector exp(FloatVector x) { return exp_f32(x); }
FASTVAE_INLINE DoubleVector exp(DoubleVector x) { return exp_f64(x); }

template <class T>
FASTVAE_INLINE void exp_row(const T* x, int64_t count, T* out) {
  constexpr int64_t width = Simd<T>::kWidth;
  int64_t i = 0;
  for (; i + width <= count; i += width) store(out + i, exp(load(x + i)));
  if (i < count) store_first(out + i, exp(load_first(x + i, count - i)), count - i);
}

#ifdef __AVX512F__
FASTVAE_INLINE FloatVector choose(const float (&of)[16], I32 low_bits) {
  return (FloatVector)_mm512_permutexvar_ps((__m512i)low_bits, (__m512)load(of));
}
#endif

// ln(u 2^-shift) for normal u > 0, to 2 ulp.
template <int shift = 0>
FASTVAE_INLINE FloatVector log_unit(FloatVector u) {
  // The exponent that leaves the mantissa in [sqrt(1/2), sqrt(2)).
  const I32 bits = bit_cast<I32>(u) - (0x3F3504F3 + (shift << 23));
  const FloatVector exponent = to_floats(bits >> 23);
  const FloatVector mantissa = bit_cast<FloatVector>((bits & 0x007FFFFF) + 0x3F3504F3);
#ifdef __AVX512F__
  // The interval in sixteenths. Dividing by a sixteenth's middle leaves 1 + f with |f| < 0.05; the tables hold the
  // reciprocals of the middles and their logarithms. Both sixteenths at 1 have the middle 1: small logarithms stay
  // exact.
  alignas(64) static constexpr float reciprocal[16] = {
      1.38363922f, 1.32629204f, 1.27350938f,  1.22476709f,  1.17961836f,  1.13768005f,  1.09862125f,  1.06215549f,
      1.0f,        1.0f,        0.934174716f, 0.882640958f, 0.836495638f, 0.794935584f, 0.757309794f, 0.723084867f};
  alignas(64) static constexpr float logarithm[16] = {-0.324717141f, -0.282387107f, -0.241776383f,  -0.202750694f,
                                                      -0.165190961f, -0.128991148f, -0.0940559838f, -0.06030032f,
                                                      0.0f,          0.0f,          0.0680917956f,  0.124836777f,
                                                      0.178533973f,  0.229494194f,  0.27798287f,    0.324228682f};
  const FloatVector f = fused(mantissa, choose(reciprocal, bits >> 19), -1.0f);
  FloatVector p = fused(f, 0.2f, -0.25f);
  p = fused(p, f, 1.0f / 3);
  p = fused(p, f, -0.5f);
  p = fused(p, f * f, f);
  return p + fused(exponent, 0.693147181f, choose(logarithm, bits >> 19));
#else
  // Cephes' logf.
  const FloatVector f = mantissa - 1.0f;
  FloatVector p = fused(f, 7.0376836292e-2f, -1.1514610310e-1f);
  p = fused(p, f, 1.1676998740e-1f);
  p = fused(p, f, -1.2420140846e-1f);
  p = fused(p, f, 1.4249322787e-1f);
  p = fused(p, f, -1.6668057665e-1f);
  p = fused(p, f, 2.0000714765e-1f);
  p = fused(p, f, -2.4999993993e-1f);
  p = fused(p, f, 3.3333331174e-1f);
  p = fused(p, f, -0.5f);
  return fused(exponent, 0.693147181f, fused(p, f * f, f));
#endif
}

// sqrt(2) sin and cos of a / sqrt(2), for |a| up to sqrt(2) pi / 4, by Cephes' polynomials.
FASTVAE_INLINE FloatVector sqrt2_sin(FloatVector a) {
  const FloatVector square = a * a;
  FloatVector p = fused(square, -1.9515295891e-4f / 8, 8.3321608736e-3f / 4);
  p = fused(p, square, -1.6666654611e-1f / 2);
  return fused(a * square, p, a);
}

FASTVAE_INLINE FloatVector sqrt2_cos(FloatVector a) {
  constexpr double sqrt2 = 1.41421356237309505;
  constexpr float c0 = sqrt2, c1 = sqrt2 / 4, c2 = 4.166664568298827e-2 * sqrt2 / 4,
                  c3 = 1.388731625493765e-3 * sqrt2 / 8, c4 = 2.443315711809948e-5 * sqrt2 / 16;
  const FloatVector square = a * a;
  FloatVector p = fused(square, c4, -c3);
  p = fused(p, square, c2);
  p = fused(p, square, -c1);
  return fused(p, square, c0);
}

}  // namespace FASTVAE_ISA
}  // namespace fastvae
