#include "ops/diag_gaussian.h"

#include <algorithm>
#include <memory>

#include "base/memory.h"
#include "base/parallel.h"
#include "ops/gaussian_kl.h"
#include "simd/pairwise_sums.h"
#include "simd/philox.h"
#include "simd/stream.h"

namespace fastvae {
namespace {

constexpr double kHalfLog2Pi = 0.91893853320467274178;
// Scalar operations to draw one normal and use it, for parallel_ranges.
constexpr int64_t kWorkPerNormal = 12;

// Writes one sample of a row, z = mu + sigma eps, and sigma eps to `kept` unless it is null. Returns partial sums of
// the constant minus the log-density. sigma is null for a row's only sample: then e^log_sigma is computed here.
template <bool streaming, class T>
FASTVAE_INLINE typename Simd<T>::Vector sample_row(const T* mu, const T* log_sigma, const T* sigma, const T* eps, T* z,
                                                   T* kept, int64_t d) {
  constexpr int64_t width = Simd<T>::kWidth;
  typename Simd<T>::Vector squares{}, logs{};
  int64_t i = 0;
  for (; i + width <= d; i += width) {
    const auto e = load(eps + i), log_s = load(log_sigma + i);
    const auto spread = (sigma ? load(sigma + i) : exp(log_s)) * e, point = load(mu + i) + spread;
    if (streaming)
      stream(z + i, point);
    else
      store(z + i, point);
    if (kept && streaming)
      stream(kept + i, spread);
    else if (kept)
      store(kept + i, spread);
    squares = fused(e, e, squares);
    logs += log_s;
  }
  if (const int64_t rest = d - i; rest > 0) {
    const auto e = load_first(eps + i, rest), log_s = load_first(log_sigma + i, rest);
    const auto spread = (sigma ? load_first(sigma + i, rest) : exp(log_s)) * e;
    store_first(z + i, load_first(mu + i, rest) + spread, rest);
    if (kept) store_first(kept + i, spread, rest);
    squares = fused(e, e, squares);
    logs += log_s;
  }
  return fused(T(0.5), squares, logs);
}

// All samples of a row are drawn in turn: memory is read once for its parameters.
template <bool streaming, class T>
void sample_items(Matrix<T> mu, Matrix<T> log_sigma, NoiseSource<T> source, T* z, T* log_q, T* kept, Divergence<T> kl,
                  Extent e, int64_t begin, int64_t end) {
  const int64_t d = e.columns;
  const double constant = -kHalfLog2Pi * static_cast<double>(d);
  NoiseRows<T> noise(source, e);
  const Lines<T> shared = e.samples > 1 ? make_lines<T>(d) : nullptr;
  T* const sigma = shared.get();
  int64_t scaled_row = -1;
  for (int64_t first = begin; first < end; first += noise.most()) {
    const int64_t last = std::min(end, first + noise.most());
    if (streaming && !sigma)
      noise.draw(first, last - first, [&](int64_t n, int64_t i) {
        for (int64_t end_i = std::min(d, i + 4 * kStep); i < end_i; i += 64 / static_cast<int64_t>(sizeof(T))) {
          __builtin_prefetch(mu.row(n) + i, 0, 2);
          __builtin_prefetch(log_sigma.row(n) + i, 0, 2);
        }
      });
    else
      noise.draw(first, last - first);
    for (int64_t item = first; item < last; item += 4) {
      typename Simd<T>::Vector taken[4] = {};
      int64_t at[4];
      const int64_t count = std::min<int64_t>(4, last - item);
      for (int64_t h = 0; h < count; ++h) {
        const int64_t n = sigma ? (item + h) / e.samples : item + h;
        at[h] = sigma ? (item + h) % e.samples * e.rows + n : n;
        const T* log_s = log_sigma.row(n);
        if (sigma && n != scaled_row) exp_row(log_s, d, sigma);
        scaled_row = n;
        taken[h] = sample_row<streaming>(mu.row(n), log_s, sigma, noise[item + h], z + at[h] * d,
                                         kept ? kept + at[h] * d : nullptr, d);
      }
      // Four horizontal sums at once: each alone costs as much as a short row.
      const auto sums = sum_each<T>(taken[0], taken[1], taken[2], taken[3]);
      for (int64_t h = 0; h < count; ++h) log_q[at[h]] = static_cast<T>(constant - sums[h]);
    }
    // The rows whose first sample is among these: their parameters are in the nearest cache.
    if (kl.data)
      for (int64_t n = (first + e.samples - 1) / e.samples; n * e.samples < last; ++n)
        write_kl(mu, log_sigma, kl, n, d);
  }
  if (streaming) fence_streams();
}

template <class T>
void fwd(Matrix<T> mu, Matrix<T> log_sigma, NoiseSource<T> source, T* z, T* log_q, T* kept, Divergence<T> kl,
         Extent e) {
  const int64_t items = e.samples * e.rows;
  const bool streaming = streams(z, items, e.columns) && (!kept || streams(kept, items, e.columns));
  parallel_ranges(items, e.columns * kWorkPerNormal, [&](int64_t begin, int64_t end) {
    (streaming ? sample_items<true, T> : sample_items<false, T>)(mu, log_sigma, source, z, log_q, kept, kl, e, begin,
                                                                 end);
  });
}

// For a row's only sample: d_log_sigma = d_z kept - d_log_q, in whole vectors written past the caches.
template <class T>
FASTVAE_INLINE void stream_scale_gradient(const T* d_z, const T* kept, T d_density, T* d_log_sigma, int64_t d) {
  for (int64_t i = 0; i < d; i += Simd<T>::kWidth) stream(d_log_sigma + i, load(d_z + i) * load(kept + i) - d_density);
}

// The same with a divergence, and d_mu = d_z and what the divergence adds.
template <class T>
FASTVAE_INLINE void stream_gradients(const T* d_z, const T* kept, T d_density, const KLGradient<T>& more, T* d_mu,
                                     T* d_log_sigma, int64_t d) {
  const AllLanes<T> lanes;
  for (int64_t i = 0; i < d; i += Simd<T>::kWidth) {
    const auto g = load(d_z + i);
    stream(d_mu + i, g + more.of_mu(i, lanes));
    stream(d_log_sigma + i, g * load(kept + i) - d_density + more.of_log_sigma(i, lanes));
  }
}

template <class T>
void bwd(const T* d_z, const T* d_log_q, const T* kept, Divergence<const T> d_kl, Matrix<T> mu, Matrix<T> log_sigma,
         T* d_mu, T* d_log_sigma, Extent e) {
  const int64_t d = e.columns;
  const bool streaming = e.samples == 1 && streams(d_log_sigma, e.rows, d) && (!d_kl.data || streams(d_mu, e.rows, d));
  const int64_t blocks = count_blocks(e.samples);
  // The ranges are those of fwd: a core reads here what it wrote there, out of its own cache.
  parallel_ranges(e.rows, d * kWorkPerNormal * std::max<int64_t>(e.samples, 1), [&](int64_t begin, int64_t end) {
    PairwiseSums<T> of_scale(blocks, d), of_mu(d_mu ? blocks : 0, d);
    for (int64_t n = begin; n < end; ++n) {
      T* to_scale = d_log_sigma + n * d;
      T* to_mu = d_mu ? d_mu + n * d : nullptr;
      if (e.samples == 1) {
        const T *g = d_z + n * d, *spread = kept + n * d, d_density = d_log_q ? d_log_q[n] : T(0);
        if (streaming && d_kl.data) {
          stream_gradients(g, spread, d_density, KLGradient<T>(d_kl, mu, log_sigma, n, d), to_mu, to_scale, d);
          continue;
        }
        if (to_mu) std::copy_n(g, d, to_mu);
        if (streaming) {
          stream_scale_gradient(g, spread, d_density, to_scale, d);
          continue;
        }
#pragma omp simd
        for (int64_t i = 0; i < d; ++i) to_scale[i] = g[i] * spread[i] - d_density;
        add_kl_gradient(d_kl, mu, log_sigma, n, to_mu, to_scale, d);
        continue;
      }
      const T d_density = d_log_q ? sum_strided(d_log_q + n, e.samples, e.rows) : T(0);
      // The density's part is large: it is added last to sums that take long.
      std::fill_n(to_scale, d, blocks > 1 ? T(0) : -d_density);
      if (to_mu) std::fill_n(to_mu, d, T(0));
      for (int64_t first = 0; first < e.samples; first += kBlockTerms) {
        if (first > 0) {
          of_scale.push(to_scale);
          if (to_mu) of_mu.push(to_mu);
        }
        for (int64_t k = first; k < std::min(first + kBlockTerms, e.samples); ++k) {
          const T *g = d_z + (k * e.rows + n) * d, *spread = kept + (k * e.rows + n) * d;
#pragma omp simd
          for (int64_t i = 0; i < d; ++i) to_scale[i] = fused(g[i], spread[i], to_scale[i]);
          if (!to_mu) continue;
#pragma omp simd
          for (int64_t i = 0; i < d; ++i) to_mu[i] += g[i];
        }
      }
      if (blocks > 1) {
        of_scale.finish(to_scale);
        if (to_mu) of_mu.finish(to_mu);
        for (int64_t i = 0; i < d; ++i) to_scale[i] -= d_density;
      }
      add_kl_gradient(d_kl, mu, log_sigma, n, to_mu, to_scale, d);
    }
    fence_streams();
  });
}

// e^-log_sigma of each row and the sum of its log_sigma, which all samples of the row share.
template <class T>
class SharedScales {
 public:
  SharedScales(Matrix<T> log_sigma, Extent e) : columns_(e.columns), memory_(e.rows * (e.columns + 1)) {
    T* const log_dets = memory_.get() + e.rows * columns_;
    parallel_ranges(e.rows, columns_ * 8, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const T* log_s = log_sigma.row(n);
        T* to = memory_.get() + n * columns_;
#pragma omp simd
        for (int64_t i = 0; i < columns_; ++i) to[i] = exp(-log_s[i]);
        log_dets[n] = sum_terms<T>(columns_, [&](int64_t i) { return log_s[i]; });
      }
    });
    log_dets_ = log_dets;
  }

