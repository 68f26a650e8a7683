// The few vector operations that a plain loop cannot express.
#pragma once

#include <cstdint>

#include "simd/fused.h"
#include "simd/vectors.h"

namespace fastvae {
inline namespace FASTVAE_ISA {

// 64-bit products of the low halves of 64-bit lanes. Compilers do not find this instruction in a plain loop.
FASTVAE_INLINE U64 multiply_low_halves(U64 a, U64 b) {
#if defined(__AVX512F__)
  return (U64)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (U64)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (U64)_mm_mul_epu32((__m128i)a, (__m128i)b);
#elif defined(__ARM_NEON)
  return (U64)vmull_u32(vmovn_u64((uint64x2_t)a), vmovn_u64((uint64x2_t)b));
#else
  return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu);
#endif
}

// The low halves of the lanes of a, then of b.
FASTVAE_INLINE U32 low_halves(U64 a, U64 b) {
#ifdef __AVX512F__
  return __builtin_shufflevector((U32)a, (U32)b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
#elif defined(__AVX2__)
  return __builtin_shufflevector((U32)a, (U32)b, 0, 2, 4, 6, 8, 10, 12, 14);
#else
  return __builtin_shufflevector((U32)a, (U32)b, 0, 2, 4, 6);
#endif
}

// Zeros in registers. Of an initialiser GCC makes a string instruction, whose start costs as much as many products.
template <int rows, int vectors, class Vector>
FASTVAE_INLINE void clear(Vector (&sums)[rows][vectors]) {
#pragma GCC unroll 8
  for (int h = 0; h < rows; ++h)
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) sums[h][v] = Vector{};
}

// A tile's sums for loops that pick from them by a number. Such an array is in memory from its first use on: the sums
// themselves would leave the registers.
template <int rows, int vectors, class Vector>
struct Picked {
  Vector sums[rows][vectors];

  FASTVAE_INLINE explicit Picked(const Vector (&given)[rows][vectors]) {
#pragma GCC unroll 8
    for (int h = 0; h < rows; ++h)
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) sums[h][v] = given[h][v];
  }
  FASTVAE_INLINE const Vector& operator()(int64_t h, int64_t v) const { return sums[h][v]; }
};

template <class T>
FASTVAE_INLINE typename Simd<T>::Vector load(const T* p) {
  return *reinterpret_cast<const typename Simd<T>::Unaligned*>(p);
}

template <class T>
FASTVAE_INLINE void store(T* p, typename Simd<T>::Vector v) {
  *reinterpret_cast<typename Simd<T>::Unaligned*>(p) = v;
}

// A store past the caches, to an aligned address; fence_streams makes such stores visible to other threads.
template <class T>
FASTVAE_INLINE void stream(T* p, typename Simd<T>::Vector v) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
#elif defined(__AVX2__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)v);
#else
  store(p, v);
#endif
}

FASTVAE_INLINE void fence_streams() {
#ifdef __AVX2__
  _mm_sfence();
#endif
}

// The first count numbers at p, fewer than a vector has, then zeros. Nothing behind them is read: it may be NaN, or no
// memory at all.
FASTVAE_INLINE FloatVector load_first(const float* p, int64_t count) {
#if defined(__AVX512F__)
  return (FloatVector)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1u), p);
#elif defined(__AVX2__)
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return (FloatVector)_mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lanes));
#else
  // A pair and a number: a loop over lanes would go through memory.
  if (count & 2) {
    typename Simd<double>::Vector pair{};
    __builtin_memcpy(&pair, p, 2 * sizeof(float));
    FloatVector v = (FloatVector)pair;
    if (count & 1) v[2] = p[2];
    return v;
  }
  return count & 1 ? FloatVector{p[0]} : FloatVector{};
#endif
}

FASTVAE_INLINE DoubleVector load_first(const double* p, int64_t count) {
#if defined(__AVX512F__)
  return (DoubleVector)_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1u), p);
#elif defined(__AVX2__)
  const __m256i lanes = _mm256_setr_epi64x(0, 1, 2, 3);
  return (DoubleVector)_mm256_maskload_pd(p, _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), lanes));
#else
  return count & 1 ? DoubleVector{p[0]} : DoubleVector{};
