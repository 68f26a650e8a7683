#include "ops/mlp_bernoulli.h"

#include <algorithm>

#include "network/bernoulli.h"
#include "network/network.h"
#include "simd/activation.h"

namespace fastvae {
namespace {

// Not inlined: each of the products' many kinds of tiles would get a copy for every activation.
template <class T>
__attribute__((noinline)) void activate_rows(Activation activation, int64_t begin, int64_t end, LaneRange lanes,
                                             T* at) {
  with_activation(activation, [&](auto a) {
    each_vector<T>(begin, end, lanes,
                   [&](int64_t i) FASTVAE_INLINE_LAMBDA { store(at + i, activate<a.value>(load(at + i))); });
  });
}

template <class T>
void hidden_layer(const Staircase<T>& s, Activation activation, const T* inputs, LaneRange lanes, T* outputs) {
  multiply_rows<true>(
      s, inputs, 0, s.layer.out, lanes,
      [&](int64_t r, int64_t lane, typename Simd<T>::Vector sum)
          FASTVAE_INLINE_LAMBDA { store(outputs + r * kLanes + lane, sum + s.bias(r)); },
      [&](int64_t begin, int64_t end) { activate_rows(activation, begin, end, lanes, outputs); });
}

template <class T>
void fwd(const std::vector<MaskedLayer<T>>& layers, int64_t activation, Matrix<T> z, Matrix<T> x, T* log_p,
         BernoulliSizes sizes) {
  using Vector = typename Simd<T>::Vector;
  LocalVector<Dense<T>> dense;
  dense.reserve(layers.size());
  int64_t widest = 0, weights = 0;
  for (const MaskedLayer<T>& layer : layers) {
    dense.emplace_back(layer);
    widest = std::max(widest, layer.in);
    weights += layer.in * layer.out;
  }
  const int64_t in = layers.front().in, out = layers.back().out;
  const Visits visits(sizes);
  each_visit<T>(weights, x, out, 0, visits.count(), [&](int64_t visit, Points<T>& points) {
    const LaneRange lanes = lanes_of(visits.rows(visit), Simd<T>::kWidth);
    const int64_t first = visits.first_row(visit);
    const Scratch<T> scratch(2 * widest * kLanes);
    T *inputs = scratch.get(), *outputs = inputs + widest * kLanes;
    samples_to_lanes(z.row(first), z.stride, in, nullptr, lanes, inputs);
    for (size_t l = 0; l + 1 < dense.size(); ++l) {
      hidden_layer(dense[l].staircase, static_cast<Activation>(activation), inputs, lanes, outputs);
      std::swap(inputs, outputs);
    }
    sum_log_probs<T>(dense.back().staircase, inputs, read_points(points, visits, visit, lanes), lanes, log_p + first,
                     [](int64_t, int64_t, Vector, Vector, Vector) {});
  });
}

template <class T>
MlpBernoulli<T> kernels() {
  return {fwd<T>};
}

}  // namespace

inline namespace FASTVAE_ISA {
MlpBernoulli<float> mlp_bernoulli_f32() { return kernels<float>(); }
MlpBernoulli<double> mlp_bernoulli_f64() { return kernels<double>(); }
}  // namespace FASTVAE_ISA

}  // namespace fastvae
