// Gradients of masked layers' weights, biases and factors: sums over all samples, one writer for each number.
#pragma once

#include "base/memory.h"
#include "base/parallel.h"
#include "network/staircase.h"
#include "simd/pairwise_sums.h"
#include "simd/stream.h"

namespace fastvae {
inline namespace FASTVAE_ISA {

// Blocks of kLanes samples, `stride` numbers apart.
template <class T>
struct Blocks {
  const T* data;
  int64_t stride, samples;

  int64_t count() const { return (samples + kLanes - 1) / kLanes; }
  int64_t lanes_of(int64_t block) const { return std::min(kLanes, samples - block * kLanes); }
};

// Blocks whose samples are added one after another; see pairwise_sums.h.
constexpr int64_t kSumBlocks = 4;

// Inputs of a panel of the weight's gradient.
template <class T>
constexpr int64_t kPanel = kTileVectors * Simd<T>::kWidth;

// A layer's inputs in panels of kPanel, one row for each sample, as the sums over samples read them.
template <class T>
class PackedInputs {
 public:
  PackedInputs(int64_t inputs, int64_t samples)
      : inputs_(inputs), samples_(samples), data_((inputs + kPanel<T> - 1) / kPanel<T> * samples * kPanel<T>) {}

  const T* panel(int64_t first) const { return data_.get() + first * samples_; }

  // Packs the samples in these lanes of a block, which has units in rows of kLanes.
  void pack(const T* units, int64_t block, LaneRange lanes) const {
    constexpr int64_t width = Simd<T>::kWidth;
    const int64_t end = std::min(lanes.end, lanes.count);
    for (int64_t first = 0; first < inputs_; first += kPanel<T>) {
      T* to = data_.get() + first * samples_ + block * kLanes * kPanel<T>;
      for (int64_t lane = lanes.begin; lane < end; lane += width)
        for (int64_t c = 0; c < kPanel<T>; c += width) {
          typename Simd<T>::Vector square[width];
#pragma GCC unroll 16
          for (int64_t i = 0; i < width; ++i) {
            square[i] = typename Simd<T>::Vector{};
            if (first + c + i < inputs_) square[i] = load(units + (first + c + i) * kLanes + lane);
          }
          transpose_square<T>(square);
#pragma GCC unroll 16
          for (int64_t i = 0; i < width; ++i)
            if (lane + i < end) store(to + (lane + i) * kPanel<T> + c, square[i]);
        }
    }
  }

  // Packs all samples of a matrix with a column for each input.
  void pack(Matrix<T> samples) const {
    constexpr int64_t width = Simd<T>::kWidth;
    const int64_t panels = (inputs_ + kPanel<T> - 1) / kPanel<T>;
    parallel_ranges(panels * samples_, kPanel<T> / 4, [&](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; ++at) {
        const int64_t first = at / samples_ * kPanel<T>;
        for (int64_t c = 0; c < kPanel<T>; c += width)
          store(data_.get() + at * kPanel<T> + c,
                load_up_to(samples.row(at % samples_) + first + c, inputs_ - first - c));
      }
    });
  }

 private:
  int64_t inputs_, samples_;
  Scratch<T> data_;
};

// Where the rows of a gradient go. Their inputs are in sorted order. Either whole rows are written, with zeros for
// masked weights, or only the weights that count.
template <class T>
struct GradientRows {
  T* data;
  int64_t stride, first_row;
  const Order* order;  // of the rows; null: sorted order
  bool whole, streaming;

