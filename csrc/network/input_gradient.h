// The gradient of a dense layer's input, for a large layer: W^T times the outputs' adjoints.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/memory.h"
#include "base/parallel.h"
#include "network/dense.h"
#include "network/weight_gradient.h"

namespace fastvae {
inline namespace FASTVAE_ISA {

// Columns of the weight of one task: a part of them, kBlockProduct rows long, stays in the second-level cache.
constexpr int64_t kTaskColumns = 8 * kTileRows;
// Blocks of samples of one task.
constexpr int64_t kTaskBlocks = 8;

// Adds the products of rows [begin, end) of the weight, `count` columns from k on, to `sums`, (columns, kLanes); the
// first rows begin the sums.
template <int count, int vectors, class T>
FASTVAE_INLINE void add_rows(const Staircase<T>& s, const T* d_out, int64_t k, int64_t begin, int64_t end, T* sums) {
  typename Simd<T>::Vector acc[count][vectors];
  clear(acc);
  for (int64_t r = begin; r < end; ++r) {
    const T* row = s.rows[r] + k;
    // The tiles after the next need the next line of each row.
    __builtin_prefetch(row + 2 * kTileRows);
    multiply_add<0, count>([&](int h) FASTVAE_INLINE_LAMBDA { return row[h]; }, d_out + r * kLanes, acc);
  }
  const Picked found(acc);
  for (int h = 0; h < count; ++h)
    for (int v = 0; v < vectors; ++v) {
      T* to = sums + h * kLanes + v * Simd<T>::kWidth;
      store(to, begin ? load(to) + found(h, v) : found(h, v));
    }
}

// d_in (N, in) from the adjoints of the outputs.
template <class T>
void input_gradient(const Staircase<T>& s, Blocks<T> d_out, T* d_in) {
  const int64_t in = s.layer.in, out = s.layer.out;
  const int64_t parts = (in + kTaskColumns - 1) / kTaskColumns, groups = count_blocks(d_out.count(), kTaskBlocks);
  const int64_t work = kTaskColumns * out * std::min(d_out.samples, kTaskBlocks * kLanes) / 8;
  parallel_tasks(parts * groups, work, [&](int64_t task) {
    const int64_t first = task % parts * kTaskColumns, last = std::min(in, first + kTaskColumns);
    const int64_t begin = task / parts * kTaskBlocks, end = std::min(d_out.count(), begin + kTaskBlocks);
    const Scratch<T> sums((end - begin) * kTaskColumns * kLanes);
    const auto each_block = [&](const auto& body) {
      for (int64_t block = begin; block < end; ++block)
        body(block, lanes_of(d_out.lanes_of(block), Simd<T>::kWidth),
             sums.get() + (block - begin) * kTaskColumns * kLanes);
    };
    for (int64_t r = 0; r < out; r += kBlockProduct)
      each_block([&](int64_t block, LaneRange lanes, T* to) {
        const T* from = d_out.data + block * d_out.stride;
        const auto tile = [&]<int count, int vectors>(int64_t k, int64_t lane) {
          add_rows<count, vectors>(s, from + lane, k, r, std::min(out, r + kBlockProduct),
                                   to + (k - first) * kLanes + lane);
        };
        tile_rows<T>(first, last, lanes, tile, [](int64_t, int64_t) {});
      });
    each_block([&](int64_t block, LaneRange lanes, T* from) {
      lanes_to_samples(from, last - first, nullptr, lanes, d_in + block * kLanes * in + first, in);
    });
  });
}

}  // namespace FASTVAE_ISA
}  // namespace fastvae
