// Gradients of a masked layer's weight, bias and factors: sums over all samples, one writer for each number.
#pragma once

#include "memory.h"
#include "parallel.h"
#include "staircase.h"
#include "stream.h"

namespace fastvae {
namespace {

// Blocks of kLanes samples, `stride` numbers apart.
template <class T>
struct Blocks {
  const T* data;
  int64_t stride, samples;

  int64_t count() const { return (samples + kLanes - 1) / kLanes; }
  int64_t lanes_of(int64_t block) const { return std::min(kLanes, samples - block * kLanes); }
};

// Inputs of a panel of the weight's gradient.
template <class T>
constexpr int64_t kPanel = kTileVectors * Simd<T>::kWidth;

// Inputs [first, first + kPanel) of all samples, one row for each sample.
template <class T>
void pack_panel(Blocks<T> in, int64_t first, int64_t inputs, T* panel) {
  constexpr int64_t width = Simd<T>::kWidth;
  for (int64_t block = 0; block < in.count(); ++block) {
    const int64_t lanes = in.lanes_of(block);
    for (int64_t lane = 0; lane < lanes; lane += width)
      for (int64_t c = 0; c < kPanel<T>; c += width) {
        typename Simd<T>::Vector square[width];
#pragma GCC unroll 16
        for (int64_t i = 0; i < width; ++i) {
          square[i] = typename Simd<T>::Vector{};
          if (first + c + i < inputs) square[i] = load(in.data + block * in.stride + (first + c + i) * kLanes + lane);
        }
        transpose_square<T>(square);
#pragma GCC unroll 16
        for (int64_t i = 0; i < width; ++i)
          if (lane + i < lanes) store(panel + (block * kLanes + lane + i) * kPanel<T> + c, square[i]);
      }
  }
}

// Rows r, ... of the gradient's panel out of the sums of its first vectors: zero where the mask is. A large gradient is
// written past the caches, unless its rows are read again for their factors.
template <int count, int vectors, class T>
FASTVAE_INLINE void store_gradient(const Staircase<T>& s, int64_t r, int64_t first,
                                   const typename Simd<T>::Vector (*acc)[vectors > 0 ? vectors : 1], T* d_weight) {
  constexpr int64_t width = Simd<T>::kWidth;
  const int64_t columns = std::min(kPanel<T>, s.layer.in - first);
  const bool streaming = s.inputs.sorted() && !s.layer.scale && streams(d_weight, s.layer.out, s.layer.in);
  if constexpr (vectors == kTileVectors) {
    // Most of a large layer: nothing masked, nothing beyond the last input.
    if (s.inputs.sorted() && !streaming && s.prefix[r] >= first + kPanel<T>) {
      for (int h = 0; h < count; ++h)
        for (int v = 0; v < vectors; ++v)
          store(d_weight + s.outputs.at(r + h) * s.layer.in + first + v * width, acc[h][v]);
      return;
    }
  }
  for (int h = 0; h < count; ++h) {
    T* row = d_weight + s.outputs.at(r + h) * s.layer.in;
    const int64_t kept = s.prefix[r + h] - first;
    for (int v = 0; v < kTileVectors; ++v) {
      const int64_t c = v * width;
      if (c >= columns) break;
      typename Simd<T>::Vector sums{};
      if (v < vectors) sums = kept >= c + width ? acc[h][v] : first_lanes<T>(acc[h][v], kept - c);
      if (!s.inputs.sorted()) {
        for (int64_t i = c; i < std::min(columns, c + width); ++i) row[s.inputs.at(first + i)] = sums[i - c];
      } else if (streaming) {
        stream(row + first + c, sums);
      } else if (c + width <= columns) {
        store(row + first + c, sums);
      } else {
        store_first(row + first + c, sums, columns - c);
      }
    }
  }
}

template <int count, int vectors, class T>
FASTVAE_INLINE void gradient_vectors(const Staircase<T>& s, Blocks<T> d_out, const T* panel, int64_t r, int64_t first,
                                     T* d_weight) {
  typename Simd<T>::Vector acc[count][vectors] = {};
  for (int64_t block = 0; block < d_out.count(); ++block) {
    const T* g = d_out.data + block * d_out.stride + r * kLanes;
    const T* x = panel + block * kLanes * kPanel<T>;
    const int64_t lanes = d_out.lanes_of(block);
    for (int64_t lane = 0; lane < lanes; ++lane) {
      T a[count];
      for (int h = 0; h < count; ++h) a[h] = g[h * kLanes + lane];
      multiply_add<0, count>(a, x + lane * kPanel<T>, acc);
    }
  }
  store_gradient<count, vectors>(s, r, first, acc, d_weight);
}

// No more vectors than the widest of the rows needs: on the stairs a whole panel would be a fifth too much.
template <int count, class T>
FASTVAE_INLINE void gradient_tile(const Staircase<T>& s, Blocks<T> d_out, const T* panel, int64_t r, int64_t first,
                                  T* d_weight) {
  const int64_t kept = s.prefix[r + count - 1] - first;
  if (kept <= 0) return store_gradient<count, 0, T>(s, r, first, nullptr, d_weight);
  if constexpr (kTileVectors > 2) {
    if (kept > 3 * Simd<T>::kWidth) return gradient_vectors<count, 4>(s, d_out, panel, r, first, d_weight);
    if (kept > 2 * Simd<T>::kWidth) return gradient_vectors<count, 3>(s, d_out, panel, r, first, d_weight);
  }
  if (kept > Simd<T>::kWidth) return gradient_vectors<count, 2>(s, d_out, panel, r, first, d_weight);
  gradient_vectors<count, 1>(s, d_out, panel, r, first, d_weight);
}

// Outputs [begin, end) and inputs [first, first + kPanel) of d_weight, (out, in): sums over samples of d_out in^T, zero
// where masked.
template <class T>
void weight_gradient(const Staircase<T>& s, Blocks<T> d_out, const T* panel, int64_t begin, int64_t end, int64_t first,
                     T* d_weight) {
  int64_t r = begin;
  for (; r + kTileRows <= end; r += kTileRows) gradient_tile<kTileRows>(s, d_out, panel, r, first, d_weight);
  for (; r < end; ++r) gradient_tile<1>(s, d_out, panel, r, first, d_weight);
}

// Sums over samples of rows [begin, end), as many at once as a vector holds: alone, each would be folded up by itself.
template <class T>
void sum_samples(const Staircase<T>& s, Blocks<T> blocks, int64_t begin, int64_t end, T* d_bias) {
  constexpr int64_t width = Simd<T>::kWidth;
  for (int64_t r = begin; r < end; r += width) {
    const int64_t rows = std::min(width, end - r);
    typename Simd<T>::Vector totals[width] = {};
    for (int64_t block = 0; block < blocks.count(); ++block) {
      const T* first = blocks.data + block * blocks.stride + r * kLanes;
      const int64_t lanes = blocks.lanes_of(block);
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t lane = 0; lane < lanes; lane += width)
          totals[i] += load_up_to(first + i * kLanes + lane, lanes - lane);
    }
    transpose_square<T>(totals);
    alignas(kVectorBytes) T sums[width];
    for (int64_t i = 1; i < width; ++i) totals[0] += totals[i];
    store(sums, totals[0]);
    for (int64_t i = 0; i < rows; ++i) d_bias[s.outputs.at(r + i)] = sums[i];
  }
}

// d_weight came without the factors of its rows: their gradient, and then the factors. Of normalised rows, factor
// gain / |w|, the gradient is that of the gain, and d_weight loses its part along w.
template <class T, class Column>
void scale_row(const Staircase<T>& s, int64_t r, T* d_weight, T* d_scale, const Column& column) {
  const int64_t output = s.outputs.at(r), kept = s.prefix[r];
  const T *w = s.rows[r], factor = s.layer.scale[output];
  T* g = d_weight + output * s.layer.in;
  // A masked weight may be NaN: it is left out, not multiplied by zero.
  const T along = sum_terms<T>(kept, [&](int64_t k) { return w[column(k)] * g[column(k)]; });
  const T norm = s.layer.norm ? s.layer.norm[output] : T(0), inverse = norm > 0 ? 1 / norm : T(0);
  d_scale[output] = s.layer.norm ? along * inverse : along;
  const T turn = along * inverse * inverse;
#pragma omp simd
  for (int64_t k = 0; k < kept; ++k) g[column(k)] = factor * (g[column(k)] - turn * w[column(k)]);
}

template <class T>
void scale_gradients(const Staircase<T>& s, int64_t r, T* d_weight, T* d_scale) {
  if (s.inputs.sorted())
    scale_row(s, r, d_weight, d_scale, [](int64_t k) { return k; });
  else
    scale_row(s, r, d_weight, d_scale, [&](int64_t k) { return s.inputs.at(k); });
}

// A layer, its inputs and its outputs' adjoints.
template <class T>
struct GradientOfLayer {
  const Staircase<T>& s;
  Blocks<T> in, d_out;
  LayerGradients<T> to;

