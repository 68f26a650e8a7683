#include "ops/logistic_mixture.h"

#include <algorithm>
#include <array>
#include <limits>
#include <vector>

#include "base/parallel.h"
#include "simd/activation.h"
#include "simd/lanes.h"

namespace fastvae {
namespace {

constexpr int64_t kWorkPerTerm = 32;
// Pixels of one task. It does not depend on the number of threads, and neither do the sums.
constexpr int64_t kTaskPixels = 4 * kLanes;

// (1 - e^-d) / d, the mean of e^-t over [0, d], as a quotient: the caller divides once for all its quotients.
template <class V>
struct Quotient {
  V numerator, denominator;
};

FASTVAE_INLINE Quotient<FloatVector> mean_decay(FloatVector d, FloatVector end) {
  FloatVector p = fused(d, -1.0f / 40320, 1.0f / 5040);
  p = fused(p, d, -1.0f / 720);
  p = fused(p, d, 1.0f / 120);
  p = fused(p, d, -1.0f / 24);
  p = fused(p, d, 1.0f / 6);
  p = fused(p, d, -0.5f);
  p = fused(p, d, 1.0f);
  const auto narrow = d < 0.3f;
  return {narrow ? p : 1.0f - end, narrow ? FloatVector{} + 1.0f : d};
}

FASTVAE_INLINE Quotient<DoubleVector> mean_decay(DoubleVector d, DoubleVector /* end */) {
  const auto narrow = d < 1e-5;
  const DoubleVector one = DoubleVector{} + 1.0;
  return {narrow ? fused(-d, 0.5 - d * (1.0 / 6), one) : -expm1_of_negative(-d), narrow ? one : d};
}

FASTVAE_INLINE FloatVector log(FloatVector x) { return x == x ? log_unit(x) : x; }  // NaN passes
FASTVAE_INLINE DoubleVector log(DoubleVector x) {
  return each_lane(x, [](double v) { return std::log(v); });
}

// A channel of a vector of pixels. The lowest level's bin reaches to minus infinity, the highest level's to infinity.
template <class T>
struct Channel {
  using Vector = typename Simd<T>::Vector;
  Vector x, outwards;
  Integers<Vector> inside;

  FASTVAE_INLINE Channel(Vector value, T half) : x(value) {
    const auto bottom = value < half - 1, top = value > 1 - half;
    inside = ~(bottom | top);
    outwards = bottom ? Vector{} - 1 : Vector{} + 1;
  }
};

// The logistics' log-probabilities of the bins of `channels` are linear + log(ratio), with ratio from 1e-5 to 1.
//
// With a the distance from mean to bin and h half its width, both in scales: log sigma(h - a) + log sigma(h + a) +
// log(1 - e^-2h). In bins that reach to infinity a points there, and only the first term remains.
//
// Every step is taken for all channels: a bin is one long chain, and the processor looks ahead only so far.
template <class T, int channels>
struct Bins {
  using Vector = typename Simd<T>::Vector;
  Vector linear[channels], ratio[channels], d_mean[channels], d_log_scale[channels];

