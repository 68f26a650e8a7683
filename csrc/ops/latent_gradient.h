// Log-likelihood of data under a decoder of dense layers, its gradient to the decoder's input, and the product of its
// Hessian and a vector.
#pragma once

#include <vector>

#include "base/types.h"

namespace fastvae {

// A decoder as Python passes it, first layer first, and its points. Row m of z belongs to row m / inner % points of x.
template <class T>
struct LatentProblem {
  std::vector<MaskedLayer<T>> layers;  // without degrees
  int64_t activation, likelihood;
  Matrix<T> z, v, x;  // without the data of v no product is wanted
  const T* d_log_p;   // or null
  int64_t rows, points, inner;

  int64_t point_of(int64_t row) const { return row / inner % points; }
};

// log_p (rows), or null; gradient and product (rows, features of z), or null. With d_log_p the product is
// Hessian v + d_log_p gradient.
template <class T>
struct LatentResults {
  T *log_p, *gradient, *product;
};

template <class T>
struct LatentGradient {
  void (*run)(const LatentProblem<T>& problem, LatentResults<T> to);
};

}  // namespace fastvae
