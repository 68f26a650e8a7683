// The divergences of both Gaussians from N(0, I), and their gradient.
#pragma once

#include "base/types.h"
#include "simd/lanes.h"
#include "simd/vecmath.h"

namespace fastvae {
inline namespace FASTVAE_ISA {

// The lanes of a vector that memory has: all, or the first few.
template <class T>
struct AllLanes {
  FASTVAE_INLINE typename Simd<T>::Vector get(const T* p) const { return load(p); }
  FASTVAE_INLINE void put(T* p, typename Simd<T>::Vector v) const { store(p, v); }
  FASTVAE_INLINE typename Simd<T>::Vector zero_rest(typename Simd<T>::Vector v) const { return v; }
};
template <class T>
struct FirstLanes {
  int64_t count;

  FASTVAE_INLINE typename Simd<T>::Vector get(const T* p) const { return load_first(p, count); }
  FASTVAE_INLINE void put(T* p, typename Simd<T>::Vector v) const { store_first(p, v, count); }
  FASTVAE_INLINE typename Simd<T>::Vector zero_rest(typename Simd<T>::Vector v) const {
    return first_lanes<T>(v, count);
  }
};

// Calls body(i, lanes) for every vector of d numbers.
template <class T, class Body>
FASTVAE_INLINE void for_vectors(int64_t d, const Body& body) {
  int64_t i = 0;
  for (; i + Simd<T>::kWidth <= d; i += Simd<T>::kWidth) body(i, AllLanes<T>());
  if (i < d) body(i, FirstLanes<T>{d - i});
}

// Twice the divergence of one dimension, without what correlation adds.
template <class V>
FASTVAE_INLINE V twice_kl(V mu, V log_sigma) {
  return mu * mu + (exp(log_sigma + log_sigma) - 1 - 2 * log_sigma);
}

// The same of d dimensions.
template <class T>
FASTVAE_INLINE T sum_twice_kl(const T* mu, const T* log_sigma, int64_t d) {
  return sum_terms<T>(d, [&](int64_t i) { return twice_kl(mu[i], log_sigma[i]); });
}

// The divergence of a diagonal Gaussian, row n, from N(0, I).
template <class T>
FASTVAE_INLINE void write_kl(Matrix<T> mu, Matrix<T> log_sigma, Divergence<T> kl, int64_t n, int64_t d) {
  const T *m = mu.row(n), *log_s = log_sigma.row(n);
  if (!kl.by_dimension) {
    kl.data[n] = T(0.5) * sum_twice_kl(m, log_s, d);
    return;
  }
  T* each = kl.data + n * d;
  for_vectors<T>(d, [&](int64_t i, auto lanes) FASTVAE_INLINE_LAMBDA {
    lanes.put(each + i, T(0.5) * twice_kl(lanes.get(m + i), lanes.get(log_s + i)));
  });
}

// Adds the squares of row i's numbers to two sums.
template <class T>
FASTVAE_INLINE void add_squares(const T* row, int64_t i, typename Simd<T>::Vector& even,
                                typename Simd<T>::Vector& odd) {
  constexpr int64_t width = Simd<T>::kWidth;
  int64_t j = 0;
  for (; j + 2 * width <= i; j += 2 * width) {
    even = fused(load(row + j), load(row + j), even);
    odd = fused(load(row + j + width), load(row + j + width), odd);
  }
  if (j + width <= i) {
    odd = fused(load(row + j), load(row + j), odd);
    j += width;
  }
  const auto rest = load_first(row + j, i - j);
  even = fused(rest, rest, even);
}

// The divergence of a triangular Gaussian, row n, from N(0, I); of dimension i that of q(z_i | z_1 ... z_{i-1}).
template <class T>
FASTVAE_INLINE void write_kl(Matrix<T> mu, Matrix<T> log_sigma, Tril<const T> tril, Divergence<T> kl, int64_t n,
                             int64_t d) {
  using Vector = typename Simd<T>::Vector;
  const T *m = mu.row(n), *log_s = log_sigma.row(n);
  if (!kl.by_dimension) {
    const T diagonal = sum_twice_kl(m, log_s, d);
    Vector even{}, odd{}, whole{};
    int64_t added = 0;
    for (int64_t i = 1; i < d; added += i, ++i) {
      if (added >= kBlockNumbers<T>) {
        whole += even + odd;
        even = odd = Vector{};
        added = 0;
      }
      add_squares(tril.row(n, i), i, even, odd);
    }
    kl.data[n] = T(0.5) * (diagonal + sum<T>(whole + (even + odd)));
    return;
  }
  for (int64_t i = 0; i < d; ++i) {
    Vector even{}, odd{};
    add_squares(tril.row(n, i), i, even, odd);
    kl.data[n * d + i] = sum<T>(even + odd);
  }
  T* each = kl.data + n * d;
  for_vectors<T>(d, [&](int64_t i, auto lanes) FASTVAE_INLINE_LAMBDA {
    const auto below = lanes.get(each + i);
    lanes.put(each + i, T(0.5) * (below + twice_kl(lanes.get(m + i), lanes.get(log_s + i))));
  });
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
    return d_kl(i, lanes) * lanes.get(mu_ + i);
  }
  template <class Lanes>
  FASTVAE_INLINE Vector of_log_sigma(int64_t i, Lanes lanes) const {
    const auto s = lanes.get(log_sigma_ + i);
    return d_kl(i, lanes) * (exp(s + s) - 1);
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

}  // namespace FASTVAE_ISA
}  // namespace fastvae
