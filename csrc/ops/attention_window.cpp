#include "ops/attention_window.h"

#include <algorithm>
#include <utility>

#include "base/memory.h"
#include "base/parallel.h"
#include "ops/gaussian_kl.h"
#include "simd/vecmath.h"

namespace fastvae {
namespace {

// The five numbers of a window.
enum WindowNumber { kCentreX, kCentreY, kLogVariance, kLogStride, kLogGain, kWindowNumbers };
// Smaller logarithms of the variance count as this one: the filter of a point is its nearest pixel long before.
constexpr double kLeastLogVariance = -60.0;

template <class T>
constexpr int64_t pad(int64_t size) {
  constexpr int64_t pair = 2 * Simd<T>::kWidth;
  return (size + pair - 1) / pair * pair;
}

template <class V, size_t... lane>
FASTVAE_INLINE V count_up(std::index_sequence<lane...>) {
  return V{lane...};
}

// Filters of one axis: N rows of weights of its `size` pixels, padded with zeros. Pixels are counted from 1. Those of a
// filter are counted from its `nearest` one, and `offset` is where its centre is: exponents have no cancellation.
template <class T>
struct Filters {
  using Vector = typename Simd<T>::Vector;

  T *weights, *nearest, *offset;
  int64_t size, stride;

  T* row(int64_t n) const { return weights + n * stride; }
  // The pixels from i on, from the nearest one.
  FASTVAE_INLINE Vector distance(int64_t n, int64_t i) const {
    const auto lanes = count_up<Vector>(std::make_index_sequence<static_cast<size_t>(Simd<T>::kWidth)>());
    return lanes + (static_cast<T>(i + 1) - nearest[n]);
  }
  FASTVAE_INLINE Vector square(int64_t n, Vector d) const { return d * (d - 2 * offset[n]); }
};

// What the filters of both axes share, in double precision: there are five numbers for a whole image.
struct Grid {
  double centre_x, centre_y, precision, stride, gain;
  bool has_variance;  // whether a change of the variance changes it

  template <class T>
  FASTVAE_INLINE Grid(const T* window, WindowExtent e) {
    const double log_variance = window[kLogVariance];
    has_variance = !(log_variance < kLeastLogVariance);
    constexpr int64_t width = Simd<double>::kWidth, numbers = std::max<int64_t>(width, 4);
    alignas(kVectorBytes) double powers[numbers] = {has_variance ? -log_variance : -kLeastLogVariance,
                                                    window[kLogStride], window[kLogGain]};
    for (int64_t i = 0; i < numbers; i += width) store(powers + i, exp(load(powers + i)));
    precision = powers[0];
    stride = powers[1] * stride_unit(e);
    gain = powers[2];
    centre_x = half(e.width) * (static_cast<double>(window[kCentreX]) + 1.0);
    centre_y = half(e.height) * (static_cast<double>(window[kCentreY]) + 1.0);
  }

