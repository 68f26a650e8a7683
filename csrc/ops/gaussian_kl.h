// The divergence from N(0, I) that both Gaussians have, and its gradient.
#pragma once

#include "base/types.h"
#include "simd/vecmath.h"

namespace fastvae {
namespace {

// x as its own rounding: the compiler does not join a product with the sum that it goes into. So a gradient has the
// bits that it has where autograd adds two. Only vectors keep it: the compiler forgets it in a loop that it vectorises.
template <class V>
FASTVAE_INLINE V rounded(V x) {
#if defined(__has_builtin)
#if __has_builtin(__builtin_assoc_barrier)
  return __builtin_assoc_barrier(x);
#endif
#endif
  return x;
}

// The lanes of a vector that memory has: all, or the first few.
template <class T>
struct AllLanes {
  FASTVAE_INLINE typename Simd<T>::Vector get(const T* p) const { return load(p); }
  FASTVAE_INLINE void put(T* p, typename Simd<T>::Vector v) const { store(p, v); }
};
template <class T>
struct FirstLanes {
  int64_t count;

  FASTVAE_INLINE typename Simd<T>::Vector get(const T* p) const { return load_first(p, count); }
  FASTVAE_INLINE void put(T* p, typename Simd<T>::Vector v) const { store_first(p, v, count); }
};

// Calls body(i, lanes) for every vector of d numbers.
template <class T, class Body>
FASTVAE_INLINE void for_vectors(int64_t d, const Body& body) {
  int64_t i = 0;
  for (; i + Simd<T>::kWidth <= d; i += Simd<T>::kWidth) body(i, AllLanes<T>());
  if (i < d) body(i, FirstLanes<T>{d - i});
}

// Twice the divergence of d dimensions, without what correlation adds.
template <class T>
FASTVAE_INLINE T sum_twice_kl(const T* mu, const T* log_sigma, int64_t d) {
  return sum_terms<T>(
      d, [&](int64_t i) { return mu[i] * mu[i] + (exp(T(2) * log_sigma[i]) - T(1) - T(2) * log_sigma[i]); });
}

// The same of one dimension in each lane, with the bits of the divergence of a row of one.
template <class V>
FASTVAE_INLINE V twice_kl(V mu, V log_sigma) {
  return rounded(mu * mu) + (exp(log_sigma + log_sigma) - 1 - 2 * log_sigma);
}

// The gradient of one row's divergence to its mean and its scale, in vectors.
template <class T>
class KLGradient {
 public:
  using Vector = typename Simd<T>::Vector;

  KLGradient(Divergence<const T> d_kl, Matrix<T> mu, Matrix<T> log_sigma, int64_t n, int64_t d)
      : each_(d_kl.by_dimension ? d_kl.data + n * d : nullptr),
        mu_(mu.row(n)),
        log_sigma_(log_sigma.row(n)),
        one_(Vector{} + (d_kl.by_dimension ? T(0) : d_kl.data[n])) {}

  template <class Lanes>
  FASTVAE_INLINE Vector of_mu(int64_t i, Lanes lanes) const {
    return rounded(d_kl(i, lanes) * lanes.get(mu_ + i));
  }
  template <class Lanes>
  FASTVAE_INLINE Vector of_log_sigma(int64_t i, Lanes lanes) const {
    const auto s = lanes.get(log_sigma_ + i);
    return rounded(d_kl(i, lanes) * (exp(s + s) - 1));
  }

 private:
  template <class Lanes>
  FASTVAE_INLINE Vector d_kl(int64_t i, Lanes lanes) const {
    return each_ ? lanes.get(each_ + i) : one_;
  }

  const T *each_, *mu_, *log_sigma_;
  Vector one_;
};

// Adds the gradient of row n's divergence; nothing without d_kl.
template <class T>
FASTVAE_INLINE void add_kl_gradient(Divergence<const T> d_kl, Matrix<T> mu, Matrix<T> log_sigma, int64_t n, T* d_mu,
                                    T* d_log_sigma, int64_t d) {
  if (!d_kl.data) return;
  const KLGradient<T> more(d_kl, mu, log_sigma, n, d);
  for_vectors<T>(d, [&](int64_t i, auto lanes) FASTVAE_INLINE_LAMBDA {
    lanes.put(d_mu + i, lanes.get(d_mu + i) + more.of_mu(i, lanes));
    lanes.put(d_log_sigma + i, lanes.get(d_log_sigma + i) + more.of_log_sigma(i, lanes));
  });
}

}  // namespace
}  // namespace fastvae
