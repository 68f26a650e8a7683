#include "ops/linear_tril_gaussian.h"

#include <algorithm>

#include "base/memory.h"
#include "base/parallel.h"
#include "network/dense.h"
#include "network/input_gradient.h"
#include "network/network.h"
#include "network/weight_gradient.h"
#include "ops/gaussian_kl.h"
#include "simd/philox.h"

namespace fastvae {
namespace {

constexpr double kHalfLog2Pi = 0.91893853320467274178;
// Least rows of the factor of one task: their weights stay in the second-level cache for all blocks of samples.
constexpr int64_t kTaskRows = 96;
// Numbers whose sum is made one after another.
constexpr int64_t kTerms = 64;

// What is known of a block of samples, in rows of kLanes: mu, log_sigma before the clamp, the noise; where it is kept
// for the backward pass, the factor, too.
struct KeptRows {
  int64_t latents;
  bool has_factor;

  int64_t noise() const { return 2 * latents; }
  // The row of an entry of the factor, which is output r of the layer.
  int64_t entry(int64_t r) const { return r + latents; }
  int64_t count() const { return 3 * latents + (has_factor ? latents * (latents - 1) / 2 : 0); }
};

// Dimensions [begin, end) of z: a task of a pass over the factor.
struct Dimensions {
  int64_t begin, end;
};

template <class T>
LocalVector<Dimensions> tasks_of(const GaussianHead<T>& head) {
  LocalVector<Dimensions> tasks;
  for (int64_t begin = 0, end = 1; begin < head.latents; begin = end++) {
    while (end < head.latents && head.first_row(end) - head.first_row(begin) < kTaskRows) ++end;
    tasks.push_back({begin, end});
  }
  return tasks;
}

template <class T>
FASTVAE_INLINE typename Simd<T>::Vector clamp(const GaussianHead<T>& head, typename Simd<T>::Vector x) {
  x = x < head.lower ? typename Simd<T>::Vector{} + head.lower : x;  // NaN stays
  return x > head.upper ? typename Simd<T>::Vector{} + head.upper : x;
}

// A sum in each lane whose terms come one by one: those of kTerms are added up, and then to the total.
template <class T>
struct PartialSums {
  typename Simd<T>::Vector part{}, total{};
  int64_t terms = 0;

  FASTVAE_INLINE void add(typename Simd<T>::Vector term) {
    part += term;
    if (++terms % kTerms) return;
    total += part;
    part = typename Simd<T>::Vector{};
  }
  FASTVAE_INLINE typename Simd<T>::Vector sum() const { return total + part; }
};

template <class T>
void draw_in_lanes(NoiseSource<T> source, int64_t samples, int64_t columns, int64_t block, LaneRange lanes, T* to) {
  NoiseRows<T> noise(source, Extent{1, samples, columns});
  const Scratch<T> rows(kLanes * columns);
  const int64_t end = std::min(lanes.end, lanes.count);
  for (int64_t lane = lanes.begin, count; lane < end; lane += count) {
    count = std::min(noise.most(), end - lane);
    noise.draw(block * kLanes + lane, count);
    for (int64_t i = lane; i < lane + count; ++i)
      std::copy_n(noise[block * kLanes + i], columns, rows.get() + i * columns);
  }
  samples_to_lanes(rows.get(), columns, columns, nullptr, lanes, to);
}

// Writes log q of the samples in some lanes.
template <class T>
void write_log_q(const GaussianHead<T>& head, const T* kept, int64_t block, LaneRange lanes, T* log_q) {
  const T constant = static_cast<T>(kHalfLog2Pi * static_cast<double>(head.latents));
  const KeptRows rows{head.latents, false};
  alignas(kVectorBytes) T found[kLanes];
  for (int64_t lane = lanes.begin; lane < lanes.end; lane += Simd<T>::kWidth) {
    PartialSums<T> energy;
    for (int64_t i = 0; i < head.latents; ++i) {
      const auto eps = load(kept + (rows.noise() + i) * kLanes + lane);
      energy.add(T(0.5) * eps * eps + clamp(head, load(kept + (head.latents + i) * kLanes + lane)));
    }
    store(found + lane, -(energy.sum() + constant));
  }
  for (int64_t lane = lanes.begin; lane < std::min(lanes.end, lanes.count); ++lane)
    log_q[block * kLanes + lane] = found[lane];
}

// An entry of the factor.
struct Place {
  int32_t i, j;
};

LocalVector<Place> places_of(Dimensions task) {
  LocalVector<Place> places;
  for (int64_t i = task.begin; i < task.end; ++i)
    for (int64_t j = 0; j < i; ++j) places.push_back({static_cast<int32_t>(i), static_cast<int32_t>(j)});
  return places;
}

// All of the forward pass on blocks of samples.
template <class T>
class Forward {
 public:
  using Vector = typename Simd<T>::Vector;

