// A full-covariance Gaussian whose parameters a linear layer predicts: the layer, a sample, its log-density and the
// divergence from N(0, I).
#pragma once

#include "base/types.h"

namespace fastvae {

// The outputs of the layer are mu (D), log_sigma (D), then the D (D - 1) / 2 entries below the factor's diagonal, row
// by row. log_sigma is clamped, and the entries are multiplied by a number.
template <class T>
struct GaussianHead {
  MaskedLayer<T> layer;
  int64_t latents;
  T lower, upper, tril_scale;

  int64_t first_row(int64_t i) const { return 2 * latents + i * (i - 1) / 2; }
};

template <class T>
struct LinearTrilGaussian {
  // The numbers that the backward pass reads.
  int64_t (*kept_count)(int64_t samples, int64_t latents);
  // z is (N, D); kept may be null.
  void (*fwd)(const GaussianHead<T>& head, Matrix<T> h, NoiseSource<T> noise, T* z, T* log_q, Divergence<T> kl, T* kept,
              int64_t samples);
  // d_log_q, d_kl, d_h and all of `gradients` may be null.
  void (*bwd)(const GaussianHead<T>& head, Matrix<T> h, const T* kept, const T* d_z, const T* d_log_q,
              Divergence<const T> d_kl, T* d_h, LayerGradients<T> gradients, int64_t samples);
};

}  // namespace fastvae
