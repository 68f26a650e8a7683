// Log-likelihood of binary data under a decoder of dense layers, whose activations stay in the cache.
#pragma once

#include <vector>

#include "base/types.h"

namespace fastvae {

template <class T>
struct MlpBernoulli {
  // Layers without degrees, first layer first; z (rows, in of the first); x (points, out of the last); log_p (rows).
  void (*fwd)(const std::vector<MaskedLayer<T>>& layers, int64_t activation, Matrix<T> z, Matrix<T> x, T* log_p,
              BernoulliSizes sizes);
};

}  // namespace fastvae