#endif
}

// Writes the first count lanes to p, and nothing behind them.
FASTVAE_INLINE void store_first(float* p, FloatVector v, int64_t count) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1u), (__m512)v);
#elif defined(__AVX2__)
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  _mm256_maskstore_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lanes), (__m256)v);
#else
  if (count & 2) __builtin_memcpy(p, &v, 2 * sizeof(float));
  if (count & 1) p[count & 2] = count & 2 ? v[2] : v[0];
#endif
}

FASTVAE_INLINE void store_first(double* p, DoubleVector v, int64_t count) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << count) - 1u), (__m512d)v);
#elif defined(__AVX2__)
  const __m256i lanes = _mm256_setr_epi64x(0, 1, 2, 3);
  _mm256_maskstore_pd(p, _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), lanes), (__m256d)v);
#else
  if (count & 1) p[0] = v[0];
#endif
}

// Numbers drawn in single precision, stored as the kernel's.
FASTVAE_INLINE void store_as(float* p, FloatVector v) { store(p, v); }
FASTVAE_INLINE void store_as(double* p, FloatVector v) {
  using Doubles = double __attribute__((vector_size(2 * kVectorBytes)));
  const Doubles wide = __builtin_convertvector(v, Doubles);
  __builtin_memcpy(p, &wide, sizeof(wide));
}

// x < bound ? bound : x and x > bound ? bound : x, so that NaN in x passes. Compilers do not find the instructions for
// it in a selection between vectors.
template <class V>
FASTVAE_INLINE V at_least(V x, V bound) {
  return x < bound ? bound : x;
}
template <class V>
FASTVAE_INLINE V at_most(V x, V bound) {
  return x > bound ? bound : x;
}
#if defined(__AVX512F__)
FASTVAE_INLINE FloatVector at_least(FloatVector x, FloatVector bound) {
  return (FloatVector)_mm512_max_ps((__m512)bound, (__m512)x);
}
FASTVAE_INLINE FloatVector at_most(FloatVector x, FloatVector bound) {
  return (FloatVector)_mm512_min_ps((__m512)bound, (__m512)x);
}
FASTVAE_INLINE DoubleVector at_least(DoubleVector x, DoubleVector bound) {
  return (DoubleVector)_mm512_max_pd((__m512d)bound, (__m512d)x);
}
FASTVAE_INLINE DoubleVector at_most(DoubleVector x, DoubleVector bound) {
  return (DoubleVector)_mm512_min_pd((__m512d)bound, (__m512d)x);
}
#elif defined(__AVX2__)
FASTVAE_INLINE FloatVector at_least(FloatVector x, FloatVector bound) {
  return (FloatVector)_mm256_max_ps((__m256)bound, (__m256)x);
}
FASTVAE_INLINE FloatVector at_most(FloatVector x, FloatVector bound) {
  return (FloatVector)_mm256_min_ps((__m256)bound, (__m256)x);
}
FASTVAE_INLINE DoubleVector at_least(DoubleVector x, DoubleVector bound) {
  return (DoubleVector)_mm256_max_pd((__m256d)bound, (__m256d)x);
}
FASTVAE_INLINE DoubleVector at_most(DoubleVector x, DoubleVector bound) {
  return (DoubleVector)_mm256_min_pd((__m256d)bound, (__m256d)x);
}
#endif

