#include "ops/autoregressive_flow.h"

#include "network/network.h"
#include "network/weight_gradient.h"

namespace fastvae {
namespace {

template <class T>
int64_t blocks_of(int64_t samples) {
  return (samples + kLanes - 1) / kLanes;
}

// The context's term in a task's lanes, units in sorted order.
template <class T>
const T* context_lanes(const Network<T>& network, const T* context_term, int64_t block, LaneRange lanes, T* to) {
  if (!context_term) return nullptr;
  const int64_t width = network.layers[0].layer.out;
  samples_to_lanes(context_term + block * kLanes * width, width, width, network.layers[0].outputs.places(), lanes, to);
  return to;
}

// Runs one feature's step: adds to log |det| of each sample, and turns z into z', or z' into z.
template <FlowKind kind, bool inverse, class T>
FASTVAE_INLINE void step_feature(const Network<T>& network, int64_t feature, LaneRange lanes, const T* block,
                                 const T* from, T* to, T* log_det) {
  const T* m = block + network.param_row(0, feature) * kLanes;
  const T* s = kind == FlowKind::kLocationOnly ? m : block + network.param_row(1, feature) * kLanes;
  for (int64_t lane = lanes.begin; lane < lanes.end; lane += Simd<T>::kWidth) {
    const auto at = scale_of<kind, T>(load(s + lane));
    const auto moved = at.c * load(m + lane), value = load(from + lane);
    if (inverse) {
      store(to + lane, kind == FlowKind::kLocationOnly ? value - moved : (value - moved) * exp(-at.log_a));
      store(log_det + lane, load(log_det + lane) - at.log_a);
    } else {
      store(to + lane, at.a * value + moved);
      store(log_det + lane, load(log_det + lane) + at.log_a);
    }
  }
}

// Features whose scales are added one after another.
constexpr int64_t kBlockFeatures = 64;

// Moves the sums of a block of features to the totals of all.
template <class T>
void add_block(LaneRange lanes, T* sums, T* totals) {
  for (int64_t lane = lanes.begin; lane < lanes.end; lane += Simd<T>::kWidth) {
    store(totals + lane, load(totals + lane) + load(sums + lane));
    store(sums + lane, typename Simd<T>::Vector{});
  }
}

// Log |det| of a task's samples: features add to a sum, or each to a row of its own.
template <class T>
class LogDetLanes {
 public:
  LogDetLanes(LogDet<T> to, int64_t features, LaneRange lanes, T* memory)
      : to_(to), features_(features), lanes_(lanes), memory_(memory) {
    std::fill_n(memory, rows(to, features) * kLanes, T(0));
  }

  static int64_t rows(LogDet<T> to, int64_t features) { return to.by_dimension ? features : 2; }

  // The row that a feature adds to; `step` counts the features that have done so.
  T* row_of(int64_t feature, int64_t step) {
    if (to_.by_dimension) return memory_ + feature * kLanes;
    if (step % kBlockFeatures == 0) add_block(lanes_, memory_, totals());
    return memory_;
  }

  void store_block(int64_t block) {
    if (to_.by_dimension)
      return lanes_to_samples(memory_, features_, nullptr, lanes_, to_.data + block * kLanes * features_, features_);
    add_block(lanes_, memory_, totals());
    for (int64_t lane = lanes_.begin; lane < std::min(lanes_.end, lanes_.count); ++lane)
      to_.data[block * kLanes + lane] = totals()[lane];
  }

 private:
  T* totals() { return memory_ + kLanes; }

  LogDet<T> to_;
  int64_t features_;
  LaneRange lanes_;
  T* memory_;
};

// Upstream gradients of log |det| in a task's lanes.
template <class T>
class LogDetGradient {
 public:
  LogDetGradient(LogDet<const T> given, int64_t features, int64_t block, LaneRange lanes, T* memory)
      : stride_(given.by_dimension ? kLanes : 0), memory_(memory) {
    const int64_t columns = rows(given, features);
    samples_to_lanes(given.data + block * kLanes * columns, columns, columns, nullptr, lanes, memory);
  }

  static int64_t rows(LogDet<const T> given, int64_t features) { return given.by_dimension ? features : 1; }

  const T* of(int64_t feature) const { return memory_ + feature * stride_; }

