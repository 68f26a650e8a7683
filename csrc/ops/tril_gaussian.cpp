#include "tril_gaussian.h"

#include <algorithm>
#include <memory>

#include "../memory.h"
#include "../parallel.h"
#include "../philox.h"

namespace fastvae {
namespace {

constexpr double kHalfLog2Pi = 0.91893853320467274178;
// Rows of the factor that go through one inner loop: their sums share each load of the vector.
constexpr int64_t kRows = 4;
// Samples whose noise is held at once: bounds the scratch whatever K is.
constexpr int64_t kSamples = 32;

template <class T>
using Scratch = std::unique_ptr<T[]>;

// The noise of one row and sample in column order.
template <class T>
void noise_row(NoiseSource<T> noise, Extent e, int64_t k, int64_t n, T* eps) {
  if (noise.eps) {
    std::copy_n(noise.eps + (k * e.rows + n) * e.columns, e.columns, eps);
    return;
  }
  const int64_t quarter = (e.columns + 3) / 4;
  NoiseChunk<T> chunk;
  for (int64_t first = 0; first < quarter; first += kChunk) {
    const int64_t count = std::min(kChunk, quarter - first);
    chunk.draw(static_cast<uint64_t>(*noise.seed), static_cast<uint64_t>(noise.row_offset + n), k, first, count);
    for (int64_t l = 0; l < 4; ++l)
      std::copy_n(chunk.lane[l], lane_count(l, quarter, first, count, e.columns), eps + l * quarter + first);
  }
}

// sums[h] = sum over j < count of rows[h][j] x[j].
template <int H, class T>
FASTVAE_INLINE void dot_rows(const T* const* rows, const T* x, int64_t count, T* sums) {
  if constexpr (H == 4) {
    const T *r0 = rows[0], *r1 = rows[1], *r2 = rows[2], *r3 = rows[3];
    T s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
    for (int64_t j = 0; j < count; ++j) {
      s0 += r0[j] * x[j];
      s1 += r1[j] * x[j];
      s2 += r2[j] * x[j];
      s3 += r3[j] * x[j];
    }
    sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3;
  } else {
    for (int h = 0; h < H; ++h) {
      const T* row = rows[h];
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t j = 0; j < count; ++j) sum += row[j] * x[j];
      sums[h] = sum;
    }
  }
}

// Calls body.template operator()<H>(i) for blocks of rows [i, i + H) that cover [0, d), upwards.
template <class Body>
FASTVAE_INLINE void for_row_blocks(int64_t d, const Body& body) {
  int64_t i = 0;
  for (; i + kRows <= d; i += kRows) body.template operator()<kRows>(i);
  for (; i < d; ++i) body.template operator()<1>(i);
}

template <int H, class T>
FASTVAE_INLINE void row_pointers(Tril<T> tril, int64_t n, int64_t i, T** rows) {
  for (int h = 0; h < H; ++h) rows[h] = tril.row(n, i + h);
}

template <class T>
T half_square(const T* x, int64_t count) {
  T total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < count; ++i) total += x[i] * x[i];
  return T(0.5) * total;
}

// sigma and the sum of log_sigma of one row.
template <class T>
T scales(const T* log_sigma, int64_t count, T* sigma) {
  T total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < count; ++i) {
    sigma[i] = exp(log_sigma[i]);
    total += log_sigma[i];
  }
  return total;
}

// What stands on and above the diagonal of a dense gradient.
template <class T>
FASTVAE_INLINE void clear_upper(Tril<T> tril, int64_t n, int64_t i, int64_t d) {
  if (tril.row_stride) std::fill(tril.row(n, i) + i, tril.row(n, i) + d, T(0));
}

template <class T>
void expect_full_tril(Tril<T> tril, int64_t rows) {
  expect_full_write(tril.data, rows * tril.stride * static_cast<int64_t>(sizeof(T)));
}

// Items are (row, sample) pairs, samples innermost: one read of a factor serves kSamples of its samples.
template <class T, class Body>
void parallel_samples(Extent e, int64_t work, const Body& body) {
  parallel_ranges(e.rows * e.samples, work, [&](int64_t begin, int64_t end) {
    const Scratch<T> scratch(new T[(kSamples + 1) * e.columns]);
    for (int64_t item = begin; item < end;) {
      const int64_t n = item / e.samples, k = item % e.samples;
      const int64_t count = std::min({kSamples, e.samples - k, end - item});
      body(n, k, count, scratch.get());
      item += count;
    }
  });
}

