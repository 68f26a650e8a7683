// Log-likelihood of binary data whose logits a dense layer makes, without the logits in memory.
#pragma once

#include "base/types.h"

namespace fastvae {

template <class T>
struct LinearBernoulli {
  // x (points, out); log_p (rows) = sum over outputs of x l - softplus(l), with l = weight h + bias. kept, or null,
  // receives x - sigmoid(l).
  void (*fwd)(const MaskedLayer<T>& layer, Matrix<T> h, Matrix<T> x, T* log_p, T* kept, BernoulliSizes sizes);
  // Without what fwd keeps the logits are computed again. d_h (rows, in), d_weight and d_bias may be null.
  void (*bwd)(const MaskedLayer<T>& layer, const T* d_log_p, Matrix<T> h, Matrix<T> x, const T* kept, T* d_h,
              T* d_weight, T* d_bias, BernoulliSizes sizes);
  int64_t (*kept_count)(int64_t out, BernoulliSizes sizes);
};

}  // namespace fastvae
