// The gate of two numbers, and its gradients, on vectors.
#pragma once

#include <type_traits>

#include "base/codes.h"
#include "simd/activation.h"

namespace fastvae {
inline namespace FASTVAE_ISA {

// tanh(a) sigmoid(b), or a sigmoid(b).
template <Gate gate, class V>
FASTVAE_INLINE V apply_gate(V a, V b) {
  if constexpr (gate == Gate::kTanh) return tanh(a) * sigmoid(b);
  return a * sigmoid(b);
}

template <class V>
struct GateGradients {
  V d_a, d_b;
};

template <Gate gate, class V>
FASTVAE_INLINE GateGradients<V> gate_gradients(V d_y, V a, V b) {
  const V s = sigmoid(b), passed = d_y * s;
  if constexpr (gate == Gate::kTanh) {
    const V t = tanh(a);
    return {passed * fused(-t, t, V{} + 1), passed * t * (1 - s)};
  }
  return {passed, passed * a * (1 - s)};
}

// Calls body with the gate as a compile-time constant.
template <class Body>
FASTVAE_INLINE void with_gate(Gate gate, const Body& body) {
  if (gate == Gate::kTanh) return body(std::integral_constant<Gate, Gate::kTanh>{});
  return body(std::integral_constant<Gate, Gate::kLinear>{});
}

}  // namespace FASTVAE_ISA
}  // namespace fastvae