template <class T>
void fwd(Matrix<T> mu, Matrix<T> log_sigma, Tril<const T> tril, NoiseSource<T> noise, T* z, T* log_q, Extent e) {
  const int64_t d = e.columns;
  expect_full_write(z, e.samples * e.rows * d * static_cast<int64_t>(sizeof(T)));
  parallel_samples<T>(e, d * (d / 4 + 12), [&](int64_t n, int64_t first, int64_t count, T* scratch) {
    T *sigma = scratch, *eps = scratch + d;
    const T log_det = scales(log_sigma.row(n), d, sigma);
    for (int64_t k = 0; k < count; ++k) {
      noise_row(noise, e, first + k, n, eps + k * d);
      log_q[(first + k) * e.rows + n] =
          static_cast<T>(-kHalfLog2Pi * static_cast<double>(d) - log_det - half_square(eps + k * d, d));
    }
    for_row_blocks(d, [&]<int H>(int64_t i) {
      const T* rows[H];
      row_pointers<H>(tril, n, i, rows);
      for (int64_t k = 0; k < count; ++k) {
        const T* x = eps + k * d;
        T* out = z + ((first + k) * e.rows + n) * d;
        T sums[H];
        dot_rows<H>(rows, x, i, sums);
        for (int h = 0; h < H; ++h) {
          for (int g = 0; g < h; ++g) sums[h] += rows[h][i + g] * x[i + g];
          out[i + h] = mu.row(n)[i + h] + (sums[h] + sigma[i + h] * x[i + h]);
        }
      }
    });
  });
}

// d_tril (+)= sum over k of left[k, i] right[k, j], j < i; the first block of samples writes, the others add.
template <class T>
void outer_products(Tril<T> d_tril, int64_t n, int64_t d, const T* left, int64_t left_stride, const T* right,
                    int64_t count, bool add) {
  for (int64_t i = 0; i < d; ++i) {
    T* out = d_tril.row(n, i);
    if (!add) clear_upper(d_tril, n, i, d);
    for (int64_t k = 0; k < count; ++k) {
      const T g = left[k * left_stride + i];
      const T* x = right + k * d;
      if (k == 0 && !add) {
#pragma omp simd
        for (int64_t j = 0; j < i; ++j) out[j] = g * x[j];
      } else {
#pragma omp simd
        for (int64_t j = 0; j < i; ++j) out[j] += g * x[j];
      }
    }
    if (count == 0 && !add) std::fill(out, out + i, T(0));
  }
}

template <class T>
void bwd(const T* d_z, const T* d_log_q, Matrix<T> log_sigma, NoiseSource<T> noise, T* d_mu, T* d_log_sigma,
         Tril<T> d_tril, Extent e) {
  const int64_t d = e.columns;
  expect_full_tril(d_tril, e.rows);
  parallel_ranges(e.rows, d * (d / 4 + 12) * std::max<int64_t>(e.samples, 1), [&](int64_t begin, int64_t end) {
    const Scratch<T> scratch(new T[std::min(kSamples, std::max<int64_t>(e.samples, 1)) * d]);
    T* eps = scratch.get();
    for (int64_t n = begin; n < end; ++n) {
      T *to_mu = d_mu + n * d, *to_log_sigma = d_log_sigma + n * d;
      std::fill(to_mu, to_mu + d, T(0));
      std::fill(to_log_sigma, to_log_sigma + d, T(0));
      T d_density = 0;
      int64_t first = 0;
      do {
        const int64_t count = std::min(kSamples, e.samples - first);
        for (int64_t k = 0; k < count; ++k) {
          const int64_t item = (first + k) * e.rows + n;
          const T *g = d_z + item * d, *x = eps + k * d;
          noise_row(noise, e, first + k, n, eps + k * d);
          d_density += d_log_q[item];
#pragma omp simd
          for (int64_t i = 0; i < d; ++i) {
            to_mu[i] += g[i];
            to_log_sigma[i] += g[i] * x[i];
          }
        }
        outer_products(d_tril, n, d, d_z + (first * e.rows + n) * d, e.rows * d, eps, count, first > 0);
        first += kSamples;
      } while (first < e.samples);
      const T* log_s = log_sigma.row(n);
#pragma omp simd
      for (int64_t i = 0; i < d; ++i) to_log_sigma[i] = to_log_sigma[i] * exp(log_s[i]) - d_density;
    }
  });
}

template <class T>
void log_prob_fwd(const T* z, Matrix<T> mu, Matrix<T> log_sigma, Tril<const T> tril, T* log_q, T* eps, Extent e) {
  const int64_t d = e.columns;
  parallel_samples<T>(e, d * (d / 4 + 16), [&](int64_t n, int64_t first, int64_t count, T* sigma) {
    const T log_det = scales(log_sigma.row(n), d, sigma);
    for_row_blocks(d, [&]<int H>(int64_t i) {
      const T* rows[H];
      row_pointers<H>(tril, n, i, rows);
      for (int64_t k = 0; k < count; ++k) {
        const int64_t item = (first + k) * e.rows + n;
        T* y = eps + item * d;
        T sums[H];
        dot_rows<H>(rows, y, i, sums);
        for (int h = 0; h < H; ++h) {
          for (int g = 0; g < h; ++g) sums[h] += rows[h][i + g] * y[i + g];
          y[i + h] = (z[item * d + i + h] - mu.row(n)[i + h] - sums[h]) / sigma[i + h];
        }
      }
    });
    for (int64_t k = 0; k < count; ++k) {
      const int64_t item = (first + k) * e.rows + n;
      log_q[item] = static_cast<T>(-kHalfLog2Pi * static_cast<double>(d) - log_det - half_square(eps + item * d, d));
    }
  });
}

