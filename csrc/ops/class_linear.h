// Sums of a row's, a class's and their own terms with an activation: the part of a class-conditional layer behind its
// products.
#pragma once

#include "base/types.h"

namespace fastvae {

// M rows, of C classes each, of H columns.
struct ClassExtent {
  int64_t rows, classes, columns;
};

// Terms of rows (M, H), of cells (M C, H), and of classes (C, H); absent ones have no data.
template <class T>
struct ClassTerms {
  Matrix<T> rows, cells, classes;
};

// Their gradients, contiguous; those that are not wanted are null.
template <class T>
struct ClassGradients {
  T *rows, *cells, *classes;
};

template <class T>
struct ClassLinear {
  // y (M, C, H) = act(rows[m] + cells[m, c] + classes[c]); pre, the activation's argument, may be null.
  void (*fwd)(int64_t activation, ClassExtent extent, const ClassTerms<T>& terms, T* y, T* pre);
  // `at` is the activation's argument for gelu and silu, else y.
  void (*bwd)(int64_t activation, ClassExtent extent, const T* d_y, const T* at, ClassGradients<T> gradients);
};

}  // namespace fastvae
