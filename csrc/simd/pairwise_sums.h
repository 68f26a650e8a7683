// Long sums. The error of numbers that are added one after another grows with their count: blocks of terms are summed
// up that way, and the blocks' sums in pairs. The order of all additions depends on the number of terms alone.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "base/memory.h"
#include "simd/simd.h"

namespace fastvae {
inline namespace FASTVAE_ISA {

// Terms of a block of sums in memory.
constexpr int64_t kBlockTerms = 128;

inline int64_t count_blocks(int64_t terms, int64_t block_terms = kBlockTerms) {
  return (terms + block_terms - 1) / block_terms;
}

// Adds up the sums of blocks, each of up to `size` numbers. It takes memory for two blocks or more only: the sums of
// one are those of its caller, bit for bit.
template <class T>
class PairwiseSums {
 public:
  PairwiseSums(int64_t blocks, int64_t size)
      : size_(size),
        count_(blocks > 1 ? std::bit_width(static_cast<uint64_t>(blocks - 1)) * size : 0),
        large_(count_ * static_cast<int64_t>(sizeof(T)) >= kLargeBytes ? count_ : 0),
        small_(count_ && !large_.get() ? make_lines<T>(count_) : nullptr),
        levels_(small_ ? small_.get() : large_.get()) {}

  // Takes the sums of a block that is not the last, and leaves zeros.
  void push(T* sums) {
    T* level = levels_;
    for (int64_t n = pushed_++; n & 1; n >>= 1, level += size_) add(level, sums);
    std::copy_n(sums, size_, level);
    std::fill_n(sums, size_, T(0));
  }

  // Adds what was pushed to the sums of the last block, and begins anew.
  void finish(T* sums) {
    const T* level = levels_;
    for (; pushed_; pushed_ >>= 1, level += size_)
      if (pushed_ & 1) add(level, sums);
  }

  // The same for sums in registers.
  template <int rows, int vectors>
  FASTVAE_INLINE void push(typename Simd<T>::Vector (&sums)[rows][vectors]) {
    T* level = levels_;
    for (int64_t n = pushed_++; n & 1; n >>= 1, level += size_) add(level, sums);
#pragma GCC unroll 8
    for (int h = 0; h < rows; ++h)
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) {
        store(level + (h * vectors + v) * Simd<T>::kWidth, sums[h][v]);
        sums[h][v] = typename Simd<T>::Vector{};
      }
  }
  template <int rows, int vectors>
  FASTVAE_INLINE void finish(typename Simd<T>::Vector (&sums)[rows][vectors]) {
    const T* level = levels_;
    for (; pushed_; pushed_ >>= 1, level += size_)
      if (pushed_ & 1) add(level, sums);
  }

 private:
  // From here on memory comes from the pool, whose pages are there already.
  static constexpr int64_t kLargeBytes = 128 << 10;

  void add(const T* level, T* sums) const {
#pragma omp simd
    for (int64_t i = 0; i < size_; ++i) sums[i] += level[i];
  }
  template <int rows, int vectors>
  FASTVAE_INLINE void add(const T* level, typename Simd<T>::Vector (&sums)[rows][vectors]) const {
#pragma GCC unroll 8
    for (int h = 0; h < rows; ++h)
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) sums[h][v] += load(level + (h * vectors + v) * Simd<T>::kWidth);
  }

  int64_t size_, count_, pushed_ = 0;
  Scratch<T> large_;
  Lines<T> small_;
  T* levels_;
};

// Terms of a block of a product.
constexpr int64_t kBlockProduct = 512;

// Adds up the blocks of a product's tile one after another, since there are few. Blocks end at multiples of their
// size: a row has the same bits in any tile.
template <class T, int rows, int vectors>
class TileBlocks {
 public:
  explicit TileBlocks(int64_t first_term = 0) : end_((first_term / kBlockProduct + 1) * kBlockProduct) {}

  // The end of the present block.
  int64_t end() const { return end_; }

  // Takes the sums of a block, and leaves zeros.
  FASTVAE_INLINE void push(typename Simd<T>::Vector (&sums)[rows][vectors]) {
    finish(sums);
    T* to = earlier();
#pragma GCC unroll 8
    for (int h = 0; h < rows; ++h)
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) {
        store(to + (h * vectors + v) * Simd<T>::kWidth, sums[h][v]);
        sums[h][v] = typename Simd<T>::Vector{};
      }
    any_ = true;
    end_ += kBlockProduct;
  }

  // Adds the earlier blocks to the present one.
  FASTVAE_INLINE void finish(typename Simd<T>::Vector (&sums)[rows][vectors]) {
    if (!any_) return;
    const T* from = earlier();
#pragma GCC unroll 8
    for (int h = 0; h < rows; ++h)
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sums[h][v] += load(from + (h * vectors + v) * Simd<T>::kWidth);
  }

 private:
  // The compiler must not see what it points to: in registers the earlier sums would displace the present ones.
  FASTVAE_INLINE T* earlier() {
    T* sums = earlier_;
    asm("" : "+r"(sums));
    return sums;
  }

  alignas(kVectorBytes) T earlier_[rows * vectors * Simd<T>::kWidth];
  int64_t end_;
  bool any_ = false;
};

// The sum of `count` numbers, `stride` apart.
template <class T>
T sum_strided(const T* terms, int64_t count, int64_t stride) {
  if (count > kBlockTerms) {
    const int64_t first = count_blocks(count) / 2 * kBlockTerms;
    return sum_strided(terms, first, stride) + sum_strided(terms + first * stride, count - first, stride);
  }
  T total = 0;
  for (int64_t k = 0; k < count; ++k) total += terms[k * stride];
  return total;
}

}  // namespace FASTVAE_ISA
}  // namespace fastvae