  static double half(int64_t size) { return 0.5 * static_cast<double>(size + 1); }
  static double stride_unit(WindowExtent e) {
    return static_cast<double>(std::max(e.height, e.width) - 1) /
           static_cast<double>(std::max(e.points - 1, int64_t{1}));
  }
  // Of point n, in strides from the centre.
  static double place(int64_t n, int64_t points) {
    return static_cast<double>(n) - 0.5 * static_cast<double>(points - 1);
  }
};

template <class T>
void fill_filters(const Filters<T>& f, double centre, const Grid& grid, int64_t points) {
  using Vector = typename Simd<T>::Vector;
  const T half_precision = static_cast<T>(-0.5 * grid.precision);
  for (int64_t n = 0; n < points; ++n) {
    const double mu = centre + Grid::place(n, points) * grid.stride;
    const double inside = std::min(std::max(mu, 1.0), static_cast<double>(f.size));
    constexpr double round = 6755399441055744.0;  // 1.5 * 2^52
    const double nearest = (inside + round) - round;
    f.nearest[n] = static_cast<T>(nearest);
    f.offset[n] = static_cast<T>(mu - nearest);
    T* row = f.row(n);
    Vector total{};
    const T last = static_cast<T>(f.size) - f.nearest[n];
    for (int64_t i = 0; i < f.stride; i += Simd<T>::kWidth) {
      const Vector d = f.distance(n, i), weight = exp(half_precision * f.square(n, d));
      const Vector inside_only = d > last ? Vector{} : weight;
      store(row + i, inside_only);
      total += inside_only;
    }
    const T factor = 1 / sum<T>(total);
    for (int64_t i = 0; i < f.stride; i += Simd<T>::kWidth) store(row + i, load(row + i) * factor);
  }
}

// An operand of a product: number (i, k) is data[i * row + k * column].
template <class T>
struct Strided {
  const T* data;
  int64_t row, column;
};

// `rows` rows of two vectors of out = a b, or += with `add`, summed over `terms` rows of b.
template <int rows, bool add, class T>
FASTVAE_INLINE void product_tile(Strided<T> a, int64_t terms, const T* b, T* out, int64_t stride) {
  constexpr int64_t width = Simd<T>::kWidth;
  typename Simd<T>::Vector sums[rows][2] = {};
  for (int64_t k = 0; k < terms; ++k) {
    const auto low = load(b + k * stride), high = load(b + k * stride + width);
#pragma GCC unroll 4
    for (int i = 0; i < rows; ++i) {
      const T factor = a.data[i * a.row + k * a.column];
      sums[i][0] = fused(factor, low, sums[i][0]);
      sums[i][1] = fused(factor, high, sums[i][1]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < rows; ++i) {
    T* to = out + i * stride;
    store(to, add ? load(to) + sums[i][0] : sums[i][0]);
    store(to + width, add ? load(to + width) + sums[i][1] : sums[i][1]);
  }
}

// out = a b, or += with `add`: `count` rows of `stride` numbers. b has `terms` rows of as many.
template <bool add, class T>
void multiply(Strided<T> a, int64_t count, int64_t terms, const T* b, T* out, int64_t stride) {
  for (int64_t c = 0; c < stride; c += 2 * Simd<T>::kWidth) {
    const auto tile = [&]<int rows>(int64_t i) FASTVAE_INLINE_LAMBDA {
      product_tile<rows, add>(Strided<T>{a.data + i * a.row, a.row, a.column}, terms, b + c, out + i * stride + c,
                              stride);
    };
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) tile.template operator()<4>(i);
    if (i + 2 <= count) {
      tile.template operator()<2>(i);
      i += 2;
    }
    if (i < count) tile.template operator()<1>(i);
  }
}

// The products of `rows` rows of a with four of b, rows of `stride` numbers: out (+)= factor a b^T, its `there` first
// columns.
template <int rows, bool add, class T>
FASTVAE_INLINE void dot_tile(const T* a, const T* const (&four)[4], int64_t stride, T factor, T* out,
                             int64_t out_stride, int64_t there) {
  typename Simd<T>::Vector sums[rows][4] = {};
  for (int64_t c = 0; c < stride; c += Simd<T>::kWidth) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const auto v = load(four[j] + c);
#pragma GCC unroll 2
      for (int i = 0; i < rows; ++i) sums[i][j] = fused(load(a + i * stride + c), v, sums[i][j]);
    }
  }
#pragma GCC unroll 2
  for (int i = 0; i < rows; ++i) {
    const auto found = factor * sum_each<T>(sums[i][0], sums[i][1], sums[i][2], sums[i][3]);
    for (int64_t j = 0; j < there; ++j) out[i * out_stride + j] = add ? out[i * out_stride + j] + found[j] : found[j];
  }
}

// out (count, others) = factor a b^T, or += with `add`.
template <bool add, class T>
void multiply_transposed(const T* a, int64_t count, const T* b, int64_t others, int64_t stride, T factor, T* out,
                         int64_t out_stride) {
  for (int64_t j = 0; j < others; j += 4) {
    const T* four[4];
    for (int64_t at = 0; at < 4; ++at) four[at] = b + std::min(j + at, others - 1) * stride;
    const int64_t there = std::min(others - j, int64_t{4});
    int64_t i = 0;
    for (; i + 2 <= count; i += 2)
      dot_tile<2, add>(a + i * stride, four, stride, factor, out + i * out_stride + j, out_stride, there);
    if (i < count) dot_tile<1, add>(a + i * stride, four, stride, factor, out + i * out_stride + j, out_stride, there);
  }
}

// The memory of one window. All rows are padded with zeros to whole pairs of vectors.
template <class T>
class Workspace {
 public:
  explicit Workspace(WindowExtent e) : extent(e), wide(pad<T>(e.width)), high(pad<T>(e.height)) {
    const int64_t n = e.points, rows = n * (4 * wide + 2 * high) + e.height * wide,
                  count = rows + pad<T>(n * n) + 4 * n;
    memory_ = make_lines<T>(count);
    T* next = memory_.get();
    std::fill_n(next, count, T(0));
    const auto take = [&](int64_t numbers) { return std::exchange(next, next + numbers); };
    filters_x = {take(n * wide), nullptr, nullptr, e.width, wide};
    filters_y = {take(n * high), nullptr, nullptr, e.height, high};
    image = take(e.height * wide);
    columns = take(n * wide);
    spread = take(n * wide);
    d_filters_x = take(n * wide);
    d_filters_y = take(n * high);
    patch = take(pad<T>(n * n));
    for (Filters<T>* f : {&filters_x, &filters_y}) {
      f->nearest = take(n);
      f->offset = take(n);
    }
  }