  const T* precision(int64_t n) const { return memory_.get() + n * columns_; }
  T log_det(int64_t n) const { return log_dets_[n]; }

 private:
  int64_t columns_;
  Scratch<T> memory_;
  const T* log_dets_;
};

// Partial sums of eps^2 / 2, and of log_sigma where `precision` is null: e^-log_sigma is computed here then.
template <class T>
FASTVAE_INLINE typename Simd<T>::Vector density_terms(const T* x, const T* mu, const T* log_sigma, const T* precision,
                                                      int64_t d) {
  constexpr int64_t width = Simd<T>::kWidth;
  typename Simd<T>::Vector total{};
  for (int64_t i = 0; i < d;) {
    typename Simd<T>::Vector squares{}, logs{};
    const auto add = [&](const auto& read) FASTVAE_INLINE_LAMBDA {
      const auto distance = read(x) - read(mu);
      const auto log_s = precision ? typename Simd<T>::Vector{} : read(log_sigma);
      const auto eps = distance * (precision ? read(precision) : exp(-log_s));
      squares = fused(eps, eps, squares);
      logs += log_s;
    };
    const int64_t end = std::min(d, i + kBlockNumbers<T>);
    for (; i + width <= end; i += width) add([&](const T* row) FASTVAE_INLINE_LAMBDA { return load(row + i); });
    if (const int64_t rest = end - i; rest > 0) {
      add([&](const T* row) FASTVAE_INLINE_LAMBDA { return load_first(row + i, rest); });
      i = end;
    }
    total += fused(T(0.5), squares, logs);
  }
  return total;
}

