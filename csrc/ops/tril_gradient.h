// The gradient of a triangular factor: sums of outer products, and what the divergence adds.
#pragma once

#include <algorithm>
#include <type_traits>

#include "ops/gaussian_kl.h"
#include "simd/pairwise_sums.h"
#include "simd/stream.h"

namespace fastvae {
inline namespace FASTVAE_ISA {

// Zeros on and above the diagonal of a dense gradient.
template <class T>
FASTVAE_INLINE void clear_upper(Tril<T> tril, int64_t n, int64_t i, int64_t d) {
  if (tril.is_dense()) std::fill(tril.row(n, i) + i, tril.row(n, i) + d, T(0));
}

template <class T>
void clear(Tril<T> tril, int64_t n, int64_t d) {
  for (int64_t i = 0; i < d; ++i) {
    std::fill_n(tril.row(n, i), i, T(0));
    clear_upper(tril, n, i, d);
  }
}

// Calls body with a constant of flag's value.
template <class Body>
FASTVAE_INLINE void with_flag(bool flag, const Body& body) {
  if (flag)
    body(std::true_type());
  else
    body(std::false_type());
}

// The divergence's part of a factor's gradient: d_kl times the factor.
template <class T>
struct Shrinkage {
  Divergence<const T> d_kl;
  Tril<const T> tril;
};

// Writes row i of Gaussian n's dense gradient past the caches: g x below the diagonal, with `shrinks` and the
// divergence's part, zeros from it on.
template <bool shrinks, class T>
FASTVAE_INLINE void stream_tril_row(T* out, T g, const T* x, Shrinkage<T> shrinkage, int64_t n, int64_t i, int64_t d) {
  using Vector = typename Simd<T>::Vector;
  constexpr int64_t width = Simd<T>::kWidth;
  const T d_kl = shrinks ? shrinkage.d_kl.at(n, i, d) : T(0);
  const T* of_factor = shrinks ? shrinkage.tril.row(n, i) : nullptr;
  const auto row = [&](int64_t j, auto lanes) FASTVAE_INLINE_LAMBDA {
    const auto product = g * lanes.get(x + j);
    return shrinks ? product + d_kl * lanes.get(of_factor + j) : product;
  };
  int64_t j = 0;
  for (; j + width <= i; j += width) stream(out + j, row(j, AllLanes<T>()));
  if (j < d) {
    // Zeros are selected, not multiplied: g may be infinite.
    alignas(kVectorBytes) T edge[width] = {};
    store_first(edge, row(j, FirstLanes<T>{i - j}), i - j);
    stream(out + j, load(edge));
    j += width;
  }
  for (; j < d; j += width) stream(out + j, Vector{});
}

// d_tril (+)= sign sum over h of left[h] right[h]^T below the diagonal, for a few samples at once: each number of
// d_tril is loaded and stored once for all of them, and with `shrinks` for the divergence.
template <int count, bool shrinks, class T>
FASTVAE_INLINE void outer_products(Tril<T> d_tril, int64_t n, int64_t d, T sign, const T* const* left,
                                   const T* const* right, bool add, Shrinkage<T> shrinkage) {
  const bool dense = d_tril.is_dense();
  T* out = d_tril.row(n, 0);
  for (int64_t i = 0; i < d; out += dense ? d_tril.row_stride : i, ++i) {
    T g[count];
    for (int h = 0; h < count; ++h) g[h] = sign * left[h][i];
    if constexpr (shrinks) {
      const T d_kl = shrinkage.d_kl.at(n, i, d);
      const T* row = shrinkage.tril.row(n, i);
      for_vectors<T>(i, [&](int64_t j, auto lanes) FASTVAE_INLINE_LAMBDA {
        auto total = g[0] * lanes.get(right[0] + j);
        for (int h = 1; h < count; ++h) total = fused(g[h], lanes.get(right[h] + j), total);
        if (add) total = lanes.get(out + j) + total;
        lanes.put(out + j, total + d_kl * lanes.get(row + j));
      });
    } else {
#pragma omp simd
      for (int64_t j = 0; j < i; ++j) {
        T total = g[0] * right[0][j];
        for (int h = 1; h < count; ++h) total = fused(g[h], right[h][j], total);
        out[j] = add ? out[j] + total : total;
      }
    }
    if (!add) clear_upper(d_tril, n, i, d);
  }
}

// Samples whose outer products are added one after another, four at once.
constexpr int64_t kBlockProducts = 1024;

// The sums of a factor's gradient over such blocks.
template <class T>
PairwiseSums<T> pairs_of_products(Tril<T> d_tril, Extent e) {
  const int64_t d = e.columns;
  return {count_blocks(e.samples, kBlockProducts), d_tril.is_dense() ? d * d : d * (d - 1) / 2};
}

// The gradient of Gaussian n's factor: sign times the sum over its samples of the outer products of rows of left and
// right, each (K, N, D); and what the divergence adds to it.
template <class T>
void sum_outer_products(Tril<T> d_tril, int64_t n, T sign, const T* left, const T* right, Shrinkage<T> shrinkage,
                        Extent e, bool streaming, PairwiseSums<T>& pairs) {
  constexpr int together = 4;
  const int64_t d = e.columns;
  const T *lefts[together], *rights[together];
  for (int64_t k = 0; k < e.samples;) {
    const int64_t count = e.samples - k < together ? 1 : together;
    if (k > 0 && k % kBlockProducts == 0) pairs.push(d_tril.row(n, 0));
    for (int h = 0; h < count; ++h) {
      lefts[h] = left + ((k + h) * e.rows + n) * d;
      rights[h] = right + ((k + h) * e.rows + n) * d;
    }
    const bool add = k > 0;
    k += count;
    // The divergence's part goes with the last samples.
    with_flag(shrinkage.d_kl.data && k == e.samples, [&](auto shrinks) FASTVAE_INLINE_LAMBDA {
      if (streaming)
        for (int64_t i = 0; i < d; ++i)
          stream_tril_row<shrinks>(d_tril.row(n, i), sign * lefts[0][i], rights[0], shrinkage, n, i, d);
      else if (count == 1)
        outer_products<1, shrinks>(d_tril, n, d, sign, lefts, rights, add, shrinkage);
      else
        outer_products<together, shrinks>(d_tril, n, d, sign, lefts, rights, add, shrinkage);
    });
  }
  pairs.finish(d_tril.row(n, 0));
  if (e.samples == 0) clear(d_tril, n, d);
}

}  // namespace FASTVAE_ISA
}  // namespace fastvae
