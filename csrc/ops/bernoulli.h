// Bernoulli units: b = 1[u > sigmoid(-logit)], and the log-probability of a sample.
#pragma once

#include "base/types.h"

namespace fastvae {

template <class T>
struct Bernoulli {
  // b (K, N, D), log_q (K, N). With `antithetic` there are 2 K samples: the last K are made of 1 - u.
  void (*fwd)(Matrix<T> logits, NoiseSource<T> uniforms, bool antithetic, T* b, T* log_q, Extent draws);
  void (*bwd)(const T* d_log_q, const T* b, Matrix<T> logits, T* d_logits, Extent extent);
};

}  // namespace fastvae
