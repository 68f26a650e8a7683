// Affine flow step on rows: z' = a(s) z + c(s) m, log_det = sum of log a(s) or each log a(s); and its inverse.
#pragma once

#include "base/types.h"

namespace fastvae {

// log |det| of N rows, or its gradients: in the form of divergences, where dimensions have shares of a row's.
template <class T>
using LogDet = Divergence<T>;

template <class T>
struct AffineFlow {
  // shift and scale_logit are (N, D); scale_logit is not read for the kind without a scale.
  void (*fwd)(int64_t kind, bool inverse, Matrix<T> z, Matrix<T> shift, Matrix<T> scale_logit, T* out,
              LogDet<T> log_det, int64_t rows, int64_t columns);
  // d_scale_logit is null for the kind without a scale.
  void (*bwd)(int64_t kind, bool inverse, const T* d_out, LogDet<const T> d_log_det, Matrix<T> z, Matrix<T> shift,
              Matrix<T> scale_logit, T* d_z, T* d_shift, T* d_scale_logit, int64_t rows, int64_t columns);
};

}  // namespace fastvae
