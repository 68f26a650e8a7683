// Standard normals as a pure function of (seed, sample, row, column): see fastvae/rng.py for the contract.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "isa.h"
#include "vecmath.h"

namespace fastvae {
namespace {

// Counters per batch of noise: four lanes of this many values stay in the first-level cache.
constexpr int64_t kChunk = 256;

struct PhiloxWords {
  alignas(64) uint32_t x[4][kChunk];
};

// Philox-4x32-10 (Salmon, Moraes, Dror, Shaw, 2011) for the columns first, first + 1, ... of one row and sample.
// Each 32-bit word stays in the low half of a 64-bit lane: a product's low half is then already in place, and its
// garbage above is ignored by the next multiplication.
inline void philox(uint64_t seed, uint64_t row, uint32_t sample, int64_t first, int64_t count, PhiloxWords& out) {
  for (int64_t start = 0; start < count; start += kLanes) {
    U64 c0, c1 = U64{} + (row & 0xFFFFFFFFu), c2 = U64{} + (row >> 32), c3 = U64{} + sample;
    for (int lane = 0; lane < kLanes; ++lane) c0[lane] = static_cast<uint64_t>(first + start + lane);
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
      const U64 p0 = multiply_low_halves(c0, U64{} + 0xD2511F53u);
      const U64 p1 = multiply_low_halves(c2, U64{} + 0xCD9E8D57u);
      c0 = (p1 >> 32) ^ c1 ^ (U64{} + k0);
      c2 = (p0 >> 32) ^ c3 ^ (U64{} + k1);
      c1 = p1;
      c3 = p0;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    const U64 words[4] = {c0, c1, c2, c3};
    for (int w = 0; w < 4; ++w) {
      const U32 low = __builtin_convertvector(words[w], U32);
      __builtin_memcpy(&out.x[w][start], &low, sizeof(low));
    }
  }
}

// Two normals from two words (Box, Muller, 1958); the two high bits of b turn the angle of its low thirty by quarters.
template <class T>
inline void box_muller(const uint32_t* a, const uint32_t* b, int64_t count, T* even, T* odd) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const float u = static_cast<float>(static_cast<int32_t>(a[i] >> 1)) * 0x1p-31f + 0x1p-32f;
    const float r = std::sqrt(-2.0f * log_unit(u));
    const float angle = static_cast<float>(static_cast<int32_t>(b[i] << 2)) * (0.785398163f * 0x1p-31f);
    const float c = cos_quarter(angle), s = sin_quarter(angle);
    const uint32_t sign = (b[i] << 1) & 0x80000000u;
    const bool swap = static_cast<int32_t>(b[i]) < 0;
    const float signed_r = bit_cast<float>(bit_cast<uint32_t>(r) ^ sign);
    even[i] = static_cast<T>(signed_r * (swap ? s : c));
    odd[i] = static_cast<T>(signed_r * (swap ? c : s));
  }
}

// Where one call's noise comes from: a seed, or the normals themselves.
template <class T>
struct Noise {
  const int64_t* seed;
  const T* eps;
};

// The noise of columns [first, first + count) of each quarter of one row; lane[l][i] belongs to column l*quarter+first+i.
template <class T>
struct NoiseChunk {
  alignas(64) T values[4][kChunk];
  const T* lane[4];

  void draw(uint64_t seed, uint64_t row, int64_t sample, int64_t first, int64_t count) {
    PhiloxWords words;
    philox(seed, row, static_cast<uint32_t>(sample), first, count, words);
    box_muller(words.x[0], words.x[1], count, values[0], values[1]);
    box_muller(words.x[2], words.x[3], count, values[2], values[3]);
    for (int l = 0; l < 4; ++l) lane[l] = values[l];
  }

  void point_to(const T* row_eps, int64_t quarter, int64_t first) {
    for (int l = 0; l < 4; ++l) lane[l] = row_eps + l * quarter + first;
  }
};

// How many of the columns l*quarter + first + [0, count) exist in a row of d.
FASTVAE_INLINE int64_t lane_count(int64_t lane, int64_t quarter, int64_t first, int64_t count, int64_t d) {
  return std::clamp<int64_t>(d - lane * quarter - first, 0, count);
}

}  // namespace
}  // namespace fastvae
