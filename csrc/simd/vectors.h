// Vector types, whose operators are the instructions of the set that a source is compiled for.
//
// Every kernel source is compiled once for each instruction set, which FASTVAE_ISA names. All of it but the arguments'
// types is in a namespace of that name, or in an anonymous one: otherwise the linker could put an AVX-512 copy of an
// inline function into the baseline path. What headers define is in the named one, where the linker keeps one copy of
// what several sources use.
#pragma once

#include <cstdint>

#define FASTVAE_INLINE inline __attribute__((always_inline))
#define FASTVAE_INLINE_LAMBDA __attribute__((always_inline))

#ifdef __AVX2__
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace fastvae {
inline namespace FASTVAE_ISA {

// The size of a vector register: compilers keep wider vectors in memory.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
#if defined(__AVX512F__) || defined(__ARM_NEON)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

using U64 = uint64_t __attribute__((vector_size(kVectorBytes)));
using I64 = int64_t __attribute__((vector_size(kVectorBytes)));
using U32 = uint32_t __attribute__((vector_size(kVectorBytes)));
using I32 = int32_t __attribute__((vector_size(kVectorBytes)));
using FloatVector = float __attribute__((vector_size(kVectorBytes)));
using DoubleVector = double __attribute__((vector_size(kVectorBytes)));

// Whether tiles of many sizes are compiled, for what whole tiles leave. In float64, which serves to check gradients,
// and on x86-64 without AVX the smallest ones do it: their code would be an eighth of a wheel.
#if defined(__SSE2__) && !defined(__AVX2__)
constexpr bool kHasManyTiles = false;
#else
constexpr bool kHasManyTiles = true;
#endif
template <class T>
constexpr bool kManyTiles = kHasManyTiles && sizeof(T) == sizeof(float);

// Vectors of T, a number or a word.
template <class T>
struct Simd {
  static constexpr int64_t kWidth = kVectorBytes / sizeof(T);
  typedef T Vector __attribute__((vector_size(kVectorBytes)));
  typedef T Unaligned __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
  typedef T Four __attribute__((vector_size(4 * sizeof(T))));
};

}  // namespace FASTVAE_ISA
}  // namespace fastvae
