// Products with a dense layer for a few rows. Lanes of samples would be empty: vectors run over the layer's inputs, and
// each weight is read once for all rows.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/parallel.h"
#include "base/types.h"
#include "simd/lanes.h"
#include "simd/pairwise_sums.h"

namespace fastvae {
inline namespace FASTVAE_ISA {

// Most rows of one product.
constexpr int64_t kMostRows = 64;
// Outputs whose sums are made, and used, while the nearest cache holds their weights.
constexpr int64_t kGroup = 16;
constexpr int64_t kMostParts = 8;

constexpr int kRowsAtOnce = kRegisters / 8;  // by 4 outputs: accumulators in half of the registers

// Rows of whole vectors: what is beyond a row's numbers may be read and written.
template <class T>
struct PaddedRows {
  T* data;
  int64_t count, stride;

  T* row(int64_t m) const { return data + m * stride; }
  int64_t size() const { return count * stride; }
};

template <class T>
constexpr int64_t padded(int64_t columns) {
  return (columns + Simd<T>::kWidth - 1) / Simd<T>::kWidth * Simd<T>::kWidth;
}

// A layer's outputs in parts, one for each task. They depend on the layer alone, and so do the sums over parts.
struct Parts {
  int64_t out, size;

  explicit Parts(int64_t out_)
      : out(out_), size(std::max<int64_t>(kGroup, ((out_ + kMostParts - 1) / kMostParts + 3) / 4 * 4)) {}

  int64_t count() const { return (out + size - 1) / size; }
  int64_t begin(int64_t part) const { return part * size; }
  int64_t end(int64_t part) const { return std::min(out, (part + 1) * size); }
};

// Sums over the inputs of `rows` rows and 4 outputs; finish(row, output, sum) takes each output before `end`.
template <int rows, class T, class Finish>
FASTVAE_INLINE void dot_tile(const MaskedLayer<T>& layer, PaddedRows<T> in, int64_t m, int64_t o, int64_t end,
                             const Finish& finish) {
  using Vector = typename Simd<T>::Vector;
  constexpr int64_t width = Simd<T>::kWidth;
  const T *weights[4], *inputs[rows];
  for (int h = 0; h < 4; ++h) weights[h] = layer.weight + std::min(o + h, end - 1) * layer.stride;
  for (int i = 0; i < rows; ++i) inputs[i] = in.row(m + i);
  typename Simd<T>::Four totals[rows] = {};
  int64_t k = 0;
  do {
    Vector acc[rows][4];
    clear(acc);
    const auto add = [&](const Vector(&w)[4]) FASTVAE_INLINE_LAMBDA {
#pragma GCC unroll 4
      for (int i = 0; i < rows; ++i) {
        const Vector x = load(inputs[i] + k);
#pragma GCC unroll 4
        for (int h = 0; h < 4; ++h) acc[i][h] = fused(w[h], x, acc[i][h]);
      }
    };
    const int64_t stop = std::min(layer.in, k + kBlockNumbers<T>);
    for (; k + width <= stop; k += width)
      add({load(weights[0] + k), load(weights[1] + k), load(weights[2] + k), load(weights[3] + k)});
    if (k < stop) {
      const int64_t rest = stop - k;
      add({load_first(weights[0] + k, rest), load_first(weights[1] + k, rest), load_first(weights[2] + k, rest),
           load_first(weights[3] + k, rest)});
      k = stop;
    }
#pragma GCC unroll 4
    for (int i = 0; i < rows; ++i) totals[i] += sum_each<T>(acc[i][0], acc[i][1], acc[i][2], acc[i][3]);
  } while (k < layer.in);
  for (int i = 0; i < rows; ++i)
    for (int64_t h = 0; h < std::min<int64_t>(4, end - o); ++h) finish(m + i, o + h, totals[i][h]);
}

// Calls tile<count>(first row) until all rows are covered.
template <class Tile>
FASTVAE_INLINE void tile_few(int64_t rows, const Tile& tile) {
  int64_t m = 0;
  for (; m + kRowsAtOnce <= rows; m += kRowsAtOnce) tile.template operator()<kRowsAtOnce>(m);
  if constexpr (kRowsAtOnce > 2)
    for (; m + 2 <= rows; m += 2) tile.template operator()<2>(m);
  for (; m < rows; ++m) tile.template operator()<1>(m);
}

// W in, for outputs [begin, end). Calls finish(row, output, sum).
template <class T, class Finish>
void multiply_few(const MaskedLayer<T>& layer, PaddedRows<T> in, int64_t begin, int64_t end, const Finish& finish) {
  for (int64_t o = begin; o < end; o += 4)
    tile_few(in.count,
             [&]<int rows>(int64_t m) FASTVAE_INLINE_LAMBDA { dot_tile<rows>(layer, in, m, o, end, finish); });
}

// Adds the weights of outputs [begin, end), times one number for each row and output, to `vectors` vectors of rows.
template <int rows, int vectors, bool whole, class T>
FASTVAE_INLINE void add_tile(const MaskedLayer<T>& layer, const T* factors, int64_t factor_stride, int64_t begin,
                             int64_t end, int64_t column, PaddedRows<T> to, int64_t m) {
  using Vector = typename Simd<T>::Vector;
  constexpr int64_t width = Simd<T>::kWidth;
  Vector acc[rows][vectors];
#pragma GCC unroll 4
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) acc[i][v] = load(to.row(m + i) + column + v * width);
  for (int64_t o = begin; o < end; ++o) {
    const T* weights = layer.weight + o * layer.stride + column;
    Vector w[vectors];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) w[v] = whole ? load(weights + v * width) : load_up_to(weights, layer.in - column);
#pragma GCC unroll 4
    for (int i = 0; i < rows; ++i) {
      const T factor = factors[(m + i) * factor_stride + o - begin];
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) acc[i][v] = fused(factor, w[v], acc[i][v]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) store(to.row(m + i) + column + v * width, acc[i][v]);
}

// Adds W^T factors over outputs [begin, end), a few of them; row m has its factors at factors + m factor_stride.
template <class T>
void add_weighted(const MaskedLayer<T>& layer, const T* factors, int64_t factor_stride, int64_t begin, int64_t end,
                  PaddedRows<T> to) {
  constexpr int64_t width = Simd<T>::kWidth;
  tile_few(to.count, [&]<int rows>(int64_t m) FASTVAE_INLINE_LAMBDA {
    constexpr int vectors = rows == 1 ? 8 : 4;
    int64_t column = 0;
    for (; column + vectors * width <= layer.in; column += vectors * width)
      add_tile<rows, vectors, true>(layer, factors, factor_stride, begin, end, column, to, m);
    for (; column + width <= layer.in; column += width)
      add_tile<rows, 1, true>(layer, factors, factor_stride, begin, end, column, to, m);
    if (column < layer.in) add_tile<rows, 1, false>(layer, factors, factor_stride, begin, end, column, to, m);
  });
}

// Calls body(part) for all parts. A thread has the same ones in every call, so that its cache keeps their weights.
template <class T, class Body>
void each_part(const MaskedLayer<T>& layer, int64_t rows, const Body& body) {
  const Parts parts(layer.out);
  parallel_ranges(parts.count(), 2 * rows * layer.in * parts.size, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) body(part);
  });
}

