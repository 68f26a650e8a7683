// What is between the products of a decoder of dense layers: activations, the likelihood, and their derivatives along a
// vector. Both layouts of its numbers, lanes of a block and rows of a matrix, share it.
#pragma once

#include <cstdint>
#include <type_traits>

#include "base/codes.h"
#include "network/dense.h"
#include "simd/activation.h"

namespace fastvae {
inline namespace FASTVAE_ISA {

// The numbers of a layer: `rows` times `count` values, and their tangents so far behind.
struct Cells {
  int64_t rows, stride, count, tangents;

  // Calls body(offset) for each vector of values.
  template <class T, class Body>
  FASTVAE_INLINE void each(const Body& body) const {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = 0; i < count; i += Simd<T>::kWidth) body(r * stride + i);
  }
};

// A hidden layer: `at` has what derivatives are taken at, behind it the tangents before the activation; `out` has the
// activations, behind them theirs. Both may be one array.
template <class T>
struct Hidden {
  T *at, *out;
};

// Whether both may not be one array.
inline bool needs_two(Activation activation, bool has_tangents) { return has_tangents || needs_pre(activation); }

// Takes pre-activations out of `at`.
template <class T>
void activate_cells(Activation activation, Cells cells, Hidden<T> layer) {
  with_activation(activation, [&](auto a) {
    cells.each<T>([&](int64_t i) FASTVAE_INLINE_LAMBDA {
      const auto pre = load(layer.at + i), value = activate<a.value>(pre);
      store(layer.out + i, value);
      if (!needs_pre(a.value)) store(layer.at + i, value);
      if (!cells.tangents) return;
      const auto at = needs_pre(a.value) ? pre : value, tangent = load(layer.at + cells.tangents + i);
      store(layer.out + cells.tangents + i, through_activation<a.value>(tangent, at));
    });
  });
}

// Turns gradients of a layer's activations, and their tangents, into those of its pre-activations.
template <class T>
void pass_back(Activation activation, Cells cells, const T* at, T* gradients) {
  with_activation(activation, [&](auto a) {
    cells.each<T>([&](int64_t i) FASTVAE_INLINE_LAMBDA {
      const auto of_values = load(at + i), gradient = load(gradients + i);
      store(gradients + i, through_activation<a.value>(gradient, of_values));
      if (!cells.tangents) return;
      T* const second = gradients + cells.tangents + i;
      auto change = through_activation<a.value>(load(second), of_values);
      if constexpr (has_curvature(a.value))
        change = fused(gradient * curvature<a.value>(of_values), load(at + cells.tangents + i), change);
      store(second, change);
    });
  });
}

// The log-likelihood of a few outputs of each lane, and its derivatives to the outputs.
template <Likelihood kind, class T>
class Terms {
 public:
  using Vector = typename Simd<T>::Vector;

  struct Derivatives {
    Vector first, second;
  };

  FASTVAE_INLINE Derivatives add(Vector x, Vector l) {
    if constexpr (kind == Likelihood::kGaussian) {
      const Vector residual = x - l;
      sum_ = fused(T(-0.5) * residual, residual, sum_);
      return {residual, Vector{} - 1};
    } else {
      // The product of all 1 + e^-|l|, less 1: one logarithm for all.
      const Vector tail = tail_of<T>(l), share = 1 / (1 + tail);
      product_ += fused(tail, product_, tail);
      sum_ += fused(x, l, -positive_part(l));
      return {x - (l < 0 ? tail * share : share), -(tail * share * share)};
    }
  }
  FASTVAE_INLINE Vector total() const {
    if constexpr (kind == Likelihood::kGaussian) return sum_;
    return sum_ - log1p_unit(product_);
  }

 private:
  Vector sum_{}, product_{};
};

template <class Body>
void with_likelihood(int64_t likelihood, const Body& body) {
  if (static_cast<Likelihood>(likelihood) == Likelihood::kGaussian)
    body(std::integral_constant<Likelihood, Likelihood::kGaussian>{});
  else
    body(std::integral_constant<Likelihood, Likelihood::kBernoulli>{});
}

}  // namespace FASTVAE_ISA
}  // namespace fastvae
