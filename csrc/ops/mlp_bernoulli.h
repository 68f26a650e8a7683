// Log-likelihood of binary data under a decoder of dense layers: its activations stay in the cache, or are kept for the
// gradients.
#pragma once

#include <vector>

#include "base/types.h"

namespace fastvae {

template <class T>
struct MlpBernoulli {
  using Layers = std::vector<MaskedLayer<T>>;

  // Layers without degrees, first layer first; z (rows, in of the first); x (points, out of the last); log_p (rows).
  // kept is null, or memory for `kept_count` numbers.
  void (*fwd)(const Layers& layers, int64_t activation, Matrix<T> z, Matrix<T> x, T* log_p, T* kept,
              BernoulliSizes sizes);
  // d_z (rows, in) may be null. The gradients of all layers are null, or those of all weights and of the biases there
  // are.
  void (*bwd)(const Layers& layers, int64_t activation, const T* d_log_p, Matrix<T> z, const T* kept, T* d_z,
              const std::vector<LayerGradients<T>>& gradients, BernoulliSizes sizes);
  int64_t (*kept_count)(const Layers& layers, int64_t activation, BernoulliSizes sizes);
};

}  // namespace fastvae