FASTVAE_INLINE FloatVector square_root(FloatVector v) {
#if defined(__AVX512F__)
  return (FloatVector)_mm512_sqrt_ps((__m512)v);
#elif defined(__AVX2__)
  return (FloatVector)_mm256_sqrt_ps((__m256)v);
#elif defined(__SSE2__)
  return (FloatVector)_mm_sqrt_ps((__m128)v);
#elif defined(__ARM_NEON)
  return (FloatVector)vsqrtq_f32((float32x4_t)v);
#else
  for (int i = 0; i < Simd<float>::kWidth; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
#endif
}

FASTVAE_INLINE Simd<float>::Four fold_to_four(FloatVector v) {
#ifdef __AVX512F__
  using Eight = float __attribute__((vector_size(32)));
  const Eight half = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                     __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  return __builtin_shufflevector(half, half, 0, 1, 2, 3) + __builtin_shufflevector(half, half, 4, 5, 6, 7);
#elif defined(__AVX2__)
  return __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
#else
  return v;
#endif
}

#ifdef __AVX2__
FASTVAE_INLINE Simd<double>::Four fold_to_four(DoubleVector v) {
#ifdef __AVX512F__
  return __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
#else
  return v;
#endif
}
#endif

// The sums of four vectors, each in its own lane.
template <class T>
FASTVAE_INLINE typename Simd<T>::Four sum_each(typename Simd<T>::Vector a, typename Simd<T>::Vector b,
                                               typename Simd<T>::Vector c, typename Simd<T>::Vector d) {
  if constexpr (Simd<T>::kWidth == 2) {
    const auto ab = __builtin_shufflevector(a, b, 0, 2) + __builtin_shufflevector(a, b, 1, 3);
    const auto cd = __builtin_shufflevector(c, d, 0, 2) + __builtin_shufflevector(c, d, 1, 3);
    return __builtin_shufflevector(ab, cd, 0, 1, 2, 3);
  } else {
    const auto fa = fold_to_four(a), fb = fold_to_four(b), fc = fold_to_four(c), fd = fold_to_four(d);
    const auto ab = __builtin_shufflevector(fa, fb, 0, 4, 2, 6) + __builtin_shufflevector(fa, fb, 1, 5, 3, 7);
    const auto cd = __builtin_shufflevector(fc, fd, 0, 4, 2, 6) + __builtin_shufflevector(fc, fd, 1, 5, 3, 7);
    return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
  }
}

template <class T>
FASTVAE_INLINE T sum(typename Simd<T>::Vector v) {
  if constexpr (Simd<T>::kWidth == 2) {
    return v[0] + v[1];
  } else {
    const auto four = fold_to_four(v);
    return (four[0] + four[2]) + (four[1] + four[3]);
  }
}

// Numbers of a row that are added one after another in each lane of a vector; longer rows are summed up by such blocks.
template <class T>
constexpr int64_t kBlockNumbers = 256 * Simd<T>::kWidth;

// The sum of term(i) over [0, count). In a plain loop the compiler may not reorder additions: it would add a vector's
// lanes one by one at the end, and that costs as much as the terms of a short row.
template <class T, class Term>
FASTVAE_INLINE T sum_terms(int64_t count, const Term& term) {
  constexpr int64_t width = Simd<T>::kWidth, chunk = 16 * width;
  alignas(kVectorBytes) T terms[chunk];
  T total = 0;
  int64_t first = 0;
  do {
    const int64_t end = count - first < kBlockNumbers<T> ? count : first + kBlockNumbers<T>;
    typename Simd<T>::Vector part{};
    for (; first < end; first += chunk) {
      const int64_t length = end - first < chunk ? end - first : chunk;
#pragma omp simd
      for (int64_t i = 0; i < length; ++i) terms[i] = term(first + i);
      int64_t i = 0;
      for (; i + width <= length; i += width) part += load(terms + i);
      if (i < length) part += load_first(terms + i, length - i);
    }
    total += sum<T>(part);
  } while (first < count);
  return total;
}

// The constant of a Gaussian's log-density minus the density: sum of eps^2 / 2 + log_sigma.
template <class T>
FASTVAE_INLINE T energy(const T* eps, const T* log_sigma, int64_t count) {
  constexpr int64_t width = Simd<T>::kWidth;
  T total = 0;
  int64_t i = 0;
  do {
    const int64_t end = count - i < kBlockNumbers<T> ? count : i + kBlockNumbers<T>;
    typename Simd<T>::Vector squares{}, logs{};
    for (; i + width <= end; i += width) {
      const auto e = load(eps + i);
      squares = fused(e, e, squares);
      logs += load(log_sigma + i);
    }
    if (i < end) {
      const auto e = load_first(eps + i, end - i);
      squares = fused(e, e, squares);
      logs += load_first(log_sigma + i, end - i);
      i = end;
    }
    total += sum<T>(fused(T(0.5), squares, logs));
  } while (i < count);
  return total;
}

}  // namespace FASTVAE_ISA
}  // namespace fastvae
