#include "ops/mlp_bernoulli.h"

#include <algorithm>
#include <memory>

#include "network/bernoulli.h"
#include "network/network.h"
#include "network/weight_gradient.h"
#include "simd/activation.h"

namespace fastvae {
namespace {

// Not inlined: each of the products' many kinds of tiles would get a copy for every activation.
template <class T>
__attribute__((noinline)) void activate_rows(Activation activation, int64_t begin, int64_t end, LaneRange lanes,
                                             const T* pre, T* outputs) {
  with_activation(activation, [&](auto a) {
    each_vector<T>(begin, end, lanes,
                   [&](int64_t i) FASTVAE_INLINE_LAMBDA { store(outputs + i, activate<a.value>(load(pre + i))); });
  });
}

template <class T>
void hidden_layer(const Staircase<T>& s, Activation activation, const T* inputs, LaneRange lanes, T* pre, T* outputs) {
  const int64_t first = 0;
  const auto activated = [&](int64_t begin, int64_t end) {
    activate_rows(activation, begin, end, lanes, pre, outputs);
  };
  multiply_rows<true>(s, inputs, 0, s.layer.out, lanes, StoreWithBias<T>{&s, pre, &first}, GroupDone(activated));
}

template <class T>
LocalVector<Dense<T>> dense_layers(const std::vector<MaskedLayer<T>>& layers) {
  LocalVector<Dense<T>> dense;
  dense.reserve(layers.size());
  for (const MaskedLayer<T>& layer : layers) dense.emplace_back(layer);
  return dense;
}

template <class T>
int64_t count_weights(const std::vector<MaskedLayer<T>>& layers) {
  int64_t weights = 0;
  for (const MaskedLayer<T>& layer : layers) weights += layer.in * layer.out;
  return weights;
}

// The rows of what is kept of a visit: of each hidden layer what its activation's derivative is taken at, then its
// activations where these are others; and the likelihood's derivatives to the logits.
struct KeptRows {
  template <class T>
  KeptRows(const std::vector<MaskedLayer<T>>& layers, Activation activation) {
    for (size_t l = 0; l + 1 < layers.size(); ++l) {
      at.push_back(count);
      if (needs_pre(activation)) count += layers[l].out;
      outputs.push_back(count);
      count += layers[l].out;
    }
    residuals = count;
    count += layers.back().out;
  }

