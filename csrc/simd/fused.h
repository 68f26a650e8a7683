// Products that are fused with a sum.
#pragma once

#include <type_traits>

#include "simd/vectors.h"

namespace fastvae {
inline namespace FASTVAE_ISA {

// A number in every lane of V, or V itself.
template <class V, class X>
FASTVAE_INLINE V broadcast(X x) {
  if constexpr (std::is_same_v<V, X>)
    return x;
  else if constexpr (std::is_arithmetic_v<V>)
    return static_cast<V>(x);
  else
    return x - V{};
}

#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
FASTVAE_INLINE float multiply_add_once(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
FASTVAE_INLINE double multiply_add_once(double a, double b, double c) { return __builtin_fma(a, b, c); }
#endif
#if defined(__AVX512F__)
FASTVAE_INLINE FloatVector multiply_add_once(FloatVector a, FloatVector b, FloatVector c) {
  return (FloatVector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
FASTVAE_INLINE DoubleVector multiply_add_once(DoubleVector a, DoubleVector b, DoubleVector c) {
  return (DoubleVector)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
}
#elif defined(__FMA__)
FASTVAE_INLINE FloatVector multiply_add_once(FloatVector a, FloatVector b, FloatVector c) {
  return (FloatVector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
FASTVAE_INLINE DoubleVector multiply_add_once(DoubleVector a, DoubleVector b, DoubleVector c) {
  return (DoubleVector)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}
#elif defined(__ARM_FEATURE_FMA)
FASTVAE_INLINE FloatVector multiply_add_once(FloatVector a, FloatVector b, FloatVector c) {
  return (FloatVector)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
FASTVAE_INLINE DoubleVector multiply_add_once(DoubleVector a, DoubleVector b, DoubleVector c) {
  return (DoubleVector)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
}
#else
template <class V>
FASTVAE_INLINE V multiply_add_once(V a, V b, V c) {
  return a * b + c;
}
#endif

// a b + c of numbers and vectors, rounded once where the processor can. Nothing else is: compilers are told not to fuse
// products and sums, since they choose which anew in every tile and loop, and a sample's bits would depend on them.
template <class A, class B, class C>
FASTVAE_INLINE auto fused(A a, B b, C c) {
  using V = decltype(a * b + c);
  return multiply_add_once(broadcast<V>(a), broadcast<V>(b), broadcast<V>(c));
}

}  // namespace FASTVAE_ISA
}  // namespace fastvae
