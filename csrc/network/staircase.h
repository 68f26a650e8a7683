// Products with a masked weight matrix. With units sorted by degree the mask is a staircase, and weights beyond it are
// neither loaded nor multiplied. Activations are blocks of lanes (lanes.h), one row for each unit in sorted order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "base/types.h"
#include "simd/lanes.h"
#include "simd/pairwise_sums.h"
#include "simd/simd.h"

namespace fastvae {
inline namespace FASTVAE_ISA {

constexpr int kTileVectors = kRegisters / 8;
constexpr int kTileRows = 6;  // 24 accumulators of 32 registers, or 12 of 16
// How many rows ahead the backward product fetches. Its weights are a row's stride apart, often far away. The adjoints
// are in the second-level cache.
constexpr int64_t kAhead = 16, kAdjointsAhead = 4;
// Numbers of a cache line.
template <class T>
constexpr int64_t kLineOf = 64 / static_cast<int64_t>(sizeof(T));

// A vector whose members are compiled anew in every source. The linker could take those of a std::vector from the copy
// for another instruction set.
template <class X>
struct LocalAllocator : std::allocator<X> {
  template <class Y>
  struct rebind {
    using other = LocalAllocator<Y>;
  };
};
template <class X>
using LocalVector = std::vector<X, LocalAllocator<X>>;

// Units by ascending degree: order[k] is the k-th, and place[u] is the place of u. Both are empty where the units are
// sorted as they are.
struct Order {
  LocalVector<int32_t> order, place;

  Order(const int64_t* degrees, int64_t count) {
    int64_t descents = 0;  // no early end: the loop vectorises
    for (int64_t u = 1; u < count; ++u) descents += degrees[u - 1] > degrees[u];
    if (descents == 0) return;
    order.resize(count);
    place.resize(count);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return degrees[a] < degrees[b]; });
    for (int64_t k = 0; k < count; ++k) place[order[k]] = static_cast<int32_t>(k);
  }

  bool sorted() const { return order.empty(); }
  int64_t at(int64_t k) const { return order.empty() ? k : order[k]; }
  int64_t place_of(int64_t unit) const { return place.empty() ? unit : place[unit]; }
  const int32_t* places() const { return place.empty() ? nullptr : place.data(); }
};

template <class T>
class Staircase {
 public:
  explicit Staircase(const MaskedLayer<T>& layer)
      : layer(layer),
        inputs(layer.in_degrees, layer.in),
        outputs(layer.out_degrees, layer.out),
        prefix(layer.out),
        first_output(layer.in + 1),
        rows(layer.out + kAhead) {
    int64_t seen = 0;
    for (int64_t r = 0; r < layer.out; ++r) {
      const int64_t output = outputs.at(r), degree = layer.out_degrees[output];
      for (; seen < layer.in && layer.in_degrees[inputs.at(seen)] <= degree; ++seen)
        first_output[seen] = static_cast<int32_t>(r);
      prefix[r] = static_cast<int32_t>(seen);
      rows[r] = layer.weight + output * layer.stride;
    }
    for (; seen <= layer.in; ++seen) first_output[seen] = static_cast<int32_t>(layer.out);
    std::fill(rows.begin() + layer.out, rows.end(), layer.weight);
  }

  T bias(int64_t r) const { return layer.bias ? layer.bias[outputs.at(r)] : T(0); }
  T scale(int64_t r) const { return layer.scale ? layer.scale[outputs.at(r)] : T(1); }

  MaskedLayer<T> layer;
  Order inputs, outputs;
  LocalVector<int32_t> prefix;        // inputs that each output sees, both in sorted order
  LocalVector<int32_t> first_output;  // the first output that sees each input
  LocalVector<const T*> rows;         // of the weight, by sorted output
};

// Calls body<0>(), ..., body<count - 1>().
template <int count, class Body>
FASTVAE_INLINE void each_number(const Body& body) {
  [&]<int... number>(std::integer_sequence<int, number...>)
      FASTVAE_INLINE_LAMBDA { (body.template operator()<number>(), ...); }(std::make_integer_sequence<int, count>{});
}

// acc[h] += factor(h) * in for rows [first, first + count) of the accumulators. Each factor is read where its products
// are: together they would take registers of the sums.
template <int first, int count, int rows, int vectors, class T, class Factor>
FASTVAE_INLINE void multiply_add(const Factor& factor, const T* in, typename Simd<T>::Vector (&acc)[rows][vectors]) {
  typename Simd<T>::Vector b[vectors];
#pragma GCC unroll 16
  for (int v = 0; v < vectors; ++v) b[v] = load(in + v * Simd<T>::kWidth);
#pragma GCC unroll 16
  for (int h = first; h < first + count; ++h) {
    const T a = factor(h);
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) acc[h][v] = fused(a, b[v], acc[h][v]);
  }
}