  LocalVector<int64_t> at, outputs;
  int64_t residuals, count = 0;
};

template <class T, bool keep>
void log_probs(const std::vector<MaskedLayer<T>>& layers, Activation activation, Matrix<T> z, Matrix<T> x, T* log_p,
               T* kept, BernoulliSizes sizes) {
  using Vector = typename Simd<T>::Vector;
  const LocalVector<Dense<T>> dense = dense_layers(layers);
  const KeptRows place(layers, activation);
  int64_t widest = 0;
  for (const MaskedLayer<T>& layer : layers) widest = std::max(widest, layer.in);
  const int64_t in = layers.front().in, out = layers.back().out;
  const Visits visits(sizes);
  const int64_t parts = count_parts<T>(visits.count());
  const auto run = [&](int64_t visit, int64_t part, Points<T>& points) {
    const int64_t rows = visits.rows(visit), first = visits.first_row(visit);
    // What is kept of lanes without a row is read, too: sums over rows take whole blocks.
    LaneRange lanes = lanes_of_part(part, parts, rows);
    if (!keep) lanes = lanes_with_rows<T>(lanes);
    if (lanes.begin >= lanes.end) return;
    const Scratch<T> scratch(2 * widest * kLanes);
    T *inputs = scratch.get(), *outputs = inputs + widest * kLanes;
    T* const block = keep ? kept + visit * place.count * kLanes : nullptr;
    samples_to_lanes(z.row(first), z.stride, in, nullptr, lanes, inputs);
    for (size_t l = 0; l + 1 < dense.size(); ++l) {
      if (keep) outputs = block + place.outputs[l] * kLanes;
      hidden_layer(dense[l].staircase, activation, inputs, lanes, keep ? block + place.at[l] * kLanes : outputs,
                   outputs);
      std::swap(inputs, outputs);
    }
    T* const residuals = keep ? block + place.residuals * kLanes : nullptr;
    sum_log_probs<T>(dense.back().staircase, inputs, read_points(points, visits, visit, lanes), lanes, log_p + first,
                     [&](int64_t at, int64_t lane, Vector value, Vector l, Vector tail) FASTVAE_INLINE_LAMBDA {
                       if constexpr (keep) store_residual<T>(value, l, tail, rows - lane, residuals + at);
                     });
  };
  each_part_of_visits<T>(count_weights(layers), x, out, 0, visits.count(), parts, run);
}

template <class T>
void fwd(const std::vector<MaskedLayer<T>>& layers, int64_t activation, Matrix<T> z, Matrix<T> x, T* log_p, T* kept,
         BernoulliSizes sizes) {
  (kept ? log_probs<T, true> : log_probs<T, false>)(layers, static_cast<Activation>(activation), z, x, log_p, kept,
                                                    sizes);
}

// Turns gradients of a layer's activations into those of its pre-activations.
template <class T>
__attribute__((noinline)) void through_rows(Activation activation, int64_t rows, LaneRange lanes, const T* at,
                                            T* gradients) {
  with_activation(activation, [&](auto a) {
    each_vector<T>(0, rows, lanes, [&](int64_t i) FASTVAE_INLINE_LAMBDA {
      store(gradients + i, through_activation<a.value>(load(gradients + i), load(at + i)));
    });
  });
}

// Sums of each visit's part of the last bias's gradient, a few visits at a time.
template <class T>
void sum_visits(const T* parts, int64_t visits, int64_t out, T* d_bias) {
  constexpr int64_t at_once = 16;
  PairwiseSums<T> pairs(count_blocks(visits, at_once), out);
  std::fill_n(d_bias, out, T(0));
  for (int64_t from = 0; from < visits; from += at_once) {
    if (from > 0) pairs.push(d_bias);
    sum_rows(parts + from * out, std::min(at_once, visits - from), out, d_bias);
  }
  pairs.finish(d_bias);
}

template <class T>
void bwd(const std::vector<MaskedLayer<T>>& layers, int64_t activation, const T* d_log_p, Matrix<T> z, const T* kept,
         T* d_z, const std::vector<LayerGradients<T>>& gradients, BernoulliSizes sizes) {
  const auto kind = static_cast<Activation>(activation);
  const LocalVector<Dense<T>> dense = dense_layers(layers);
  const KeptRows place(layers, kind);
  const int64_t last = static_cast<int64_t>(layers.size()) - 1, in = layers.front().in, out = layers.back().out;
  const Visits visits(sizes);
  const int64_t count = visits.count(), block_size = place.count * kLanes, samples = count * kLanes;
  const bool of_layers = !gradients.empty(), of_last_bias = of_layers && gradients.back().d_bias;
  // Gradients of the hidden layers' pre-activations are where the activations' derivatives are taken in `kept`.
  const Scratch<T> adjoints(last > 0 ? count * block_size : 0), of_bias(of_last_bias ? count * out : 0);
  std::vector<std::unique_ptr<PackedInputs<T>>> packed;
  for (int64_t l = 0; l <= last && of_layers; ++l) packed.emplace_back(new PackedInputs<T>(layers[l].in, samples));
  const int64_t parts = count_parts<T>(count);
  const auto sum_bias = [&](int64_t visit, const T* upstream) {
    weighted_sums(kept + visit * block_size + place.residuals * kLanes, upstream, out, of_bias.get() + visit * out);
  };
  const auto read_upstream = [&](int64_t visit, T* upstream) {
    std::fill_n(upstream, kLanes, T(0));
    std::copy_n(d_log_p + visits.first_row(visit), visits.rows(visit), upstream);
  };
  const auto run = [&](int64_t visit, int64_t part, Points<T>&) {
    const int64_t rows = visits.rows(visit), first = visits.first_row(visit);
    const LaneRange lanes = lanes_of_part(part, parts, rows), packed_lanes{lanes.begin, lanes.end, kLanes};
    const T* const block = kept + visit * block_size;
    T* const own = adjoints.get() + visit * block_size;
    const Scratch<T> scratch((std::max(in, layers[last].in) + in + 2) * kLanes);
    T *upstream = scratch.get(), *ones = upstream + kLanes, *inputs = ones + kLanes, *scaled = inputs + in * kLanes;
    read_upstream(visit, upstream);
    std::fill_n(ones, kLanes, T(1));
    if (of_layers || last == 0) samples_to_lanes(z.row(first), z.stride, in, nullptr, lanes, inputs);
    const auto input_of = [&](int64_t l) { return l == 0 ? inputs : block + place.outputs[l - 1] * kLanes; };
    const T* const residuals = block + place.residuals * kLanes;
    if (of_layers) {
      // The last layer's inputs carry the upstream gradient: there are fewer of them than of its outputs.
      const T* from = input_of(last);
      each_vector<T>(0, layers[last].in, lanes, [&](int64_t i) FASTVAE_INLINE_LAMBDA {
        store(scaled + i, load(from + i) * load(upstream + i % kLanes));
      });
      packed[last]->pack(scaled, visit, packed_lanes);
      if (of_last_bias && parts == 1) sum_bias(visit, upstream);
    }
    for (int64_t l = last; l > 0; --l) {
      const T* d_out = l == last ? residuals : own + place.at[l] * kLanes;
      T* const d_in = own + place.at[l - 1] * kLanes;
      multiply_columns<true>(dense[l].staircase, d_out, 0, layers[l].in, lanes,
                             StoreTimes<T>{d_in, l == last ? upstream : ones});
      through_rows(kind, layers[l].in, lanes, block + place.at[l - 1] * kLanes, d_in);
      if (of_layers) packed[l - 1]->pack(input_of(l - 1), visit, packed_lanes);
    }
    if (!d_z) return;
    const T* d_out = last == 0 ? residuals : own + place.at[0] * kLanes;
    multiply_columns<true>(dense[0].staircase, d_out, 0, in, lanes, StoreTimes<T>{inputs, last == 0 ? upstream : ones});
    lanes_to_samples(inputs, in, nullptr, lanes, d_z + first * in, in);
  };
  each_part_of_visits<T>(2 * count_weights(layers), {nullptr, 0}, 0, 0, count, parts, run);
  if (!of_layers) return;
  // A sum over the lanes of a block does not depend on the number of threads.
  if (of_last_bias && parts > 1)
    parallel_tasks(count, out * kLanes / 8, [&](int64_t visit) {
      alignas(kVectorBytes) T upstream[kLanes];
      read_upstream(visit, upstream);
      sum_bias(visit, upstream);
    });
  LocalVector<GradientOfLayer<T>> sums;
  for (int64_t l = 0; l < last; ++l)
    sums.push_back({dense[l].staircase, *packed[l],
                    Blocks<T>{adjoints.get() + place.at[l] * kLanes, block_size, samples}, gradients[l]});
  sums.push_back({dense[last].staircase,
                  *packed[last],
                  Blocks<T>{kept + place.residuals * kLanes, block_size, samples},
                  {gradients[last].d_weight, nullptr, nullptr}});
  layer_gradients(sums);
  if (of_last_bias) sum_visits(of_bias.get(), count, out, gradients[last].d_bias);
}

template <class T>
int64_t kept_count(const std::vector<MaskedLayer<T>>& layers, int64_t activation, BernoulliSizes sizes) {
  return Visits(sizes).count() * KeptRows(layers, static_cast<Activation>(activation)).count * kLanes;
}

template <class T>
MlpBernoulli<T> kernels() {
  return {fwd<T>, bwd<T>, kept_count<T>};
}

}  // namespace

inline namespace FASTVAE_ISA {
MlpBernoulli<float> mlp_bernoulli_f32() { return kernels<float>(); }
MlpBernoulli<double> mlp_bernoulli_f64() { return kernels<double>(); }
}  // namespace FASTVAE_ISA

}  // namespace fastvae