  void fill(const Grid& grid) {
    fill_filters(filters_x, grid.centre_x, grid, extent.points);
    fill_filters(filters_y, grid.centre_y, grid, extent.points);
  }
  // image = x; columns (N, W) = F_Y x.
  void read_rows(const T* x) {
    for (int64_t y = 0; y < extent.height; ++y)
      for_vectors<T>(extent.width, [&](int64_t c, auto lanes) FASTVAE_INLINE_LAMBDA {
        store(image + y * wide + c, lanes.get(x + y * extent.width + c));
      });
    multiply<false>({filters_y.weights, high, 1}, extent.points, extent.height, image, columns, wide);
  }
  // to (N, N) = gain columns F_X^T.
  void read_columns(T gain, T* to) {
    multiply_transposed<false>(columns, extent.points, filters_x.weights, extent.points, wide, gain, to, extent.points);
  }
  // patch = gain from; spread (N, W) = patch F_X.
  void spread_columns(T gain, const T* from) {
    const int64_t n = extent.points;
#pragma omp simd
    for (int64_t i = 0; i < n * n; ++i) patch[i] = gain * from[i];
    multiply<false>({patch, n, 1}, n, n, filters_x.weights, spread, wide);
  }
  // image = F_Y^T spread, and a copy of it.
  void spread_rows(T* to) {
    multiply<false>({filters_y.weights, 1, high}, extent.height, extent.points, spread, image, wide);
    for (int64_t y = 0; y < extent.height; ++y)
      for_vectors<T>(extent.width, [&](int64_t c, auto lanes) FASTVAE_INLINE_LAMBDA {
        lanes.put(to + y * extent.width + c, load(image + y * wide + c));
      });
  }
  // The gradients of filters for the product of the patch with what is read of the image.
  template <bool add>
  void gradients_of_filters() {
    const int64_t n = extent.points;
    multiply_transposed<add>(spread, n, image, extent.height, wide, T(1), d_filters_y, high);
    multiply<add>({patch, 1, n}, n, n, columns, d_filters_x, wide);
  }

  WindowExtent extent;
  int64_t wide, high;
  Filters<T> filters_x, filters_y;
  T *image, *columns, *spread, *d_filters_x, *d_filters_y, *patch;