  T* row(int64_t r) const { return data + (order ? order->at(r) : r - first_row) * stride; }
};

template <int count, int vectors, class T>
FASTVAE_INLINE void store_gradient(const Staircase<T>& s, int64_t r, int64_t first,
                                   const typename Simd<T>::Vector (*acc)[vectors > 0 ? vectors : 1],
                                   const GradientRows<T>& to) {
  constexpr int64_t width = Simd<T>::kWidth;
  if (!to.whole || (vectors == kTileVectors && !to.streaming && s.prefix[r] >= first + kPanel<T>)) {
    for (int h = 0; h < count; ++h)
      for (int v = 0; v < vectors; ++v) store(to.row(r + h) + first + v * width, acc[h][v]);
    return;
  }
  const int64_t columns = std::min(kPanel<T>, s.layer.in - first);
  for (int h = 0; h < count; ++h) {
    T* row = to.row(r + h) + first;
    const int64_t kept = s.prefix[r + h] - first;
    for (int v = 0; v < kTileVectors; ++v) {
      const int64_t c = v * width;
      if (c >= columns) break;
      typename Simd<T>::Vector sums{};
      if (v < vectors) sums = kept >= c + width ? acc[h][v] : first_lanes<T>(acc[h][v], kept - c);
      if (to.streaming)
        stream(row + c, sums);
      else
        store_up_to(row + c, sums, columns - c);
    }
  }
}

template <int count, int vectors, class T>
FASTVAE_INLINE void gradient_vectors(const Staircase<T>& s, Blocks<T> d_out, const T* panel, int64_t r, int64_t first,
                                     PairwiseSums<T>& pairs, const GradientRows<T>& to) {
  typename Simd<T>::Vector acc[count][vectors];
  clear(acc);
  for (int64_t block = 0; block < d_out.count();) {
    for (const int64_t end = std::min(block + kSumBlocks, d_out.count()); block < end; ++block) {
      const T* g = d_out.data + block * d_out.stride + r * kLanes;
      const T* x = panel + block * kLanes * kPanel<T>;
      const int64_t lanes = d_out.lanes_of(block);
      // The next block's: no hardware foresees the step from one block to another.
      for (int h = 0; h < count; ++h)
        for (int64_t lane = 0; lane < kLanes; lane += kLineOf<T>)
          __builtin_prefetch(g + d_out.stride + h * kLanes + lane);
#pragma GCC unroll 4
      for (int64_t lane = 0; lane < lanes; ++lane) {
        multiply_add<0, count>([&](int h) FASTVAE_INLINE_LAMBDA { return g[h * kLanes + lane]; }, x + lane * kPanel<T>,
                               acc);
      }
    }
    if (block < d_out.count()) pairs.push(acc);
  }
  pairs.finish(acc);
  store_gradient<count, vectors>(s, r, first, Picked(acc).sums, to);
}

// Takes no more vectors than the widest of the rows needs: on the stairs whole panels would cost a fifth more.
template <int count, class T>
FASTVAE_INLINE void gradient_tile(const Staircase<T>& s, Blocks<T> d_out, const T* panel, int64_t r, int64_t first,
                                  PairwiseSums<T>& pairs, const GradientRows<T>& to) {
  const int64_t kept = s.prefix[r + count - 1] - first;
  if (kept <= 0) return store_gradient<count, 0, T>(s, r, first, nullptr, to);
  if constexpr (!kManyTiles<T>) return gradient_vectors<count, kTileVectors>(s, d_out, panel, r, first, pairs, to);
  if constexpr (kTileVectors > 2) {
    if (kept > 3 * Simd<T>::kWidth) return gradient_vectors<count, 4>(s, d_out, panel, r, first, pairs, to);
    if (kept > 2 * Simd<T>::kWidth) return gradient_vectors<count, 3>(s, d_out, panel, r, first, pairs, to);
  }
  if (kept > Simd<T>::kWidth) return gradient_vectors<count, 2>(s, d_out, panel, r, first, pairs, to);
  gradient_vectors<count, 1>(s, d_out, panel, r, first, pairs, to);
}

// Rows [begin, end) of the weight's gradient: sums over samples of d_out in^T.
template <class T>
void weight_gradient(const Staircase<T>& s, Blocks<T> d_out, const PackedInputs<T>& in, int64_t begin, int64_t end,
                     const GradientRows<T>& to) {
  const int64_t inputs = to.whole ? s.layer.in : s.prefix[end - 1];
  PairwiseSums<T> pairs(count_blocks(d_out.count(), kSumBlocks), kTileRows * kPanel<T>);
  for (int64_t first = 0; first < inputs; first += kPanel<T>) {
    const T* panel = in.panel(first);
    int64_t r = begin;
    for (; r + kTileRows <= end; r += kTileRows) gradient_tile<kTileRows>(s, d_out, panel, r, first, pairs, to);
    for (; r < end; ++r) gradient_tile<1>(s, d_out, panel, r, first, pairs, to);
  }
}

// Sums over samples of rows [begin, end), as many rows at once as a vector holds: they share the horizontal sum.
template <class T>
void sum_samples(const Staircase<T>& s, Blocks<T> blocks, int64_t begin, int64_t end, T* d_bias) {
  constexpr int64_t width = Simd<T>::kWidth;
  PairwiseSums<T> pairs(count_blocks(blocks.count(), kSumBlocks), width * width);
  for (int64_t r = begin; r < end; r += width) {
    const int64_t rows = std::min(width, end - r);
    typename Simd<T>::Vector totals[1][width];
    clear(totals);
    for (int64_t block = 0; block < blocks.count(); ++block) {
      if (block > 0 && block % kSumBlocks == 0) pairs.push(totals);
      const T* first = blocks.data + block * blocks.stride + r * kLanes;
      const int64_t lanes = blocks.lanes_of(block);
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t lane = 0; lane < lanes; lane += width)
          totals[0][i] += load_up_to(first + i * kLanes + lane, lanes - lane);
    }
    pairs.finish(totals);
    transpose_square<T>(totals[0]);
    alignas(kVectorBytes) T sums[width];
    for (int64_t i = 1; i < width; ++i) totals[0][0] += totals[0][i];
    store(sums, totals[0][0]);
    for (int64_t i = 0; i < rows; ++i) d_bias[s.outputs.at(r + i)] = sums[i];
  }
}

