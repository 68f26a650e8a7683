#include "ops/bernoulli.h"

#include <algorithm>

#include "base/memory.h"
#include "base/parallel.h"
#include "simd/activation.h"
#include "simd/lanes.h"
#include "simd/pairwise_sums.h"
#include "simd/philox.h"

namespace fastvae {
namespace {

// Scalar operations to draw one unit, for parallel_ranges.
constexpr int64_t kWorkPerUnit = 8;
// Numbers 1 + e^-|l|, each at most 2, whose product float32 can hold.
constexpr int64_t kFactors = 64;

// Writes sigmoid(-l) of a row. Returns the part of -log q that all samples share, the sum of ln(1 + e^-|l|).
template <class T>
T write_off(const T* logits, int64_t d, T* off) {
  using Vector = typename Simd<T>::Vector;
  constexpr int64_t width = Simd<T>::kWidth;
  const Vector one = Vector{} + 1;
  T total = 0;
  int64_t i = 0;
  do {
    const int64_t end = std::min(d, i + kFactors * width);
    // The product of all 1 + e^-|l|, less 1: one logarithm for the block.
    Vector product{};
    for (; i + width <= end; i += width) {
      const Vector l = load(logits + i), tail = exp(l < 0 ? l : -l);
      product += fused(tail, product, tail);
      store(off + i, (l < 0 ? one : tail) / (1 + tail));
    }
    if (i < end) {
      const Vector l = load_first(logits + i, end - i), tail = exp(l < 0 ? l : -l);
      const Vector present = first_lanes<T>(tail, end - i);
      product += fused(present, product, present);
      store(off + i, (l < 0 ? one : tail) / (1 + tail));  // `off` ends with a whole vector
      i = end;
    }
    total += sum<T>(log1p_unit(product));
  } while (i < d);
  return total;
}

// Writes one sample. Returns the sum of min(l, 0) over the units that are on, and of min(-l, 0) over the others.
template <bool mirrored, class T>
T sample_row(const T* logits, const T* off, const T* uniforms, T* b, int64_t d) {
  using Vector = typename Simd<T>::Vector;
  constexpr int64_t width = Simd<T>::kWidth;
  T total = 0;
  int64_t i = 0;
  const auto is_on = [&](Vector u, Vector threshold)
                         FASTVAE_INLINE_LAMBDA { return (mirrored ? 1 - u : u) > threshold; };
  const Vector zero{}, one = zero + 1;
  do {
    const int64_t end = std::min(d, i + kBlockNumbers<T>);
    Vector part{};
    for (; i + width <= end; i += width) {
      const Vector l = load(logits + i);
      const auto on = is_on(load(uniforms + i), load(off + i));
      store(b + i, on ? one : zero);
      part += at_most(on ? l : -l, zero);
    }
    if (i < end) {
      const Vector l = load_first(logits + i, end - i);
      const auto on = is_on(load_first(uniforms + i, end - i), load(off + i));
      store_first(b + i, on ? one : zero, end - i);
      part += at_most(on ? l : -l, zero);
      i = end;
    }
    total += sum<T>(part);
  } while (i < d);
  return total;
}

template <class T>
int64_t padded(int64_t d) {
  return (d + Simd<T>::kWidth - 1) / Simd<T>::kWidth * Simd<T>::kWidth;
}

template <class T>
void fwd(Matrix<T> logits, NoiseSource<T> source, bool antithetic, T* b, T* log_q, Extent e) {
  const int64_t d = e.columns, points = e.samples * e.rows;
  parallel_ranges(points, d * kWorkPerUnit, [&](int64_t begin, int64_t end) {
    NoiseRows<T, Uniforms> noise(source, e);
    const Lines<T> off = make_lines<T>(padded<T>(d));
    int64_t row = -1;
    T shared = 0;
    for (int64_t first = begin; first < end; first += noise.most()) {
      const int64_t last = std::min(end, first + noise.most());
      noise.draw(first, last - first);
      for (int64_t item = first; item < last; ++item) {
        const int64_t n = item / e.samples, at = item % e.samples * e.rows + n;
        const T* l = logits.row(n);
        if (n != row) shared = write_off(l, d, off.get());
        row = n;
        log_q[at] = sample_row<false>(l, off.get(), noise[item], b + at * d, d) - shared;
        if (!antithetic) continue;
        const int64_t mirror = points + at;
        log_q[mirror] = sample_row<true>(l, off.get(), noise[item], b + mirror * d, d) - shared;
      }
    }
  });
}

template <class T>
void bwd(const T* d_log_q, const T* b, Matrix<T> logits, T* d_logits, Extent e) {
  const int64_t d = e.columns, blocks = count_blocks(e.samples);
  parallel_ranges(e.rows, d * kWorkPerUnit * std::max<int64_t>(e.samples, 1), [&](int64_t begin, int64_t end) {
    PairwiseSums<T> sums(blocks, d);
    const Lines<T> off = make_lines<T>(2 * d);
    T* const on = off.get() + d;
    for (int64_t n = begin; n < end; ++n) {
      const T* l = logits.row(n);
      T* to = d_logits + n * d;
      const T* units = b + n * d;
      if (e.samples == 1) {
        const T g = d_log_q[n];
#pragma omp simd
        for (int64_t i = 0; i < d; ++i) {
          const T tail = exp(l[i] < 0 ? l[i] : -l[i]), scale = 1 / (1 + tail);
          // A unit's probability of the other value.
          const T other = (units[i] != 0) == (l[i] < 0) ? scale : tail * scale;
          to[i] = units[i] != 0 ? g * other : -(g * other);
        }
        continue;
      }
#pragma omp simd
      for (int64_t i = 0; i < d; ++i) {
        const T tail = exp(l[i] < 0 ? l[i] : -l[i]), scale = 1 / (1 + tail), small = tail * scale;
        off[i] = l[i] < 0 ? scale : small;
        on[i] = l[i] < 0 ? -small : -scale;
      }
      std::fill_n(to, d, T(0));
      for (int64_t first = 0; first < e.samples; first += kBlockTerms) {
        if (first > 0) sums.push(to);
        for (int64_t k = first; k < std::min(first + kBlockTerms, e.samples); ++k) {
          const T* of_sample = units + k * e.rows * d;
          const T g = d_log_q[k * e.rows + n];
#pragma omp simd
          for (int64_t i = 0; i < d; ++i) to[i] = fused(g, of_sample[i] != 0 ? off[i] : on[i], to[i]);
        }
      }
      sums.finish(to);
    }
  });
}

template <class T>
Bernoulli<T> kernels() {
  return {fwd<T>, bwd<T>};
}

}  // namespace

inline namespace FASTVAE_ISA {
Bernoulli<float> bernoulli_f32() { return kernels<float>(); }
Bernoulli<double> bernoulli_f64() { return kernels<double>(); }
}  // namespace FASTVAE_ISA

}  // namespace fastvae
