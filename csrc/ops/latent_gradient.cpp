#include "ops/latent_gradient.h"

#include <algorithm>

#include "network/decoder.h"
#include "network/dense.h"
#include "network/few_rows.h"
#include "network/network.h"

// A row's values and, where a Hessian product is wanted, its tangents along v pass the layers side by side: as lanes of
// one block, or as rows of one matrix. A product takes both at once, and so reads each weight once for both.

namespace fastvae {
namespace {

// Up to as many rows vectors run over units; for more, lanes hold samples.
#ifdef __AVX512F__
constexpr int64_t kFewRows = 24;
#else
constexpr int64_t kFewRows = 16;
#endif
static_assert(2 * kFewRows <= kMostRows);
// Blocks of one task: those of the same data points read them once.
constexpr int64_t kTaskBlocks = 8;

template <class T>
int64_t widest_input(const LatentProblem<T>& problem) {
  int64_t widest = 0;
  for (const auto& layer : problem.layers) widest = std::max(widest, layer.in);
  return widest;
}

// Samples of a block in lanes; their tangents are in the lanes behind.
template <class T>
class LaneWay {
 public:
  using Vector = typename Simd<T>::Vector;

  LaneWay(const LatentProblem<T>& problem, LatentResults<T> to)
      : problem_(problem),
        to_(to),
        activation_(static_cast<Activation>(problem.activation)),
        streams_(problem.v.data ? 2 : 1) {
    const int64_t threads = omp_get_max_threads(), each = (problem.rows + threads - 1) / threads;
    samples_ = std::min(kLanes / streams_, padded<T>(each));
    dense_.reserve(problem.layers.size());
    for (const auto& layer : problem.layers) dense_.emplace_back(layer);
  }

  void run() const {
    const int64_t blocks = (problem_.rows + samples_ - 1) / samples_;
    const int64_t step = std::max<int64_t>(1, std::min(kTaskBlocks, blocks / omp_get_max_threads()));
    int64_t work = 0;
    for (const auto& layer : problem_.layers) work += streams_ * samples_ * layer.in * layer.out / 4;
    parallel_tasks((blocks + step - 1) / step, step * work, [&](int64_t task) {
      Points<T> points(problem_.x, problem_.layers.back().out);
      for (int64_t b = task * step; b < std::min(blocks, (task + 1) * step); ++b) run_block(b * samples_, points);
    });
  }

 private:
  // Takes the rows from `first` on.
  void run_block(int64_t first, Points<T>& points) const {
    const int64_t hidden = static_cast<int64_t>(dense_.size()) - 1;
    const LaneRange values = lanes_of(std::min(samples_, problem_.rows - first), Simd<T>::kWidth);
    const LaneRange lanes{0, values.end * streams_, values.count};
    const Staircase<T>& last = dense_.back().staircase;
    const int64_t widest = widest_input(problem_), in = problem_.layers.front().in;
    const int64_t copies = needs_two(activation_, streams_ > 1) ? 2 : 1;
    int64_t size = in + last.layer.out + 2 * widest + kTileRows;
    for (int64_t l = 0; l < hidden; ++l) size += copies * problem_.layers[l].out;
    const Scratch<T> scratch(size * kLanes);
    T* next = scratch.get();
    const auto take = [&](int64_t units) {
      T* const taken = next;
      next += units * kLanes;
      return taken;
    };
    T *const inputs = take(in), *const residuals = take(last.layer.out), *const logits = take(kTileRows);
    T *gradients = take(widest), *spare = take(widest);

    samples_to_lanes(problem_.z.row(first), problem_.z.stride, in, nullptr, values, inputs);
    if (streams_ > 1)
      samples_to_lanes(problem_.v.row(first), problem_.v.stride, in, nullptr, values, inputs + values.end);
    LocalVector<Hidden<T>> layers;
    const T* from = inputs;
    for (int64_t l = 0; l < hidden; ++l) {
      const Staircase<T>& s = dense_[l].staircase;
      T* const at = take(s.layer.out);
      layers.push_back({at, copies > 1 ? take(s.layer.out) : at});
      multiply_rows<true>(s, from, 0, s.layer.out, lanes,
                          [&](int64_t r, int64_t lane, Vector sum) FASTVAE_INLINE_LAMBDA {
                            store(at + r * kLanes + lane, lane < values.end ? sum + s.bias(r) : sum);
                          });
      activate_cells(activation_, cells(s.layer.out, values), layers.back());
      from = layers.back().out;
    }

    T log_p[kLanes];
    const T* const x = points.read([&](int64_t lane) { return problem_.point_of(first + lane); }, values);
    with_likelihood(problem_.likelihood, [&](auto kind) {
      make_residuals<kind.value>(last, from, x, first, values, lanes, logits, residuals, log_p);
    });
    if (to_.log_p) std::copy_n(log_p, values.count, to_.log_p + first);

    const T* upstream = residuals;
    for (int64_t l = hidden; l >= 0; --l) {
      const Staircase<T>& s = dense_[l].staircase;
      multiply_columns<true>(s, upstream, 0, s.layer.in, lanes,
                             [&](int64_t k, int64_t lane, Vector sum)
                                 FASTVAE_INLINE_LAMBDA { store(gradients + k * kLanes + lane, sum); });
      if (l > 0) pass_back(activation_, cells(s.layer.in, values), layers[l - 1].at, gradients);
      upstream = gradients;
      std::swap(gradients, spare);
    }
    if (to_.gradient) lanes_to_samples(spare, in, nullptr, values, to_.gradient + first * in, in);
    if (to_.product) lanes_to_samples(spare + values.end, in, nullptr, values, to_.product + first * in, in);
  }

