// A masked network on blocks of lanes. A layer runs one range of units at a time: all units in the parallel pass, those
// of one degree in a sweep.
#pragma once

#include <cstdint>
#include <vector>

#include "base/parallel.h"
#include "network/affine.h"
#include "network/staircase.h"
#include "simd/activation.h"

namespace fastvae {
inline namespace FASTVAE_ISA {

// Calls body(offset) for the vectors of rows [begin, end).
template <class T, class Body>
FASTVAE_INLINE void each_vector(int64_t begin, int64_t end, LaneRange lanes, const Body& body) {
  for (int64_t r = begin; r < end; ++r)
    for (int64_t lane = lanes.begin; lane < lanes.end; lane += Simd<T>::kWidth) body(r * kLanes + lane);
}

// The rows of a block that keep a hidden layer before and after its activation. -1: not kept.
struct HiddenRows {
  int64_t pre, post;
};

// The rows of a block: features, hidden layers, parameters.
struct RowLayout {
  template <class T>
  explicit RowLayout(const NetworkSpec<T>& spec) : rows(spec.features) {
    const size_t layers = spec.layers.size() - 1;
    for (size_t l = 0; l < layers; ++l) {
      const bool stream = spec.residual && l % 2 == 0;
      HiddenRows at{-1, -1};
      if (stream || needs_pre(static_cast<Activation>(spec.activation))) {
        at.pre = rows;
        rows += spec.layers[l].out;
      }
      if (!(spec.residual && l == layers - 1)) {
        at.post = rows;
        rows += spec.layers[l].out;
      }
      hidden.push_back(at);
    }
    params = rows;
    rows += spec.layers.back().out;
  }

  LocalVector<HiddenRows> hidden;
  int64_t params, rows;
};

template <class T>
class Network : public RowLayout {
 public:
  using Vector = typename Simd<T>::Vector;

  explicit Network(const NetworkSpec<T>& spec)
      : RowLayout(spec),
        features(spec.features),
        activation(static_cast<Activation>(spec.activation)),
        kind(static_cast<FlowKind>(spec.kind)),
        residual(spec.residual),
        interleaved_(spec.interleaved),
        params_per_feature_(spec.params_per_feature) {
    layers.reserve(spec.layers.size());
    for (const auto& layer : spec.layers) layers.emplace_back(layer);
    hidden_layers = static_cast<int64_t>(layers.size()) - 1;
  }

  // The input of a layer.
  int64_t input_rows(int64_t l) const {
    if (l == 0) return 0;
    const HiddenRows& at = hidden[l - 1];
    return at.post < 0 ? at.pre : at.post;
  }

  // The row of parameter p of a feature.
  int64_t param_row(int64_t p, int64_t feature) const {
    const int64_t output = interleaved_ ? feature * params_per_feature_ + p : p * features + feature;
    return params + layers.back().outputs.place_of(output);
  }

  // Computes units [begin, end) of hidden layer l from the block's earlier rows; context_term, (H, kLanes), may be
  // null.
  void hidden_forward(int64_t l, int64_t begin, int64_t end, LaneRange lanes, const T* context_term, T* block) const {
    const T* carried = residual && l % 2 == 0 && l > 0 ? block + hidden[l - 2].pre * kLanes : nullptr;
    T* pre = hidden[l].pre < 0 ? nullptr : block + hidden[l].pre * kLanes;
    T* post = hidden[l].post < 0 ? nullptr : block + hidden[l].post * kLanes;
    layer_forward(l, begin, end, lanes, block, l == 0 ? context_term : nullptr, carried, pre ? pre : post, post);
  }

  // Computes outputs [begin, end) of the last layer, in the order of degrees.
  void params_forward(int64_t begin, int64_t end, LaneRange lanes, T* block) const {
    layer_forward(hidden_layers, begin, end, lanes, block, nullptr, nullptr, block + params * kLanes, nullptr);
  }

  // Multiplies the adjoints of a layer's outputs [begin, end) by their rows' factors, for the product with W^T.
  void scale_adjoints(int64_t l, int64_t begin, int64_t end, LaneRange lanes, const T* adjoint, T* scaled) const {
    if (!layers[l].layer.scale) return;
    each_vector<T>(begin, end, lanes, [&](int64_t i) FASTVAE_INLINE_LAMBDA {
      store(scaled + i, load(adjoint + i) * layers[l].scale(i / kLanes));
    });
  }

  int64_t adjoint_rows(int64_t l) const { return l == hidden_layers ? params : hidden_adjoint_rows(l); }

  // The rows of hidden layer l's pre-activation's adjoint. A block of adjoints has the layout of the activations.
  int64_t hidden_adjoint_rows(int64_t l) const { return hidden[l].pre < 0 ? hidden[l].post : hidden[l].pre; }

  // Computes the adjoints of units [begin, end) of hidden layer l from those of the next layers. `scaled` replaces the
  // adjoints of layers whose rows have factors.
  void hidden_backward(int64_t l, int64_t begin, int64_t end, LaneRange lanes, const T* block, T* adjoints,
                       T* scaled) const {
    const Staircase<T>& next = layers[l + 1];
    const int64_t from = adjoint_rows(l + 1), own = hidden_adjoint_rows(l);
    const T* d_next = (next.layer.scale ? scaled : adjoints) + from * kLanes;
    const bool stream = residual && l % 2 == 0, last_stream = stream && l == hidden_layers - 1;
    const T* carried = stream && !last_stream ? adjoints + hidden_adjoint_rows(l + 2) * kLanes : nullptr;
    const T* at = block + (needs_pre(activation) ? hidden[l].pre : hidden[l].post) * kLanes;
    T* out = adjoints + own * kLanes;
    layer_backward(l + 1, begin, end, lanes, d_next, out, last_stream ? nullptr : at);
    // A pass of its own: its input is far away, and one stream is fetched ahead best.
    if (!last_stream)
      with_activation(activation, [&](auto a) {
        each_vector<T>(begin, end, lanes, [&](int64_t i) FASTVAE_INLINE_LAMBDA {
          store(out + i, through_activation<decltype(a)::value>(load(out + i), load(at + i)));
        });
      });
    if (carried)
      each_vector<T>(begin, end, lanes,
                     [&](int64_t i) FASTVAE_INLINE_LAMBDA { store(out + i, load(out + i) + load(carried + i)); });
    scale_adjoints(l, begin, end, lanes, out, scaled + own * kLanes);
  }

  // Computes the adjoints of inputs [begin, end) of layer l from those of its outputs, with the rows' factors: rows of
  // `out`, which has kLanes columns. Fetches the rows of `next`, which are read then, unless it is null.
  __attribute__((noinline)) void layer_backward(int64_t l, int64_t begin, int64_t end, LaneRange lanes, const T* d_out,
                                                T* out, const T* next = nullptr) const {
    multiply_columns(layers[l], d_out, begin, end, lanes,
                     [&](int64_t k, int64_t lane, Vector sum)
                         FASTVAE_INLINE_LAMBDA { store(out + k * kLanes + lane, sum); },
                     {out, next});
  }

  LocalVector<Staircase<T>> layers;
  int64_t features, hidden_layers = 0;
  Activation activation;
  FlowKind kind;
  bool residual;

 private:
  // Computes outputs [begin, end) of layer l: `sums`, and `post`, their activations; terms that are null are not added,
  // and a null `post` is not written. One copy of the products' many kinds of tiles serves all layers.
  __attribute__((noinline)) void layer_forward(int64_t l, int64_t begin, int64_t end, LaneRange lanes, const T* block,
                                               const T* context_term, const T* carried, T* sums, T* post) const {
    const Staircase<T>& s = layers[l];
    const auto activated = [&](int64_t from, int64_t to) {
      if (post) activate_rows(from, to, lanes, sums, post);
    };
    multiply_rows(s, block + input_rows(l) * kLanes, begin, end, lanes,
                  [&](int64_t r, int64_t lane, Vector sum) FASTVAE_INLINE_LAMBDA {
                    Vector h = fused(sum, s.scale(r), s.bias(r));
                    if (context_term) h += load(context_term + r * kLanes + lane);
                    if (carried) h += load(carried + r * kLanes + lane);
                    store(sums + r * kLanes + lane, h);
                  },
                  activated, {sums});
  }

  // Not inlined: each kind of tile would get a copy for every activation.
  __attribute__((noinline)) void activate_rows(int64_t begin, int64_t end, LaneRange lanes, const T* pre,
                                               T* post) const {
    with_activation(activation, [&](auto a) {
      each_vector<T>(begin, end, lanes, [&](int64_t at) FASTVAE_INLINE_LAMBDA {
        store(post + at, activate<decltype(a)::value>(load(pre + at)));
      });
    });
  }

  bool interleaved_;
  int64_t params_per_feature_;
};

// The lanes of one task: the most that leave enough tasks for all threads.
template <class T>
int64_t lanes_per_task(int64_t samples) {
  int64_t lanes = kLanes;
  while (lanes > Simd<T>::kWidth && (samples + lanes - 1) / lanes < omp_get_max_threads()) lanes /= 2;
  return lanes;
}

// Calls body(block, lanes) for all samples.
template <class T, class Body>
void parallel_lanes(int64_t samples, int64_t work_per_sample, const Body& body) {
  const int64_t step = lanes_per_task<T>(samples), width = Simd<T>::kWidth;
  parallel_tasks((samples + step - 1) / step, step * work_per_sample, [&](int64_t task) {
    const int64_t block = task * step / kLanes, begin = task * step % kLanes;
    const int64_t count = std::min(kLanes, samples - block * kLanes);
    const int64_t end = std::min(begin + step, (count + width - 1) / width * width);
    if (begin < end) body(block, LaneRange{begin, end, count});
  });
}

// The work of a sample, for parallel_tasks, in vectors of multiplications.
template <class T>
int64_t work_of(const Network<T>& network) {
  int64_t work = 0;
  for (const auto& s : network.layers) work += s.layer.in * s.layer.out / 2;
  return work / 4;
}

}  // namespace FASTVAE_ISA
}  // namespace fastvae
