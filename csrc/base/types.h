// The parts of every op's arguments. Arrays (K, N, D) and (K, N) are contiguous.
#pragma once

#include <cstdint>
#include <vector>

namespace fastvae {

// Contiguous rows; `stride` leads from one to the next.
template <class T>
struct Matrix {
  const T* data;
  int64_t stride;

  const T* row(int64_t n) const { return data + n * stride; }
};

// Strictly lower triangles: row i of Gaussian n holds i numbers. Dense rows are row_stride apart (0: all rows are one);
// packed rows follow each other.
template <class T>
struct Tril {
  T* data;
  int64_t stride, row_stride;  // or kPacked

  static constexpr int64_t kPacked = -1;
  bool is_dense() const { return row_stride != kPacked; }
  T* row(int64_t n, int64_t i) const { return data + n * stride + (is_dense() ? i * row_stride : i * (i - 1) / 2); }
};

// K samples of N rows of D columns.
struct Extent {
  int64_t samples, rows, columns;
};

// Divergences of N rows, or their gradients: one number a row, or one for each of its D dimensions; null where none are
// wanted.
template <class T>
struct Divergence {
  T* data = nullptr;
  bool by_dimension = false;

  T& at(int64_t n, int64_t i, int64_t d) const { return data[by_dimension ? n * d + i : n]; }
};

// A seed that normals are drawn from; or, where it is null, the normals themselves.
template <class T>
struct NoiseSource {
  const int64_t* seed;
  const T* eps;
  int64_t row_offset;
};

// A masked linear layer as Python passes it. A weight (out, in) counts where in_degrees[i] <= out_degrees[o].
template <class T>
struct MaskedLayer {
  const T *weight, *bias, *scale;  // bias and scale, a factor for each output, may be null
  const T* norm;                   // with weight normalisation scale is gain / norm, and norm is the weight's
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

// Samples of a block of activations. All instruction sets have the same, so that saved activations have one layout.
constexpr int64_t kLanes = 64;

// A layer's gradients; those of absent biases and factors are null.
template <class T>
struct LayerGradients {
  T *d_weight, *d_bias, *d_scale;
};

// Images of any strides: number (n, c, h, w) is data[n * stride[0] + c * stride[1] + h * stride[2] + w * stride[3]].
template <class T>
struct Images {
  T* data;
  int64_t stride[4];

  T* at(int64_t image, int64_t row, int64_t column) const {
    return data + image * stride[0] + row * stride[2] + column * stride[3];
  }
};

// Rows of a decoder are samples, then data points, then `inner` classes: row m belongs to data point m / inner %
// points.
struct BernoulliSizes {
  int64_t samples, points, inner;

  int64_t rows() const { return samples * points * inner; }
};

// The sizes of a masked convolution, in the order in which Python passes them; `top` and `left` are rows and columns of
// zeros before the image.
struct ConvCall {
  int64_t images, in, height, width;
  int64_t out, out_height, out_width;
  int64_t kernel_height, kernel_width, top, left, dilation_y, dilation_x, groups;
  int64_t activation, origin_tap;
};

// A masked convolution: weight (out, in / groups, kernel_height, kernel_width) counts at the taps, flat indices in
// ascending order; at origin_tap, unless it is -1, only where in_degrees[i] <= out_degrees[o].
template <class T>
struct ConvSpec : ConvCall {
  std::vector<int64_t> taps;
  const T *weight, *bias;  // bias may be null
  const int64_t *in_degrees, *out_degrees;

  int64_t group_in() const { return in / groups; }
  int64_t group_out() const { return out / groups; }
  int64_t tap_row(int64_t tap) const { return tap / kernel_width * dilation_y; }
  int64_t tap_column(int64_t tap) const { return tap % kernel_width * dilation_x; }
  const T& weight_of(int64_t o, int64_t group_i, int64_t tap) const {
    return weight[(o * group_in() + group_i) * kernel_height * kernel_width + tap];
  }
  // Whether output o sees input i at a tap; o counts the outputs of all groups.
  bool counts(int64_t tap, int64_t i, int64_t o) const { return tap != origin_tap || in_degrees[i] <= out_degrees[o]; }
};

}  // namespace fastvae
