#include "ops/gated_activation.h"

#include "base/parallel.h"
#include "images/gate.h"
#include "simd/lanes.h"

namespace fastvae {
namespace {

constexpr int64_t kWorkPerNumber = 24;

// The step of an operand from one number of a run to the next; kNone where there is no operand.
enum class Step { kNone, kZero, kUnit, kAny };

// Runs of numbers along one dimension; the other three dimensions count the runs.
struct Runs {
  int64_t count[3], length;

  int64_t total() const { return count[0] * count[1] * count[2]; }
};

// An operand as runs; `half` leads from the first half of its channels to the second.
template <class T>
struct Operand {
  T* data;
  int64_t stride[3], along, half;

  T* run(int64_t i, int64_t j, int64_t k) const { return data + i * stride[0] + j * stride[1] + k * stride[2]; }
};

// The dimension of runs: rows of pixels, whole planes where rows follow each other without gaps, or channels.
enum class Order { kRows, kPlanes, kChannels };

template <class T>
bool has_planes(const Images<T>& images, const ImageExtent& extent) {
  return !images.data || extent.height == 1 || images.stride[2] == extent.width * images.stride[3];
}

Runs runs_of(Order order, const ImageExtent& extent) {
  const auto [n, c, h, w] = extent;
  if (order == Order::kRows) return {{n, c, h}, w};
  if (order == Order::kPlanes) return {{n, c, 1}, h * w};
  return {{n, h, w}, c};
}

template <class T>
Operand<T> operand_of(Order order, const Images<T>& images, const ImageExtent& extent) {
  const int64_t *s = images.stride, half = extent.channels * s[1];
  if (order == Order::kChannels) return {images.data, {s[0], s[2], s[3]}, s[1], half};
  return {images.data, {s[0], s[1], s[2]}, s[3], half};
}

// The order in which x and y, or their gradients, have the longest runs without gaps.
template <class T, class U>
Order order_of(const ImageExtent& extent, const Images<T>& x, const Images<U>& y, bool planes) {
  const bool channels = x.stride[1] == 1 && y.stride[1] == 1, columns = x.stride[3] == 1 && y.stride[3] == 1;
  const Order along_columns = planes ? Order::kPlanes : Order::kRows;
  if (channels && !(columns && runs_of(along_columns, extent).length >= extent.channels)) return Order::kChannels;
  return along_columns;
}

template <class T>
Step step_of(const Operand<T>& operand) {
  if (!operand.data) return Step::kNone;
  return operand.along == 1 ? Step::kUnit : operand.along == 0 ? Step::kZero : Step::kAny;
}

template <Step step, class T>
FASTVAE_INLINE typename Simd<T>::Vector load_along(const T* run, int64_t stride, int64_t i, int64_t count) {
  if constexpr (step == Step::kUnit) return load_up_to(run + i, count);
  if constexpr (step == Step::kZero) return *run - typename Simd<T>::Vector{};
  typename Simd<T>::Vector v{};
  for (int64_t lane = 0; lane < count; ++lane) v[lane] = run[(i + lane) * stride];
  return v;
}

template <Step step, class T>
FASTVAE_INLINE void store_along(T* run, int64_t stride, int64_t i, int64_t count, typename Simd<T>::Vector v) {
  if constexpr (step == Step::kUnit) {
    store_up_to(run + i, v, count);
  } else {
    for (int64_t lane = 0; lane < count; ++lane) run[(i + lane) * stride] = v[lane];
  }
}

// Halves of x + condition at one place of a run.
template <class V>
struct Halves {
  V a, b;
};

template <Step step, Step with, class T, class V = typename Simd<T>::Vector>
FASTVAE_INLINE Halves<V> halves_at(const T* x, const T* condition, const Operand<const T>& x_at,
                                   const Operand<const T>& condition_at, int64_t i, int64_t count) {
  const V a = load_along<step>(x, x_at.along, i, count), b = load_along<step>(x + x_at.half, x_at.along, i, count);
  if constexpr (with == Step::kNone) return {a, b};
  return {a + load_along<with>(condition, condition_at.along, i, count),
          b + load_along<with>(condition + condition_at.half, condition_at.along, i, count)};
}

// Calls body(i, j, k) for every run in [begin, end).
template <class Body>
FASTVAE_INLINE void each_run(const Runs& runs, int64_t begin, int64_t end, const Body& body) {
  int64_t k = begin % runs.count[2], j = begin / runs.count[2] % runs.count[1];
  int64_t i = begin / runs.count[2] / runs.count[1];
  for (int64_t run = begin; run < end; ++run) {
    body(i, j, k);
    if (++k < runs.count[2]) continue;
    k = 0;
    if (++j < runs.count[1]) continue;
    j = 0;
    ++i;
  }
}

// Calls body(i, count) for the vectors of a run; count is less than a vector at its end.
template <class T, class Body>
FASTVAE_INLINE void each_vector(int64_t length, const Body& body) {
  constexpr int64_t width = Simd<T>::kWidth;
  int64_t i = 0;
  for (; i + width <= length; i += width) body(i, width);
  if (i < length) body(i, length - i);
}

template <Step step>
using StepOf = std::integral_constant<Step, step>;

// Calls body with the steps of x, y and their gradients, and of the condition, as compile-time constants.
template <class Body>
void with_steps(bool unit, Step condition, const Body& body) {
  if (!unit) {
    if (condition == Step::kNone) return body(StepOf<Step::kAny>{}, StepOf<Step::kNone>{});
    return body(StepOf<Step::kAny>{}, StepOf<Step::kAny>{});
  }
  switch (condition) {
    case Step::kNone:
      return body(StepOf<Step::kUnit>{}, StepOf<Step::kNone>{});
    case Step::kZero:
      return body(StepOf<Step::kUnit>{}, StepOf<Step::kZero>{});
    case Step::kUnit:
      return body(StepOf<Step::kUnit>{}, StepOf<Step::kUnit>{});
    default:
      return body(StepOf<Step::kUnit>{}, StepOf<Step::kAny>{});
  }
}

template <class T>
void fwd(int64_t kind, ImageExtent extent, Images<const T> x, Images<const T> condition, Images<T> y) {
  const bool planes = has_planes(x, extent) && has_planes(condition, extent) && has_planes(y, extent);
  const Order order = order_of(extent, x, y, planes);
  const Runs runs = runs_of(order, extent);
  const auto x_at = operand_of(order, x, extent), c_at = operand_of(order, condition, extent);
  const auto y_at = operand_of(order, y, extent);
  with_gate(static_cast<Gate>(kind), [&](auto gate) {
    with_steps(x_at.along == 1 && y_at.along == 1, step_of(c_at), [&](auto step, auto with) {
      parallel_ranges(runs.total(), runs.length * kWorkPerNumber, [&](int64_t begin, int64_t end) {
        each_run(runs, begin, end, [&](int64_t i, int64_t j, int64_t k) FASTVAE_INLINE_LAMBDA {
          const T *from = x_at.run(i, j, k), *and_from = c_at.data ? c_at.run(i, j, k) : nullptr;
          T* to = y_at.run(i, j, k);
          each_vector<T>(runs.length, [&](int64_t at, int64_t count) FASTVAE_INLINE_LAMBDA {
            const auto [a, b] = halves_at<step(), with(), T>(from, and_from, x_at, c_at, at, count);
            store_along<step()>(to, y_at.along, at, count, apply_gate<gate()>(a, b));
          });
        });
      });
    });
  });
}

template <class T>
void bwd(int64_t kind, ImageExtent extent, Images<const T> d_y, Images<const T> x, Images<const T> condition,
         Images<T> d_x) {
  const bool planes =
      has_planes(x, extent) && has_planes(condition, extent) && has_planes(d_y, extent) && has_planes(d_x, extent);
  const Order order = order_of(extent, x, d_x, planes);
  const Runs runs = runs_of(order, extent);
  const auto x_at = operand_of(order, x, extent), c_at = operand_of(order, condition, extent);
  const auto g_at = operand_of(order, d_y, extent);
  const auto d_at = operand_of(order, d_x, extent);
  const bool unit = x_at.along == 1 && d_at.along == 1 && g_at.along == 1;
  with_gate(static_cast<Gate>(kind), [&](auto gate) {
    with_steps(unit, step_of(c_at), [&](auto step, auto with) {
      parallel_ranges(runs.total(), runs.length * kWorkPerNumber, [&](int64_t begin, int64_t end) {
        each_run(runs, begin, end, [&](int64_t i, int64_t j, int64_t k) FASTVAE_INLINE_LAMBDA {
          const T *from = x_at.run(i, j, k), *and_from = c_at.data ? c_at.run(i, j, k) : nullptr;
          const T* upstream = g_at.run(i, j, k);
          T* to = d_at.run(i, j, k);
          each_vector<T>(runs.length, [&](int64_t at, int64_t count) FASTVAE_INLINE_LAMBDA {
            const auto [a, b] = halves_at<step(), with(), T>(from, and_from, x_at, c_at, at, count);
            const auto g = load_along<step()>(upstream, g_at.along, at, count);
            const auto [d_a, d_b] = gate_gradients<gate()>(g, a, b);
            store_along<step()>(to, d_at.along, at, count, d_a);
            store_along<step()>(to + d_at.half, d_at.along, at, count, d_b);
          });
        });
      });
    });
  });
}

template <class T>
GatedActivation<T> kernels() {
  return {fwd<T>, bwd<T>};
}

}  // namespace

inline namespace FASTVAE_ISA {
GatedActivation<float> gated_activation_f32() { return kernels<float>(); }
GatedActivation<double> gated_activation_f64() { return kernels<double>(); }
}  // namespace FASTVAE_ISA

}  // namespace fastvae
