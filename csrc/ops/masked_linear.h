// Masked linear layer with bias, factors of rows and activation: y = act(scale (W o M) x + b).
#pragma once

#include "base/types.h"

namespace fastvae {

template <class T>
struct MaskedLinear {
  // y is (N, out), and so is pre, the pre-activation, where it is not null.
  void (*fwd)(const MaskedLayer<T>& layer, int64_t activation, Matrix<T> x, T* y, T* pre, int64_t samples);
  // at is the pre-activation for activations that need it, else y; d_x may be null, and so may all of
  // `layer_gradients`.
  void (*bwd)(const MaskedLayer<T>& layer, int64_t activation, const T* d_y, const T* at, Matrix<T> x, T* d_x,
              LayerGradients<T> gradients, int64_t samples);
  // Norms of the rows over the weights that count, and the weight's gradient, zero where masked.
  void (*norm_fwd)(const MaskedLayer<T>& layer, T* norm);
  void (*norm_bwd)(const MaskedLayer<T>& layer, const T* d_norm, const T* norm, T* d_weight);
};

}  // namespace fastvae
