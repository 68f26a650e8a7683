#include "diag_gaussian.h"

#include <algorithm>

#include "../memory.h"
#include "../parallel.h"
#include "../philox.h"

namespace fastvae {
namespace {

constexpr double kHalfLog2Pi = 0.91893853320467274178;
// Scalar operations of one normal and its use: what parallel_ranges weighs.
constexpr int64_t kWorkPerNormal = 12;

template <class T>
void exp_row(const T* log_sigma, int64_t count, T* sigma) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) sigma[i] = exp(log_sigma[i]);
}

template <class T>
double sum_row(const T* values, int64_t count) {
  T total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < count; ++i) total += values[i];
  return total;
}

template <class T>
void load_noise(NoiseChunk<T>& chunk, const NoiseSource<T>& noise, Extent e, int64_t k, int64_t n, int64_t quarter,
                int64_t first, int64_t count) {
  if (noise.eps)
    chunk.point_to(noise.eps + (k * e.rows + n) * e.columns, quarter, first);
  else
    chunk.draw(static_cast<uint64_t>(*noise.seed), static_cast<uint64_t>(noise.row_offset + n), k, first, count);
}

// A row's samples are drawn next to each other, so that its parameters are read from memory once.
template <class T>
void fwd(Matrix<T> mu, Matrix<T> log_sigma, NoiseSource<T> noise, T* z, T* log_q, Extent e) {
  const int64_t quarter = (e.columns + 3) / 4;
  expect_full_write(z, e.samples * e.rows * e.columns * static_cast<int64_t>(sizeof(T)));
  parallel_ranges(e.rows * e.samples, e.columns * kWorkPerNormal, [&](int64_t begin, int64_t end) {
    NoiseChunk<T> chunk;
    alignas(64) T sigma[4][kChunk];
    for (int64_t item = begin; item < end;) {
      const int64_t n = item / e.samples, first_sample = item % e.samples;
      const int64_t last_sample = std::min(e.samples, first_sample + end - item);
      item += last_sample - first_sample;
      const double constant = -kHalfLog2Pi * static_cast<double>(e.columns) - sum_row(log_sigma.row(n), e.columns);
      for (int64_t first = 0; first < quarter; first += kChunk) {
        const int64_t count = std::min(kChunk, quarter - first);
        for (int64_t l = 0; l < 4; ++l)
          exp_row(log_sigma.row(n) + l * quarter + first, lane_count(l, quarter, first, count, e.columns), sigma[l]);
        for (int64_t k = first_sample; k < last_sample; ++k) {
          load_noise(chunk, noise, e, k, n, quarter, first, count);
          T* out = z + (k * e.rows + n) * e.columns;
          T square = 0;
          for (int64_t l = 0; l < 4; ++l) {
            const int64_t offset = l * quarter + first, length = lane_count(l, quarter, first, count, e.columns);
            const T *m = mu.row(n) + offset, *s = sigma[l], *eps = chunk.lane[l];
            T* target = out + offset;
#pragma omp simd reduction(+ : square)
            for (int64_t i = 0; i < length; ++i) {
              target[i] = m[i] + s[i] * eps[i];
              square += eps[i] * eps[i];
            }
          }
          T& density = log_q[k * e.rows + n];
          density = static_cast<T>((first == 0 ? constant : static_cast<double>(density)) - 0.5 * square);
        }
      }
    }
  });
}

