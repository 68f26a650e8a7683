// The products of a convolution: weights packed by blocks of outputs, and tiles of pixels and outputs in registers.
//
// A term of an output's sum is one weight times one number of the input, at a fixed distance from the pixel. Every tile
// adds the terms, by the same blocks, in the order of taps and channels: a pixel has the same bits alone and among
// others.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "simd/lanes.h"
#include "simd/pairwise_sums.h"

namespace fastvae {
inline namespace FASTVAE_ISA {

// The vectors of outputs, and the pixels, of a tile; the registers hold one tile.
constexpr int kTileVectors = kRegisters / 8;
constexpr int kTilePixels = 6;

// One term: how far its number is from the pixel, and its weight's tap and channel.
struct Term {
  int64_t offset, tap, channel;
};

template <class T>
class PackedProducts {
 public:
  struct Block {
    int64_t first, columns, vectors;
    std::vector<int64_t> offsets;
    T *weights, *start;
  };

  // weight(column, term) is a weight of columns [0, columns), and counts(column, term) says whether it is not masked.
  // A column's sum begins with start(column). A block leaves out terms that none of its columns sees.
  template <class Weight, class Counts, class Start>
  PackedProducts(int64_t columns, const std::vector<Term>& terms, const Weight& weight, const Counts& counts,
                 const Start& start)
      : memory_(static_cast<size_t>(vectors_of(columns) * (static_cast<int64_t>(terms.size()) + 1))) {
    constexpr int64_t width = Simd<T>::kWidth;
    T* next = reinterpret_cast<T*>(memory_.data());
    for (int64_t first = 0; first < columns; first += kTileVectors * width) {
      Block block{first, std::min(kTileVectors * width, columns - first), 0, {}, nullptr, nullptr};
      block.vectors = (block.columns + width - 1) / width;
      const int64_t padded = block.vectors * width;
      block.start = next;
      for (int64_t c = 0; c < padded; ++c) next[c] = c < block.columns ? start(first + c) : T(0);
      next += padded;
      block.weights = next;
      for (const Term& term : terms) {
        bool seen = false;
        for (int64_t c = 0; c < block.columns; ++c) {
          const bool kept = counts(first + c, term);
          next[c] = kept ? weight(first + c, term) : T(0);
          seen = seen || kept;
        }
        if (!seen) continue;
        std::fill(next + block.columns, next + padded, T(0));
        block.offsets.push_back(term.offset);
        next += padded;
      }
      blocks.push_back(std::move(block));
    }
  }

  // The number of products for one pixel.
  int64_t size() const {
    int64_t sum = 0;
    for (const Block& block : blocks) sum += static_cast<int64_t>(block.offsets.size()) * block.columns;
    return sum;
  }

  std::vector<Block> blocks;

 private:
  // Not a Scratch: its blocks have 2 MiB at least, and every group has one of these.
  struct alignas(kVectorBytes) Line {
    T numbers[Simd<T>::kWidth];
  };
  static int64_t vectors_of(int64_t columns) { return (columns + Simd<T>::kWidth - 1) / Simd<T>::kWidth; }
  std::vector<Line> memory_;
};

template <class T, int vectors>
FASTVAE_INLINE void store_columns(T* to, const typename Simd<T>::Vector* values, int64_t columns) {
  constexpr int64_t width = Simd<T>::kWidth;
  for (int v = 0; v < vectors; ++v) store_up_to(to + v * width, values[v], columns - v * width);
}

template <class T, int vectors, int pixels>
void multiply_tile(const typename PackedProducts<T>::Block& block, const int64_t* offsets, const T* x,
                   int64_t pixel_stride, T* out, int64_t out_stride) {
  using Vector = typename Simd<T>::Vector;
  constexpr int64_t width = Simd<T>::kWidth;
  Vector sums[pixels][vectors];
  const T* at[pixels];
#pragma GCC unroll 8
  for (int p = 0; p < pixels; ++p) {
    at[p] = x + p * pixel_stride;
    for (int v = 0; v < vectors; ++v) sums[p][v] = load(block.start + v * width);
  }
  const T* weights = block.weights;
  const int64_t terms = static_cast<int64_t>(block.offsets.size());
  TileBlocks<T, pixels, vectors> blocks;
  for (int64_t k = 0; k < terms;) {
    for (const int64_t stop = std::min(terms, blocks.end()); k < stop; ++k, weights += vectors * width) {
      const int64_t offset = offsets[k];
      Vector w[vectors];
      for (int v = 0; v < vectors; ++v) w[v] = load(weights + v * width);
#pragma GCC unroll 8
      for (int p = 0; p < pixels; ++p) {
        const T number = at[p][offset];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) sums[p][v] = fused(w[v], number, sums[p][v]);
      }
    }
    if (k == blocks.end()) blocks.push(sums);
  }
  blocks.finish(sums);
#pragma GCC unroll 8
  for (int p = 0; p < pixels; ++p) store_columns<T, vectors>(out + p * out_stride, sums[p], block.columns);
}

template <class T, int vectors>
FASTVAE_INLINE void multiply_pixels(const typename PackedProducts<T>::Block& block, const int64_t* offsets, const T* x,
                                    int64_t pixel_stride, int64_t pixels, T* out, int64_t out_stride) {
  for (; pixels >= kTilePixels; pixels -= kTilePixels) {
    multiply_tile<T, vectors, kTilePixels>(block, offsets, x, pixel_stride, out, out_stride);
    x += kTilePixels * pixel_stride;
    out += kTilePixels * out_stride;
  }
  if constexpr (!kManyTiles<T>) {
    for (int64_t p = 0; p < pixels; ++p)
      multiply_tile<T, vectors, 1>(block, offsets, x + p * pixel_stride, pixel_stride, out + p * out_stride,
                                   out_stride);
    return;
  }
  switch (pixels) {
    case 5:
      return multiply_tile<T, vectors, 5>(block, offsets, x, pixel_stride, out, out_stride);
    case 4:
      return multiply_tile<T, vectors, 4>(block, offsets, x, pixel_stride, out, out_stride);
    case 3:
      return multiply_tile<T, vectors, 3>(block, offsets, x, pixel_stride, out, out_stride);
    case 2:
      return multiply_tile<T, vectors, 2>(block, offsets, x, pixel_stride, out, out_stride);
    case 1:
      return multiply_tile<T, vectors, 1>(block, offsets, x, pixel_stride, out, out_stride);
  }
}

// Computes the block's outputs for pixels that are pixel_stride apart. `offsets` are the block's, or others of the same
// terms.
template <class T>
void multiply_block(const typename PackedProducts<T>::Block& block, const int64_t* offsets, const T* x,
                    int64_t pixel_stride, int64_t pixels, T* out, int64_t out_stride) {
  switch (block.vectors) {
    case 1:
      return multiply_pixels<T, 1>(block, offsets, x, pixel_stride, pixels, out, out_stride);
    case 2:
      return multiply_pixels<T, 2>(block, offsets, x, pixel_stride, pixels, out, out_stride);
  }
  if constexpr (kTileVectors > 2) {
    if (block.vectors == 3) return multiply_pixels<T, 3>(block, offsets, x, pixel_stride, pixels, out, out_stride);
    multiply_pixels<T, 4>(block, offsets, x, pixel_stride, pixels, out, out_stride);
  }
}

// The rows of pixels over which a weight's gradient sums.
struct PixelRows {
  int64_t rows, pixels;
};

// sums[t][column] += over pixels x[offsets[t]] * d[column], for the first `terms` of up to kTilePixels terms.
template <class T, int vectors, int terms>
FASTVAE_INLINE void accumulate_tile(const int64_t* offsets, const T* x, int64_t x_pixel, int64_t x_row, const T* d,
                                    int64_t d_pixel, int64_t d_row, PixelRows extent, T* sums, int64_t sums_stride) {
  using Vector = typename Simd<T>::Vector;
  constexpr int64_t width = Simd<T>::kWidth;
  Vector totals[terms][vectors];
  clear(totals);
  for (int64_t r = 0; r < extent.rows; ++r) {
    const T* at[terms];
#pragma GCC unroll 8
    for (int t = 0; t < terms; ++t) at[t] = x + r * x_row + offsets[t];
    const T* adjoints = d + r * d_row;
    for (int64_t p = 0, i = 0; p < extent.pixels; ++p, i += x_pixel, adjoints += d_pixel) {
      Vector g[vectors];
      for (int v = 0; v < vectors; ++v) g[v] = load(adjoints + v * width);
#pragma GCC unroll 8
      for (int t = 0; t < terms; ++t) {
        const T number = at[t][i];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) totals[t][v] = fused(g[v], number, totals[t][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < terms; ++t)
    for (int v = 0; v < vectors; ++v) {
      T* to = sums + t * sums_stride + v * width;
      store(to, load(to) + totals[t][v]);
    }
}

template <class T, int vectors>
FASTVAE_INLINE void accumulate_terms(const int64_t* offsets, int64_t terms, const T* x, int64_t x_pixel, int64_t x_row,
                                     const T* d, int64_t d_pixel, int64_t d_row, PixelRows extent, T* sums,
                                     int64_t sums_stride) {
  for (; terms >= kTilePixels; terms -= kTilePixels, offsets += kTilePixels, sums += kTilePixels * sums_stride)
    accumulate_tile<T, vectors, kTilePixels>(offsets, x, x_pixel, x_row, d, d_pixel, d_row, extent, sums, sums_stride);
  if constexpr (!kManyTiles<T>) {
    for (; terms > 0; --terms, ++offsets, sums += sums_stride)
      accumulate_tile<T, vectors, 1>(offsets, x, x_pixel, x_row, d, d_pixel, d_row, extent, sums, sums_stride);
    return;
  }
  switch (terms) {
    case 5:
      return accumulate_tile<T, vectors, 5>(offsets, x, x_pixel, x_row, d, d_pixel, d_row, extent, sums, sums_stride);
    case 4:
      return accumulate_tile<T, vectors, 4>(offsets, x, x_pixel, x_row, d, d_pixel, d_row, extent, sums, sums_stride);
    case 3:
      return accumulate_tile<T, vectors, 3>(offsets, x, x_pixel, x_row, d, d_pixel, d_row, extent, sums, sums_stride);
    case 2:
      return accumulate_tile<T, vectors, 2>(offsets, x, x_pixel, x_row, d, d_pixel, d_row, extent, sums, sums_stride);
    case 1:
      return accumulate_tile<T, vectors, 1>(offsets, x, x_pixel, x_row, d, d_pixel, d_row, extent, sums, sums_stride);
  }
}

// sums (terms, sums_stride) += products of inputs and adjoints over the pixels. It reads whole vectors of d and writes
// whole vectors of sums: columns are rounded up to them.
template <class T>
void accumulate_products(const std::vector<int64_t>& offsets, int64_t columns, const T* x, int64_t x_pixel,
                         int64_t x_row, const T* d, int64_t d_pixel, int64_t d_row, PixelRows extent, T* sums,
                         int64_t sums_stride) {
  constexpr int64_t width = Simd<T>::kWidth;
  const int64_t terms = static_cast<int64_t>(offsets.size());
  for (int64_t c = 0; c < columns; c += kTileVectors * width) {
    const int64_t vectors = std::min<int64_t>(kTileVectors, (columns - c + width - 1) / width);
    const auto with = [&](auto chosen) {
      accumulate_terms<T, decltype(chosen)::value>(offsets.data(), terms, x, x_pixel, x_row, d + c, d_pixel, d_row,
                                                   extent, sums + c, sums_stride);
    };
    if (vectors == 1) with(std::integral_constant<int, 1>{});
    if (vectors == 2) with(std::integral_constant<int, 2>{});
    if constexpr (kTileVectors > 2) {
      if (vectors == 3) with(std::integral_constant<int, 3>{});
      if (vectors == 4) with(std::integral_constant<int, 4>{});
    }
  }
}

}  // namespace FASTVAE_ISA
}  // namespace fastvae