 private:
  int64_t stride_;
  const T* memory_;
};

template <class T>
void fwd(const NetworkSpec<T>& spec, Matrix<T> x, const T* context_term, T* out, LogDet<T> log_det, T* saved,
         int64_t samples) {
  const Network<T> network(spec);
  const int64_t d = network.features, width = network.layers[0].layer.out, outputs = network.layers.back().layer.out;
  parallel_lanes<T>(samples, work_of(network), [&](int64_t index, LaneRange lanes) {
    const int64_t log_rows = LogDetLanes<T>::rows(log_det, d);
    const Scratch<T> scratch((d + width + log_rows) * kLanes + (saved ? 0 : network.rows * kLanes));
    T *moved = scratch.get(), *term = moved + d * kLanes, *logs = term + width * kLanes;
    T* block = saved ? saved + index * network.rows * kLanes : logs + log_rows * kLanes;
    samples_to_lanes(x.row(index * kLanes), x.stride, d, network.layers[0].inputs.places(), lanes, block);
    const T* context = context_lanes(network, context_term, index, lanes, term);
    for (int64_t l = 0; l < network.hidden_layers; ++l)
      network.hidden_forward(l, 0, network.layers[l].layer.out, lanes, context, block);
    network.params_forward(0, outputs, lanes, block);
    if (network.kind == FlowKind::kNone) {
      lanes_to_samples(block + network.params * kLanes, outputs, network.layers.back().outputs.places(), lanes,
                       out + index * kLanes * outputs, outputs);
      return;
    }
    LogDetLanes<T> log_scales(log_det, d, lanes, logs);
    with_kind(network.kind, [&](auto kind) {
      for (int64_t i = 0; i < d; ++i)
        step_feature<decltype(kind)::value, false>(network, i, lanes, block,
                                                   block + network.layers[0].inputs.place_of(i) * kLanes,
                                                   moved + i * kLanes, log_scales.row_of(i, i));
    });
    lanes_to_samples(moved, d, nullptr, lanes, out + index * kLanes * d, d);
    log_scales.store_block(index);
  });
}

// Computes the adjoints of one feature's parameters for the upstream gradient g, and replaces g by a g.
template <FlowKind kind, class T>
FASTVAE_INLINE void feature_backward(const Network<T>& network, int64_t feature, LaneRange lanes, const T* block,
                                     const T* d_log, T* adjoints, T* g) {
  const int64_t shift = network.param_row(0, feature) * kLanes;
  const int64_t logit = kind == FlowKind::kLocationOnly ? shift : network.param_row(1, feature) * kLanes;
  const T* z = block + network.layers[0].inputs.place_of(feature) * kLanes;
  for (int64_t lane = lanes.begin; lane < lanes.end; lane += Simd<T>::kWidth) {
    const auto at = scale_of<kind, T>(load(block + logit + lane));
    const auto upstream = load(g + lane), direct = upstream * at.a;
    const auto arm = load(z + lane) - pivot<kind, T>(load(block + shift + lane));
    store(adjoints + shift + lane, upstream * at.c);
    if (kind != FlowKind::kLocationOnly) store(adjoints + logit + lane, at.to_logit(direct * arm + load(d_log + lane)));
    store(g + lane, direct);
  }
}

// Computes the adjoints of all parameters of a block. d_x, (D, kLanes) in the order of features, receives the direct
// part a g; `logs` is memory for the gradients of log |det|.
template <class T>
void params_backward(const Network<T>& network, const T* d_out, LogDet<const T> d_log_det, int64_t index,
                     LaneRange lanes, const T* block, T* adjoints, T* d_x, T* logs) {
  const int64_t d = network.features, outputs = network.layers.back().layer.out;
  T* d_params = adjoints + network.params * kLanes;
  if (network.kind == FlowKind::kNone) {
    samples_to_lanes(d_out + index * kLanes * outputs, outputs, outputs, network.layers.back().outputs.places(), lanes,
                     d_params);
    std::fill_n(d_x, d * kLanes, T(0));
    return;
  }
  samples_to_lanes(d_out + index * kLanes * d, d, d, nullptr, lanes, d_x);
  const LogDetGradient<T> d_log(d_log_det, d, index, lanes, logs);
  with_kind(network.kind, [&](auto kind) {
    for (int64_t i = 0; i < d; ++i)
      feature_backward<decltype(kind)::value>(network, i, lanes, block, d_log.of(i), adjoints, d_x + i * kLanes);
  });
}

template <class T>
void bwd(const NetworkSpec<T>& spec, const T* d_out, LogDet<const T> d_log_det, const T* saved, T* d_x,
         T* d_context_term, const std::vector<LayerGradients<T>>& layers, int64_t samples) {
  const Network<T> network(spec);
  const int64_t d = network.features, block_size = network.rows * kLanes;
  const int64_t width = network.layers[0].layer.out;
  const Scratch<T> kept(blocks_of<T>(samples) * block_size);
  std::vector<std::unique_ptr<PackedInputs<T>>> inputs;
  for (int64_t l = 0; l <= network.hidden_layers && layers[0].d_weight; ++l)
    inputs.emplace_back(new PackedInputs<T>(network.layers[l].layer.in, samples));
  parallel_lanes<T>(samples, 2 * work_of(network), [&](int64_t index, LaneRange lanes) {
    const Scratch<T> scratch(block_size + (2 * d + LogDetGradient<T>::rows(d_log_det, d)) * kLanes);
    T *scaled = scratch.get(), *direct = scaled + block_size, *through = direct + d * kLanes;
    T* adjoints = kept.get() + index * block_size;
    const T* block = saved + index * block_size;
    const int64_t last = network.hidden_layers;
    params_backward(network, d_out, d_log_det, index, lanes, block, adjoints, direct, through + d * kLanes);
    network.scale_adjoints(last, 0, network.layers[last].layer.out, lanes, adjoints + network.params * kLanes,
                           scaled + network.params * kLanes);
    const auto pack = [&](int64_t l) {
      if (!inputs.empty()) inputs[l]->pack(block + network.input_rows(l) * kLanes, index, lanes);
    };
    for (int64_t l = last - 1; l >= 0; --l) {
      network.hidden_backward(l, 0, network.layers[l].layer.out, lanes, block, adjoints, scaled);
      // Now, while the nearer caches hold what hidden_backward read.
      pack(l + 1);
    }
    pack(0);
    const Staircase<T>& first = network.layers[0];
    const int64_t own = network.hidden_adjoint_rows(0) * kLanes;
    if (d_x) {
      network.layer_backward(0, 0, d, lanes, (first.layer.scale ? scaled : adjoints) + own, through);
      for (int64_t k = 0; k < d; ++k) {
        T *to = direct + first.inputs.at(k) * kLanes, *sum = through + k * kLanes;
        for (int64_t lane = lanes.begin; lane < lanes.end; lane += Simd<T>::kWidth)
          store(to + lane, load(to + lane) + load(sum + lane));
      }
      lanes_to_samples(direct, d, nullptr, lanes, d_x + index * kLanes * d, d);
    }
    if (d_context_term)
      lanes_to_samples(adjoints + own, width, first.outputs.places(), lanes, d_context_term + index * kLanes * width,
                       width);
  });
  if (!layers[0].d_weight) return;
  LocalVector<GradientOfLayer<T>> gradients;
  for (int64_t l = 0; l <= network.hidden_layers; ++l)
    gradients.push_back({network.layers[l], *inputs[l],
                         Blocks<T>{kept.get() + network.adjoint_rows(l) * kLanes, block_size, samples}, layers[l]});
  layer_gradients(gradients);
}

// Units of each layer by degree: those of degree p are [at(l, p - 1), at(l, p)).
template <class T>
class DegreeCounts {
 public:
  DegreeCounts(const Network<T>& network) : stride_(network.features + 1) {
    for (const auto& s : network.layers) {
      int64_t unit = 0;
      for (int64_t degree = 0; degree < stride_; ++degree) {
        while (unit < s.layer.out && s.layer.out_degrees[s.outputs.at(unit)] <= degree) ++unit;
        ends_.push_back(unit);
      }
    }
  }
  int64_t begin(int64_t l, int64_t degree) const { return degree > 0 ? end(l, degree - 1) : 0; }
  int64_t end(int64_t l, int64_t degree) const { return ends_[l * stride_ + degree]; }

