// Elementary functions as branch-free arithmetic that compilers vectorise in a plain loop, unlike libm's.
#pragma once

#include <cstdint>

#include "simd.h"

namespace fastvae {
namespace {

template <class To, class From>
FASTVAE_INLINE To bit_cast(From value) {
  return __builtin_bit_cast(To, value);
}

// e^x to about 1 ulp; overflow gives inf, underflow goes through denormals to 0, NaN stays NaN.
FASTVAE_INLINE float exp(float x) {
  x = x > 90.0f ? 90.0f : x;  // written so that NaN passes
  x = x < -105.0f ? -105.0f : x;
  const float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the sum's low bits are round(x / ln 2)
  const int32_t n = bit_cast<int32_t>(shifted) - 0x4B400000;
  const float whole = shifted - 12582912.0f;
  const float r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  // Two factors, since 2^n itself leaves the normal range at both ends.
  const int32_t half = n >> 1;
  return p * bit_cast<float>((half + 127) << 23) * bit_cast<float>((n - half + 127) << 23);
}

FASTVAE_INLINE double exp(double x) {
  x = x > 710.0 ? 710.0 : x;
  x = x < -750.0 ? -750.0 : x;
  const double shifted = x * 1.4426950408889634 + 6755399441055744.0;  // 1.5 * 2^52
  const int64_t n = bit_cast<int64_t>(shifted) - 0x4338000000000000;
  const double whole = shifted - 6755399441055744.0;
  const double r = (x - whole * 6.93147180369123816490e-01) - whole * 1.90821492927058770002e-10;
  double p = 1.0 / 6227020800;
  p = p * r + 1.0 / 479001600;
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
  const int64_t half = n >> 1;
  return p * bit_cast<double>((half + 1023) << 52) * bit_cast<double>((n - half + 1023) << 52);
}

// ln u for normal u in (0, 1], Cephes' logf.
FASTVAE_INLINE float log_unit(float u) {
  // The exponent that leaves the mantissa in [sqrt(1/2), sqrt(2)).
  const int32_t bits = bit_cast<int32_t>(u) - 0x3F3504F3;
  const float e = static_cast<float>(bits >> 23);
  const float f = bit_cast<float>((bits & 0x007FFFFF) + 0x3F3504F3) - 1.0f;
  float p = 7.0376836292e-2f;
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const float square = f * f;
  return (f + (f * square * p - e * 2.12194440e-4f - 0.5f * square)) + e * 0.693359375f;
}

// sin and cos on [-pi/4, pi/4], Cephes' sinf and cosf.
FASTVAE_INLINE float sin_quarter(float a) {
  const float square = a * a;
  return a + a * square * ((-1.9515295891e-4f * square + 8.3321608736e-3f) * square - 1.6666654611e-1f);
}

FASTVAE_INLINE float cos_quarter(float a) {
  const float square = a * a;
  const float p = (2.443315711809948e-5f * square - 1.388731625493765e-3f) * square + 4.166664568298827e-2f;
  return 1.0f - 0.5f * square + square * square * p;
}

}  // namespace
}  // namespace fastvae
