// Diagonal Gaussian: z = mu + exp(log_sigma) eps and the densities that go with it.
#pragma once

#include "base/types.h"

namespace fastvae {

template <class T>
struct DiagGaussian {
  // kept, (K, N, D) or null, receives sigma eps: bwd reads it, which costs far less than drawing the noise again.
  // kl, null or the divergence from N(0, I), needs a sample.
  void (*fwd)(Matrix<T> mu, Matrix<T> log_sigma, NoiseSource<T> noise, T* z, T* log_q, T* kept, Divergence<T> kl,
              Extent extent);
  // d_log_q may be null, and without d_kl so may d_mu; mu and log_sigma are read for d_kl.
  void (*bwd)(const T* d_z, const T* d_log_q, const T* kept, Divergence<const T> d_kl, Matrix<T> mu,
              Matrix<T> log_sigma, T* d_mu, T* d_log_sigma, Extent extent);
  void (*log_prob_fwd)(const T* z, Matrix<T> mu, Matrix<T> log_sigma, T* log_q, Extent extent);
  void (*log_prob_bwd)(const T* d_log_q, const T* z, Matrix<T> mu, Matrix<T> log_sigma, T* d_z, T* d_mu, T* d_log_sigma,
                       Extent extent);
  void (*kl_fwd)(Matrix<T> mu, Matrix<T> log_sigma, T* kl, int64_t rows, int64_t columns);
  void (*kl_bwd)(const T* d_kl, Matrix<T> mu, Matrix<T> log_sigma, T* d_mu, T* d_log_sigma, int64_t rows,
                 int64_t columns);
  void (*kl_prior_fwd)(Matrix<T> mu, Matrix<T> log_sigma, Matrix<T> prior_mu, Matrix<T> prior_log_sigma, T* kl,
                       int64_t rows, int64_t columns);
  void (*kl_prior_bwd)(const T* d_kl, Matrix<T> mu, Matrix<T> log_sigma, Matrix<T> prior_mu, Matrix<T> prior_log_sigma,
                       T* d_mu, T* d_log_sigma, T* d_prior_mu, T* d_prior_log_sigma, int64_t rows, int64_t columns);
};

}  // namespace fastvae