 private:
  int64_t stride_;
  LocalVector<int64_t> ends_;
};

template <class T>
void inverse(const NetworkSpec<T>& spec, Matrix<T> z, const T* context_term, T* x, LogDet<T> log_det, T* saved,
             int64_t samples) {
  const Network<T> network(spec);
  const DegreeCounts<T> counts(network);
  const Staircase<T>& first = network.layers[0];
  const int64_t d = network.features, width = first.layer.out, last = network.hidden_layers;
  parallel_lanes<T>(samples, 2 * work_of(network), [&](int64_t index, LaneRange lanes) {
    const int64_t log_rows = LogDetLanes<T>::rows(log_det, d);
    const Scratch<T> scratch((d + width + log_rows) * kLanes + (saved ? 0 : network.rows * kLanes));
    T *given = scratch.get(), *term = given + d * kLanes, *logs = term + width * kLanes;
    T* block = saved ? saved + index * network.rows * kLanes : logs + log_rows * kLanes;
    samples_to_lanes(z.row(index * kLanes), z.stride, d, first.inputs.places(), lanes, given);
    const T* context = context_lanes(network, context_term, index, lanes, term);
    LogDetLanes<T> log_scales(log_det, d, lanes, logs);
    with_kind(network.kind, [&](auto kind) {
      for (int64_t place = 0; place < d; ++place) {
        const int64_t feature = first.inputs.at(place);
        for (int64_t l = 0; l < last; ++l)
          network.hidden_forward(l, counts.begin(l, place), counts.end(l, place), lanes, context, block);
        network.params_forward(counts.begin(last, place), counts.end(last, place), lanes, block);
        step_feature<decltype(kind)::value, true>(network, feature, lanes, block, given + place * kLanes,
                                                  block + place * kLanes, log_scales.row_of(feature, place));
      }
      // Units that no feature needs are kept for the backward pass.
      if (saved)
        for (int64_t l = 0; l < last; ++l)
          network.hidden_forward(l, counts.end(l, d - 1), network.layers[l].layer.out, lanes, context, block);
    });
    lanes_to_samples(block, d, first.inputs.places(), lanes, x + index * kLanes * d, d);
    log_scales.store_block(index);
  });
}

template <class T>
void inverse_bwd(const NetworkSpec<T>& spec, const T* d_x, LogDet<const T> d_log_det, const T* saved, T* d_z,
                 int64_t samples) {
  const Network<T> network(spec);
  const DegreeCounts<T> counts(network);
  const Staircase<T>& first = network.layers[0];
  const int64_t d = network.features, block_size = network.rows * kLanes, last = network.hidden_layers;
  parallel_lanes<T>(samples, 2 * work_of(network), [&](int64_t index, LaneRange lanes) {
    const int64_t log_rows = LogDetGradient<T>::rows(d_log_det, d);
    const Scratch<T> scratch(2 * block_size + (3 * d + log_rows) * kLanes);
    T *adjoints = scratch.get(), *scaled = adjoints + block_size, *solved = scaled + block_size;
    T *upstream = solved + d * kLanes, *through = upstream + d * kLanes, *logs = through + d * kLanes;
    const T* block = saved + index * block_size;
    const T* d_first = (first.layer.scale ? scaled : adjoints) + network.hidden_adjoint_rows(0) * kLanes;
    samples_to_lanes(d_x + index * kLanes * d, d, d, first.inputs.places(), lanes, upstream);
    // Outputs whose adjoints are not known yet count as 0.
    std::fill_n(adjoints, 2 * block_size, T(0));
    const LogDetGradient<T> d_log(d_log_det, d, index, lanes, logs);
    for (int64_t i = 0; i < log_rows * kLanes; ++i) logs[i] = -logs[i];
    with_kind(network.kind, [&](auto kind) {
      for (int64_t place = d - 1; place >= 0; --place) {
        const int64_t feature = first.inputs.at(place), degree = place + 1;
        for (int64_t l = last - 1; l >= 0; --l)
          network.hidden_backward(l, counts.begin(l, degree), counts.end(l, degree), lanes, block, adjoints, scaled);
        // The upstream gradient of the forward step is minus the solution; its direct part is a times that.
        T* minus = solved + feature * kLanes;
        network.layer_backward(0, place, place + 1, lanes, d_first, through);
        const int64_t logit = network.param_row(decltype(kind)::value == FlowKind::kLocationOnly ? 0 : 1, feature);
        for (int64_t lane = lanes.begin; lane < lanes.end; lane += Simd<T>::kWidth) {
          const auto at = scale_of<decltype(kind)::value, T>(load(block + logit * kLanes + lane));
          const auto sum = load(upstream + place * kLanes + lane) + load(through + place * kLanes + lane);
          store(minus + lane, -sum * exp(-at.log_a));
        }
        alignas(kVectorBytes) T g[kLanes];
        std::copy_n(minus, kLanes, g);
        feature_backward<decltype(kind)::value>(network, feature, lanes, block, d_log.of(feature), adjoints, g);
        network.scale_adjoints(last, counts.begin(last, place), counts.end(last, place), lanes,
                               adjoints + network.params * kLanes, scaled + network.params * kLanes);
      }
    });
    for (int64_t i = 0; i < d * kLanes; ++i) solved[i] = -solved[i];
    lanes_to_samples(solved, d, nullptr, lanes, d_z + index * kLanes * d, d);
  });
}

template <class T>
int64_t saved_rows(const NetworkSpec<T>& spec) {
  return RowLayout(spec).rows;
}

template <class T>
AutoregressiveFlow<T> kernels() {
  return {saved_rows<T>, fwd<T>, bwd<T>, inverse<T>, inverse_bwd<T>};
}

}  // namespace

inline namespace FASTVAE_ISA {
AutoregressiveFlow<float> autoregressive_flow_f32() { return kernels<float>(); }
AutoregressiveFlow<double> autoregressive_flow_f64() { return kernels<double>(); }
}  // namespace FASTVAE_ISA

}  // namespace fastvae
