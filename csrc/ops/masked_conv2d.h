// Masked convolution with bias and activation: only the taps that count are loaded and multiplied.
#pragma once

#include "base/types.h"

namespace fastvae {

template <class T>
struct MaskedConv2d {
  // pre, the pre-activation, has y's strides and may be null.
  void (*fwd)(const ConvSpec<T>& spec, Images<const T> x, Images<T> y, T* pre);
  // at is the pre-activation for activations that need it, else y; d_x, d_weight, d_bias may be null.
  void (*bwd)(const ConvSpec<T>& spec, Images<const T> d_y, Images<const T> at, Images<const T> x, Images<T> d_x,
              T* d_weight, T* d_bias);
};

}  // namespace fastvae
