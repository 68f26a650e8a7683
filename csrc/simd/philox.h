// Normal and uniform numbers as pure functions of (seed, sample, row, column): see fastvae/rng.py for the contract.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/memory.h"
#include "base/types.h"
#include "simd/simd.h"
#include "simd/vecmath.h"

namespace fastvae {
inline namespace FASTVAE_ISA {

// Counters of one step; it makes four vectors of normals.
constexpr int64_t kStep = Simd<float>::kWidth;
// Counters of a batch, a multiple of kStep: their words and normals fit in the first-level cache.
constexpr int64_t kBatch = 256;

constexpr int kRounds = 10;

// A number for each counter of a step, in 64-bit lanes.
struct PerCounter {
  U64 low, high;
};

FASTVAE_INLINE PerCounter all(int64_t value) {
  const U64 v = U64{} + static_cast<uint64_t>(value);
  return {v, v};
}

FASTVAE_INLINE PerCounter load_counters(const uint64_t* p) { return {load(p), load(p + kStep / 2)}; }

// The counters of a step.
struct Step {
  PerCounter column, row, sample;
};

// Philox-4x32-10 (Salmon, Moraes, Dror, Shaw, 2011). Each 32-bit word is the low half of a 64-bit lane: the low half of
// a product is in place at once, and the next multiplication ignores the high half.
class Philox {
 public:
  explicit Philox(uint64_t seed) {
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < kRounds; ++round) {
      keys_[round][0] = k0;
      keys_[round][1] = k1;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
  }

  // The four words of the counters of two steps: word w goes to out + w * kBatch. With one step alone the processor
  // would wait for its products.
  FASTVAE_INLINE void words(const Step& one, uint32_t* one_out, const Step& other, uint32_t* other_out) const {
    U64 c[4][4] = {{one.column.low, one.row.low, one.row.low >> 32, one.sample.low},
                   {one.column.high, one.row.high, one.row.high >> 32, one.sample.high},
                   {other.column.low, other.row.low, other.row.low >> 32, other.sample.low},
                   {other.column.high, other.row.high, other.row.high >> 32, other.sample.high}};
    for (int round = 0; round < 2; ++round)
      for (auto& counters : c) turn(counters, keys_[round]);
    // Hides from the compiler that the keys are those of the last call: with all keys in registers it would spill words
    // in every round. It may keep those of the first two rounds, where much depends on row or column alone.
    const uint64_t (*keys)[2] = keys_;
    asm("" : "+r"(keys) : "r"(one_out));
#pragma GCC unroll 10
    for (int round = 2; round < kRounds; ++round)
#pragma GCC unroll 4
      for (auto& counters : c) turn(counters, keys[round]);
#pragma GCC unroll 4
    for (int w = 0; w < 4; ++w) {
      store(one_out + w * kBatch, low_halves(c[0][w], c[1][w]));
      store(other_out + w * kBatch, low_halves(c[2][w], c[3][w]));
    }
  }

 private:
  static FASTVAE_INLINE void turn(U64 (&c)[4], const uint64_t (&key)[2]) {
    const U64 p0 = multiply_low_halves(c[0], U64{} + 0xD2511F53u), p1 = multiply_low_halves(c[2], U64{} + 0xCD9E8D57u);
    c[0] = (p1 >> 32) ^ c[1] ^ (U64{} + key[0]);
    c[2] = (p0 >> 32) ^ c[3] ^ (U64{} + key[1]);
    c[1] = p1;
    c[3] = p0;
  }

  uint64_t keys_[kRounds][2];
};

// Two normals from two words (Box, Muller, 1958). The low thirty bits of b are an angle; its two high bits turn it by
// quarters.
FASTVAE_INLINE void box_muller(U32 a, U32 b, FloatVector& even, FloatVector& odd) {
  constexpr int kBits = 31;
  const FloatVector u = to_floats((I32)(a >> 1)) + 0.5f;  // 2^31 times a uniform number
  // sqrt(-2 ln u) (cos, sin); the functions below give sqrt(2) cos and sqrt(2) sin.
  const FloatVector r = square_root(-log_unit<kBits>(u));
  const FloatVector angle = to_floats((I32)(b << 2)) * (1.11072073f * 0x1p-31f);  // sqrt(2) pi / 4
  const FloatVector c = sqrt2_cos(angle), s = sqrt2_sin(angle);
  const I32 swap = (I32)b < 0;
  const FloatVector signed_r = (FloatVector)((U32)r ^ (b << 1 & 0x80000000u));
  even = signed_r * (swap ? s : c);
  odd = signed_r * (swap ? c : s);
}

// What is made of the words of kStep counters: lane l of the numbers goes to out + l * pitch.
struct Normals {
  template <class T>
  static FASTVAE_INLINE void store(const uint32_t* words, T* out, int64_t pitch) {
    FloatVector even, odd;
    for (int l = 0; l < 4; l += 2) {
      box_muller(load(words + l * kBatch), load(words + (l + 1) * kBatch), even, odd);
      store_as(out + l * pitch, even);
      store_as(out + (l + 1) * pitch, odd);
    }
  }
};

struct Uniforms {
  template <class T>
  static FASTVAE_INLINE void store(const uint32_t* words, T* out, int64_t pitch) {
    for (int l = 0; l < 4; ++l)
      store_as(out + l * pitch, (to_floats((I32)(load(words + l * kBatch) >> 9)) + 0.5f) * 0x1p-23f);
  }
};

// The noise of consecutive (row, sample) items, samples innermost. The D numbers of an item are contiguous.
//
// Vectors are stored whole, and some reach past the end of a lane or a row. Items go forward: the next one overwrites
// what was written too far.
template <class T, class Kind = Normals>
class NoiseRows {
 public:
  NoiseRows(NoiseSource<T> source, Extent extent)
      : source_(source),
        extent_(extent),
        quarter_((extent.columns + 3) / 4),
        padded_((quarter_ + kStep - 1) / kStep * kStep),
        philox_(source.seed ? static_cast<uint64_t>(*source.seed) : 0) {
    // Rows are drawn one by one, unless more than a fifth of the numbers would then be thrown away.
    packed_ = padded_ * 4 > quarter_ * 5;
    most_ = std::max<int64_t>(1, kBatch / (packed_ ? quarter_ : padded_));
    if (!source_.seed) return;
    values_ = make_lines<T>((most_ - 1) * extent_.columns + 3 * quarter_ + padded_);
    words_ = make_lines<uint32_t>(4 * kBatch);
    if (!packed_) return;
    lanes_ = make_lines<T>(4 * kBatch + kStep);
    counters_ = make_lines<uint64_t>(3 * kBatch);
    std::fill_n(counters_.get(), 3 * kBatch, 0);
    for (int64_t r = 0, t = 0; r < most_; ++r)
      for (int64_t c = 0; c < quarter_; ++c, ++t) {
        counters_[t] = static_cast<uint64_t>(c);
        counters_[kBatch + t] = static_cast<uint64_t>(r);
      }
  }

  // The most items that one call of draw takes.
  int64_t most() const { return most_; }

  // Draws the numbers of count items. Where rows are drawn one by one, calls meanwhile(item, i) for every 4 kStep
  // columns i: what the caller fetches there arrives while the arithmetic goes on.
  template <class Meanwhile>
  void draw(int64_t item, int64_t count, const Meanwhile& meanwhile) {
    first_ = item;
    if (!source_.seed) return;
    if (packed_)
      draw_packed(item, count);
    else
      for (int64_t first = (quarter_ - 1) / kBatch * kBatch; first >= 0; first -= kBatch)
        draw_rows(item, count, first, std::min(kBatch, padded_ - first), meanwhile);
  }

  void draw(int64_t item, int64_t count) {
    draw(item, count, [](int64_t, int64_t) {});
  }

  // The numbers of an item of the last draw.
  const T* operator[](int64_t item) const {
    if (!source_.seed) {
      const int64_t n = item / extent_.samples, k = item % extent_.samples;
      return source_.eps + (k * extent_.rows + n) * extent_.columns;
    }
    return values_.get() + (item - first_) * extent_.columns;
  }

 private:
  int64_t row_of(int64_t item) const { return source_.row_offset + item / extent_.samples; }
  int64_t sample_of(int64_t item) const { return item % extent_.samples; }

  // Draws counters [first, first + length) of each row; lane l of counter c is column l * quarter + c. It goes
  // backwards: each step overwrites what the one behind it wrote too far.
  template <class Meanwhile>
  void draw_rows(int64_t item, int64_t count, int64_t first, int64_t length, const Meanwhile& meanwhile) {
    PerCounter start = all(first);
    for (int i = 0; i < kStep / 2; ++i) start.low[i] += static_cast<uint64_t>(i);
    start.high = start.low + static_cast<uint64_t>(kStep / 2);
    uint32_t* const words = words_.get();
    const auto step = [&](int64_t r, int64_t c) -> Step {
      meanwhile(item + r, 4 * (first + c));
      return {{start.low + static_cast<uint64_t>(c), start.high + static_cast<uint64_t>(c)},
              all(row_of(item + r)),
              all(sample_of(item + r))};
    };
    for (int64_t r = 0, c = 0; r < count;) {
      int64_t next_r = r, next_c = c + kStep;
      if (next_c == length) {
        ++next_r;
        next_c = 0;
      }
      if (next_r == count) {  // the last of an odd number of steps, twice
        next_r = r;
        next_c = c;
      }
      philox_.words(step(r, c), words + r * length + c, step(next_r, next_c), words + next_r * length + next_c);
      r = next_r;
      c = next_c + kStep;
      if (c == length) {
        ++r;
        c = 0;
      }
    }
    store_rows(count, first, length);
  }

  // Compiled once. Copies could fuse other products with sums: a normal would depend on who draws it.
  __attribute__((noinline)) void store_rows(int64_t count, int64_t first, int64_t length) {
    for (int64_t r = 0; r < count; ++r)
      for (int64_t c = length - kStep; c >= 0; c -= kStep)
        Kind::store(words_.get() + r * length + c, values_.get() + r * extent_.columns + first + c, quarter_);
  }

  void draw_packed(int64_t item, int64_t count) {
    const int64_t counters = count * quarter_;
    uint64_t *columns = counters_.get(), *rows = columns + kBatch, *samples = rows + kBatch;
    // With one sample a batch has consecutive rows: `moved` is added to 0, 1, ..., which `rows` keeps.
    const uint64_t moved = extent_.samples == 1 ? static_cast<uint64_t>(row_of(item)) : 0;
    if (extent_.samples > 1)
      for (int64_t r = 0; r < count; ++r) {
        std::fill_n(rows + r * quarter_, quarter_, static_cast<uint64_t>(row_of(item + r)));
        std::fill_n(samples + r * quarter_, quarter_, static_cast<uint64_t>(sample_of(item + r)));
      }
    const auto step = [&](int64_t t) -> Step {
      const PerCounter row = load_counters(rows + t);
      return {load_counters(columns + t), {row.low + moved, row.high + moved}, load_counters(samples + t)};
    };
    for (int64_t t = 0; t < counters; t += 2 * kStep)
      philox_.words(step(t), words_.get() + t, step(t + kStep), words_.get() + t + kStep);
    for (int64_t t = 0; t < counters; t += kStep) Kind::store(words_.get() + t, lanes_.get() + t, kBatch);
    for (int64_t r = 0; r < count; ++r)
      for (int64_t l = 0; l < 4; ++l) {
        const T* from = lanes_.get() + l * kBatch + r * quarter_;
        T* to = values_.get() + r * extent_.columns + l * quarter_;
        for (int64_t c = 0; c < quarter_; c += Simd<T>::kWidth) store(to + c, load(from + c));
      }
  }

  NoiseSource<T> source_;
  Extent extent_;
  int64_t quarter_, padded_, most_ = 1, first_ = 0;
  bool packed_ = false;
  Philox philox_;
  Lines<T> values_, lanes_;
  Lines<uint32_t> words_;
  Lines<uint64_t> counters_;
};

}  // namespace FASTVAE_ISA
}  // namespace fastvae
