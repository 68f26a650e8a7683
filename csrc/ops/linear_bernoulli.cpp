#include "ops/linear_bernoulli.h"

#include <algorithm>
#include <array>

#include "network/network.h"
#include "network/weight_gradient.h"
#include "simd/activation.h"

namespace fastvae {
namespace {

// Visits of one task: those of the same data points read them once.
constexpr int64_t kTaskVisits = 8;
// Blocks whose gradients of logits are in memory at once, for the gradient of the weight. Few: its sums stay accurate.
constexpr int64_t kChunkBlocks = 16;
// Groups of outputs that are summed up before their sum is added to the total: the error of long sums stays small.
constexpr int64_t kSumGroups = 12;

// The rows that one block of lanes takes, and their data points. With a whole block of data points all samples of one
// block come one after another.
class Visits {
 public:
  explicit Visits(BernoulliSizes sizes)
      : sizes_(sizes),
        stacked_(sizes.inner == 1 && sizes.points >= kLanes),
        blocks_(stacked_ ? (sizes.points + kLanes - 1) / kLanes : (sizes.rows() + kLanes - 1) / kLanes),
        count_(stacked_ ? blocks_ * sizes.samples : blocks_) {}

  int64_t count() const { return count_; }

  // The first row; all rows of a visit follow each other.
  int64_t first_row(int64_t visit) const {
    return stacked_ ? visit % sizes_.samples * sizes_.points + first_point(visit) : visit * kLanes;
  }
  int64_t rows(int64_t visit) const {
    return std::min(kLanes, stacked_ ? sizes_.points - first_point(visit) : sizes_.rows() - visit * kLanes);
  }
  int64_t point_of(int64_t row) const { return row / sizes_.inner % sizes_.points; }

 private:
  int64_t first_point(int64_t visit) const { return visit / sizes_.samples * kLanes; }

  BernoulliSizes sizes_;
  bool stacked_;
  int64_t blocks_, count_;
};

LaneRange lanes_of(int64_t rows, int64_t width) { return {0, (rows + width - 1) / width * width, rows}; }

// The data points of a block's rows in lanes, (out, kLanes); they are read again only where they are others.
template <class T>
class Points {
 public:
  Points(Matrix<T> x, int64_t out) : x_(x), out_(out), values_(out * kLanes) { points_.fill(-1); }

  const T* read(const Visits& visits, int64_t visit, LaneRange lanes) {
    std::array<int64_t, kLanes> points;
    points.fill(-1);
    for (int64_t i = 0; i < lanes.count; ++i) points[i] = visits.point_of(visits.first_row(visit) + i);
    if (points == points_) return values_.get();
    points_ = points;
    constexpr int64_t width = Simd<T>::kWidth;
    for (int64_t lane = lanes.begin; lane < lanes.end; lane += width)
      for (int64_t c = 0; c < out_; c += width) {
        typename Simd<T>::Vector square[width];
        for (int64_t i = 0; i < width; ++i) {
          square[i] = typename Simd<T>::Vector{};
          if (lane + i < lanes.count) square[i] = load_up_to(x_.row(points[lane + i]) + c, out_ - c);
        }
        transpose_square<T>(square);
        for (int64_t i = 0; i < std::min(width, out_ - c); ++i)
          store(values_.get() + (c + i) * kLanes + lane, square[i]);
      }
    return values_.get();
  }

 private:
  Matrix<T> x_;
  int64_t out_;
  Scratch<T> values_;
  std::array<int64_t, kLanes> points_;
};

// Calls body(visit, points) for the visits [begin, end), each task with points of its own.
template <class T, class Body>
void each_visit(const MaskedLayer<T>& layer, Matrix<T> x, int64_t begin, int64_t end, const Body& body) {
  const int64_t threads = omp_get_max_threads(), count = end - begin;
  const int64_t step = std::max<int64_t>(1, std::min(kTaskVisits, count / threads));
  const int64_t work = step * kLanes * layer.in * layer.out / 8;
  parallel_tasks((count + step - 1) / step, work, [&](int64_t task) {
    Points<T> points(x, layer.out);
    const int64_t last = std::min(begin + (task + 1) * step, end);
    for (int64_t visit = begin + task * step; visit < last; ++visit) body(visit, points);
  });
}

// A layer that is not masked, with the degrees that say so.
template <class T>
struct Dense {
  LocalVector<int64_t> degrees;
  MaskedLayer<T> layer;
  Staircase<T> staircase;

