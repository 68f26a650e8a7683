#include "diag_gaussian.h"

#include <algorithm>
#include <memory>

#include "../memory.h"
#include "../parallel.h"
#include "../philox.h"

namespace fastvae {
namespace {

constexpr double kHalfLog2Pi = 0.91893853320467274178;
// Scalar operations of one normal and its use: what parallel_ranges weighs.
constexpr int64_t kWorkPerNormal = 12;

// A row's samples are drawn next to each other, so that its parameters are read from memory once.
template <class T>
void fwd(Matrix<T> mu, Matrix<T> log_sigma, NoiseSource<T> source, T* z, T* log_q, Extent e) {
  const double constant = -kHalfLog2Pi * static_cast<double>(e.columns);
  expect_full_write(z, e.samples * e.rows * e.columns * static_cast<int64_t>(sizeof(T)));
  parallel_ranges(e.rows * e.samples, e.columns * kWorkPerNormal, [&](int64_t begin, int64_t end) {
    NoiseRows<T> noise(source, e);
    const std::unique_ptr<T[]> sigma(new T[e.columns]);
    int64_t scaled_row = -1;
    for (int64_t first = begin; first < end; first += noise.most()) {
      const int64_t last = std::min(end, first + noise.most());
      noise.draw(first, last - first);
      for (int64_t item = first; item < last; ++item) {
        const int64_t n = item / e.samples, k = item % e.samples;
        const T *eps = noise[item], *m = mu.row(n), *log_s = log_sigma.row(n), *s = sigma.get();
        T* out = z + (k * e.rows + n) * e.columns;
        if (e.samples == 1) {
#pragma omp simd
          for (int64_t i = 0; i < e.columns; ++i) out[i] = m[i] + exp(log_s[i]) * eps[i];
        } else {
          if (n != scaled_row) {
#pragma omp simd
            for (int64_t i = 0; i < e.columns; ++i) sigma[i] = exp(log_s[i]);
          }
          scaled_row = n;
#pragma omp simd
          for (int64_t i = 0; i < e.columns; ++i) out[i] = m[i] + s[i] * eps[i];
        }
        const T total = sum_terms<T>(e.columns, [&](int64_t i) { return T(0.5) * eps[i] * eps[i] + log_s[i]; });
        log_q[k * e.rows + n] = static_cast<T>(constant - total);
      }
    }
  });
}

template <class T>
void bwd(const T* d_z, const T* d_log_q, Matrix<T> log_sigma, NoiseSource<T> source, T* d_mu, T* d_log_sigma,
         Extent e) {
  const int64_t size = e.rows * e.columns;
  expect_full_write(d_log_sigma, size * static_cast<int64_t>(sizeof(T)));
  if (d_mu) expect_full_write(d_mu, size * static_cast<int64_t>(sizeof(T)));
  if (e.samples == 0) {
    std::fill_n(d_log_sigma, size, T(0));
    if (d_mu) std::fill_n(d_mu, size, T(0));
    return;
  }
  parallel_ranges(e.rows, e.columns * kWorkPerNormal * e.samples, [&](int64_t begin, int64_t end) {
    NoiseRows<T> noise(source, e);
    T d_density = 0;
    for (int64_t first = begin * e.samples; first < end * e.samples; first += noise.most()) {
      const int64_t last = std::min(end * e.samples, first + noise.most());
      noise.draw(first, last - first);
      for (int64_t item = first; item < last; ++item) {
        const int64_t n = item / e.samples, k = item % e.samples;
        const T *g = d_z + (k * e.rows + n) * e.columns, *eps = noise[item], *log_s = log_sigma.row(n);
        T* to_scale = d_log_sigma + n * e.columns;
        d_density = (k == 0 ? T(0) : d_density) + d_log_q[k * e.rows + n];
        if (d_mu) {
          T* to_mu = d_mu + n * e.columns;
          if (k == 0) {
            std::copy_n(g, e.columns, to_mu);
          } else {
#pragma omp simd
            for (int64_t i = 0; i < e.columns; ++i) to_mu[i] += g[i];
          }
        }
        if (e.samples == 1) {
#pragma omp simd
          for (int64_t i = 0; i < e.columns; ++i) to_scale[i] = exp(log_s[i]) * (g[i] * eps[i]) - d_density;
          continue;
        }
        if (k == 0) {
#pragma omp simd
          for (int64_t i = 0; i < e.columns; ++i) to_scale[i] = g[i] * eps[i];
        } else {
#pragma omp simd
          for (int64_t i = 0; i < e.columns; ++i) to_scale[i] += g[i] * eps[i];
        }
        if (k == e.samples - 1) {
#pragma omp simd
          for (int64_t i = 0; i < e.columns; ++i) to_scale[i] = exp(log_s[i]) * to_scale[i] - d_density;
        }
      }
    }
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