  FASTVAE_INLINE Bins(const std::array<Channel<T>, channels>& at, const Vector (&mean)[channels],
                      const Vector (&log_scale)[channels], T half, T log_width) {
    const Vector zero{}, one = zero + 1;
    Vector clamped[channels], inverse_scale[channels];
    each([&](int c) FASTVAE_INLINE_LAMBDA {
      clamped[c] = log_scale[c] < kLeastLogScale ? zero + kLeastLogScale : log_scale[c];
      inverse_scale[c] = exp(-clamped[c]);
    });
    // Three exponentials: e^-(a - h), or its inverse if the mean is within the bin, e^-(a + h) and e^-d. Two are
    // computed; the third is their product.
    Vector h[channels], away[channels], a[channels], near[channels], near_tail[channels], factor[channels];
    each([&](int c) FASTVAE_INLINE_LAMBDA {
      const Vector u = inverse_scale[c] * (at[c].x - mean[c]);
      h[c] = inverse_scale[c] * half;
      away[c] = at[c].inside ? (u < 0 ? -one : one) : at[c].outwards;
      a[c] = away[c] * u;
      near[c] = a[c] - h[c];
    });
    each([&](int c) FASTVAE_INLINE_LAMBDA {
      const auto within = near[c] < 0;
      near_tail[c] = exp(within ? near[c] : -near[c]);
      factor[c] = exp(-(within ? a[c] + h[c] : h[c] + h[c]));
    });
    each([&](int c) FASTVAE_INLINE_LAMBDA {
      const auto within = near[c] < 0;
      const Vector product = near_tail[c] * factor[c];
      const Vector far_tail = at[c].inside ? (within ? factor[c] : product) : zero;
      const Vector end = within ? product : factor[c];
      auto mean_density = mean_decay(h[c] + h[c], end);
      mean_density.numerator = at[c].inside ? mean_density.numerator : one;
      mean_density.denominator = at[c].inside ? mean_density.denominator : one;
      const Vector tails = (1 + near_tail[c]) * (1 + far_tail);
      const Vector reciprocal = 1 / (tails * mean_density.numerator * mean_density.denominator);
      linear[c] = (at[c].inside ? log_width - clamped[c] : zero) - positive_part(near[c]);
      ratio[c] = mean_density.numerator * mean_density.numerator * reciprocal;
      // sigma(a - h) and sigma(-a - h)
      const Vector per_tails = mean_density.numerator * mean_density.denominator * reciprocal;
      const Vector d_near = (within ? near_tail[c] : one) * (1 + far_tail) * per_tails;
      const Vector d_far = far_tail * (1 + near_tail[c]) * per_tails;
      const Vector d_a = d_far - d_near;
      const Vector narrowed =
          at[c].inside ? end * tails * mean_density.denominator * mean_density.denominator * reciprocal : zero;
      d_mean[c] = -(inverse_scale[c] * (away[c] * d_a));
      const Vector d_clamped = -fused(a[c], d_a, fused(h[c], d_near + d_far, narrowed));
      d_log_scale[c] = log_scale[c] < kLeastLogScale ? zero : d_clamped;
    });
  }

  static constexpr T kLeastLogScale = -7;

