// What one instruction set's copy of the kernels is made of. Every kernel source is compiled once per set, with
// FASTVAE_ISA naming it; all but the table lives in anonymous namespaces, else the linker could merge an AVX-512 copy
// of an inline function into the baseline path.
#pragma once

#include <cstdint>

#define FASTVAE_INLINE inline __attribute__((always_inline))

#ifdef __AVX2__
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace fastvae {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

using U64 = uint64_t __attribute__((vector_size(kVectorBytes)));
using U32 = uint32_t __attribute__((vector_size(kVectorBytes / 2)));
constexpr int kLanes = kVectorBytes / 8;

// 64-bit products of the low halves of 64-bit lanes. Compilers do not find this instruction in a plain loop.
FASTVAE_INLINE U64 multiply_low_halves(U64 a, U64 b) {
#if defined(__AVX512F__)
  return (U64)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (U64)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (U64)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu);
#endif
}

}  // namespace
}  // namespace fastvae