template <class T>
void bwd(const T* d_z, const T* d_log_q, Matrix<T> log_sigma, NoiseSource<T> noise, T* d_mu, T* d_log_sigma,
         Extent e) {
  const int64_t quarter = (e.columns + 3) / 4, chunks = (quarter + kChunk - 1) / kChunk;
  const int64_t bytes = e.rows * e.columns * static_cast<int64_t>(sizeof(T));
  expect_full_write(d_log_sigma, bytes);
  if (d_mu) expect_full_write(d_mu, bytes);
  const int64_t work = std::min(quarter, kChunk) * 4 * kWorkPerNormal * std::max<int64_t>(e.samples, 1);
  parallel_ranges(e.rows * chunks, work, [&](int64_t begin, int64_t end) {
    NoiseChunk<T> chunk;
    alignas(64) T scaled[4][kChunk], total[4][kChunk];
    for (int64_t item = begin; item < end; ++item) {
      const int64_t n = item / chunks, first = item % chunks * kChunk;
      const int64_t count = std::min(kChunk, quarter - first);
      if (e.samples != 1) std::fill(&scaled[0][0], &scaled[0][0] + 4 * kChunk, T(0));
      if (d_mu) std::fill(&total[0][0], &total[0][0] + 4 * kChunk, T(0));
      T d_density = 0;
      for (int64_t k = 0; k < e.samples; ++k) {
        load_noise(chunk, noise, e, k, n, quarter, first, count);
        d_density += d_log_q[k * e.rows + n];
        for (int64_t l = 0; l < 4; ++l) {
          const int64_t length = lane_count(l, quarter, first, count, e.columns);
          const T *g = d_z + (k * e.rows + n) * e.columns + l * quarter + first, *eps = chunk.lane[l];
          T *s = scaled[l], *t = total[l];
          if (e.samples == 1) {
#pragma omp simd
            for (int64_t i = 0; i < length; ++i) s[i] = g[i] * eps[i];
          } else {
#pragma omp simd
            for (int64_t i = 0; i < length; ++i) s[i] += g[i] * eps[i];
          }
          if (!d_mu) continue;
#pragma omp simd
          for (int64_t i = 0; i < length; ++i) t[i] += g[i];
        }
      }
      for (int64_t l = 0; l < 4; ++l) {
        const int64_t offset = l * quarter + first, length = lane_count(l, quarter, first, count, e.columns);
        const T *log_s = log_sigma.row(n) + offset, *s = scaled[l];
        T* target = d_log_sigma + n * e.columns + offset;
#pragma omp simd
        for (int64_t i = 0; i < length; ++i) target[i] = exp(log_s[i]) * s[i] - d_density;
        if (d_mu) std::copy(total[l], total[l] + length, d_mu + n * e.columns + offset);
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
      T total = 0;
#pragma omp simd reduction(+ : total)
      for (int64_t i = 0; i < e.columns; ++i) {
        const T eps = (x[i] - m[i]) * exp(-log_s[i]);
        total += eps * eps * T(0.5) + log_s[i];
      }
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
      T total = 0;
#pragma omp simd reduction(+ : total)
      for (int64_t i = 0; i < columns; ++i)
        total += m[i] * m[i] + (exp(T(2) * log_s[i]) - T(1) - T(2) * log_s[i]);
      kl[n] = T(0.5) * total;
    }
  });
}

template <class T>
void kl_bwd(const T* d_kl, Matrix<T> mu, Matrix<T> log_sigma, T* d_mu, T* d_log_sigma, int64_t rows,
            int64_t columns) {
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
void kl_prior_fwd(Matrix<T> mu, Matrix<T> log_sigma, Matrix<T> prior_mu, Matrix<T> prior_log_sigma, T* kl,
                  int64_t rows, int64_t columns) {
  parallel_ranges(rows, columns * 16, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const T *m = mu.row(n), *log_s = log_sigma.row(n), *pm = prior_mu.row(n), *plog_s = prior_log_sigma.row(n);
      T total = 0;
#pragma omp simd reduction(+ : total)
      for (int64_t i = 0; i < columns; ++i) {
        const T log_ratio = log_s[i] - plog_s[i], whitened = (m[i] - pm[i]) * exp(-plog_s[i]);
        total += whitened * whitened + (exp(T(2) * log_ratio) - T(1) - T(2) * log_ratio);
      }
      kl[n] = T(0.5) * total;
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
  return {fwd<T>,    bwd<T>,    log_prob_fwd<T>, log_prob_bwd<T>,
          kl_fwd<T>, kl_bwd<T>, kl_prior_fwd<T>, kl_prior_bwd<T>};
}

}  // namespace

namespace FASTVAE_ISA {
DiagGaussian<float> diag_gaussian_f32() { return kernels<float>(); }
DiagGaussian<double> diag_gaussian_f64() { return kernels<double>(); }
}  // namespace FASTVAE_ISA

}  // namespace fastvae