// Finishes a row while its gradient g, in sorted order and without the row's factor, is in the nearest cache: computes
// the gradient of the factor, and writes the row to its place. In a normalised row the factor is gain / |w|: the
// gradient is that of the gain, and g loses its part along w.
template <class T>
void finish_row(const Staircase<T>& s, int64_t r, const T* g, const LayerGradients<T>& to) {
  const int64_t output = s.outputs.at(r), kept = s.prefix[r];
  const T *w = s.rows[r], factor = s.scale(r);
  T* row = to.d_weight + output * s.layer.in;
  const auto column = [&](int64_t k) { return s.inputs.at(k); };
  T turn = 0;
  if (s.layer.scale) {
    // A masked weight may be NaN, so it is left out, not multiplied by zero.
    const T along = s.inputs.sorted() ? sum_terms<T>(kept, [&](int64_t k) { return w[k] * g[k]; })
                                      : sum_terms<T>(kept, [&](int64_t k) { return w[column(k)] * g[k]; });
    const T norm = s.layer.norm ? s.layer.norm[output] : T(0), inverse = norm > 0 ? 1 / norm : T(0);
    to.d_scale[output] = s.layer.norm ? along * inverse : along;
    // Without a norm there is no such part, also of a gradient that is infinite.
    if (norm > 0) turn = along * inverse * inverse;
  }
  if (!s.inputs.sorted()) {
    for (int64_t k = 0; k < kept; ++k)
      row[column(k)] = turn != 0 ? factor * fused(-turn, w[column(k)], g[k]) : factor * g[k];
    for (int64_t k = kept; k < s.layer.in; ++k) row[column(k)] = 0;
    return;
  }
  constexpr int64_t width = Simd<T>::kWidth;
  const bool streaming = streams(to.d_weight, s.layer.out, s.layer.in);
  for (int64_t k = 0; k < s.layer.in; k += width) {
    typename Simd<T>::Vector values{};
    // Reads only weights that count: the next ones may be past the end of the array.
    if (k < kept) values = factor * fused(-turn, load_up_to(w + k, kept - k), load_up_to(g + k, kept - k));
    // Zeros are selected: the factors may be infinite.
    if (kept - k < width && k < kept) values = first_lanes<T>(values, kept - k);
    if (streaming)
      stream(row + k, values);
    else
      store_up_to(row + k, values, s.layer.in - k);
  }
}

