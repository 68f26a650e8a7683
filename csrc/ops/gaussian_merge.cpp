#include "ops/gaussian_merge.h"

#include <algorithm>

#include "base/parallel.h"
#include "ops/gaussian_kl.h"
#include "simd/activation.h"
#include "simd/philox.h"
#include "simd/stream.h"

namespace fastvae {
namespace {

constexpr double kHalfLog2Pi = 0.91893853320467274178;
// Scalar operations of one number, for parallel_ranges.
constexpr int64_t kWorkPerNumber = 30;

// How two numbers' Gaussians merge. With u = 2 (log_sigma_p - log_sigma) the first has the share w = sigmoid(u) of the
// precision, and the merged variance is r = 1 - w of the prior's.
template <class V>
struct Merge {
  V w, r, log_r, root_r, precision_root, shift;

  // precision_root is 1 / sigma_p; shift is (mu_merged - mu_p) / sigma_p.
  FASTVAE_INLINE Merge(V mu, V log_s, V prior_mu, V prior_log_s) {
    const V u = (prior_log_s - log_s) + (prior_log_s - log_s), e = exp(u < 0 ? u : -u);
    const V larger = 1 / (e + 1), smaller = e * larger;
    w = u < 0 ? smaller : larger;
    r = u < 0 ? larger : smaller;
    log_r = -(positive_part(u) + log1p_unit(e));
    // Not the root of r, which underflows first.
    root_r = exp(log_r / 2);
    precision_root = exp(-prior_log_s);
    shift = w * (mu - prior_mu) * precision_root;
  }
};

// The parameters of a point's row, and its normals.
template <class T>
struct PointRow {
  const T *mu, *log_sigma, *prior_mu, *prior_log_sigma, *eps;

  PointRow(const MergedGaussians<T>& p, const T* normals, int64_t n, int64_t point)
      : mu(p.mu.row(n)),
        log_sigma(p.log_sigma.row(n)),
        prior_mu(p.prior_mu.row(point)),
        prior_log_sigma(p.prior_log_sigma.row(point)),
        eps(normals) {}