  // One at least: without inputs there still are biases.
  int64_t panels() const { return std::max<int64_t>((s.layer.in + kPanel<T> - 1) / kPanel<T>, 1); }

  void run(int64_t first, int64_t begin, int64_t end) const {
    const Scratch<T> panel(in.count() * kLanes * kPanel<T>);
    if (s.prefix[end - 1] > first) pack_panel(in, first, s.layer.in, panel.get());
    weight_gradient(s, d_out, panel.get(), begin, end, first, to.d_weight);
    if (first == 0 && to.d_bias) sum_samples(s, d_out, begin, end, to.d_bias);
    fence_streams();
  }
};

// Outputs [begin, end) of the panel of a layer's gradient that begins with input `first`.
struct GradientTask {
  int64_t layer, first, begin, end, work;
};

// Packing a panel for fewer outputs than this would count.
constexpr int64_t kLeastOutputs = 192;

// Whole panels where those keep all threads busy, else parts of them; the long ones first, lest the last one be long.
template <class T>
LocalVector<GradientTask> gradient_tasks(const LocalVector<GradientOfLayer<T>>& layers) {
  int64_t panels = 0;
  for (const auto& layer : layers) panels += layer.panels();
  const bool whole = panels >= 4 * omp_get_max_threads();
  LocalVector<GradientTask> tasks;
  for (size_t l = 0; l < layers.size(); ++l) {
    const Staircase<T>& s = layers[l].s;
    const int64_t step = whole ? std::max<int64_t>(s.layer.out, 1) : kLeastOutputs;
    for (int64_t first = 0; first < layers[l].panels() * kPanel<T>; first += kPanel<T>)
      for (int64_t begin = 0; begin < s.layer.out; begin += step) {
        const int64_t end = std::min(begin + step, s.layer.out), inputs = std::min(s.layer.in - first, kPanel<T>);
        // The masked part is only filled with zeros.
        const int64_t seen = std::max(begin, inputs > 0 ? std::min<int64_t>(s.first_output[first], end) : end);
        tasks.push_back({static_cast<int64_t>(l), first, begin, end, (end - seen) * inputs + (end - begin)});
      }
  }
  std::stable_sort(tasks.begin(), tasks.end(),
                   [](const GradientTask& a, const GradientTask& b) { return a.work > b.work; });
  return tasks;
}

// The gradients of all layers, side by side: a small layer alone would not keep all threads busy.
template <class T>
void layer_gradients(const LocalVector<GradientOfLayer<T>>& layers) {
  const LocalVector<GradientTask> tasks = gradient_tasks(layers);
  int64_t work = 0;
  for (const auto& task : tasks) work += task.work;
  const int64_t count = static_cast<int64_t>(tasks.size()), samples = layers[0].in.samples;
  parallel_tasks(count, work * samples / 4 / std::max<int64_t>(count, 1), [&](int64_t i) {
    const GradientTask& task = tasks[i];
    layers[task.layer].run(task.first, task.begin, task.end);
  });
  for (const auto& layer : layers) {
    if (!layer.to.d_scale) continue;
    parallel_ranges(layer.s.layer.out, 2 * layer.s.layer.in, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) scale_gradients(layer.s, r, layer.to.d_weight, layer.to.d_scale);
    });
  }
}

}  // namespace
}  // namespace fastvae
