// What every op's arguments are made of. Arrays (K, N, D) and (K, N) are contiguous.
#pragma once

#include <cstdint>
#include <vector>

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

// A masked linear layer as Python passes it: weight (out, in), kept where in_degrees[i] <= out_degrees[o].
template <class T>
struct MaskedLayer {
  const T *weight, *bias, *scale;  // bias and scale, a factor for each output, may be null
  const T* norm;                   // with weight normalisation: scale is gain / norm of the row, and depends on weight
  const int64_t *in_degrees, *out_degrees;
  int64_t in, out, stride;
};

// A network as Python passes it; the last layer makes params_per_feature parameters of each feature.
template <class T>
struct NetworkSpec {
  std::vector<MaskedLayer<T>> layers;
  int64_t features, params_per_feature, activation, kind;
  bool residual, interleaved;
};

// Where gradients of layers go; those of absent biases and factors are null.
template <class T>
struct LayerGradients {
  T *d_weight, *d_bias, *d_scale;
};

}  // namespace fastvae