template <class T>
void log_prob_fwd(const T* z, Matrix<T> mu, Matrix<T> log_sigma, T* log_q, Extent e) {
  const int64_t d = e.columns;
  const double constant = -kHalfLog2Pi * static_cast<double>(d);
  const auto shared = e.samples > 1 ? std::make_unique<SharedScales<T>>(log_sigma, e) : nullptr;
  parallel_ranges(e.samples * e.rows, d * (shared ? 2 : 8), [&](int64_t begin, int64_t end) {
    int64_t n = begin < end ? begin % e.rows : 0;
    for (int64_t item = begin; item < end; item += 4) {
      typename Simd<T>::Vector taken[4] = {};
      T log_det[4] = {};
      const int64_t count = std::min<int64_t>(4, end - item);
      for (int64_t h = 0; h < count; ++h) {
        const T* precision = shared ? shared->precision(n) : nullptr;
        if (shared) log_det[h] = shared->log_det(n);
        taken[h] = density_terms(z + (item + h) * d, mu.row(n), log_sigma.row(n), precision, d);
        n = n + 1 < e.rows ? n + 1 : 0;
      }
      const auto sums = sum_each<T>(taken[0], taken[1], taken[2], taken[3]);
      for (int64_t h = 0; h < count; ++h) log_q[item + h] = static_cast<T>(constant - (sums[h] + log_det[h]));
    }
  });
}