  Forward(const GaussianHead<T>& head, T* kept, int64_t samples)
      : head_(head),
        dense_(head.layer),
        rows_{head.latents, kept != nullptr},
        samples_(samples),
        blocks_((samples + kLanes - 1) / kLanes),
        inputs_(blocks_ * head.layer.in * kLanes),
        moved_(blocks_ * head.latents * kLanes),
        divergences_(blocks_ * head.latents * kLanes),
        own_(kept ? 0 : blocks_ * rows_.count() * kLanes),
        kept_(kept ? kept : own_.get()) {}

  // Mean, log_sigma, noise and log q.
  void begin(Matrix<T> h, NoiseSource<T> noise, T* log_q) const {
    const int64_t in = head_.layer.in, d = head_.latents;
    parallel_lanes<T>(samples_, 2 * d * (in / 8 + 16), [&](int64_t block, LaneRange lanes) {
      T *x = inputs_.get() + block * in * kLanes, *to = of_block(block);
      samples_to_lanes(h.row(block * kLanes), h.stride, in, nullptr, lanes, x);
      multiply_rows<true>(dense_.staircase, x, 0, 2 * d, lanes,
                          [&](int64_t r, int64_t lane, Vector sum)
                              FASTVAE_INLINE_LAMBDA { store(to + r * kLanes + lane, sum + dense_.staircase.bias(r)); });
      draw_in_lanes(noise, samples_, d, block, lanes, to + rows_.noise() * kLanes);
      write_log_q(head_, to, block, lanes, log_q);
    });
  }

  // Points and divergences, in lanes.
  void multiply_factor() const {
    const LocalVector<Dimensions> tasks = tasks_of(head_);
    const int64_t parts = static_cast<int64_t>(tasks.size()), groups = count_blocks(blocks_, kTaskBlocks);
    const int64_t work = kTaskRows * head_.layer.in * std::min(samples_, kTaskBlocks * kLanes) / 8;
    parallel_tasks(parts * groups, work, [&](int64_t t) {
      const Dimensions task = tasks[t % parts];
      const LocalVector<Place> places = places_of(task);
      const Scratch<T> sums((task.end - task.begin) * kSumRows * kLanes);
      const int64_t begin = t / parts * kTaskBlocks, end = std::min(blocks_, begin + kTaskBlocks);
      for (int64_t block = begin; block < end; ++block) run_task(task, places, block, sums.get());
    });
  }

