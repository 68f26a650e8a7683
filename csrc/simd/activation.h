// Activations and their derivatives, on vectors.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "base/codes.h"
#include "simd/simd.h"
#include "simd/vecmath.h"

namespace fastvae {
inline namespace FASTVAE_ISA {

// libm, lane by lane: for float64, which serves to check gradients, and for rare functions.
template <class V, class Function>
FASTVAE_INLINE V each_lane(V x, const Function& function) {
  for (size_t i = 0; i < sizeof(V) / sizeof(x[0]); ++i) x[i] = function(x[i]);
  return x;
}

// e^x - 1 = 2^n (e^r - 1) + (2^n - 1) for x <= 0, to about 1 ulp; NaN stays NaN.
FASTVAE_INLINE FloatVector expm1_of_negative(FloatVector x) {
  const auto [n, r, bits] = reduce(at_least(x, FloatVector{} - 20.0f));  // below, the result is -1
  const FloatVector scale = bit_cast<FloatVector>((bits << 23) + 0x3F800000);
  return fused(fused(exp_rest(r), r * r, r), scale, scale - 1.0f);
}

FASTVAE_INLINE DoubleVector expm1_of_negative(DoubleVector x) {
  return each_lane(x, [](double v) { return std::expm1(v); });
}

FASTVAE_INLINE FloatVector tanh(FloatVector x) {
  const FloatVector square = x * x;
  FloatVector p = fused(square, -5.70498872745e-3f, 2.06390887954e-2f);
  p = fused(p, square, -5.37397155531e-2f);
  p = fused(p, square, 1.33314422036e-1f);
  p = fused(p, square, -3.33332819422e-1f);
  const I32 small = (x > -0.625f) & (x < 0.625f);
  return small ? fused(p * square, x, x) : 1.0f - 2.0f / (exp(2.0f * x) + 1.0f);
}

FASTVAE_INLINE DoubleVector tanh(DoubleVector x) {
  return each_lane(x, [](double v) { return std::tanh(v); });
}

// ln(1 + t) for t in [0, 1].
FASTVAE_INLINE FloatVector log1p_unit(FloatVector t) {
  const FloatVector u = 1.0f + t;
  // The quotient gives back what rounding took from u (Kahan).
  return u == 1.0f ? t : log_unit(u) * (t / (u - 1.0f));
}

FASTVAE_INLINE DoubleVector log1p_unit(DoubleVector t) {
  return each_lane(t, [](double v) { return std::log1p(v); });
}

template <class V>
FASTVAE_INLINE V positive_part(V x) {
  return at_least(x, V{});
}

template <class V>
FASTVAE_INLINE V sigmoid(V x) {
  return 1 / (1 + exp(-x));
}

template <class V>
FASTVAE_INLINE V softplus(V x) {
  return positive_part(x) + log1p_unit(exp(x < 0 ? x : -x));
}

// Phi, the distribution function of N(0, 1).
template <class V>
FASTVAE_INLINE V normal_cdf(V x) {
  return each_lane(x, [](auto v) {
    return static_cast<decltype(v)>(0.5) * std::erfc(v * static_cast<decltype(v)>(-0.70710678118654752440));
  });
}

// Whether the derivative follows from the pre-activation; otherwise it follows from the activation.
constexpr bool needs_pre(Activation a) { return a == Activation::kGelu || a == Activation::kSilu; }

template <Activation a, class V>
FASTVAE_INLINE V activate(V x) {
  if constexpr (a == Activation::kRelu) return positive_part(x);
  if constexpr (a == Activation::kElu) return x > 0 ? x : expm1_of_negative(x);
  if constexpr (a == Activation::kTanh) return tanh(x);
  if constexpr (a == Activation::kSoftplus) return softplus(x);
  if constexpr (a == Activation::kGelu) return x * normal_cdf(x);
  if constexpr (a == Activation::kSilu) return x * sigmoid(x);
  return x;
}

// The derivative at `at`, the pre-activation if needs_pre, else the activation. Of relu, see through_activation.
template <Activation a, class V>
FASTVAE_INLINE V derivative(V at) {
  const V one = V{} + 1;
  if constexpr (a == Activation::kElu) return at > 0 ? one : at + 1;
  if constexpr (a == Activation::kTanh) return fused(-at, at, one);
  if constexpr (a == Activation::kSoftplus) return -expm1_of_negative(-at);
  if constexpr (a == Activation::kGelu) {
    const auto density_at_0 = static_cast<std::remove_reference_t<decltype(at[0])>>(0.39894228040143267794);
    return fused(at, exp(at * at * -0.5f) * density_at_0, normal_cdf(at));
  }
  if constexpr (a == Activation::kSilu) {
    const V s = sigmoid(at);
    return fused(at * s, 1 - s, s);
  }
  return one;
}

// The gradient of the pre-activation out of that of the activation. Relu selects, as PyTorch's does: where it is
// closed, an infinite gradient becomes 0.
template <Activation a, class V>
FASTVAE_INLINE V through_activation(V gradient, V at) {
  if constexpr (a == Activation::kRelu) return at <= 0 ? V{} : gradient;
  return gradient * derivative<a>(at);
}

// Whether the second derivative is not 0 everywhere.
constexpr bool has_curvature(Activation a) { return a != Activation::kIdentity && a != Activation::kRelu; }

// The second derivative, at what derivative() takes.
template <Activation a, class V>
FASTVAE_INLINE V curvature(V at) {
  if constexpr (a == Activation::kElu) return at > 0 ? V{} : at + 1;
  if constexpr (a == Activation::kTanh) return -2 * at * fused(-at, at, V{} + 1);
  if constexpr (a == Activation::kSoftplus) return exp(-at) * derivative<a>(at);
  if constexpr (a == Activation::kGelu) {
    const auto density_at_0 = static_cast<std::remove_reference_t<decltype(at[0])>>(0.39894228040143267794);
    const V density = exp(at * at * -0.5f) * density_at_0;
    return 2 * density - density * at * at;  // not at * at, which may be infinite
  }
  if constexpr (a == Activation::kSilu) {
    const V s = sigmoid(at);
    return s * (1 - s) * (2 + at * (1 - 2 * s));
  }
  return V{};
}

// Calls body with a masked layer's activation as a compile-time constant.
template <class Body>
FASTVAE_INLINE void with_activation(Activation a, const Body& body) {
  switch (a) {
    case Activation::kRelu:
      return body(std::integral_constant<Activation, Activation::kRelu>{});
    case Activation::kElu:
      return body(std::integral_constant<Activation, Activation::kElu>{});
    case Activation::kTanh:
      return body(std::integral_constant<Activation, Activation::kTanh>{});
    case Activation::kSoftplus:
      return body(std::integral_constant<Activation, Activation::kSoftplus>{});
    case Activation::kGelu:
      return body(std::integral_constant<Activation, Activation::kGelu>{});
    case Activation::kSilu:
      return body(std::integral_constant<Activation, Activation::kSilu>{});
    default:
      return body(std::integral_constant<Activation, Activation::kIdentity>{});
  }
}

}  // namespace FASTVAE_ISA
}  // namespace fastvae