  template <class Lanes>
  FASTVAE_INLINE auto merge(int64_t i, Lanes lanes) const {
    return Merge<typename Simd<T>::Vector>(lanes.get(mu + i), lanes.get(log_sigma + i), lanes.get(prior_mu + i),
                                           lanes.get(prior_log_sigma + i));
  }
};

// Writes one point, and its divergence by dimension and normals unless they are null. Adds to the partial sums of the
// constant minus log q, of that minus log p, and of the divergence.
template <class T>
FASTVAE_INLINE void sample_row(const PointRow<T>& row, T* z, T* each_kl, T* kept, int64_t d,
                               typename Simd<T>::Vector (&sums)[3]) {
  for_vectors<T>(d, [&](int64_t i, auto lanes) FASTVAE_INLINE_LAMBDA {
    const auto m = row.merge(i, lanes);
    const auto e = lanes.get(row.eps + i), log_s = lanes.get(row.prior_log_sigma + i);
    const auto whitened = fused(m.root_r, e, m.shift);
    lanes.put(z + i, fused(exp(log_s), whitened, lanes.get(row.prior_mu + i)));
    if (kept) lanes.put(kept + i, e);
    const auto energy = fused(T(0.5), fused(e, e, m.log_r), log_s);
    const auto prior_energy = fused(T(0.5) * whitened, whitened, log_s);
    const auto divergence = T(0.5) * (fused(m.shift, m.shift, -m.w) - m.log_r);
    if (each_kl) lanes.put(each_kl + i, divergence);
    sums[0] += lanes.zero_rest(energy);
    sums[1] += lanes.zero_rest(prior_energy);
    sums[2] += lanes.zero_rest(divergence);
  });
}

template <class T>
void fwd(const MergedGaussians<T>& parameters, NoiseSource<T> source, T* z, T* log_q, T* log_p, Divergence<T> kl,
         T* kept, Extent e) {
  const int64_t d = e.columns;
  const double constant = -kHalfLog2Pi * static_cast<double>(d);
  parallel_ranges(e.samples * e.rows, d * kWorkPerNumber, [&](int64_t begin, int64_t end) {
    NoiseRows<T> noise(source, e);
    for (int64_t first = begin; first < end; first += noise.most()) {
      const int64_t last = std::min(end, first + noise.most());
      noise.draw(first, last - first);
      for (int64_t item = first; item < last; ++item) {
        const int64_t n = item / e.samples, point = item % e.samples * e.rows + n;
        typename Simd<T>::Vector sums[3] = {};
        sample_row(PointRow<T>(parameters, noise[item], n, point), z + point * d,
                   kl.by_dimension ? kl.data + point * d : nullptr, kept ? kept + point * d : nullptr, d, sums);
        // Horizontal sums at once: each alone costs as much as a short row.
        const auto found = sum_each<T>(sums[0], sums[1], sums[2], sums[2]);
        log_q[point] = static_cast<T>(constant - found[0]);
        log_p[point] = static_cast<T>(constant - found[1]);
        if (!kl.by_dimension) kl.data[point] = found[2];
      }
    }
  });
}

// The gradients of one point. whitened = (z - mu_p) / sigma_p is a function of u, of mu - mu_p and of sigma_p.
template <class T>
FASTVAE_INLINE void gradient_row(const PointRow<T>& row, const T* d_z, T d_log_q, T d_log_p, T d_kl, const T* each_d_kl,
                                 const MergeGradients<T>& to, int64_t at, int64_t d) {
  for_vectors<T>(d, [&](int64_t i, auto lanes) FASTVAE_INLINE_LAMBDA {
    using Vector = typename Simd<T>::Vector;
    const auto m = row.merge(i, lanes);
    const auto e = lanes.get(row.eps + i), g = lanes.get(d_z + i), sigma = exp(lanes.get(row.prior_log_sigma + i));
    const auto g_kl = each_d_kl ? lanes.get(each_d_kl + i) : Vector{} + d_kl;
    const auto spread = m.root_r * e, whitened = m.shift + spread, half_w = T(0.5) * m.w;
    const auto g_z = g * sigma, g_whitened = fused(-d_log_p, whitened, g_z);
    const auto g_shift = fused(g_kl, m.shift, g_whitened) * m.w * m.precision_root;
    const auto of_kl = g_kl * fused(m.r * m.shift, m.shift, half_w * m.w);
    const auto g_u = fused(g_whitened, fused(m.r, m.shift, -half_w * spread), fused(half_w, d_log_q, of_kl));
    const auto g_scale =
        fused(g_z, whitened, -fused(g_whitened, m.shift, g_kl * m.shift * m.shift)) - (d_log_q + d_log_p);
    lanes.put(to.d_mu + at + i, g_shift);
    lanes.put(to.d_log_sigma + at + i, T(-2) * g_u);
    lanes.put(to.d_prior_mu + at + i, g - g_shift);
    lanes.put(to.d_prior_log_sigma + at + i, fused(T(2), g_u, g_scale));
  });
}

template <class T>
void bwd(const T* d_z, const T* d_log_q, const T* d_log_p, Divergence<const T> d_kl,
         const MergedGaussians<T>& parameters, const T* eps, const MergeGradients<T>& to, Extent e) {
  const int64_t d = e.columns;
  // The ranges are those of fwd: a core reads here what it wrote there, out of its own cache.
  parallel_ranges(e.samples * e.rows, d * kWorkPerNumber, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t n = item / e.samples, point = item % e.samples * e.rows + n, at = point * d;
      gradient_row(PointRow<T>(parameters, eps + at, n, point), d_z + at, d_log_q[point], d_log_p[point],
                   d_kl.by_dimension ? T(0) : d_kl.data[point], d_kl.by_dimension ? d_kl.data + at : nullptr, to, at,
                   d);
    }
  });
}

}  // namespace

inline namespace FASTVAE_ISA {
GaussianMerge<float> gaussian_merge_f32() { return {fwd<float>, bwd<float>}; }
GaussianMerge<double> gaussian_merge_f64() { return {fwd<double>, bwd<double>}; }
}  // namespace FASTVAE_ISA

}  // namespace fastvae
