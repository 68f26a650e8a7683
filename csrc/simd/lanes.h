// Samples side by side in vector lanes: a block holds kLanes samples of each unit.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "base/types.h"
#include "simd/simd.h"

namespace fastvae {
inline namespace FASTVAE_ISA {

// Lanes [begin, end) of a block: whole vectors. Lanes from `count` on hold no samples.
struct LaneRange {
  int64_t begin, end, count;
};

template <size_t step, class V, size_t... lane>
FASTVAE_INLINE void exchange(V& a, V& b, std::index_sequence<lane...>) {
  constexpr size_t width = sizeof...(lane);
  const V low = __builtin_shufflevector(a, b, (lane & step ? width + (lane - step) : lane)...);
  b = __builtin_shufflevector(a, b, (lane & step ? width + lane : lane + step)...);
  a = low;
}

template <size_t step, size_t width, class V>
FASTVAE_INLINE void transpose_from(V* rows) {
#pragma GCC unroll 16
  for (size_t i = 0; i < width; ++i)
    if (!(i & step)) exchange<step>(rows[i], rows[i | step], std::make_index_sequence<width>{});
  if constexpr (step > 1) transpose_from<step / 2, width>(rows);
}

// The square of kWidth vectors, transposed in registers.
template <class T>
FASTVAE_INLINE void transpose_square(typename Simd<T>::Vector* rows) {
  constexpr size_t width = Simd<T>::kWidth;
  transpose_from<width / 2, width>(rows);
}

template <class T>
FASTVAE_INLINE typename Simd<T>::Vector load_up_to(const T* p, int64_t count) {
  if (count >= Simd<T>::kWidth) return load(p);
  if (count <= 0) return typename Simd<T>::Vector{};
  return load_first(p, count);
}

template <class T>
FASTVAE_INLINE void store_up_to(T* p, typename Simd<T>::Vector v, int64_t count) {
  if (count >= Simd<T>::kWidth)
    store(p, v);
  else if (count > 0)
    store_first(p, v, count);
}

// The first count lanes of v, zeros behind them.
template <class T>
FASTVAE_INLINE typename Simd<T>::Vector first_lanes(typename Simd<T>::Vector v, int64_t count) {
  alignas(kVectorBytes) T lanes[Simd<T>::kWidth];
  store(lanes, v);
  return load_up_to(lanes, count);
}

// Turns rows of samples, `stride` apart, into lanes: column c becomes unit place[c] of the block (c where place is
// null). Lanes beyond the samples become 0.
template <class T>
void samples_to_lanes(const T* samples, int64_t stride, int64_t units, const int32_t* place, LaneRange lanes,
                      T* block) {
  constexpr int64_t width = Simd<T>::kWidth;
  for (int64_t lane = lanes.begin; lane < lanes.end; lane += width)
    for (int64_t c = 0; c < units; c += width) {
      typename Simd<T>::Vector square[width];
#pragma GCC unroll 16
      for (int64_t i = 0; i < width; ++i) {
        square[i] = typename Simd<T>::Vector{};
        if (lane + i < lanes.count) square[i] = load_up_to(samples + (lane + i) * stride + c, units - c);
      }
      transpose_square<T>(square);
      const int64_t rows = std::min(width, units - c);
      for (int64_t i = 0; i < rows; ++i) store(block + (place ? place[c + i] : c + i) * kLanes + lane, square[i]);
    }
}

// Turns lanes back into rows of samples: column c is unit place[c] of the block.
template <class T>
void lanes_to_samples(const T* block, int64_t units, const int32_t* place, LaneRange lanes, T* samples,
                      int64_t stride) {
  constexpr int64_t width = Simd<T>::kWidth;
  for (int64_t lane = lanes.begin; lane < lanes.end; lane += width)
    for (int64_t c = 0; c < units; c += width) {
      typename Simd<T>::Vector square[width];
      const int64_t columns = std::min(width, units - c);
#pragma GCC unroll 16
      for (int64_t i = 0; i < width; ++i) {
        square[i] = typename Simd<T>::Vector{};
        if (i < columns) square[i] = load(block + (place ? place[c + i] : c + i) * kLanes + lane);
      }
      transpose_square<T>(square);
#pragma GCC unroll 16
      for (int64_t i = 0; i < width; ++i) {
        if (lane + i >= lanes.count) continue;
        T* to = samples + (lane + i) * stride + c;
        store_up_to(to, square[i], columns);
      }
    }
}

}  // namespace FASTVAE_ISA
}  // namespace fastvae