 private:
  Lines<T> memory_;
};

// Gradients that the filters of an axis pass on.
struct AxisGradient {
  double centre = 0, stride = 0, precision = 0, total = 0;
};

template <class T>
AxisGradient through_filters(const Filters<T>& f, const T* d_weights, const Grid& grid, int64_t points) {
  using Vector = typename Simd<T>::Vector;
  AxisGradient g;
  for (int64_t n = 0; n < points; ++n) {
    const T *weights = f.row(n), *d_row = d_weights + n * f.stride;
    Vector total{};
    for (int64_t i = 0; i < f.stride; i += Simd<T>::kWidth) total = fused(load(weights + i), load(d_row + i), total);
    const T mean = sum<T>(total);
    Vector linear{}, squares{};
    for (int64_t i = 0; i < f.stride; i += Simd<T>::kWidth) {
      const Vector d = f.distance(n, i), slope = load(weights + i) * (load(d_row + i) - mean);
      linear = fused(slope, d, linear);
      squares = fused(slope, f.square(n, d), squares);
    }
    const auto found = sum_each<T>(linear, squares, linear, squares);
    const double d_mu = grid.precision * static_cast<double>(found[0]);
    g.centre += d_mu;
    g.stride += d_mu * Grid::place(n, points);
    g.precision -= 0.5 * static_cast<double>(found[1]);
    g.total += static_cast<double>(mean);
  }
  return g;
}

// The gradient of a window. The gain multiplies what is read (sign 1), and divides what is written (sign -1).
template <class T>
void through_window(const Workspace<T>& work, const Grid& grid, double sign, T* d_window) {
  const WindowExtent e = work.extent;
  const AxisGradient x = through_filters(work.filters_x, work.d_filters_x, grid, e.points);
  const AxisGradient y = through_filters(work.filters_y, work.d_filters_y, grid, e.points);
  d_window[kCentreX] = static_cast<T>(x.centre * Grid::half(e.width));
  d_window[kCentreY] = static_cast<T>(y.centre * Grid::half(e.height));
  d_window[kLogVariance] = grid.has_variance ? static_cast<T>(-grid.precision * (x.precision + y.precision)) : T(0);
  d_window[kLogStride] = static_cast<T>(grid.stride * (x.stride + y.stride));
  d_window[kLogGain] = static_cast<T>(sign * y.total);
}

// Calls body(m, work, grid) for every window, each with its filters.
template <class T, class Body>
void for_windows(Matrix<T> window, WindowExtent e, int64_t passes, const Body& body) {
  const int64_t work_per_window = e.points * e.width * (passes * e.height + 64);
  parallel_ranges(e.windows, work_per_window, [&](int64_t begin, int64_t end) {
    Workspace<T> work(e);
    for (int64_t m = begin; m < end; ++m) {
      const Grid grid(window.row(m), e);
      work.fill(grid);
      body(m, work, grid);
    }
  });
}

template <class T>
void read_fwd(WindowImages<const T> images, Matrix<T> window, T* patches, WindowExtent e) {
  const int64_t count = images.count(), image = e.height * e.width, patch = e.points * e.points;
  for_windows<T>(window, e, count, [&](int64_t m, Workspace<T>& work, const Grid& grid) {
    for (int64_t k = 0; k < count; ++k) {
      work.read_rows((k ? images.second : images.first) + m * image);
      work.read_columns(static_cast<T>(grid.gain), patches + (m * count + k) * patch);
    }
  });
}

template <class T>
void read_bwd(const T* d_patches, WindowImages<const T> images, Matrix<T> window, T* const d_images[2], T* d_window,
              WindowExtent e) {
  const int64_t count = images.count(), image = e.height * e.width, patch = e.points * e.points;
  for_windows<T>(window, e, 3 * count, [&](int64_t m, Workspace<T>& work, const Grid& grid) {
    for (int64_t k = 0; k < count; ++k) {
      work.spread_columns(static_cast<T>(grid.gain), d_patches + (m * count + k) * patch);
      if (d_images[k]) work.spread_rows(d_images[k] + m * image);
      if (!d_window) continue;
      work.read_rows((k ? images.second : images.first) + m * image);
      if (k)
        work.template gradients_of_filters<true>();
      else
        work.template gradients_of_filters<false>();
    }
    if (d_window) through_window(work, grid, 1.0, d_window + m * kWindowNumbers);
  });
}

template <class T>
void write_fwd(const T* patch, Matrix<T> window, T* image, WindowExtent e) {
  for_windows<T>(window, e, 1, [&](int64_t m, Workspace<T>& work, const Grid& grid) {
    work.spread_columns(static_cast<T>(1.0 / grid.gain), patch + m * e.points * e.points);
    work.spread_rows(image + m * e.height * e.width);
  });
}

template <class T>
void write_bwd(const T* d_image, const T* patch, Matrix<T> window, T* d_patch, T* d_window, WindowExtent e) {
  for_windows<T>(window, e, 2, [&](int64_t m, Workspace<T>& work, const Grid& grid) {
    const T factor = static_cast<T>(1.0 / grid.gain);
    work.read_rows(d_image + m * e.height * e.width);
    if (d_patch) work.read_columns(factor, d_patch + m * e.points * e.points);
    if (!d_window) return;
    work.spread_columns(factor, patch + m * e.points * e.points);
    work.template gradients_of_filters<false>();
    through_window(work, grid, -1.0, d_window + m * kWindowNumbers);
  });
}

template <class T>
AttentionWindow<T> kernels() {
  return {read_fwd<T>, read_bwd<T>, write_fwd<T>, write_bwd<T>};
}

}  // namespace

inline namespace FASTVAE_ISA {
AttentionWindow<float> attention_window_f32() { return kernels<float>(); }
AttentionWindow<double> attention_window_f64() { return kernels<double>(); }
}  // namespace FASTVAE_ISA

}  // namespace fastvae