// What the compiler knows of a layer. In a dense one every output sees every input, in the order given.
enum class Inputs { kDense, kSorted, kUnsorted };

// Sums over the inputs, for `count` outputs from r on; finish(row, offset of lanes, sum) takes each vector.
template <int count, int vectors, Inputs inputs, class T, class Finish>
FASTVAE_INLINE void forward_tile(const Staircase<T>& s, const T* in, int64_t r, const Finish& finish) {
  typename Simd<T>::Vector acc[count][vectors];
  clear(acc);
  const T* w[count];
  for (int h = 0; h < count; ++h) {
    w[h] = s.rows[r + h];
    if constexpr (count == kTileRows) __builtin_prefetch(s.rows[r + count + h]);
  }
  const int32_t* order = s.inputs.order.data();
  int64_t k = 0;
  TileBlocks<T, count, vectors> blocks;
  // On the stairs fewer and fewer of the rows see an input: those from `first` on.
  each_number<inputs == Inputs::kDense ? 1 : count>([&]<int first>() FASTVAE_INLINE_LAMBDA {
    for (const int64_t end = s.prefix[r + first]; k < end;) {
      for (const int64_t stop = std::min(end, blocks.end()); k < stop; ++k) {
        const int64_t i = inputs != Inputs::kUnsorted ? k : kManyTiles<T> ? order[k] : s.inputs.at(k);
        multiply_add<first, count - first>([&](int h) FASTVAE_INLINE_LAMBDA { return w[h][i]; }, in + k * kLanes, acc);
      }
      if (k == blocks.end()) blocks.push(acc);
    }
  });
  blocks.finish(acc);
  const Picked found(acc);
  for (int h = 0; h < count; ++h)
    for (int v = 0; v < vectors; ++v) finish(r + h, v * Simd<T>::kWidth, found(h, v));
}

// Sums over the outputs, for `count` inputs from k on.
template <int count, int vectors, Inputs inputs, class T, class Finish>
FASTVAE_INLINE void backward_tile(const Staircase<T>& s, const T* d_out, int64_t k, const Finish& finish) {
  typename Simd<T>::Vector acc[count][vectors];
  clear(acc);
  int64_t column[count];
  for (int h = 0; h < count; ++h) column[h] = s.inputs.at(k + h);
  int64_t r = s.first_output[k];
  TileBlocks<T, count, vectors> blocks(r);
  // On the stairs an output sees the first inputs only.
  each_number<inputs == Inputs::kDense ? 0 : count - 1>([&]<int last>() FASTVAE_INLINE_LAMBDA {
    for (const int64_t end = s.first_output[k + last + 1]; r < end;) {
      for (const int64_t stop = std::min(end, blocks.end()); r < stop; ++r) {
        const T* row = s.rows[r];
        multiply_add<0, last + 1>([&](int h) FASTVAE_INLINE_LAMBDA { return row[column[h]]; }, d_out + r * kLanes, acc);
      }
      if (r == blocks.end()) blocks.push(acc);
    }
  });
  while (r < s.layer.out) {
    for (const int64_t stop = std::min(s.layer.out, blocks.end()); r < stop; ++r) {
      const T* row = s.rows[r];
      __builtin_prefetch(s.rows[r + kAhead] + (inputs == Inputs::kUnsorted ? column[0] : k));
      for (int v = 0; v < vectors; ++v) __builtin_prefetch(d_out + (r + kAdjointsAhead) * kLanes + v * Simd<T>::kWidth);
      const auto factor = [&](int h)
                              FASTVAE_INLINE_LAMBDA { return row[inputs == Inputs::kUnsorted ? column[h] : k + h]; };
      multiply_add<0, count>(factor, d_out + r * kLanes, acc);
    }
    if (r == blocks.end()) blocks.push(acc);
  }
  blocks.finish(acc);
  const Picked found(acc);
  for (int h = 0; h < count; ++h)
    for (int v = 0; v < vectors; ++v) finish(k + h, v * Simd<T>::kWidth, found(h, v));
}

// Calls tile<count, vectors>(first row, first lane) until rows [begin, end) and the lanes are covered.
template <int count, class T, class Tile>
FASTVAE_INLINE void tile_lanes(int64_t row, LaneRange lanes, const Tile& tile) {
  constexpr int64_t width = Simd<T>::kWidth;
  int64_t lane = lanes.begin;
  for (; lane + kTileVectors * width <= lanes.end; lane += kTileVectors * width)
    tile.template operator()<count, kTileVectors>(row, lane);
  if constexpr (kTileVectors > 2 && kManyTiles<T>)
    for (; lane + 2 * width <= lanes.end; lane += 2 * width) tile.template operator()<count, 2>(row, lane);
  for (; lane < lanes.end; lane += width) tile.template operator()<count, 1>(row, lane);
}

