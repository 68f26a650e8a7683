// Two diagonal Gaussians merged by their precisions: sample, densities and divergence from the second.
#pragma once

#include "base/types.h"

namespace fastvae {

// The Gaussians of one row: the first, and the prior.
template <class T>
struct MergedGaussians {
  Matrix<T> mu, log_sigma, prior_mu, prior_log_sigma;
};

// Arrays (M, D) of the gradients of all points, M = K N; those of the first Gaussian are not summed over samples.
template <class T>
struct MergeGradients {
  T *d_mu, *d_log_sigma, *d_prior_mu, *d_prior_log_sigma;
};

template <class T>
struct GaussianMerge {
  // The first Gaussian has N rows, the prior K N. kept, (K, N, D) or null, receives the normals.
  void (*fwd)(const MergedGaussians<T>& parameters, NoiseSource<T> noise, T* z, T* log_q, T* log_p, Divergence<T> kl,
              T* kept, Extent extent);
  void (*bwd)(const T* d_z, const T* d_log_q, const T* d_log_p, Divergence<const T> d_kl,
              const MergedGaussians<T>& parameters, const T* eps, const MergeGradients<T>& to, Extent extent);
};

}  // namespace fastvae
