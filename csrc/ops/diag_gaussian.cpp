#include "diag_gaussian.h"

#include <algorithm>
#include <memory>

#include "../parallel.h"
#include "../philox.h"
#include "../stream.h"

namespace fastvae {
namespace {

constexpr double kHalfLog2Pi = 0.91893853320467274178;
// Scalar operations of one normal and its use: what parallel_ranges weighs.
constexpr int64_t kWorkPerNormal = 12;

// Brings rows nearer while their noise is drawn: arithmetic and memory would otherwise take turns.
template <class T>
FASTVAE_INLINE void prefetch_rows(Matrix<T> matrix, int64_t first, int64_t last, int64_t d) {
  for (int64_t n = first; n < last; ++n)
    for (int64_t i = 0; i < d; i += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(matrix.row(n) + i, 0, 2);
}

// A row's samples are drawn next to each other, so that its parameters are read from memory once.
template <class T>
void fwd(Matrix<T> mu, Matrix<T> log_sigma, NoiseSource<T> source, T* z, T* log_q, T* kept, Extent e) {
  const int64_t d = e.columns;
  const double constant = -kHalfLog2Pi * static_cast<double>(d);
  const bool streaming = streams(z, e.samples * e.rows, d) && (!kept || streams(kept, e.samples * e.rows, d));
  parallel_ranges(e.rows * e.samples, d * kWorkPerNormal, [&](int64_t begin, int64_t end) {
    NoiseRows<T> noise(source, e);
    const std::unique_ptr<T[]> scratch(new T[3 * d]);
    T *sigma = scratch.get(), *product = sigma + d, *point = product + d;
    int64_t scaled_row = -1;
    for (int64_t first = begin; first < end; first += noise.most()) {
      const int64_t last = std::min(end, first + noise.most());
      if (streaming && e.samples == 1) {
        prefetch_rows(mu, first, last, d);
        prefetch_rows(log_sigma, first, last, d);
      }
      noise.draw(first, last - first);
      for (int64_t item = first; item < last; ++item) {
        const int64_t n = item / e.samples, at = item % e.samples * e.rows + n;
        const T *eps = noise[item], *m = mu.row(n), *log_s = log_sigma.row(n);
        T* out = streaming ? point : z + at * d;
        T* spread = kept && !streaming ? kept + at * d : product;
        if (e.samples == 1) {
#pragma omp simd
          for (int64_t i = 0; i < d; ++i) {
            spread[i] = exp(log_s[i]) * eps[i];
            out[i] = m[i] + spread[i];
          }
        } else {
          if (n != scaled_row) {
#pragma omp simd
            for (int64_t i = 0; i < d; ++i) sigma[i] = exp(log_s[i]);
          }
          scaled_row = n;
#pragma omp simd
          for (int64_t i = 0; i < d; ++i) {
            spread[i] = sigma[i] * eps[i];
            out[i] = m[i] + spread[i];
          }
        }
        if (streaming) {
          stream_row(z + at * d, out, d);
          if (kept) stream_row(kept + at * d, spread, d);
        }
        log_q[at] = static_cast<T>(constant - energy(eps, log_s, d));
      }
    }
    fence_streams();
  });
}

template <class T>
void bwd(const T* d_z, const T* d_log_q, const T* kept, T* d_mu, T* d_log_sigma, Extent e) {
  const int64_t d = e.columns;
  const bool streaming = e.samples == 1 && streams(d_log_sigma, e.rows, d);
  parallel_ranges(e.rows, d * std::max<int64_t>(e.samples, 1), [&](int64_t begin, int64_t end) {
    const std::unique_ptr<T[]> scratch(new T[streaming ? d : 1]);
    for (int64_t n = begin; n < end; ++n) {
      T* to_scale = streaming ? scratch.get() : d_log_sigma + n * d;
      if (e.samples == 1) {
        const T *g = d_z + n * d, *spread = kept + n * d, d_density = d_log_q[n];
#pragma omp simd
        for (int64_t i = 0; i < d; ++i) to_scale[i] = g[i] * spread[i] - d_density;
        if (streaming) stream_row(d_log_sigma + n * d, to_scale, d);
        if (d_mu) std::copy_n(g, d, d_mu + n * d);
        continue;
      }
      T d_density = 0;
      for (int64_t k = 0; k < e.samples; ++k) d_density += d_log_q[k * e.rows + n];
#pragma omp simd
      for (int64_t i = 0; i < d; ++i) to_scale[i] = -d_density;
      T* to_mu = d_mu ? d_mu + n * d : nullptr;
      if (to_mu) std::fill_n(to_mu, d, T(0));
      for (int64_t k = 0; k < e.samples; ++k) {
        const T *g = d_z + (k * e.rows + n) * d, *spread = kept + (k * e.rows + n) * d;
#pragma omp simd
        for (int64_t i = 0; i < d; ++i) to_scale[i] += g[i] * spread[i];
        if (!to_mu) continue;
#pragma omp simd
        for (int64_t i = 0; i < d; ++i) to_mu[i] += g[i];
      }
    }
    fence_streams();
  });
}

template <class T>
void log_prob_fwd(const T* z, Matrix<T> mu, Matrix<T> log_sigma, T* log_q, Extent e) {
  parallel_ranges(e.samples * e.rows, e.columns * 8, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t n = item % e.rows;
      const T *x = z + item * e.columns, *m = mu.row(n), *log_s = log_sigma.row(n);
      const T total = sum_terms<T>(e.columns, [&](int64_t i) {
        const T eps = (x[i] - m[i]) * exp(-log_s[i]);
        return T(0.5) * eps * eps + log_s[i];
      });
      log_q[item] = static_cast<T>(-kHalfLog2Pi * static_cast<double>(e.columns) - total);
    }
  });
}

template <class T>
void log_prob_bwd(const T* d_log_q, const T* z, Matrix<T> mu, Matrix<T> log_sigma, T* d_z, T* d_mu, T* d_log_sigma,
                  Extent e) {
  parallel_ranges(e.rows, e.columns * 12 * std::max<int64_t>(e.samples, 1), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const T *m = mu.row(n), *log_s = log_sigma.row(n);
      T *to_mu = d_mu + n * e.columns, *to_log_sigma = d_log_sigma + n * e.columns;
      std::fill(to_mu, to_mu + e.columns, T(0));
      std::fill(to_log_sigma, to_log_sigma + e.columns, T(0));
      for (int64_t k = 0; k < e.samples; ++k) {
        const int64_t item = k * e.rows + n;
        const T* x = z + item * e.columns;
        T* to_z = d_z + item * e.columns;
        const T g = d_log_q[item];
#pragma omp simd
        for (int64_t i = 0; i < e.columns; ++i) {
          const T precision = exp(-log_s[i]), eps = (x[i] - m[i]) * precision;
          to_z[i] = -g * eps * precision;
          to_mu[i] += g * eps * precision;
          to_log_sigma[i] += g * (eps * eps - T(1));
        }
      }
    }
  });
}

