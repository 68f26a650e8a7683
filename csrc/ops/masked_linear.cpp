#include "ops/masked_linear.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "network/network.h"
#include "network/weight_gradient.h"
#include "simd/activation.h"

namespace fastvae {
namespace {

template <class T>
int64_t work_of_layer(const Staircase<T>& s) {
  return s.layer.in * s.layer.out / 8;
}

template <class T>
void fwd(const MaskedLayer<T>& layer, int64_t activation, Matrix<T> x, T* y, T* pre, int64_t samples) {
  using Vector = typename Simd<T>::Vector;
  const Staircase<T> s(layer);
  const int64_t in = layer.in, out = layer.out;
  parallel_lanes<T>(samples, work_of_layer(s), [&](int64_t block, LaneRange lanes) {
    const Scratch<T> scratch((in + out) * kLanes);
    T *inputs = scratch.get(), *outputs = inputs + in * kLanes;
    const auto write = [&](T* to) {
      lanes_to_samples(outputs, out, s.outputs.places(), lanes, to + block * kLanes * out, out);
    };
    samples_to_lanes(x.row(block * kLanes), x.stride, in, s.inputs.places(), lanes, inputs);
    multiply_rows(s, inputs, 0, out, lanes, [&](int64_t r, int64_t lane, Vector sum) FASTVAE_INLINE_LAMBDA {
      store(outputs + r * kLanes + lane, fused(sum, s.scale(r), s.bias(r)));
    });
    if (pre) write(pre);
    with_activation(static_cast<Activation>(activation), [&](auto a) {
      each_vector<T>(0, out, lanes, [&](int64_t i) FASTVAE_INLINE_LAMBDA {
        store(outputs + i, activate<decltype(a)::value>(load(outputs + i)));
      });
    });
    write(y);
  });
}

template <class T>
void bwd(const MaskedLayer<T>& layer, int64_t activation, const T* d_y, const T* at, Matrix<T> x, T* d_x,
         LayerGradients<T> gradients, int64_t samples) {
  using Vector = typename Simd<T>::Vector;
  const Staircase<T> s(layer);
  const int64_t in = layer.in, out = layer.out, block_size = out * kLanes;
  // The gradient of a weight without inputs has no numbers, and no address.
  const bool of_layer = gradients.d_weight || gradients.d_bias || gradients.d_scale;
  // Adjoints of the pre-activations.
  const Scratch<T> kept((samples + kLanes - 1) / kLanes * block_size);
  const PackedInputs<T> packed(of_layer ? in : 0, samples);
  parallel_lanes<T>(samples, work_of_layer(s), [&](int64_t block, LaneRange lanes) {
    const Scratch<T> scratch((in + 2 * out) * kLanes);
    T *inputs = scratch.get(), *activations = inputs + in * kLanes, *scaled = activations + out * kLanes;
    T* adjoints = kept.get() + block * block_size;
    const int32_t* places = s.outputs.places();
    samples_to_lanes(d_y + block * kLanes * out, out, out, places, lanes, adjoints);
    if (of_layer) {
      samples_to_lanes(x.row(block * kLanes), x.stride, in, s.inputs.places(), lanes, inputs);
      packed.pack(inputs, block, lanes);
    }
    if (static_cast<Activation>(activation) != Activation::kIdentity) {
      samples_to_lanes(at + block * kLanes * out, out, out, places, lanes, activations);
      with_activation(static_cast<Activation>(activation), [&](auto a) {
        each_vector<T>(0, out, lanes, [&](int64_t i) FASTVAE_INLINE_LAMBDA {
          store(adjoints + i, through_activation<decltype(a)::value>(load(adjoints + i), load(activations + i)));
        });
      });
    }
    if (!d_x) return;
    if (layer.scale)
      each_vector<T>(0, out, lanes, [&](int64_t i) FASTVAE_INLINE_LAMBDA {
        store(scaled + i, load(adjoints + i) * s.scale(i / kLanes));
      });
    T* d_inputs = inputs;
    multiply_columns(s, layer.scale ? scaled : adjoints, 0, in, lanes,
                     [&](int64_t k, int64_t lane, Vector sum)
                         FASTVAE_INLINE_LAMBDA { store(d_inputs + k * kLanes + lane, sum); });
    lanes_to_samples(d_inputs, in, s.inputs.places(), lanes, d_x + block * kLanes * in, in);
  });
  if (of_layer) layer_gradients<T>({{s, packed, Blocks<T>{kept.get(), block_size, samples}, gradients}});
}

// The norm of a row whose squares leave the range of T though the norm does not: of shares of its largest weight.
template <class T, class Weight>
T norm_by_shares(int64_t count, const Weight& weight) {
  T largest = 0;
  for (int64_t k = 0; k < count; ++k) largest = std::max(largest, std::abs(weight(k)));
  if (!(largest > 0 && largest <= std::numeric_limits<T>::max())) return largest;
  return largest * std::sqrt(sum_terms<T>(count, [&](int64_t k) {
           const T share = weight(k) / largest;
           return share * share;
         }));
}

template <class T>
void norm_fwd(const MaskedLayer<T>& layer, T* norm) {
  using Limits = std::numeric_limits<T>;
  // Below the least, squares that are no normal numbers would count.
  constexpr T least = Limits::min() / Limits::epsilon(), most = Limits::max();
  const Staircase<T> s(layer);
  parallel_ranges(layer.out, layer.in, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const T* w = s.rows[r];
      const int64_t kept = s.prefix[r];
      const auto weight = [&](int64_t k) { return w[s.inputs.at(k)]; };
      const T total = s.inputs.sorted() ? sum_terms<T>(kept, [&](int64_t k) { return w[k] * w[k]; })
                                        : sum_terms<T>(kept, [&](int64_t k) { return weight(k) * weight(k); });
      const bool leaves = total < least || total > most;  // NaN stays
      norm[s.outputs.at(r)] = leaves ? norm_by_shares<T>(kept, weight) : std::sqrt(total);
    }
  });
}

template <class T>
void norm_bwd(const MaskedLayer<T>& layer, const T* d_norm, const T* norm, T* d_weight) {
  const Staircase<T> s(layer);
  parallel_ranges(layer.out, layer.in, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t output = s.outputs.at(r), kept = s.prefix[r];
      const T *w = s.rows[r], factor = norm[output] > 0 ? d_norm[output] / norm[output] : T(0);
      T* g = d_weight + output * layer.in;
      if (s.inputs.sorted()) {
#pragma omp simd
        for (int64_t i = 0; i < kept; ++i) g[i] = factor * w[i];
        std::fill(g + kept, g + layer.in, T(0));
        continue;
      }
      for (int64_t k = 0; k < layer.in; ++k) g[s.inputs.at(k)] = k < kept ? factor * w[s.inputs.at(k)] : T(0);
    }
  });
}

template <class T>
MaskedLinear<T> kernels() {
  return {fwd<T>, bwd<T>, norm_fwd<T>, norm_bwd<T>};
}

}  // namespace

inline namespace FASTVAE_ISA {
MaskedLinear<float> masked_linear_f32() { return kernels<float>(); }
MaskedLinear<double> masked_linear_f64() { return kernels<double>(); }
}  // namespace FASTVAE_ISA

}  // namespace fastvae
