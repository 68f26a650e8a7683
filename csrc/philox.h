// Standard normals as a pure function of (seed, sample, row, column): see fastvae/rng.py for the contract.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>

#include "simd.h"
#include "types.h"
#include "vecmath.h"

namespace fastvae {
namespace {

// Counters per batch: their words and normals stay in the first-level cache.
constexpr int64_t kBatch = 256;
constexpr int64_t kBatchPadded = kBatch + kVectorBytes / 8;

// Quarters of a row from this length on are written in place; shorter ones all together, then collected.
constexpr int64_t kDirect = 64;

struct PhiloxCounters {
  alignas(64) uint64_t column[kBatchPadded], row[kBatchPadded], sample[kBatchPadded];
};

struct PhiloxWords {
  alignas(64) uint32_t x[4][kBatchPadded];
};

// Philox-4x32-10 (Salmon, Moraes, Dror, Shaw, 2011). Each 32-bit word stays in the low half of a 64-bit lane: a
// product's low half is then already in place, and its garbage above is ignored by the next multiplication.
inline void philox(uint64_t seed, const PhiloxCounters& counters, int64_t count, PhiloxWords& out) {
  constexpr int64_t lanes = kVectorBytes / 8;
  for (int64_t start = 0; start < count; start += lanes) {
    const U64 row = *reinterpret_cast<const U64*>(counters.row + start);
    U64 c0 = *reinterpret_cast<const U64*>(counters.column + start), c1 = row, c2 = row >> 32;
    U64 c3 = *reinterpret_cast<const U64*>(counters.sample + start);
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

// The noise of consecutive (row, sample) items, samples innermost, each item's D normals contiguous.
template <class T>
class NoiseRows {
 public:
  NoiseRows(NoiseSource<T> source, Extent extent)
      : source_(source), extent_(extent), quarter_((extent.columns + 3) / 4) {
    if (source_.eps) return;
    values_.reset(new T[most() * extent_.columns]);
    for (int64_t r = 0, t = 0; t < std::min(kBatch, most() * quarter_); ++r)
      for (int64_t c = 0; c < quarter_ && t < kBatch; ++c) counters_.column[t++] = static_cast<uint64_t>(c);
  }

  // Items that one call of draw takes at most.
  int64_t most() const { return std::max<int64_t>(1, kBatch / quarter_); }

  void draw(int64_t item, int64_t count) {
    first_ = item;
    if (source_.eps) return;
    if (quarter_ > kBatch)
      draw_long_row(item);
    else
      draw_batch(item, count);
  }

  // The normals of an item of the last draw.
  const T* operator[](int64_t item) const {
    if (source_.eps) {
      const int64_t n = item / extent_.samples, k = item % extent_.samples;
      return source_.eps + (k * extent_.rows + n) * extent_.columns;
    }
    return values_.get() + (item - first_) * extent_.columns;
  }

 private:
  uint64_t row_of(int64_t item) const { return static_cast<uint64_t>(source_.row_offset + item / extent_.samples); }

  void draw_words(int64_t count) { philox(static_cast<uint64_t>(*source_.seed), counters_, count, words_); }

  // The normals of counters [from, from + count), lane l of them from lanes + l * stride on.
  void draw_normals(int64_t from, int64_t count, T* lanes, int64_t stride) const {
    box_muller(words_.x[0] + from, words_.x[1] + from, count, lanes, lanes + stride);
    box_muller(words_.x[2] + from, words_.x[3] + from, count, lanes + 2 * stride, lanes + 3 * stride);
  }

  void draw_batch(int64_t item, int64_t count) {
    for (int64_t r = 0; r < count; ++r) {
      const uint64_t row = row_of(item + r), sample = static_cast<uint64_t>((item + r) % extent_.samples);
      uint64_t *rows = counters_.row + r * quarter_, *samples = counters_.sample + r * quarter_;
#pragma omp simd
      for (int64_t c = 0; c < quarter_; ++c) rows[c] = row, samples[c] = sample;
    }
    draw_words(count * quarter_);
    if (quarter_ >= kDirect && extent_.columns % 4 == 0) {
      for (int64_t r = 0; r < count; ++r)
        draw_normals(r * quarter_, quarter_, values_.get() + r * extent_.columns, quarter_);
      return;
    }
    draw_normals(0, count * quarter_, lanes_[0], kBatchPadded);
    for (int64_t r = 0; r < count; ++r) collect(r * quarter_, quarter_, 0, values_.get() + r * extent_.columns);
  }

  void draw_long_row(int64_t item) {
    const uint64_t row = row_of(item), sample = static_cast<uint64_t>(item % extent_.samples);
    std::fill_n(counters_.row, kBatch, row);
    std::fill_n(counters_.sample, kBatch, sample);
    for (int64_t first = 0; first < quarter_; first += kBatch) {
      const int64_t count = std::min(kBatch, quarter_ - first);
#pragma omp simd
      for (int64_t c = 0; c < count; ++c) counters_.column[c] = static_cast<uint64_t>(first + c);
      draw_words(count);
      draw_normals(0, count, lanes_[0], kBatchPadded);
      collect(0, count, first, values_.get());
    }
  }

  // Lane l of counter first + c is column l * quarter + first + c.
  void collect(int64_t from, int64_t count, int64_t first, T* row) const {
    for (int64_t l = 0; l < 4; ++l) {
      const int64_t offset = l * quarter_ + first, length = std::min(count, extent_.columns - offset);
      const T* source = lanes_[l] + from;
#pragma omp simd
      for (int64_t c = 0; c < length; ++c) row[offset + c] = source[c];
    }
  }

  NoiseSource<T> source_;
  Extent extent_;
  int64_t quarter_, first_ = 0;
  std::unique_ptr<T[]> values_;
  PhiloxCounters counters_{};
  PhiloxWords words_;
  alignas(64) T lanes_[4][kBatchPadded];
};

}  // namespace
}  // namespace fastvae