// The sum over outputs of a layer's weights times what group(part, begin, end, factors) makes of each row and output,
// kGroup numbers apart: first in parts, then over parts in their order.
template <class T, class Group>
void sum_weighted(const MaskedLayer<T>& layer, PaddedRows<T> to, const Group& group) {
  const Parts parts(layer.out);
  const Scratch<T> sums(parts.count() * to.size());
  each_part(layer, to.count, [&](int64_t part) {
    const PaddedRows<T> own{sums.get() + part * to.size(), to.count, to.stride};
    const int64_t first = parts.begin(part), last = parts.end(part);
    std::fill_n(own.data, own.size(), T(0));
    PairwiseSums<T> blocks(count_blocks(last - first, kBlockProduct), own.size());
    alignas(kVectorBytes) T factors[kMostRows * kGroup];
    for (int64_t begin = first; begin < last; begin += kGroup) {
      const int64_t end = std::min(last, begin + kGroup);
      group(part, begin, end, factors);
      add_weighted(layer, factors, kGroup, begin, end, own);
      if (end < last && (end - first) % kBlockProduct == 0) blocks.push(own.data);
    }
    blocks.finish(own.data);
  });
  std::copy_n(sums.get(), to.size(), to.data);
  for (int64_t part = 1; part < parts.count(); ++part)
    for (int64_t i = 0; i < to.size(); ++i) to.data[i] += sums.get()[part * to.size() + i];
}

}  // namespace FASTVAE_ISA
}  // namespace fastvae
