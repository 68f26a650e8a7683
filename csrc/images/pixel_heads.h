// Draws the values of a pixel from the parameters of their distribution and uniform numbers.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "images/sampler_plan.h"

namespace fastvae {
inline namespace FASTVAE_ISA {

template <class T>
class PixelHead {
 public:
  explicit PixelHead(const SamplerPlan& plan)
      : columns(plan.head.columns),
        kind_(static_cast<Head>(plan.head.kind)),
        components_(plan.head.components),
        levels_(plan.head.levels),
        channels_(plan.sizes.channels),
        temperature_(static_cast<T>(plan.temperature)) {}

  // Draws values[c] of the listed channels, except given ones, from the pixel's parameters and its `columns` uniform
  // numbers.
  template <class Given>
  void draw(const T* params, const T* uniforms, const std::vector<int64_t>& channels, const Given& given,
            T* values) const {
    if (kind_ == Head::kLogisticMixture) return draw_mixture(params, uniforms, given, values);
    for (const int64_t c : channels) {
      if (given(c)) continue;
      values[c] = kind_ == Head::kBernoulli
                      ? T(uniforms[c] < T(1) / (T(1) + std::exp(-params[c] / temperature_)))
                      : static_cast<T>(draw_category(params + c * levels_, levels_, uniforms[c])) / (levels_ - 1);
    }
  }

  int64_t columns;

 private:
  // The first category at which the cumulated weight exceeds the uniform number times the total.
  int64_t draw_category(const T* logits, int64_t count, T uniform) const {
    T largest = logits[0] / temperature_;
    for (int64_t k = 1; k < count; ++k) largest = std::max(largest, logits[k] / temperature_);
    T total = 0;
    for (int64_t k = 0; k < count; ++k) total += std::exp(logits[k] / temperature_ - largest);
    T sum = 0;
    for (int64_t k = 0; k < count; ++k) {
      sum += std::exp(logits[k] / temperature_ - largest);
      if (sum > uniform * total) return k;
    }
    return count - 1;
  }

  template <class Given>
  void draw_mixture(const T* params, const T* uniforms, const Given& given, T* values) const {
    const int64_t components = components_, k = draw_category(params, components, uniforms[0]);
    const T* means = params + components;
    const T* log_scales = means + channels_ * components;
    const T* coefficients = log_scales + channels_ * components;
    const auto coefficient = [&](int64_t c) { return std::tanh(coefficients[c * components + k]); };
    for (int64_t c = 0; c < channels_; ++c) {
      if (given(c)) continue;
      T mean = means[c * components + k];
      if (c == 1) mean += coefficient(0) * values[0];
      if (c == 2) mean += coefficient(1) * values[0] + coefficient(2) * values[1];
      const T u = uniforms[1 + c], scale = std::exp(std::max(log_scales[c * components + k], T(-7))) * temperature_;
      const T value = mean + scale * (std::log(u) - std::log1p(-u));
      const T level = std::nearbyint((value + 1) * static_cast<T>(0.5 * (levels_ - 1)));
      values[c] = std::clamp(level, T(0), static_cast<T>(levels_ - 1)) * static_cast<T>(2.0 / (levels_ - 1)) - 1;
    }
  }

  Head kind_;
  int64_t components_, levels_, channels_;
  T temperature_;
};

}  // namespace FASTVAE_ISA
}  // namespace fastvae