  void finish(T* z, Divergence<T> kl) const {
    const int64_t d = head_.latents;
    parallel_lanes<T>(samples_, 4 * d, [&](int64_t block, LaneRange lanes) {
      lanes_to_samples(moved_.get() + block * d * kLanes, d, nullptr, lanes, z + block * kLanes * d, d);
      const T* each = divergences_.get() + block * d * kLanes;
      if (kl.by_dimension) return lanes_to_samples(each, d, nullptr, lanes, kl.data + block * kLanes * d, d);
      alignas(kVectorBytes) T totals[kLanes];
      for (int64_t lane = lanes.begin; lane < lanes.end; lane += Simd<T>::kWidth) {
        PartialSums<T> total;
        for (int64_t i = 0; i < d; ++i) total.add(load(each + i * kLanes + lane));
        store(totals + lane, total.sum());
      }
      for (int64_t lane = lanes.begin; lane < std::min(lanes.end, lanes.count); ++lane)
        kl.data[block * kLanes + lane] = totals[lane];
    });
  }

 private:
  T* of_block(int64_t block) const { return kept_ + block * rows_.count() * kLanes; }

  // Rows of a dimension's sums: of products with the noise, and of squares, each as add_term has it.
  static constexpr int64_t kSumRows = 4, kSquares = 2;

  // Adds a b, term j, to the first row of a sum. The second row has the earlier terms, of which every kTerms are one.
  static FASTVAE_INLINE void add_term(T* sum, int64_t j, Vector a, Vector b) {
    if (j > 0 && j % kTerms == 0) {
      store(sum + kLanes, load_sum(sum));
      store(sum, a * b);
    } else {
      store(sum, fused(a, b, load(sum)));
    }
  }
  static FASTVAE_INLINE Vector load_sum(const T* sum) { return load(sum) + load(sum + kLanes); }

  // `sums` has kSumRows for each dimension of the task.
  void run_task(Dimensions task, const LocalVector<Place>& places, int64_t block, T* sums) const {
    const LaneRange lanes = lanes_of(std::min(kLanes, samples_ - block * kLanes), Simd<T>::kWidth);
    const int64_t first = head_.first_row(task.begin);
    const auto sum_of = [&](int64_t i) { return sums + (i - task.begin) * kSumRows * kLanes; };
    T* to = of_block(block);
    const T* noise = to + rows_.noise() * kLanes;
    std::fill_n(sums, (task.end - task.begin) * kSumRows * kLanes, T(0));
    multiply_rows<true>(dense_.staircase, inputs_.get() + block * head_.layer.in * kLanes, first,
                        head_.first_row(task.end), lanes,
                        [&](int64_t r, int64_t lane, Vector sum) FASTVAE_INLINE_LAMBDA {
                          const Vector entry = head_.tril_scale * (sum + dense_.staircase.bias(r));
                          const auto [i, j] = places[r - first];
                          add_term(sum_of(i) + lane, j, entry, load(noise + j * kLanes + lane));
                          add_term(sum_of(i) + kSquares * kLanes + lane, j, entry, entry);
                          if (rows_.has_factor) store(to + rows_.entry(r) * kLanes + lane, entry);
                        });
    for (int64_t i = task.begin; i < task.end; ++i)
      for (int64_t lane = lanes.begin; lane < lanes.end; lane += Simd<T>::kWidth) {
        const int64_t at = (block * head_.latents + i) * kLanes + lane;
        const Vector mu = load(to + i * kLanes + lane);
        const Vector log_sigma = clamp(head_, load(to + (head_.latents + i) * kLanes + lane));
        const Vector below = load_sum(sum_of(i) + lane), squares = load_sum(sum_of(i) + kSquares * kLanes + lane);
        store(moved_.get() + at, mu + fused(exp(log_sigma), load(noise + i * kLanes + lane), below));
        store(divergences_.get() + at, T(0.5) * (squares + twice_kl(mu, log_sigma)));
      }
  }

  GaussianHead<T> head_;
  Dense<T> dense_;
  KeptRows rows_;
  int64_t samples_, blocks_;
  Scratch<T> inputs_, moved_, divergences_, own_;
  T* kept_;
};

// The upstream gradients of a block of samples, in rows of kLanes.
struct UpstreamRows {
  int64_t latents;
  bool by_dimension;