  Cells cells(int64_t units, LaneRange values) const {
    return {units, kLanes, values.end, streams_ > 1 ? values.end : 0};
  }

  // The logits, a few outputs at a time, become derivatives of the log-likelihood at once. The tangents take the
  // gradient's share of the product along.
  template <Likelihood kind>
  void make_residuals(const Staircase<T>& s, const T* from, const T* x, int64_t first, LaneRange values,
                      LaneRange lanes, T* logits, T* residuals, T* log_p) const {
    alignas(kVectorBytes) T factors[kLanes] = {};
    LaneSums<T> sums;
    if (problem_.d_log_p) std::copy_n(problem_.d_log_p + first, values.count, factors);
    int64_t group = 0;
    multiply_rows<true>(
        s, from, 0, s.layer.out, lanes,
        [&](int64_t r, int64_t lane, Vector sum) FASTVAE_INLINE_LAMBDA {
          store(logits + (r - group) * kLanes + lane, lane < values.end ? sum + s.bias(r) : sum);
        },
        [&](int64_t begin, int64_t end) {
          sums.begin_group(end == s.layer.out);
          for (int64_t lane = 0; lane < values.end; lane += Simd<T>::kWidth) {
            Terms<kind, T> terms;
            for (int64_t r = begin; r < end; ++r) {
              const T* const l = logits + (r - begin) * kLanes + lane;
              T* const at = residuals + r * kLanes + lane;
              const auto derivatives = terms.add(load(x + r * kLanes + lane), load(l));
              store(at, derivatives.first);
              if (streams_ == 1) continue;
              Vector change = derivatives.second * load(l + values.end);
              if (problem_.d_log_p) change = fused(load(factors + lane), derivatives.first, change);
              store(at + values.end, change);
            }
            sums.set_part(lane, sums.part(lane) + terms.total());
          }
          group = end;
        });
    std::copy_n(sums.total(), kLanes, log_p);
  }