template <class T>
void kl_fwd(Matrix<T> mu, Matrix<T> log_sigma, T* kl, int64_t rows, int64_t columns) {
  parallel_ranges(rows, columns * 8, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const T *m = mu.row(n), *log_s = log_sigma.row(n);
      kl[n] = T(0.5) * sum_terms<T>(columns, [&](int64_t i) {
                return m[i] * m[i] + (exp(T(2) * log_s[i]) - T(1) - T(2) * log_s[i]);
              });
    }
  });
}

template <class T>
void kl_bwd(const T* d_kl, Matrix<T> mu, Matrix<T> log_sigma, T* d_mu, T* d_log_sigma, int64_t rows, int64_t columns) {
  parallel_ranges(rows, columns * 8, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const T *m = mu.row(n), *log_s = log_sigma.row(n), g = d_kl[n];
      T *to_mu = d_mu + n * columns, *to_log_sigma = d_log_sigma + n * columns;
#pragma omp simd
      for (int64_t i = 0; i < columns; ++i) {
        to_mu[i] = g * m[i];
        to_log_sigma[i] = g * (exp(T(2) * log_s[i]) - T(1));
      }
    }
  });
}

template <class T>
void kl_prior_fwd(Matrix<T> mu, Matrix<T> log_sigma, Matrix<T> prior_mu, Matrix<T> prior_log_sigma, T* kl, int64_t rows,
                  int64_t columns) {
  parallel_ranges(rows, columns * 16, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const T *m = mu.row(n), *log_s = log_sigma.row(n), *pm = prior_mu.row(n), *plog_s = prior_log_sigma.row(n);
      kl[n] = T(0.5) * sum_terms<T>(columns, [&](int64_t i) {
                const T log_ratio = log_s[i] - plog_s[i], whitened = (m[i] - pm[i]) * exp(-plog_s[i]);
                return whitened * whitened + (exp(T(2) * log_ratio) - T(1) - T(2) * log_ratio);
              });
    }
  });
}

template <class T>
void kl_prior_bwd(const T* d_kl, Matrix<T> mu, Matrix<T> log_sigma, Matrix<T> prior_mu, Matrix<T> prior_log_sigma,
                  T* d_mu, T* d_log_sigma, T* d_prior_mu, T* d_prior_log_sigma, int64_t rows, int64_t columns) {
  parallel_ranges(rows, columns * 16, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const T *m = mu.row(n), *log_s = log_sigma.row(n), *pm = prior_mu.row(n), *plog_s = prior_log_sigma.row(n);
      const T g = d_kl[n];
      const int64_t at = n * columns;
#pragma omp simd
      for (int64_t i = 0; i < columns; ++i) {
        const T precision = exp(-plog_s[i]), whitened = (m[i] - pm[i]) * precision;
        const T variance_ratio = exp(T(2) * (log_s[i] - plog_s[i]));
        d_mu[at + i] = g * whitened * precision;
        d_prior_mu[at + i] = -g * whitened * precision;
        d_log_sigma[at + i] = g * (variance_ratio - T(1));
        d_prior_log_sigma[at + i] = g * (T(1) - variance_ratio - whitened * whitened);
      }
    }
  });
}

template <class T>
DiagGaussian<T> kernels() {
  return {fwd<T>, bwd<T>, log_prob_fwd<T>, log_prob_bwd<T>, kl_fwd<T>, kl_bwd<T>, kl_prior_fwd<T>, kl_prior_bwd<T>};
}

}  // namespace

namespace FASTVAE_ISA {
DiagGaussian<float> diag_gaussian_f32() { return kernels<float>(); }
DiagGaussian<double> diag_gaussian_f64() { return kernels<double>(); }
}  // namespace FASTVAE_ISA

}  // namespace fastvae
