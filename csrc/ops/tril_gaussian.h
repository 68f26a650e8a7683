// Full-covariance Gaussian, L = strictly lower(tril) + diag(exp log_sigma): z = mu + L eps and its densities.
#pragma once

#include "base/types.h"

namespace fastvae {

template <class T>
struct TrilGaussian {
  // eps, (K, N, D), serves the backward pass: the drawn noise (not kept where null), or the whitened points.
  // kl, null or the divergence from N(0, I), needs a sample.
  void (*fwd)(Matrix<T> mu, Matrix<T> log_sigma, Tril<const T> tril, NoiseSource<T> noise, T* z, T* log_q, T* eps,
              Divergence<T> kl, Extent extent);
  // d_log_q may be null. d_mu, without d_kl the sum of d_z over samples, may then be null; mu and tril are read for
  // d_kl, which needs a sample.
  void (*bwd)(const T* d_z, const T* d_log_q, Divergence<const T> d_kl, Matrix<T> mu, Matrix<T> log_sigma,
              Tril<const T> tril, const T* eps, T* d_mu, T* d_log_sigma, Tril<T> d_tril, Extent extent);
  void (*log_prob_fwd)(const T* z, Matrix<T> mu, Matrix<T> log_sigma, Tril<const T> tril, T* log_q, T* eps,
                       Extent extent);
  void (*log_prob_bwd)(const T* d_log_q, const T* eps, Matrix<T> log_sigma, Tril<const T> tril, T* d_z, T* d_mu,
                       T* d_log_sigma, Tril<T> d_tril, Extent extent);
  void (*kl_fwd)(Matrix<T> mu, Matrix<T> log_sigma, Tril<const T> tril, T* kl, int64_t rows, int64_t columns);
  void (*kl_bwd)(const T* d_kl, Matrix<T> mu, Matrix<T> log_sigma, Tril<const T> tril, T* d_mu, T* d_log_sigma,
                 Tril<T> d_tril, int64_t rows, int64_t columns);
};

}  // namespace fastvae
