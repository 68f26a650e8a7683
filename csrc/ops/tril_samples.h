// A triangular factor and many samples of its Gaussian: samples in vector lanes, gradients in registers.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/gaussian_kl.h"
#include "ops/tril_gradient.h"
#include "simd/lanes.h"
#include "simd/pairwise_sums.h"

namespace fastvae {
inline namespace FASTVAE_ISA {

// Rows of the factor at once: as many chains of sums as hide the latency of one.
constexpr int kFactorRows = 8;
// The tile of a gradient that registers hold.
constexpr int kGradientRows = 6;
constexpr int kGradientVectors = kRegisters / 8;

// Whether a Gaussian has samples enough to fill vectors. It depends on the shape alone: so do all bits.
template <class T>
bool fills_lanes(Extent e) {
  return e.samples >= Simd<T>::kWidth;
}

// Up to kWidth samples of Gaussian n: z = mu + T x + sigma x. Rows of x and z are `x_stride` and `z_stride` apart;
// `block` has room for 2 d vectors.
template <class T>
FASTVAE_INLINE void multiply_samples(Tril<const T> tril, int64_t n, const T* mu, const T* sigma, const T* x,
                                     int64_t x_stride, int64_t count, int64_t d, T* block, T* z, int64_t z_stride) {
  using Vector = typename Simd<T>::Vector;
  constexpr int64_t width = Simd<T>::kWidth;
  T *const in = block, *const out = block + d * width;
  for (int64_t c = 0; c < d; c += width) {
    Vector square[width];
#pragma GCC unroll 16
    for (int64_t i = 0; i < width; ++i) square[i] = i < count ? load_up_to(x + i * x_stride + c, d - c) : Vector{};
    transpose_square<T>(square);
    for (int64_t i = 0; i < std::min(width, d - c); ++i) store(in + (c + i) * width, square[i]);
  }
  const auto finish = [&](int64_t i, Vector sum) FASTVAE_INLINE_LAMBDA {
    store(out + i * width, mu[i] + fused(sigma[i], load(in + i * width), sum));
  };
  int64_t i = 0;
  for (; i + kFactorRows <= d; i += kFactorRows) {
    const T* rows[kFactorRows];
    for (int h = 0; h < kFactorRows; ++h) rows[h] = tril.row(n, i + h);
    Vector sums[kFactorRows][1];
    clear(sums);
    TileBlocks<T, kFactorRows, 1> blocks;
    for (int64_t j = 0; j < i;) {
      for (const int64_t stop = std::min(i, blocks.end()); j < stop; ++j) {
        const Vector v = load(in + j * width);
#pragma GCC unroll 8
        for (int h = 0; h < kFactorRows; ++h) sums[h][0] = fused(rows[h][j], v, sums[h][0]);
      }
      if (j == blocks.end()) blocks.push(sums);
    }
    // What a row does not see is not loaded for it: its product with 0 may be one of infinity.
#pragma GCC unroll 8
    for (int g = 0; g + 1 < kFactorRows; ++g) {
      const Vector v = load(in + (i + g) * width);
#pragma GCC unroll 8
      for (int h = g + 1; h < kFactorRows; ++h) sums[h][0] = fused(rows[h][i + g], v, sums[h][0]);
    }
    blocks.finish(sums);
    const Picked found(sums);
    for (int h = 0; h < kFactorRows; ++h) finish(i + h, found(h, 0));
  }
  for (; i < d; ++i) {
    const T* row = tril.row(n, i);
    Vector sums[1][1];
    clear(sums);
    TileBlocks<T, 1, 1> blocks;
    for (int64_t j = 0; j < i;) {
      for (const int64_t stop = std::min(i, blocks.end()); j < stop; ++j)
        sums[0][0] = fused(row[j], load(in + j * width), sums[0][0]);
      if (j == blocks.end()) blocks.push(sums);
    }
    blocks.finish(sums);
    finish(i, sums[0][0]);
  }
  for (int64_t c = 0; c < d; c += width) {
    const int64_t columns = std::min(width, d - c);
    Vector square[width];
#pragma GCC unroll 16
    for (int64_t r = 0; r < width; ++r) square[r] = r < columns ? load(out + (c + r) * width) : Vector{};
    transpose_square<T>(square);
    for (int64_t r = 0; r < count; ++r) store_up_to(z + r * z_stride + c, square[r], columns);
  }
}

// Rows of left and right of one Gaussian, side by side and padded: a tile may read beyond the last column.
template <class T>
class PackedSamples {
 public:
  // Whether samples fill vectors, and their rows the second-level cache at most.
  static bool suit(Extent e) { return fills_lanes<T>(e) && count_numbers(e) * sizeof(T) <= (4 << 20); }

  explicit PackedSamples(Extent e)
      : extent_(e),
        left_stride_(e.columns + kGradientRows),
        right_stride_(e.columns + kGradientVectors * Simd<T>::kWidth),
        memory_(make_lines<T>(count_numbers(e))) {
    std::fill_n(memory_.get(), count_numbers(e), T(0));
  }

  void pack(const T* left, const T* right, int64_t n) {
    const int64_t d = extent_.columns;
    for (int64_t k = 0; k < extent_.samples; ++k) {
      std::copy_n(left + (k * extent_.rows + n) * d, d, memory_.get() + k * left_stride_);
      std::copy_n(right + (k * extent_.rows + n) * d, d, rights() + k * right_stride_);
    }
  }

  // The sum over samples of the outer products, for a tile that begins at row i and column j.
  template <int vectors>
  FASTVAE_INLINE void sum_tile(int64_t i, int64_t j, PairwiseSums<T>& pairs,
                               typename Simd<T>::Vector (&sums)[kGradientRows][vectors]) const {
    const T *left = memory_.get() + i, *right = rights() + j;
    for (int64_t k = 0; k < extent_.samples; ++k, left += left_stride_, right += right_stride_) {
      if (k > 0 && k % kBlockTerms == 0) pairs.push(sums);
      typename Simd<T>::Vector v[vectors];
      for (int c = 0; c < vectors; ++c) v[c] = load(right + c * Simd<T>::kWidth);
#pragma GCC unroll 8
      for (int h = 0; h < kGradientRows; ++h)
#pragma GCC unroll 4
        for (int c = 0; c < vectors; ++c) sums[h][c] = fused(left[h], v[c], sums[h][c]);
    }
    pairs.finish(sums);
  }

 private:
  static int64_t count_numbers(Extent e) {
    return e.samples * (2 * e.columns + kGradientRows + kGradientVectors * Simd<T>::kWidth);
  }
  T* rights() const { return memory_.get() + extent_.samples * left_stride_; }

  Extent extent_;
  int64_t left_stride_, right_stride_;
  Lines<T> memory_;
};

template <int vectors, bool shrinks, class T>
void write_gradient_tile(const PackedSamples<T>& samples, Tril<T> d_tril, int64_t n, int64_t i, int64_t j, int64_t d,
                         T sign, Shrinkage<T> shrinkage, PairwiseSums<T>& pairs) {
  constexpr int64_t width = Simd<T>::kWidth;
  typename Simd<T>::Vector sums[kGradientRows][vectors];
  clear(sums);
  samples.sum_tile(i, j, pairs, sums);
  const Picked found(sums);
  for (int64_t h = 0; h < kGradientRows && i + h < d; ++h)
    for (int64_t c = 0; c < vectors; ++c) {
      const int64_t at = j + c * width, seen = i + h - at;
      auto total = sign * found(h, c);
      if (seen <= 0) continue;
      if constexpr (shrinks)
        total += shrinkage.d_kl.at(n, i + h, d) * load_up_to(shrinkage.tril.row(n, i + h) + at, seen);
      store_up_to(d_tril.row(n, i + h) + at, total, seen);
    }
}

// The gradient of Gaussian n's factor, as sum_outer_products.
template <class T>
void sum_packed_products(Tril<T> d_tril, int64_t n, T sign, const T* left, const T* right, Shrinkage<T> shrinkage,
                         Extent e, PackedSamples<T>& samples, PairwiseSums<T>& pairs) {
  constexpr int64_t width = Simd<T>::kWidth;
  const int64_t d = e.columns;
  samples.pack(left, right, n);
  with_flag(shrinkage.d_kl.data != nullptr, [&](auto shrinks) {
    const auto write = [&]<int vectors>(int64_t i, int64_t j) {
      write_gradient_tile<vectors, shrinks>(samples, d_tril, n, i, j, d, sign, shrinkage, pairs);
    };
    for (int64_t i = 0; i < d; i += kGradientRows)
      for (int64_t j = 0, end = std::min(i + kGradientRows, d) - 1; j < end; j += kGradientVectors * width) {
        const int64_t vectors = (end - j + width - 1) / width;
        if (vectors == 1)
          write.template operator()<1>(i, j);
        else if (vectors == 2 || kGradientVectors == 2)
          write.template operator()<2>(i, j);
        else
          write.template operator()<kGradientVectors>(i, j);
      }
  });
  for (int64_t i = 0; i < d; ++i) clear_upper(d_tril, n, i, d);
}

// The gradient of factors, one Gaussian after another.
template <class T>
class FactorGradient {
 public:
  FactorGradient(Tril<T> d_tril, Extent e, bool streaming)
      : d_tril_(d_tril),
        extent_(e),
        streaming_(streaming),
        in_tiles_(PackedSamples<T>::suit(e)),
        samples_(in_tiles_ ? e : Extent{}),
        pairs_(in_tiles_ ? PairwiseSums<T>(count_blocks(e.samples), kGradientRows * kGradientVectors * Simd<T>::kWidth)
                         : pairs_of_products(d_tril, e)) {}

  // sign times the sum over Gaussian n's samples of the outer products of rows of left and right, each (K, N, D); and
  // what the divergence adds to it.
  void write(int64_t n, T sign, const T* left, const T* right, Shrinkage<T> shrinkage) {
    if (in_tiles_)
      sum_packed_products(d_tril_, n, sign, left, right, shrinkage, extent_, samples_, pairs_);
    else
      sum_outer_products(d_tril_, n, sign, left, right, shrinkage, extent_, streaming_, pairs_);
  }

 private:
  Tril<T> d_tril_;
  Extent extent_;
  bool streaming_, in_tiles_;
  PackedSamples<T> samples_;
  PairwiseSums<T> pairs_;
};

}  // namespace FASTVAE_ISA
}  // namespace fastvae