 private:
  template <class Step>
  static FASTVAE_INLINE void each(const Step& step) {
    step(0);
    if constexpr (channels == 3) {
      step(1);
      step(2);
    }
  }
};

// Reads up to kLanes pixels side by side: row i of a tile holds map i.
template <class T>
void read(const T* from, const Images<const T>& maps, int64_t count, int64_t pixels, T* tile) {
  constexpr int64_t width = Simd<T>::kWidth;
  const int64_t lanes = (pixels + width - 1) / width * width;
  if (maps.stride[1] == 1 && maps.stride[3] != 1) {
    samples_to_lanes(from, maps.stride[3], count, nullptr, LaneRange{0, lanes, pixels}, tile);
    return;
  }
  for (int64_t c = 0; c < count; ++c) {
    const T* map = from + c * maps.stride[1];
    for (int64_t p = 0; p < lanes; p += width) {
      T* to = tile + c * kLanes + p;
      if (maps.stride[3] == 1)
        store(to, load_up_to(map + p, pixels - p));
      else
        for (int64_t i = 0; i < width; ++i) to[i] = p + i < pixels ? map[(p + i) * maps.stride[3]] : T(0);
    }
  }
}

template <class T>
void write(const T* tile, const Images<T>& maps, int64_t count, int64_t pixels, T* to) {
  constexpr int64_t width = Simd<T>::kWidth;
  if (maps.stride[1] == 1 && maps.stride[3] != 1) {
    const int64_t lanes = (pixels + width - 1) / width * width;
    lanes_to_samples(tile, count, nullptr, LaneRange{0, lanes, pixels}, to, maps.stride[3]);
    return;
  }
  for (int64_t c = 0; c < count; ++c) {
    T* map = to + c * maps.stride[1];
    for (int64_t p = 0; p < pixels; p += width) {
      const T* from = tile + c * kLanes + p;
      const int64_t rest = std::min(width, pixels - p);
      if (maps.stride[3] != 1)
        for (int64_t i = 0; i < rest; ++i) map[(p + i) * maps.stride[3]] = from[i];
      else
        store_up_to(map + p, load(from), rest);
    }
  }
}

// Log-likelihoods of a vector of pixels; their parameters are kLanes apart. Gradients, if any, replace the parameters.
// joint receives log(weight) + log p of each component.
template <class T, int channels, bool with_gradients>
FASTVAE_INLINE typename Simd<T>::Vector pixels_log_prob(const T* x, T* params, T* joint, int64_t components, T half,
                                                        T log_width) {
  using Vector = typename Simd<T>::Vector;
  const int64_t block = components * kLanes;
  T *means = params + block, *log_scales = means + channels * block, *coefficients = log_scales + channels * block;
  const auto at = [&] {
    if constexpr (channels == 3)
      return std::array<Channel<T>, 3>{Channel<T>(load(x), half), Channel<T>(load(x + kLanes), half),
                                       Channel<T>(load(x + 2 * kLanes), half)};
    else
      return std::array<Channel<T>, 1>{Channel<T>(load(x), half)};
  }();

  // Logits are taken from the largest one before anything is added to them: they may be large, what is added small.
  Vector largest_logit = load(params), largest{};
  for (int64_t i = kLanes; i < block; i += kLanes) largest_logit = at_least(largest_logit, load(params + i));
  for (int64_t k = 0; k < components; ++k) {
    const int64_t i = k * kLanes;
    const Vector logit = load(params + i) - largest_logit;
    Vector mean[channels], log_scale[channels];
    for (int c = 0; c < channels; ++c) {
      mean[c] = load(means + c * block + i);
      log_scale[c] = load(log_scales + c * block + i);
    }
    Vector t[3];
    if constexpr (channels == 3) {
      for (int c = 0; c < 3; ++c) t[c] = tanh(load(coefficients + c * block + i));
      mean[1] = fused(t[0], at[0].x, mean[1]);
      mean[2] += fused(t[1], at[0].x, t[2] * at[1].x);
    }
    const Bins<T, channels> bins(at, mean, log_scale, half, log_width);
    Vector linear = logit + bins.linear[0], ratio = bins.ratio[0];
    if constexpr (channels == 3) {
      linear += bins.linear[1] + bins.linear[2];
      ratio *= bins.ratio[1] * bins.ratio[2];
    }
    if constexpr (with_gradients) {
      for (int c = 0; c < channels; ++c) {
        store(means + c * block + i, bins.d_mean[c]);
        store(log_scales + c * block + i, bins.d_log_scale[c]);
      }
      if constexpr (channels == 3) {
        store(coefficients + i, fused(-t[0], t[0], Vector{} + 1) * at[0].x * bins.d_mean[1]);
        store(coefficients + block + i, fused(-t[1], t[1], Vector{} + 1) * at[0].x * bins.d_mean[2]);
        store(coefficients + 2 * block + i, fused(-t[2], t[2], Vector{} + 1) * at[1].x * bins.d_mean[2]);
      }
    }
    const Vector log_p = linear + log(ratio);
    store(joint + i, log_p);
    largest = k ? at_least(largest, log_p) : log_p;
  }

  Vector sum_of_weights{}, total{};
  for (int64_t i = 0; i < block; i += kLanes) {
    const Vector weight = exp(load(params + i) - largest_logit), share = exp(load(joint + i) - largest);
    sum_of_weights += weight;
    total += share;
    if constexpr (with_gradients) {
      store(params + i, weight);
      store(joint + i, share);
    }
  }
  if constexpr (with_gradients) {
    const Vector per_weight = 1 / sum_of_weights, per_share = 1 / total;
    for (int64_t i = 0; i < block; i += kLanes) {
      const Vector share = load(joint + i) * per_share;
      store(params + i, fused(-load(params + i), per_weight, share));
      for (int c = 1; c < (channels == 3 ? 10 : 3); ++c)
        store(params + c * block + i, load(params + c * block + i) * share);
    }
  }
  // Where no component can be, the sum holds exponentials of differences of infinities.
  return largest < std::numeric_limits<T>::lowest() ? largest : largest + log(total / sum_of_weights);
}

// Makes the whole image one row of pixels, where rows follow each other without gaps in all maps.
template <class... Maps>
MixtureSizes flatten(MixtureSizes sizes, const Maps&... maps) {
  if (((maps.stride[2] == sizes.width * maps.stride[3]) && ...)) {
    sizes.width *= sizes.height;
    sizes.height = 1;
  }
  return sizes;
}

template <class T, int channels, bool with_gradients>
void run(MixtureSizes sizes, Images<const T> x, Images<const T> params, T* log_prob, Images<T> d_params) {
  constexpr int64_t width = Simd<T>::kWidth;
  struct alignas(kVectorBytes) Lanes {
    T values[kLanes];
  };
  const int64_t count = sizes.params(), segments = (sizes.width + kTaskPixels - 1) / kTaskPixels;
  const int64_t tasks_per_image = sizes.height * segments;
  const T half = T(1) / static_cast<T>(sizes.levels - 1), log_width = static_cast<T>(std::log(2.0 * half));
  std::vector<double> sums(static_cast<size_t>(sizes.images * tasks_per_image));
  const int64_t work = std::min(sizes.width, kTaskPixels) * sizes.components * channels * kWorkPerTerm;
  parallel_tasks(sizes.images * tasks_per_image, work, [&](int64_t task) {
    const int64_t image = task / tasks_per_image, row = task % tasks_per_image / segments;
    const int64_t begin = task % segments * kTaskPixels, end = std::min(begin + kTaskPixels, sizes.width);
    std::vector<Lanes> tile(static_cast<size_t>(channels + count + sizes.components));
    T *values = tile[0].values, *of_params = values + channels * kLanes, *joint = of_params + count * kLanes;
    typename Simd<T>::Vector total{};
    for (int64_t p = begin; p < end; p += kLanes) {
      const int64_t pixels = std::min(kLanes, end - p);
      read(x.at(image, row, p), x, channels, pixels, values);
      read(params.at(image, row, p), params, count, pixels, of_params);
      for (int64_t i = 0; i < pixels; i += width) {
        const auto log_p = pixels_log_prob<T, channels, with_gradients>(values + i, of_params + i, joint + i,
                                                                        sizes.components, half, log_width);
        total += pixels - i < width ? first_lanes<T>(log_p, pixels - i) : log_p;
      }
      if constexpr (with_gradients) write(of_params, d_params, count, pixels, d_params.at(image, row, p));
    }
    sums[static_cast<size_t>(task)] = sum<T>(total);
  });
  const double* of_image = sums.data();
  for (int64_t n = 0; n < sizes.images; ++n, of_image += tasks_per_image) {
    double total = 0;
    for (int64_t i = 0; i < tasks_per_image; ++i) total += of_image[i];
    log_prob[n] = static_cast<T>(total);
  }
}

template <class T>
void fwd(MixtureSizes sizes, Images<const T> x, Images<const T> params, T* log_prob, Images<T> d_params) {
  if (d_params.data) {
    sizes = flatten(sizes, x, params, d_params);
    const auto chosen = sizes.channels == 3 ? run<T, 3, true> : run<T, 1, true>;
    return chosen(sizes, x, params, log_prob, d_params);
  }
  sizes = flatten(sizes, x, params);
  const auto chosen = sizes.channels == 3 ? run<T, 3, false> : run<T, 1, false>;
  chosen(sizes, x, params, log_prob, d_params);
}

template <class T>
LogisticMixture<T> kernels() {
  return {fwd<T>};
}

}  // namespace

inline namespace FASTVAE_ISA {
LogisticMixture<float> logistic_mixture_f32() { return kernels<float>(); }
LogisticMixture<double> logistic_mixture_f64() { return kernels<double>(); }
}  // namespace FASTVAE_ISA

}  // namespace fastvae