  explicit Dense(const MaskedLayer<T>& given)
      : degrees(static_cast<size_t>(std::max(given.in, given.out))), layer(given), staircase(with_degrees()) {}

 private:
  const MaskedLayer<T>& with_degrees() {
    std::fill(degrees.begin(), degrees.end(), 0);
    layer.in_degrees = layer.out_degrees = degrees.data();
    return layer;
  }
};

template <class T>
void fwd(const MaskedLayer<T>& given, Matrix<T> h, Matrix<T> x, T* log_p, BernoulliSizes sizes) {
  using Vector = typename Simd<T>::Vector;
  constexpr int64_t width = Simd<T>::kWidth;
  const Dense<T> dense(given);
  const Staircase<T>& s = dense.staircase;
  const int64_t in = given.in, out = given.out;
  const Visits visits(sizes);
  each_visit<T>(given, x, 0, visits.count(), [&](int64_t visit, Points<T>& points) {
    const LaneRange lanes = lanes_of(visits.rows(visit), width);
    const int64_t first = visits.first_row(visit);
    const Scratch<T> scratch((in + kTileRows + 2) * kLanes);
    T *inputs = scratch.get(), *logits = inputs + in * kLanes, *part = logits + kTileRows * kLanes;
    T* total = part + kLanes;
    const T* values = points.read(visits, visit, lanes);
    samples_to_lanes(h.row(first), h.stride, in, nullptr, lanes, inputs);
    std::fill_n(part, 2 * kLanes, T(0));
    int64_t group = 0, group_begin = 0;
    multiply_rows(
        s, inputs, 0, out, lanes,
        [&](int64_t r, int64_t lane, Vector sum)
            FASTVAE_INLINE_LAMBDA { store(logits + (r - group_begin) * kLanes + lane, sum + s.bias(r)); },
        [&](int64_t begin, int64_t end) {
          const bool whole = ++group % kSumGroups == 0 || end == out;
          for (int64_t lane = 0; lane < lanes.end; lane += width) {
            // The product of all 1 + e^-|l|, less 1: one logarithm for the group.
            Vector sum = load(part + lane), product{};
            for (int64_t r = begin; r < end; ++r) {
              const Vector l = load(logits + (r - begin) * kLanes + lane), tail = exp(l < 0 ? l : -l);
              product += tail + tail * product;
              sum += load(values + r * kLanes + lane) * l - positive_part(l);
            }
            sum -= log1p_unit(product);
            store(part + lane, whole ? Vector{} : sum);
            if (whole) store(total + lane, load(total + lane) + sum);
          }
          group_begin = end;
        });
    for (int64_t i = 0; i < lanes.count; ++i) log_p[first + i] = total[i];
  });
}

template <class T>
void bwd(const MaskedLayer<T>& given, const T* d_log_p, Matrix<T> h, Matrix<T> x, T* d_h, T* d_weight, T* d_bias,
         BernoulliSizes sizes) {
  using Vector = typename Simd<T>::Vector;
  constexpr int64_t width = Simd<T>::kWidth;
  const Dense<T> dense(given);
  const Staircase<T>& s = dense.staircase;
  const int64_t in = given.in, out = given.out, block_size = out * kLanes;
  const Visits visits(sizes);
  const bool of_layer = d_weight || d_bias, in_chunks = of_layer && visits.count() > kChunkBlocks;
  const int64_t chunk = of_layer ? std::min(kChunkBlocks, visits.count()) : visits.count();
  const Scratch<T> kept(of_layer ? chunk * block_size : 0);
  // A chunk's gradients of the weight and the bias, which are added to those of the chunks before.
  const Scratch<T> parts(in_chunks ? out * (in + 1) : 0);
  if (of_layer && visits.count() == 0) {
    if (d_weight) std::fill_n(d_weight, out * in, T(0));
    if (d_bias) std::fill_n(d_bias, out, T(0));
  }
  for (int64_t from = 0; from < visits.count(); from += chunk) {
    const int64_t to = std::min(from + chunk, visits.count());
    const PackedInputs<T> packed(of_layer ? in : 0, (to - from) * kLanes);
    each_visit<T>(given, x, from, to, [&](int64_t visit, Points<T>& points) {
      const LaneRange lanes = lanes_of(visits.rows(visit), width), all{0, kLanes, kLanes};
      const int64_t first = visits.first_row(visit);
      const Scratch<T> scratch((in + (of_layer ? 0 : out) + 1) * kLanes);
      T *inputs = scratch.get(), *upstream = inputs + in * kLanes;
      T* adjoints = of_layer ? kept.get() + (visit - from) * block_size : upstream + kLanes;
      const T* values = points.read(visits, visit, lanes);
      samples_to_lanes(h.row(first), h.stride, in, nullptr, LaneRange{0, kLanes, lanes.count}, inputs);
      if (of_layer) {
        packed.pack(inputs, visit - from, all);
        // Lanes without a row: the sums over samples read them.
        if (lanes.end < kLanes)
          for (int64_t r = 0; r < out; ++r) std::fill_n(adjoints + r * kLanes + lanes.end, kLanes - lanes.end, T(0));
      }
      std::fill_n(upstream, kLanes, T(0));
      std::copy_n(d_log_p + first, lanes.count, upstream);
      multiply_rows(
          s, inputs, 0, out, lanes,
          [&](int64_t r, int64_t lane, Vector sum)
              FASTVAE_INLINE_LAMBDA { store(adjoints + r * kLanes + lane, sum + s.bias(r)); },
          [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; ++r)
              for (int64_t lane = 0; lane < lanes.end; lane += width) {
                T* const at = adjoints + r * kLanes + lane;
                const Vector d = load(upstream + lane) * (load(values + r * kLanes + lane) - sigmoid(load(at)));
                store(at, lane + width > lanes.count ? first_lanes<T>(d, lanes.count - lane) : d);
              }
          });
      if (!d_h) return;
      multiply_columns(s, adjoints, 0, in, lanes, [&](int64_t k, int64_t lane, Vector sum) FASTVAE_INLINE_LAMBDA {
        store(inputs + k * kLanes + lane, sum);
      });
      lanes_to_samples(inputs, in, nullptr, lanes, d_h + first * in, in);
    });
    if (!of_layer) continue;
    const bool first = from == 0;
    T* const weight = first ? d_weight : d_weight ? parts.get() : nullptr;
    T* const bias = first ? d_bias : d_bias ? parts.get() + out * in : nullptr;
    const Scratch<T> unused(d_weight ? 0 : out * in);
    layer_gradients<T>({{s,
                         packed,
                         Blocks<T>{kept.get(), block_size, (to - from) * kLanes},
                         {weight ? weight : unused.get(), bias, nullptr}}});
    if (first) continue;
    const auto add = [](T* total, const T* part, int64_t count) {
      for (int64_t i = 0; total && i < count; ++i) total[i] += part[i];
    };
    add(d_weight, parts.get(), out * in);
    add(d_bias, parts.get() + out * in, out);
  }
}

template <class T>
LinearBernoulli<T> kernels() {
  return {fwd<T>, bwd<T>};
}

}  // namespace

namespace FASTVAE_ISA {
LinearBernoulli<float> linear_bernoulli_f32() { return kernels<float>(); }
LinearBernoulli<double> linear_bernoulli_f64() { return kernels<double>(); }
}  // namespace FASTVAE_ISA

}  // namespace fastvae
