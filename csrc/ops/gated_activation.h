// Gated activation of images: y = tanh(a) sigmoid(b) or a sigmoid(b), a and b the halves of x + condition.
#pragma once

#include "base/types.h"

namespace fastvae {

// N images of F gated channels, H rows and W columns.
struct ImageExtent {
  int64_t images, channels, height, width;
};

template <class T>
struct GatedActivation {
  // x is (N, 2F, H, W), y (N, F, H, W). condition is (N, 2F, H, W) with stride 0 where it is broadcast; null for none.
  void (*fwd)(int64_t kind, ImageExtent extent, Images<const T> x, Images<const T> condition, Images<T> y);
  // d_x is the gradient of the sum, so it is also that of a condition that is not broadcast.
  void (*bwd)(int64_t kind, ImageExtent extent, Images<const T> d_y, Images<const T> x, Images<const T> condition,
              Images<T> d_x);
};

}  // namespace fastvae
