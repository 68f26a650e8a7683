#include "ops/linear_bernoulli.h"

#include <algorithm>

#include "network/bernoulli.h"
#include "network/network.h"
#include "network/weight_gradient.h"
#include "simd/activation.h"

namespace fastvae {
namespace {

// Blocks whose part of the weight's gradient is summed up at once.
constexpr int64_t kChunkBlocks = 16;

template <class T, bool keep>
void log_probs(const MaskedLayer<T>& given, Matrix<T> h, Matrix<T> x, T* log_p, T* kept, BernoulliSizes sizes) {
  using Vector = typename Simd<T>::Vector;
  const Dense<T> dense(given);
  const int64_t in = given.in, out = given.out;
  const Visits visits(sizes);
  const int64_t parts = count_parts<T>(visits.count());
  each_part_of_visits<T>(
      in * out, x, out, 0, visits.count(), parts, [&](int64_t visit, int64_t part, Points<T>& points) {
        const LaneRange all = lanes_of_part(part, parts, visits.rows(visit)), lanes = lanes_with_rows<T>(all);
        const int64_t first = visits.first_row(visit);
        const Scratch<T> inputs(in * kLanes);
        T* const residuals = keep ? kept + visit * out * kLanes : nullptr;
        const T* values = read_points(points, visits, visit, lanes);
        samples_to_lanes(h.row(first), h.stride, in, nullptr, lanes, inputs.get());
        sum_log_probs<T>(dense.staircase, inputs.get(), values, lanes, log_p + first,
                         [&](int64_t at, int64_t lane, Vector value, Vector l, Vector tail) FASTVAE_INLINE_LAMBDA {
                           if constexpr (keep) store_residual<T>(value, l, tail, lanes.count - lane, residuals + at);
                         });
        if constexpr (keep) clear_lanes(lanes.end, all.end, out, residuals);
      });
}

template <class T>
void fwd(const MaskedLayer<T>& layer, Matrix<T> h, Matrix<T> x, T* log_p, T* kept, BernoulliSizes sizes) {
  (kept ? log_probs<T, true> : log_probs<T, false>)(layer, h, x, log_p, kept, sizes);
}

template <class T>
void bwd(const MaskedLayer<T>& given, const T* d_log_p, Matrix<T> h, Matrix<T> x, const T* kept, T* d_h, T* d_weight,
         T* d_bias, BernoulliSizes sizes) {
  using Vector = typename Simd<T>::Vector;
  constexpr int64_t width = Simd<T>::kWidth;
  const Dense<T> dense(given);
  const Staircase<T>& s = dense.staircase;
  const int64_t in = given.in, out = given.out, block_size = out * kLanes;
  const Visits visits(sizes);
  const int64_t chunk = std::min(kChunkBlocks, visits.count());
  const int64_t chunks = count_blocks(visits.count(), kChunkBlocks), parts = count_parts<T>(visits.count());
  // The residuals of a chunk, and the sums for the bias of each of its visits.
  const Scratch<T> computed(kept ? 0 : chunk * block_size), of_bias(d_bias ? chunk * out : 0);
  PairwiseSums<T> weight_parts(d_weight ? chunks : 0, out * in), bias_parts(d_bias ? chunks : 0, out);
  if (visits.count() == 0) {
    if (d_weight) std::fill_n(d_weight, out * in, T(0));
    if (d_bias) std::fill_n(d_bias, out, T(0));
  }
  for (int64_t from = 0; from < visits.count(); from += chunk) {
    const int64_t to = std::min(from + chunk, visits.count());
    const PackedInputs<T> packed(d_weight ? in : 0, (to - from) * kLanes);
    const T* const residuals = kept ? kept + from * block_size : computed.get();
    const auto sum_bias = [&](int64_t visit, const T* upstream) {
      weighted_sums(residuals + (visit - from) * block_size, upstream, out, of_bias.get() + (visit - from) * out);
    };
    const auto read_upstream = [&](int64_t visit, T* upstream) {
      std::fill_n(upstream, kLanes, T(0));
      std::copy_n(d_log_p + visits.first_row(visit), visits.rows(visit), upstream);
    };
    each_part_of_visits<T>(in * out, x, out, from, to, parts, [&](int64_t visit, int64_t part, Points<T>& points) {
      const LaneRange all = lanes_of_part(part, parts, visits.rows(visit)), lanes = lanes_with_rows<T>(all);
      const int64_t first = visits.first_row(visit);
      const Scratch<T> scratch((in + kTileRows + 1) * kLanes);
      T *inputs = scratch.get(), *upstream = inputs + in * kLanes, *logits = upstream + kLanes;
      const T* const own = residuals + (visit - from) * block_size;
      read_upstream(visit, upstream);
      if (!kept || d_weight) samples_to_lanes(h.row(first), h.stride, in, nullptr, all, inputs);
      if (!kept) {
        T* const to_block = computed.get() + (visit - from) * block_size;
        const T* values = read_points(points, visits, visit, lanes);
        each_group<T>(s, inputs, lanes, logits, [&](int64_t begin, int64_t end, const T* group) {
          for (int64_t r = begin; r < end; ++r)
            for (int64_t lane = lanes.begin; lane < lanes.end; lane += width) {
              const Vector l = load(group + (r - begin) * kLanes + lane);
              store_residual<T>(load(values + r * kLanes + lane), l, tail_of<T>(l), lanes.count - lane,
                                to_block + r * kLanes + lane);
            }
        });
        clear_lanes(lanes.end, all.end, out, to_block);
      }
      if (d_weight) {
        each_vector<T>(0, in, all, [&](int64_t i) FASTVAE_INLINE_LAMBDA {
          store(inputs + i, load(inputs + i) * load(upstream + i % kLanes));
        });
        packed.pack(inputs, visit - from, {all.begin, all.end, kLanes});
      }
      if (d_bias && parts == 1) sum_bias(visit, upstream);
      if (!d_h) return;
      multiply_columns<true>(s, own, 0, in, lanes, StoreTimes<T>{inputs, upstream});
      lanes_to_samples(inputs, in, nullptr, lanes, d_h + first * in, in);
    });
    // A sum over the lanes of a block does not depend on the number of threads.
    if (d_bias && parts > 1)
      parallel_tasks(to - from, out * kLanes / 8, [&](int64_t task) {
        alignas(kVectorBytes) T upstream[kLanes];
        read_upstream(from + task, upstream);
        sum_bias(from + task, upstream);
      });
    const bool last = to == visits.count();
    if (d_bias) {
      sum_rows(of_bias.get(), to - from, out, d_bias);
      last ? bias_parts.finish(d_bias) : bias_parts.push(d_bias);
    }
    if (!d_weight) continue;
    const Blocks<T> blocks{residuals, block_size, (to - from) * kLanes};
    layer_gradients<T>({{s, packed, blocks, {d_weight, nullptr, nullptr}}});
    last ? weight_parts.finish(d_weight) : weight_parts.push(d_weight);
  }
}

int64_t kept_count(int64_t out, BernoulliSizes sizes) { return Visits(sizes).count() * out * kLanes; }

template <class T>
LinearBernoulli<T> kernels() {
  return {fwd<T>, bwd<T>, kept_count};
}

}  // namespace

inline namespace FASTVAE_ISA {
LinearBernoulli<float> linear_bernoulli_f32() { return kernels<float>(); }
LinearBernoulli<double> linear_bernoulli_f64() { return kernels<double>(); }
}  // namespace FASTVAE_ISA

}  // namespace fastvae
