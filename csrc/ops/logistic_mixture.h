// Log-likelihood of images under discretised mixtures of logistics, and its gradient.
#pragma once

#include "base/types.h"

namespace fastvae {

// One channel: 3 maps of each component, weights, means, log-scales. Three: 10, with three coefficients at the end.
struct MixtureSizes {
  int64_t images, channels, height, width, components, levels;

  int64_t params() const { return (channels == 3 ? 10 : 3) * components; }
};

template <class T>
struct LogisticMixture {
  // Writes log_prob (N) and, unless d_params.data is null, the derivative of each image's by its own params.
  void (*fwd)(MixtureSizes sizes, Images<const T> x, Images<const T> params, T* log_prob, Images<T> d_params);
};

}  // namespace fastvae