  int64_t kl(int64_t i) const { return latents + (by_dimension ? i : 0); }
  int64_t density() const { return latents + (by_dimension ? latents : 1); }
  int64_t count() const { return density() + 1; }
};

template <class T>
class Backward {
 public:
  using Vector = typename Simd<T>::Vector;

  Backward(const GaussianHead<T>& head, const T* kept, const T* d_z, const T* d_log_q, Divergence<const T> d_kl,
           int64_t samples)
      : head_(head),
        kept_(kept),
        d_z_(d_z),
        d_log_q_(d_log_q),
        d_kl_(d_kl),
        rows_{head.latents, true},
        upstream_rows_{head.latents, d_kl.by_dimension},
        samples_(samples),
        blocks_((samples + kLanes - 1) / kLanes),
        upstream_(blocks_ * upstream_rows_.count() * kLanes),
        adjoints_(blocks_ * head.layer.out * kLanes) {}

  // The adjoints of mean and log_sigma.
  void begin() const {
    const int64_t d = head_.latents;
    parallel_lanes<T>(samples_, 16 * d, [&](int64_t block, LaneRange lanes) {
      T* up = upstream_of(block);
      read_upstream(block, lanes, up);
      const T* kept = kept_ + block * rows_.count() * kLanes;
      T* to = adjoints_.get() + block * head_.layer.out * kLanes;
      for (int64_t i = 0; i < d; ++i)
        for (int64_t lane = lanes.begin; lane < lanes.end; lane += Simd<T>::kWidth) {
          const Vector g = load(up + i * kLanes + lane), kl = load(up + upstream_rows_.kl(i) * kLanes + lane);
          const Vector mu = load(kept + i * kLanes + lane), raw = load(kept + (d + i) * kLanes + lane);
          const Vector log_sigma = clamp(head_, raw), sigma = exp(log_sigma);
          const Vector moved = sigma * load(kept + (rows_.noise() + i) * kLanes + lane);
          Vector d_mu = g, d_log_sigma = g * moved - load(up + upstream_rows_.density() * kLanes + lane);
          if (d_kl_.data) {  // without it, not even zero times infinity
            d_mu += kl * mu;
            d_log_sigma += kl * (exp(log_sigma + log_sigma) - 1);
          }
          store(to + i * kLanes + lane, d_mu);
          // A descent step that leads away from the bounds is none.
          store(to + (d + i) * kLanes + lane, (raw - log_sigma) * d_log_sigma < 0 ? Vector{} : d_log_sigma);
        }
    });
  }

  // The adjoints of the factor, and all gradients.
  void run(Matrix<T> h, T* d_h, LayerGradients<T> gradients) const {
    const Dense<T> dense(head_.layer);
    const int64_t in = head_.layer.in, out = head_.layer.out;
    const bool of_layer = gradients.d_weight || gradients.d_bias;
    const PackedInputs<T> inputs(gradients.d_weight ? in : 0, samples_);
    if (gradients.d_weight) inputs.pack(h);
    const Blocks<T> adjoints{adjoints_.get(), out * kLanes, samples_};
    const GradientOfLayer<T> of_rows{dense.staircase, inputs, adjoints, gradients};
    // Mean and log_sigma are tasks, too.
    const int64_t first_tasks = (2 * head_.latents + kTaskRows - 1) / kTaskRows;
    const LocalVector<Dimensions> tasks = tasks_of(head_);
    const int64_t count = first_tasks + static_cast<int64_t>(tasks.size());
    parallel_tasks(count, kTaskRows * (of_layer ? in : 8) * samples_ / 8, [&](int64_t t) {
      if (t < first_tasks) {
        if (of_layer) of_rows.run(t * kTaskRows, std::min((t + 1) * kTaskRows, 2 * head_.latents));
        return;
      }
      const Dimensions task = tasks[t - first_tasks];
      for (int64_t block = 0; block < blocks_; ++block) write_adjoints(task, block);
      if (of_layer) of_rows.run(head_.first_row(task.begin), head_.first_row(task.end));
    });
    if (d_h) input_gradient(dense.staircase, adjoints, d_h);
  }