  const LatentProblem<T>& problem_;
  LatentResults<T> to_;
  Activation activation_;
  int64_t streams_, samples_;
  LocalVector<Dense<T>> dense_;
};

// Rows of a matrix; their tangents are the rows behind.
template <class T>
void run_few(const LatentProblem<T>& problem, LatentResults<T> to) {
  const auto activation = static_cast<Activation>(problem.activation);
  const int64_t rows = problem.rows, streams = problem.v.data ? 2 : 1, all = rows * streams;
  const int64_t hidden = static_cast<int64_t>(problem.layers.size()) - 1;
  const int64_t copies = needs_two(activation, streams > 1) ? 2 : 1;
  const int64_t in = problem.layers.front().in, widest = padded<T>(widest_input(problem));
  int64_t size = padded<T>(in) + 2 * widest;
  for (int64_t l = 0; l < hidden; ++l) size += copies * padded<T>(problem.layers[l].out);
  const Scratch<T> scratch(size * all);
  T* next = scratch.get();
  const auto take = [&](int64_t columns) {
    const PaddedRows<T> taken{next, all, padded<T>(columns)};
    next += taken.size();
    std::fill_n(taken.data, taken.size(), T(0));
    return taken;
  };
  const auto cells = [&](PaddedRows<T> of) {
    return Cells{1, 0, rows * of.stride, streams > 1 ? rows * of.stride : 0};
  };

  PaddedRows<T> from = take(in);
  for (int64_t m = 0; m < rows; ++m) {
    std::copy_n(problem.z.row(m), in, from.row(m));
    if (streams > 1) std::copy_n(problem.v.row(m), in, from.row(rows + m));
  }
  LocalVector<PaddedRows<T>> at;
  for (int64_t l = 0; l < hidden; ++l) {
    const MaskedLayer<T>& layer = problem.layers[l];
    const PaddedRows<T> sums = take(layer.out), outputs = copies > 1 ? take(layer.out) : sums;
    const Parts parts(layer.out);
    each_part(layer, all, [&](int64_t part) {
      multiply_few(layer, from, parts.begin(part), parts.end(part), [&](int64_t m, int64_t o, T sum) {
        sums.row(m)[o] = layer.bias && m < rows ? sum + layer.bias[o] : sum;
      });
    });
    activate_cells(activation, cells(sums), Hidden<T>{sums.data, outputs.data});
    at.push_back(sums);
    from = outputs;
  }

  const MaskedLayer<T>& last = problem.layers.back();
  PaddedRows<T> gradients = take(last.in);
  const Parts parts(last.out);
  LocalVector<T> log_p(static_cast<size_t>(parts.count() * rows));
  std::fill(log_p.begin(), log_p.end(), T(0));
  with_likelihood(problem.likelihood, [&](auto kind) {
    sum_weighted(last, gradients, [&](int64_t part, int64_t begin, int64_t end, T* logits) {
      multiply_few(last, from, begin, end, [&](int64_t m, int64_t o, T sum) {
        logits[m * kGroup + o - begin] = last.bias && m < rows ? sum + last.bias[o] : sum;
      });
      for (int64_t m = 0; m < rows; ++m) {
        const T* const x = problem.x.row(problem.point_of(m)) + begin;
        typename Simd<T>::Vector total{};
        for (int64_t c = 0; c < end - begin; c += Simd<T>::kWidth) {
          const int64_t rest = end - begin - c;
          T *const l = logits + m * kGroup + c, *const tangents = l + rows * kGroup;
          Terms<kind.value, T> terms;
          const auto derivatives = terms.add(load_up_to(x + c, rest), load_up_to(l, rest));
          store(l, derivatives.first);
          if (streams > 1) {
            auto change = derivatives.second * load_up_to(tangents, rest);
            if (problem.d_log_p) change = fused(problem.d_log_p[m], derivatives.first, change);
            store(tangents, change);
          }
          total += rest < Simd<T>::kWidth ? first_lanes<T>(terms.total(), rest) : terms.total();
        }
        log_p[part * rows + m] += sum<T>(total);
      }
    });
  });

  PaddedRows<T> spare = take(widest_input(problem));
  for (int64_t l = hidden - 1; l >= 0; --l) {
    const MaskedLayer<T>& layer = problem.layers[l];
    pass_back(activation, cells(at[l]), at[l].data, gradients.data);
    spare.stride = padded<T>(layer.in);
    sum_weighted(layer, spare, [&](int64_t, int64_t begin, int64_t end, T* factors) {
      for (int64_t m = 0; m < all; ++m)
        std::copy(gradients.row(m) + begin, gradients.row(m) + end, factors + m * kGroup);
    });
    std::swap(gradients, spare);
  }
  for (int64_t m = 0; m < rows; ++m) {
    if (to.log_p) {
      to.log_p[m] = 0;
      for (int64_t part = 0; part < parts.count(); ++part) to.log_p[m] += log_p[part * rows + m];
    }
    if (to.gradient) std::copy_n(gradients.row(m), in, to.gradient + m * in);
    if (to.product) std::copy_n(gradients.row(rows + m), in, to.product + m * in);
  }
}

template <class T>
void run(const LatentProblem<T>& problem, LatentResults<T> to) {
  if (problem.rows == 0) return;
  if (problem.rows <= kFewRows)
    run_few(problem, to);
  else
    LaneWay<T>(problem, to).run();
}

template <class T>
LatentGradient<T> kernels() {
  return {run<T>};
}

}  // namespace

inline namespace FASTVAE_ISA {
LatentGradient<float> latent_gradient_f32() { return kernels<float>(); }
LatentGradient<double> latent_gradient_f64() { return kernels<double>(); }
}  // namespace FASTVAE_ISA

}  // namespace fastvae