// Rows of blocks that a product's `finish` writes, or that are read soon after it: each tile fetches those of the next
// one. They come from far away, and the product leaves the time.
template <class T>
struct Fetched {
  const T *first = nullptr, *second = nullptr;

  FASTVAE_INLINE void fetch(int64_t row, LaneRange lanes) const {
    for (const T* rows : {first, second})
      for (int64_t h = row; rows && h < row + kTileRows; ++h)
        for (int64_t lane = lanes.begin; lane < lanes.end; lane += kLineOf<T>)
          __builtin_prefetch(rows + h * kLanes + lane, 1);
  }
};

// Calls done(begin, end) after each group of rows, while the nearest cache holds them.
template <class T, class Tile, class Done>
FASTVAE_INLINE void tile_rows(int64_t begin, int64_t end, LaneRange lanes, const Tile& tile, const Done& done,
                              Fetched<T> fetched = {}) {
  int64_t row = begin;
  for (; row + kTileRows <= end; row += kTileRows) {
    fetched.fetch(row + kTileRows, lanes);
    tile_lanes<kTileRows, T>(row, lanes, tile);
    done(row, row + kTileRows);
  }
  if constexpr (kManyTiles<T>)
    for (; row + 2 <= end; row += 2) {
      tile_lanes<2, T>(row, lanes, tile);
      done(row, row + 2);
    }
  for (; row < end; ++row) {
    tile_lanes<1, T>(row, lanes, tile);
    done(row, row + 1);
  }
}

// Calls tile<inputs>() with what is known of the layer: `dense`, or how its inputs are sorted.
template <bool dense, class T, class Tile>
FASTVAE_INLINE void with_inputs(const Staircase<T>& s, const Tile& tile) {
  if constexpr (dense)
    tile.template operator()<Inputs::kDense>();
  else if (kManyTiles<T> && s.inputs.sorted())
    tile.template operator()<Inputs::kSorted>();
  else
    tile.template operator()<Inputs::kUnsorted>();
}

// (W o M) in, for outputs [begin, end). Calls finish(output, lane, sum), and done(begin, end) for each group of
// outputs. For a dense layer `dense` saves the compiler most of the tiles.
template <bool dense = false, class T, class Finish, class Done>
void multiply_rows(const Staircase<T>& s, const T* in, int64_t begin, int64_t end, LaneRange lanes,
                   const Finish& finish, const Done& done, Fetched<T> fetched = {}) {
  const auto tile = [&]<int count, int vectors>(int64_t r, int64_t lane) {
    const auto at_lane = [&](int64_t row, int64_t offset, typename Simd<T>::Vector sum)
                             FASTVAE_INLINE_LAMBDA { finish(row, lane + offset, sum); };
    with_inputs<dense>(s, [&]<Inputs inputs>() FASTVAE_INLINE_LAMBDA {
      forward_tile<count, vectors, inputs>(s, in + lane, r, at_lane);
    });
  };
  tile_rows<T>(begin, end, lanes, tile, done, fetched);
}

template <bool dense = false, class T, class Finish>
void multiply_rows(const Staircase<T>& s, const T* in, int64_t begin, int64_t end, LaneRange lanes,
                   const Finish& finish, Fetched<T> fetched = {}) {
  multiply_rows<dense>(s, in, begin, end, lanes, finish, [](int64_t, int64_t) {}, fetched);
}

// (W o M)^T d_out, for inputs [begin, end). Calls finish(input, lane, sum).
template <bool dense = false, class T, class Finish>
void multiply_columns(const Staircase<T>& s, const T* d_out, int64_t begin, int64_t end, LaneRange lanes,
                      const Finish& finish, Fetched<T> fetched = {}) {
  const auto tile = [&]<int count, int vectors>(int64_t k, int64_t lane) {
    const auto at_lane = [&](int64_t unit, int64_t offset, typename Simd<T>::Vector sum)
                             FASTVAE_INLINE_LAMBDA { finish(unit, lane + offset, sum); };
    with_inputs<dense>(s, [&]<Inputs inputs>() FASTVAE_INLINE_LAMBDA {
      backward_tile<count, vectors, inputs>(s, d_out + lane, k, at_lane);
    });
  };
  tile_rows<T>(begin, end, lanes, tile, [](int64_t, int64_t) {}, fetched);
}

}  // namespace FASTVAE_ISA
}  // namespace fastvae
