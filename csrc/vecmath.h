// Elementary functions as branch-free arithmetic, which compilers vectorise in a plain loop, unlike libm's.
#pragma once

#include <cstdint>

#include "simd.h"

namespace fastvae {
namespace {

template <class To, class From>
FASTVAE_INLINE To bit_cast(From value) {
  return __builtin_bit_cast(To, value);
}

// Every function takes a number, for plain loops, or a vector of them; Integers are those of the same layout.
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
struct IntegersOf<Simd<float>::Vector> {
  using Type = I32;
};
template <>
struct IntegersOf<Simd<double>::Vector> {
  using Type = I64;
};
template <class V>
using Integers = typename IntegersOf<V>::Type;

FASTVAE_INLINE float to_floats(int32_t n) { return static_cast<float>(n); }
FASTVAE_INLINE Simd<float>::Vector to_floats(I32 n) { return __builtin_convertvector(n, Simd<float>::Vector); }

// p 2^n in two factors, since 2^n itself leaves the normal range at both ends; n_as_float is n too.
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
FASTVAE_INLINE Simd<float>::Vector scale_f32(Simd<float>::Vector p, Simd<float>::Vector n_as_float, I32) {
  return (Simd<float>::Vector)_mm512_scalef_ps((__m512)p, (__m512)n_as_float);
}

template <>
FASTVAE_INLINE Simd<double>::Vector scale_f64(Simd<double>::Vector p, Simd<double>::Vector n_as_float, I64) {
  return (Simd<double>::Vector)_mm512_scalef_pd((__m512d)p, (__m512d)n_as_float);
}
#endif

template <class V>
FASTVAE_INLINE V exp_f32(V x) {
  x = x > 90.0f ? V{} + 90.0f : x;  // written so that NaN passes
  x = x < -105.0f ? V{} - 105.0f : x;
  const V shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the sum's low bits are round(x / ln 2)
  const Integers<V> n = bit_cast<Integers<V>>(shifted) - 0x4B400000;
  const V whole = shifted - 12582912.0f;
  const V r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  V p = r * (1.0f / 5040) + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  return scale_f32(p, whole, n);
}

template <class V>
FASTVAE_INLINE V exp_f64(V x) {
  x = x > 710.0 ? V{} + 710.0 : x;
  x = x < -750.0 ? V{} - 750.0 : x;
  const V shifted = x * 1.4426950408889634 + 6755399441055744.0;  // 1.5 * 2^52
  const Integers<V> n = bit_cast<Integers<V>>(shifted) - 0x4338000000000000;
  const V whole = shifted - 6755399441055744.0;
  const V r = (x - whole * 6.93147180369123816490e-01) - whole * 1.90821492927058770002e-10;
  V p = r * (1.0 / 6227020800) + 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r * r + r + 1.0;
  return scale_f64(p, whole, n);
}

// e^x to about 1 ulp; overflow gives inf, underflow goes through denormals to 0, NaN stays NaN.
FASTVAE_INLINE float exp(float x) { return exp_f32(x); }
FASTVAE_INLINE double exp(double x) { return exp_f64(x); }
FASTVAE_INLINE Simd<float>::Vector exp(Simd<float>::Vector x) { return exp_f32(x); }
FASTVAE_INLINE Simd<double>::Vector exp(Simd<double>::Vector x) { return exp_f64(x); }

template <class T>
FASTVAE_INLINE void exp_row(const T* x, int64_t count, T* out) {
  constexpr int64_t width = Simd<T>::kWidth;
  int64_t i = 0;
  for (; i + width <= count; i += width) store(out + i, exp(load(x + i)));
  if (i < count) store_first(out + i, exp(load_first(x + i, count - i)), count - i);
}

// ln u for normal u in (0, 1], Cephes' logf.
template <class V>
FASTVAE_INLINE V log_unit(V u) {
  // The exponent that leaves the mantissa in [sqrt(1/2), sqrt(2)).
  const Integers<V> bits = bit_cast<Integers<V>>(u) - 0x3F3504F3;
  const V e = to_floats(bits >> 23);
  const V f = bit_cast<V>((bits & 0x007FFFFF) + 0x3F3504F3) - 1.0f;
  V p = f * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const V square = f * f;
  return (f + (f * square * p - e * 2.12194440e-4f - 0.5f * square)) + e * 0.693359375f;
}

// sin and cos on [-pi/4, pi/4], Cephes' sinf and cosf.
template <class V>
FASTVAE_INLINE V sin_quarter(V a) {
  const V square = a * a;
  return a + a * square * ((-1.9515295891e-4f * square + 8.3321608736e-3f) * square - 1.6666654611e-1f);
}

template <class V>
FASTVAE_INLINE V cos_quarter(V a) {
  const V square = a * a;
  const V p = (2.443315711809948e-5f * square - 1.388731625493765e-3f) * square + 4.166664568298827e-2f;
  return 1.0f - 0.5f * square + square * square * p;
}

}  // namespace
}  // namespace fastvae