 private:
  T* upstream_of(int64_t block) const { return upstream_.get() + block * upstream_rows_.count() * kLanes; }

  void read_upstream(int64_t block, LaneRange lanes, T* to) const {
    const int64_t d = head_.latents;
    const auto spread = [&](const T* from, T* row) {
      for (int64_t lane = lanes.begin; lane < lanes.end; ++lane)
        row[lane] = from && lane < lanes.count ? from[block * kLanes + lane] : T(0);
    };
    samples_to_lanes(d_z_ + block * kLanes * d, d, d, nullptr, lanes, to);
    spread(d_log_q_, to + upstream_rows_.density() * kLanes);
    T* of_kl = to + upstream_rows_.kl(0) * kLanes;
    if (d_kl_.by_dimension)
      samples_to_lanes(d_kl_.data + block * kLanes * d, d, d, nullptr, lanes, of_kl);
    else
      spread(d_kl_.data, of_kl);
  }

  // The adjoints of some rows of the factor, before it is multiplied by tril_scale.
  void write_adjoints(Dimensions task, int64_t block) const {
    const LaneRange lanes = lanes_of(std::min(kLanes, samples_ - block * kLanes), Simd<T>::kWidth);
    const T *kept = kept_ + block * rows_.count() * kLanes, *up = upstream_of(block);
    T* to = adjoints_.get() + (block * head_.layer.out + head_.first_row(task.begin)) * kLanes;
    for (int64_t i = task.begin; i < task.end; ++i)
      for (int64_t j = 0; j < i; ++j, to += kLanes)
        for (int64_t lane = lanes.begin; lane < lanes.end; lane += Simd<T>::kWidth) {
          Vector d_entry = load(up + i * kLanes + lane) * load(kept + (rows_.noise() + j) * kLanes + lane);
          if (d_kl_.data)
            d_entry = fused(load(up + upstream_rows_.kl(i) * kLanes + lane),
                            load(kept + rows_.entry(head_.first_row(i) + j) * kLanes + lane), d_entry);
          store(to + lane, head_.tril_scale * d_entry);
        }
  }

  GaussianHead<T> head_;
  const T *kept_, *d_z_, *d_log_q_;
  Divergence<const T> d_kl_;
  KeptRows rows_;
  UpstreamRows upstream_rows_;
  int64_t samples_, blocks_;
  Scratch<T> upstream_, adjoints_;
};

int64_t kept_count(int64_t samples, int64_t latents) {
  return (samples + kLanes - 1) / kLanes * KeptRows{latents, true}.count() * kLanes;
}

template <class T>
void fwd(const GaussianHead<T>& head, Matrix<T> h, NoiseSource<T> noise, T* z, T* log_q, Divergence<T> kl, T* kept,
         int64_t samples) {
  const Forward<T> pass(head, kept, samples);
  pass.begin(h, noise, log_q);
  pass.multiply_factor();
  pass.finish(z, kl);
}

template <class T>
void bwd(const GaussianHead<T>& head, Matrix<T> h, const T* kept, const T* d_z, const T* d_log_q,
         Divergence<const T> d_kl, T* d_h, LayerGradients<T> gradients, int64_t samples) {
  const Backward<T> pass(head, kept, d_z, d_log_q, d_kl, samples);
  pass.begin();
  pass.run(h, d_h, gradients);
}

template <class T>
LinearTrilGaussian<T> kernels() {
  return {kept_count, fwd<T>, bwd<T>};
}

}  // namespace

inline namespace FASTVAE_ISA {
LinearTrilGaussian<float> linear_tril_gaussian_f32() { return kernels<float>(); }
LinearTrilGaussian<double> linear_tril_gaussian_f64() { return kernels<double>(); }
}  // namespace FASTVAE_ISA

}  // namespace fastvae