// A layer, its inputs and its outputs' adjoints.
template <class T>
struct GradientOfLayer {
  const Staircase<T>& s;
  const PackedInputs<T>& in;
  Blocks<T> d_out;
  LayerGradients<T> to;

  // Whether rows are finished one by one from a buffer: they have factors, or are not sorted.
  bool buffered() const { return s.layer.scale || !s.inputs.sorted(); }

  void run(int64_t begin, int64_t end) const {
    if (to.d_weight || to.d_scale) write_weight(begin, end);
    if (to.d_bias) sum_samples(s, d_out, begin, end, to.d_bias);
    fence_streams();
  }

 private:
  void write_weight(int64_t begin, int64_t end) const {
    if (buffered()) {
      const int64_t stride = (s.layer.in + kPanel<T> - 1) / kPanel<T> * kPanel<T>;
      const Scratch<T> buffer((end - begin) * stride);
      weight_gradient<T>(s, d_out, in, begin, end, {buffer.get(), stride, begin, nullptr, false, false});
      for (int64_t r = begin; r < end; ++r) finish_row(s, r, buffer.get() + (r - begin) * stride, to);
    } else {
      const bool streaming = streams(to.d_weight, s.layer.out, s.layer.in);
      weight_gradient<T>(s, d_out, in, begin, end, {to.d_weight, s.layer.in, begin, &s.outputs, true, streaming});
    }
  }
};

// Outputs [begin, end) of a layer.
struct GradientTask {
  size_t layer;
  int64_t begin, end, work;
};

// Several tasks for each thread, of whole tiles; a buffered one fits in the second-level cache. The long ones come
// first, so that no thread begins a long one last.
template <class T>
LocalVector<GradientTask> gradient_tasks(const LocalVector<GradientOfLayer<T>>& layers) {
  constexpr int64_t tasks_per_thread = 6, least_rows = 4 * kTileRows, buffer_bytes = 512 << 10;
  int64_t outputs = 0;
  for (const auto& layer : layers) outputs += layer.s.layer.out;
  const int64_t share = std::max(outputs / (tasks_per_thread * omp_get_max_threads()), least_rows);
  LocalVector<GradientTask> tasks;
  for (size_t l = 0; l < layers.size(); ++l) {
    const Staircase<T>& s = layers[l].s;
    const int64_t row_bytes = std::max<int64_t>(s.layer.in * sizeof(T), 1);
    const int64_t most = layers[l].buffered() ? std::min(share, std::max(buffer_bytes / row_bytes, least_rows)) : share;
    const int64_t step = (most + kTileRows - 1) / kTileRows * kTileRows;
    for (int64_t begin = 0; begin < s.layer.out; begin += step) {
      const int64_t end = std::min(begin + step, s.layer.out);
      tasks.push_back({l, begin, end, (end - begin) * (s.prefix[(begin + end) / 2] + 1)});
    }
  }
  std::stable_sort(tasks.begin(), tasks.end(),
                   [](const GradientTask& a, const GradientTask& b) { return a.work > b.work; });
  return tasks;
}

// The gradients of all layers in one go: a small layer alone would not keep all threads busy.
template <class T>
void layer_gradients(const LocalVector<GradientOfLayer<T>>& layers) {
  const LocalVector<GradientTask> tasks = gradient_tasks(layers);
  int64_t work = 0;
  for (const auto& task : tasks) work += task.work;
  const int64_t count = static_cast<int64_t>(tasks.size()), samples = layers[0].d_out.samples;
  parallel_tasks(count, work * samples / 4 / std::max<int64_t>(count, 1),
                 [&](int64_t i) { layers[tasks[i].layer].run(tasks[i].begin, tasks[i].end); });
}

}  // namespace FASTVAE_ISA
}  // namespace fastvae
