// The affine flow step z' = a(s) z + c(s) m, kind by kind; see fastvae/reference/affine_flow.py.
#pragma once

#include <type_traits>

#include "base/codes.h"
#include "simd/activation.h"

namespace fastvae {
inline namespace FASTVAE_ISA {

template <class V>
FASTVAE_INLINE V clamp(V x, double low, double high) {
  return at_most(at_least(x, V{} + low), V{} + high);
}

FASTVAE_INLINE FloatVector log_of(FloatVector x) { return x < __builtin_inff() ? log_unit(x) : x; }  // NaN passes
FASTVAE_INLINE DoubleVector log_of(DoubleVector x) {
  return each_lane(x, [](double v) { return std::log(v); });
}

FASTVAE_INLINE FloatVector clamp(FloatVector x, float low, float high) {
  return at_most(at_least(x, FloatVector{} + low), FloatVector{} + high);
}

// For one scale logit: log a, a, d log a / ds where s is inside of the clamp, and the factor c of the shift.
template <class V>
struct Scale {
  V log_a, a, slope, c;
  Integers<V> inside;

  // The gradient of s for that of log a. Beyond the clamp it is selected: the gradient may be infinite there.
  FASTVAE_INLINE V to_logit(V d_log_a) const { return inside ? slope * d_log_a : V{}; }
};

constexpr double kGateBound = 30, kExpBound = 6.907755278982137, kLeastScale = 1e-3, kRelease = 0.1,
                 kReleaseBound = 300;

template <class V, class T>
FASTVAE_INLINE Integers<V> between(V x, T low, T high) {
  return (x >= low) & (x <= high);
}

template <FlowKind kind, class T, class V = typename Simd<T>::Vector>
FASTVAE_INLINE Scale<V> scale_of(V s) {
  const V one = V{} + 1;
  const Integers<V> everywhere = ~Integers<V>{};
  if constexpr (kind == FlowKind::kGated) {
    const V x = clamp(s, T(-kGateBound), T(kGateBound));
    const V rest = sigmoid(-x), log_a = -softplus(-x);
    return {log_a, sigmoid(x), rest, rest, between(s, T(-kGateBound), T(kGateBound))};
  } else if constexpr (kind == FlowKind::kExp) {
    const V size = s < 0 ? -s : s, shrunk = fused(size, T(1 / kExpBound), one), log_a = s / shrunk;
    return {log_a, exp(log_a), 1 / (shrunk * shrunk), one, everywhere};
  } else if constexpr (kind == FlowKind::kClampedExp) {
    const V log_a = clamp(s, T(-5), T(3));
    return {log_a, exp(log_a), one, one, between(s, T(-5), T(3))};
  } else if constexpr (kind == FlowKind::kSoftplus) {
    const V a = softplus(s) + T(kLeastScale);
    return {log_of(a), a, sigmoid(s) / a, one, everywhere};
  } else if constexpr (kind == FlowKind::kSigmoid) {
    const V gate = sigmoid(s), a = gate + T(kLeastScale);
    return {log_of(a), a, gate * sigmoid(-s) / a, one, everywhere};
  } else if constexpr (kind == FlowKind::kIafRelease) {
    const V log_a = clamp(s, T(-kReleaseBound), T(kReleaseBound)) * T(-kRelease), a = exp(log_a);
    return {log_a, a, V{} - T(kRelease), a * T(-kRelease), between(s, T(-kReleaseBound), T(kReleaseBound))};
  } else {
    return {V{}, one, V{}, one, everywhere};
  }
}

// The z that s does not move: d z' / ds = (d log a / ds) a (z - pivot).
template <FlowKind kind, class T, class V = typename Simd<T>::Vector>
FASTVAE_INLINE V pivot(V m) {
  if constexpr (kind == FlowKind::kGated) return m;
  if constexpr (kind == FlowKind::kIafRelease) return m * T(kRelease);
  return V{};
}

template <class Body>
FASTVAE_INLINE void with_kind(FlowKind kind, const Body& body) {
  switch (kind) {
    case FlowKind::kGated:
      return body(std::integral_constant<FlowKind, FlowKind::kGated>{});
    case FlowKind::kExp:
      return body(std::integral_constant<FlowKind, FlowKind::kExp>{});
    case FlowKind::kClampedExp:
      return body(std::integral_constant<FlowKind, FlowKind::kClampedExp>{});
    case FlowKind::kSoftplus:
      return body(std::integral_constant<FlowKind, FlowKind::kSoftplus>{});
    case FlowKind::kSigmoid:
      return body(std::integral_constant<FlowKind, FlowKind::kSigmoid>{});
    case FlowKind::kIafRelease:
      return body(std::integral_constant<FlowKind, FlowKind::kIafRelease>{});
    default:
      return body(std::integral_constant<FlowKind, FlowKind::kLocationOnly>{});
  }
}

}  // namespace FASTVAE_ISA
}  // namespace fastvae
