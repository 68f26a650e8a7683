// What every op's arguments are made of. Arrays (K, N, D) and (K, N) are contiguous.
#pragma once

#include <cstdint>

namespace fastvae {

// Contiguous rows, any stride apart.
template <class T>
struct Matrix {
  const T* data;
  int64_t stride;

  const T* row(int64_t n) const { return data + n * stride; }
};

// Strictly lower triangles: row i of Gaussian n holds i numbers, row_stride apart, or packed when row_stride is 0.
template <class T>
struct Tril {
  T* data;
  int64_t stride, row_stride;

  T* row(int64_t n, int64_t i) const { return data + n * stride + (row_stride ? i * row_stride : i * (i - 1) / 2); }
};

// K samples of N rows of D columns.
struct Extent {
  int64_t samples, rows, columns;
};

// The seed that normals are drawn from or, where it is null, the normals themselves.
template <class T>
struct NoiseSource {
  const int64_t* seed;
  const T* eps;
  int64_t row_offset;
};

}  // namespace fastvae