template <class T>
void log_prob_bwd(const T* d_log_q, const T* z, Matrix<T> mu, Matrix<T> log_sigma, T* d_z, T* d_mu, T* d_log_sigma,
                  Extent e) {
  const int64_t blocks = count_blocks(e.samples);
  parallel_ranges(e.rows, e.columns * 12 * std::max<int64_t>(e.samples, 1), [&](int64_t begin, int64_t end) {
    PairwiseSums<T> of_mu(blocks, e.columns), of_scale(blocks, e.columns);
    const Lines<T> precisions = make_lines<T>(e.columns);
    for (int64_t n = begin; n < end; ++n) {
      const T *m = mu.row(n), *log_s = log_sigma.row(n);
      T* const precision = precisions.get();
#pragma omp simd
      for (int64_t i = 0; i < e.columns; ++i) precision[i] = exp(-log_s[i]);
      T *to_mu = d_mu + n * e.columns, *to_log_sigma = d_log_sigma + n * e.columns;
      std::fill(to_mu, to_mu + e.columns, T(0));
      std::fill(to_log_sigma, to_log_sigma + e.columns, T(0));
      for (int64_t first = 0; first < e.samples; first += kBlockTerms) {
        if (first > 0) {
          of_mu.push(to_mu);
          of_scale.push(to_log_sigma);
        }
        for (int64_t k = first; k < std::min(first + kBlockTerms, e.samples); ++k) {
          const int64_t item = k * e.rows + n;
          const T* x = z + item * e.columns;
          T* to_z = d_z + item * e.columns;
          const T g = d_log_q[item];
#pragma omp simd
          for (int64_t i = 0; i < e.columns; ++i) {
            const T eps = (x[i] - m[i]) * precision[i];
            const T slope = g * eps * precision[i];
            to_z[i] = -slope;
            to_mu[i] += slope;
            to_log_sigma[i] = fused(g, fused(eps, eps, T(-1)), to_log_sigma[i]);
          }
        }
      }
      of_mu.finish(to_mu);
      of_scale.finish(to_log_sigma);
    }
  });
}

template <class T>
void kl_fwd(Matrix<T> mu, Matrix<T> log_sigma, T* kl, int64_t rows, int64_t columns) {
  parallel_ranges(rows, columns * 8, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) write_kl(mu, log_sigma, Divergence<T>{kl}, n, columns);
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

inline namespace FASTVAE_ISA {
DiagGaussian<float> diag_gaussian_f32() { return kernels<float>(); }
DiagGaussian<double> diag_gaussian_f64() { return kernels<double>(); }
}  // namespace FASTVAE_ISA

}  // namespace fastvae