// w = L^-T y, from the last row up: each solved w_i leaves its multiple of row i in the rest.
template <class T>
void solve_transposed(Tril<const T> tril, int64_t n, int64_t d, const T* sigma, const T* y, T* w) {
  std::copy_n(y, d, w);
  for (int64_t i = d - 1; i >= 0; --i) {
    const T* row = tril.row(n, i);
    const T solved = w[i] / sigma[i];
    w[i] = solved;
#pragma omp simd
    for (int64_t j = 0; j < i; ++j) w[j] -= row[j] * solved;
  }
}

template <class T>
void log_prob_bwd(const T* d_log_q, const T* eps, Matrix<T> log_sigma, Tril<const T> tril, T* d_z, T* d_mu,
                  T* d_log_sigma, Tril<T> d_tril, Extent e) {
  const int64_t d = e.columns;
  expect_full_tril(d_tril, e.rows);
  parallel_ranges(e.rows, d * (d / 2 + 16) * std::max<int64_t>(e.samples, 1), [&](int64_t begin, int64_t end) {
    const int64_t held = std::min(kSamples, std::max<int64_t>(e.samples, 1));
    const Scratch<T> scratch(new T[(2 * held + 1) * d]);
    T *sigma = scratch.get(), *scaled = sigma + d, *points = scaled + held * d;
    for (int64_t n = begin; n < end; ++n) {
      T *to_mu = d_mu + n * d, *to_log_sigma = d_log_sigma + n * d;
      std::fill(to_mu, to_mu + d, T(0));
      std::fill(to_log_sigma, to_log_sigma + d, T(0));
      scales(log_sigma.row(n), d, sigma);
      int64_t first = 0;
      do {
        const int64_t count = std::min(kSamples, e.samples - first);
        for (int64_t k = 0; k < count; ++k) {
          const int64_t item = (first + k) * e.rows + n;
          const T g = d_log_q[item];
          T *w = scaled + k * d, *y = points + k * d, *to_z = d_z + item * d;
          std::copy_n(eps + item * d, d, y);
          solve_transposed(tril, n, d, sigma, y, w);
#pragma omp simd
          for (int64_t i = 0; i < d; ++i) {
            w[i] *= g;
            to_z[i] = -w[i];
            to_mu[i] += w[i];
            to_log_sigma[i] += w[i] * y[i] * sigma[i] - g;
          }
        }
        outer_products(d_tril, n, d, scaled, d, points, count, first > 0);
        first += kSamples;
      } while (first < e.samples);
    }
  });
}

template <class T>
void kl_fwd(Matrix<T> mu, Matrix<T> log_sigma, Tril<const T> tril, T* kl, int64_t rows, int64_t columns) {
  parallel_ranges(rows, columns * (columns / 4 + 8), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const T *m = mu.row(n), *log_s = log_sigma.row(n);
      T total = 0;
#pragma omp simd reduction(+ : total)
      for (int64_t i = 0; i < columns; ++i)
        total += m[i] * m[i] + (exp(T(2) * log_s[i]) - T(1) - T(2) * log_s[i]);
      total *= T(0.5);
      for (int64_t i = 1; i < columns; ++i) total += half_square(tril.row(n, i), i);
      kl[n] = total;
    }
  });
}

template <class T>
void kl_bwd(const T* d_kl, Matrix<T> mu, Matrix<T> log_sigma, Tril<const T> tril, T* d_mu, T* d_log_sigma,
            Tril<T> d_tril, int64_t rows, int64_t columns) {
  expect_full_tril(d_tril, rows);
  parallel_ranges(rows, columns * (columns / 4 + 8), [&](int64_t begin, int64_t end) {
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
        clear_upper(d_tril, n, i, columns);
#pragma omp simd
        for (int64_t j = 0; j < i; ++j) out[j] = g * row[j];
      }
    }
  });
}

template <class T>
TrilGaussian<T> kernels() {
  return {fwd<T>, bwd<T>, log_prob_fwd<T>, log_prob_bwd<T>, kl_fwd<T>, kl_bwd<T>};
}

}  // namespace

namespace FASTVAE_ISA {
TrilGaussian<float> tril_gaussian_f32() { return kernels<float>(); }
TrilGaussian<double> tril_gaussian_f64() { return kernels<double>(); }
}  // namespace FASTVAE_ISA

}  // namespace fastvae
