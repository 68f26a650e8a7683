#include "ops/tril_gaussian.h"

#include <algorithm>

#include "base/memory.h"
#include "base/parallel.h"
#include "ops/tril_gradient.h"
#include "ops/tril_samples.h"
#include "simd/philox.h"
#include "simd/stream.h"

namespace fastvae {
namespace {

constexpr double kHalfLog2Pi = 0.91893853320467274178;
// Scalar operations to draw one normal and use it, for parallel_ranges.
constexpr int64_t kWorkPerNormal = 12;

// sums[h] = sum over j < i + (ragged ? h : 0) of rows[h][j] x[j], for four rows: they share each load of x, and their
// horizontal sums are taken together.
template <bool ragged, class T>
FASTVAE_INLINE typename Simd<T>::Four dot_four_rows(const T* const* rows, const T* x, int64_t i) {
  constexpr int64_t width = Simd<T>::kWidth;
  typename Simd<T>::Vector s0{}, s1{}, s2{}, s3{};
  int64_t j = 0;
  for (; j + width <= i; j += width) {
    const auto v = load(x + j);
    s0 = fused(load(rows[0] + j), v, s0);
    s1 = fused(load(rows[1] + j), v, s1);
    s2 = fused(load(rows[2] + j), v, s2);
    s3 = fused(load(rows[3] + j), v, s3);
  }
  // What a row does not see is not loaded for it: its product with 0 may be one of infinity. i is a multiple of four,
  // and a vector of two numbers may be left.
  const auto add_rest = [&](typename Simd<T>::Vector& sum, const T* row, int64_t end) FASTVAE_INLINE_LAMBDA {
    int64_t k = j;
    if (width < 4 && k + width <= end) {
      sum = fused(load(row + k), load(x + k), sum);
      k += width;
    }
    sum = fused(load_first(row + k, end - k), load_first(x + k, end - k), sum);
  };
  add_rest(s0, rows[0], i);
  add_rest(s1, rows[1], i + (ragged ? 1 : 0));
  add_rest(s2, rows[2], i + (ragged ? 2 : 0));
  add_rest(s3, rows[3], i + (ragged ? 3 : 0));
  return sum_each<T>(s0, s1, s2, s3);
}

template <class T>
FASTVAE_INLINE T dot(const T* row, const T* x, int64_t count) {
  constexpr int64_t width = Simd<T>::kWidth;
  typename Simd<T>::Vector s{};
  int64_t j = 0;
  for (; j + width <= count; j += width) s = fused(load(row + j), load(x + j), s);
  s = fused(load_first(row + j, count - j), load_first(x + j, count - j), s);
  return sum<T>(s);
}

template <class T>
FASTVAE_INLINE void four_rows(Tril<T> tril, int64_t n, int64_t i, T** rows) {
  rows[0] = tril.row(n, i);
  for (int h = 0; h < 3; ++h) rows[h + 1] = rows[h] + (tril.is_dense() ? tril.row_stride : i + h);
}

// Fetches rows i to i + 3 of a dense matrix ahead: processors do not foresee rows that grow. Short rows are fetched
// whole, not only below the diagonal, since processors do foresee consecutive lines.
template <class T>
FASTVAE_INLINE void fetch_four_rows(Tril<const T> tril, int64_t n, int64_t i, int64_t d) {
  constexpr int64_t line = 64 / sizeof(T), short_row = 8 * line;
  for (int64_t h = i; h < i + 4; ++h)
    for (int64_t j = 0, end = d <= short_row ? d : h; j < end; j += line) __builtin_prefetch(tril.row(n, h) + j, 0, 2);
}

// Whether the rows of a dense gradient, diagonal and all, are written past the caches.
template <class T>
bool streams_rows(Tril<T> tril, int64_t rows, int64_t d) {
  return tril.is_dense() && streams(tril.data, rows * d, d);
}

// As fwd, for Gaussians whose samples fill vectors.
template <class T>
void fwd_in_lanes(Matrix<T> mu, Matrix<T> log_sigma, Tril<const T> tril, NoiseSource<T> source, T* z, T* log_q, T* eps,
                  Divergence<T> kl, Extent e) {
  constexpr int64_t width = Simd<T>::kWidth;
  const int64_t d = e.columns, stride = e.rows * d;
  const double constant = -kHalfLog2Pi * static_cast<double>(d);
  parallel_ranges(e.rows * e.samples, d * (d / 8 + kWorkPerNormal), [&](int64_t begin, int64_t end) {
    NoiseRows<T> noise(source, e);
    const Lines<T> sigma = make_lines<T>(d), block = make_lines<T>(3 * d * width);
    int64_t scaled_row = -1;
    for (int64_t item = begin, count; item < end; item += count) {
      const int64_t n = item / e.samples, k = item % e.samples, first = k * e.rows + n;
      count = std::min({width, e.samples - k, end - item});
      if (n != scaled_row) exp_row(log_sigma.row(n), d, sigma.get());
      scaled_row = n;
      T* const drawn = eps ? eps + first * d : block.get() + 2 * d * width;
      const int64_t drawn_stride = eps ? stride : d;
      for (int64_t i = 0; i < count; i += noise.most()) {
        const int64_t most = std::min(noise.most(), count - i);
        noise.draw(item + i, most);
        for (int64_t h = i; h < i + most; ++h) {
          std::copy_n(noise[item + h], d, drawn + h * drawn_stride);
          log_q[first + h * e.rows] = static_cast<T>(constant - energy(noise[item + h], log_sigma.row(n), d));
        }
      }
      multiply_samples(tril, n, mu.row(n), sigma.get(), drawn, drawn_stride, count, d, block.get(), z + first * d,
                       stride);
      if (kl.data && k == 0) write_kl(mu, log_sigma, tril, kl, n, d);
    }
  });
}

template <class T>
void fwd(Matrix<T> mu, Matrix<T> log_sigma, Tril<const T> tril, NoiseSource<T> source, T* z, T* log_q, T* eps,
         Divergence<T> kl, Extent e) {
  if (fills_lanes<T>(e)) return fwd_in_lanes(mu, log_sigma, tril, source, z, log_q, eps, kl, e);
  const int64_t d = e.columns, whole = d / 4 * 4;
  const double constant = -kHalfLog2Pi * static_cast<double>(d);
  parallel_ranges(e.rows * e.samples, d * (d / 2 + kWorkPerNormal), [&](int64_t begin, int64_t end) {
    NoiseRows<T> noise(source, e);
    const Lines<T> sigma = make_lines<T>(d);
    int64_t scaled_row = -1;
    for (int64_t first = begin; first < end; first += noise.most()) {
      const int64_t last = std::min(end, first + noise.most());
      noise.draw(first, last - first);
      for (int64_t item = first; item < last; ++item) {
        const int64_t n = item / e.samples, k = item % e.samples;
        const T *x = noise[item], *m = mu.row(n), *s = sigma.get();
        T* out = z + (k * e.rows + n) * d;
        if (eps) std::copy_n(x, d, eps + (k * e.rows + n) * d);
        if (n != scaled_row) exp_row(log_sigma.row(n), d, sigma.get());
        scaled_row = n;
        const bool fetch_next = tril.is_dense() && k == 0 && n + 1 < e.rows;
        for (int64_t i = 0; i < whole; i += 4) {
          if (fetch_next) fetch_four_rows(tril, n + 1, i, d);
          const T* rows[4];
          four_rows(tril, n, i, rows);
          const auto sums = dot_four_rows<true>(rows, x, i);
          for (int h = 0; h < 4; ++h) out[i + h] = m[i + h] + fused(s[i + h], x[i + h], sums[h]);
        }
        for (int64_t i = whole; i < d; ++i) out[i] = m[i] + fused(s[i], x[i], dot(tril.row(n, i), x, i));
        log_q[k * e.rows + n] = static_cast<T>(constant - energy(x, log_sigma.row(n), d));
        if (kl.data && k == 0) write_kl(mu, log_sigma, tril, kl, n, d);
      }
    }
  });
}

// The sum over samples of row n.
template <class T>
void sum_samples(const T* d_z, Extent e, int64_t n, T* sum, PairwiseSums<T>& pairs) {
  std::fill(sum, sum + e.columns, T(0));
  for (int64_t k = 0; k < e.samples; ++k) {
    if (k > 0 && k % kBlockTerms == 0) pairs.push(sum);
    const T* g = d_z + (k * e.rows + n) * e.columns;
#pragma omp simd
    for (int64_t i = 0; i < e.columns; ++i) sum[i] += g[i];
  }
  pairs.finish(sum);
}

template <class T>
void bwd(const T* d_z, const T* d_log_q, Divergence<const T> d_kl, Matrix<T> mu, Matrix<T> log_sigma,
         Tril<const T> tril, const T* eps, T* d_mu, T* d_log_sigma, Tril<T> d_tril, Extent e) {
  const int64_t d = e.columns;
  const bool streaming = e.samples == 1 && streams_rows(d_tril, e.rows, d);
  const int64_t work = d * (d / 2 + kWorkPerNormal) * std::max<int64_t>(e.samples, 1);
  parallel_ranges(e.rows, work, [&](int64_t begin, int64_t end) {
    PairwiseSums<T> pairs(count_blocks(e.samples), d);
    FactorGradient<T> of_factor(d_tril, e, streaming);
    for (int64_t n = begin; n < end; ++n) {
      T* to_scale = d_log_sigma + n * d;
      std::fill(to_scale, to_scale + d, T(0));
      const T d_density = d_log_q ? sum_strided(d_log_q + n, e.samples, e.rows) : T(0);
      for (int64_t k = 0; k < e.samples; ++k) {
        if (k > 0 && k % kBlockTerms == 0) pairs.push(to_scale);
        const int64_t at = k * e.rows + n;
        const T *g = d_z + at * d, *x = eps + at * d;
#pragma omp simd
        for (int64_t i = 0; i < d; ++i) to_scale[i] = fused(g[i], x[i], to_scale[i]);
      }
      pairs.finish(to_scale);
      if (d_mu) sum_samples(d_z, e, n, d_mu + n * d, pairs);
      const T* log_s = log_sigma.row(n);
#pragma omp simd
      for (int64_t i = 0; i < d; ++i) to_scale[i] = fused(to_scale[i], exp(log_s[i]), -d_density);
      add_kl_gradient(d_kl, mu, log_sigma, n, d_mu ? d_mu + n * d : nullptr, to_scale, d);
      of_factor.write(n, T(1), d_z, eps, {d_kl, tril});
    }
    fence_streams();
  });
}

template <class T>
void log_prob_fwd(const T* z, Matrix<T> mu, Matrix<T> log_sigma, Tril<const T> tril, T* log_q, T* eps, Extent e) {
  const int64_t d = e.columns, whole = d / 4 * 4;
  const double constant = -kHalfLog2Pi * static_cast<double>(d);
  parallel_ranges(e.rows * e.samples, d * (d / 2 + kWorkPerNormal), [&](int64_t begin, int64_t end) {
    const Lines<T> sigma = make_lines<T>(d);
    int64_t scaled_row = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t n = item / e.samples, k = item % e.samples, at = k * e.rows + n;
      const T *x = z + at * d, *m = mu.row(n), *s = sigma.get();
      T* y = eps + at * d;
      if (n != scaled_row) exp_row(log_sigma.row(n), d, sigma.get());
      scaled_row = n;
      const bool fetch_next = tril.is_dense() && k == 0 && n + 1 < e.rows;
      for (int64_t i = 0; i < whole; i += 4) {
        if (fetch_next) fetch_four_rows(tril, n + 1, i, d);
        const T* rows[4];
        four_rows(tril, n, i, rows);
        auto sums = dot_four_rows<false>(rows, y, i);
        for (int h = 0; h < 4; ++h) {
          for (int g = 0; g < h; ++g) sums[h] = fused(rows[h][i + g], y[i + g], sums[h]);
          y[i + h] = (x[i + h] - m[i + h] - sums[h]) / s[i + h];
        }
      }
      for (int64_t i = whole; i < d; ++i) y[i] = (x[i] - m[i] - dot(tril.row(n, i), y, i)) / s[i];
      log_q[at] = static_cast<T>(constant - energy(y, log_sigma.row(n), d));
    }
  });
}

// w = L^-T y in place, from the last row up: each block of solved numbers subtracts multiples of its rows from the
// rest.
template <class T>
void solve_transposed(Tril<const T> tril, int64_t n, int64_t d, const T* sigma, T* w) {
  int64_t i = d;
  for (; i % 4; --i) {
    const T* row = tril.row(n, i - 1);
    const T solved = w[i - 1] /= sigma[i - 1];
#pragma omp simd
    for (int64_t j = 0; j < i - 1; ++j) w[j] = fused(-row[j], solved, w[j]);
  }
  for (i -= 4; i >= 0; i -= 4) {
    const T* rows[4];
    four_rows(tril, n, i, rows);
    for (int h = 3; h >= 0; --h) {
      w[i + h] /= sigma[i + h];
      for (int g = 0; g < h; ++g) w[i + g] = fused(-rows[h][i + g], w[i + h], w[i + g]);
    }
    const T w0 = w[i], w1 = w[i + 1], w2 = w[i + 2], w3 = w[i + 3];
    const T *r0 = rows[0], *r1 = rows[1], *r2 = rows[2], *r3 = rows[3];
#pragma omp simd
    for (int64_t j = 0; j < i; ++j) w[j] -= fused(r0[j], w0, r1[j] * w1) + fused(r2[j], w2, r3[j] * w3);
  }
}

template <class T>
void log_prob_bwd(const T* d_log_q, const T* eps, Matrix<T> log_sigma, Tril<const T> tril, T* d_z, T* d_mu,
                  T* d_log_sigma, Tril<T> d_tril, Extent e) {
  const int64_t d = e.columns;
  const bool streaming = e.samples == 1 && streams_rows(d_tril, e.rows, d);
  parallel_ranges(e.rows, d * (d + kWorkPerNormal) * std::max<int64_t>(e.samples, 1), [&](int64_t begin, int64_t end) {
    const Lines<T> scratch = make_lines<T>(2 * d);
    T *sigma = scratch.get(), *w = sigma + d;
    const int64_t blocks = count_blocks(e.samples);
    PairwiseSums<T> of_mu(blocks, d), of_scale(blocks, d);
    FactorGradient<T> of_factor(d_tril, e, streaming);
    for (int64_t n = begin; n < end; ++n) {
      T *to_mu = d_mu + n * d, *to_scale = d_log_sigma + n * d;
      std::fill(to_mu, to_mu + d, T(0));
      std::fill(to_scale, to_scale + d, T(0));
      exp_row(log_sigma.row(n), d, sigma);
      for (int64_t k = 0; k < e.samples; ++k) {
        if (k > 0 && k % kBlockTerms == 0) {
          of_mu.push(to_mu);
          of_scale.push(to_scale);
        }
        const int64_t at = k * e.rows + n;
        const T *y = eps + at * d, g = d_log_q[at];
        T* to_z = d_z + at * d;
        std::copy_n(y, d, w);
        solve_transposed(tril, n, d, sigma, w);
#pragma omp simd
        for (int64_t i = 0; i < d; ++i) {
          w[i] *= g;
          to_z[i] = -w[i];
          to_mu[i] += w[i];
          to_scale[i] += w[i] * y[i] * sigma[i] - g;
        }
      }
      of_mu.finish(to_mu);
      of_scale.finish(to_scale);
      of_factor.write(n, T(-1), d_z, eps, {});
    }
    fence_streams();
  });
}

template <class T>
void kl_fwd(Matrix<T> mu, Matrix<T> log_sigma, Tril<const T> tril, T* kl, int64_t rows, int64_t columns) {
  parallel_ranges(rows, columns * (columns / 2 + 8), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) write_kl(mu, log_sigma, tril, Divergence<T>{kl}, n, columns);
  });
}

template <class T>
void kl_bwd(const T* d_kl, Matrix<T> mu, Matrix<T> log_sigma, Tril<const T> tril, T* d_mu, T* d_log_sigma,
            Tril<T> d_tril, int64_t rows, int64_t columns) {
  const bool streaming = streams_rows(d_tril, rows, columns);
  parallel_ranges(rows, columns * (columns / 2 + 8), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const T *m = mu.row(n), *log_s = log_sigma.row(n), g = d_kl[n];
      T *to_mu = d_mu + n * columns, *to_log_sigma = d_log_sigma + n * columns;
#pragma omp simd
      for (int64_t i = 0; i < columns; ++i) {
        to_mu[i] = g * m[i];
        to_log_sigma[i] = g * (exp(T(2) * log_s[i]) - T(1));
      }
      for (int64_t i = 0; i < columns; ++i) {
        const T* row = tril.row(n, i);
        T* out = d_tril.row(n, i);
        if (streaming) {
          stream_tril_row<false>(out, g, row, {}, n, i, columns);
          continue;
        }
        clear_upper(d_tril, n, i, columns);
#pragma omp simd
        for (int64_t j = 0; j < i; ++j) out[j] = g * row[j];
      }
    }
    fence_streams();
  });
}

template <class T>
TrilGaussian<T> kernels() {
  return {fwd<T>, bwd<T>, log_prob_fwd<T>, log_prob_bwd<T>, kl_fwd<T>, kl_bwd<T>};
}

}  // namespace

inline namespace FASTVAE_ISA {
TrilGaussian<float> tril_gaussian_f32() { return kernels<float>(); }
TrilGaussian<double> tril_gaussian_f64() { return kernels<double>(); }
}  // namespace FASTVAE_ISA

}  // namespace fastvae
