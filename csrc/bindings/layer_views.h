// A masked layer's tensors as the kernels take them.
#pragma once

#include "base/types.h"
#include "bindings/tensors.h"

namespace fastvae {
namespace {

struct LayerViews {
  TensorView weight, bias, scale, norm, in_degrees, out_degrees;

  template <class T>
  MaskedLayer<T> of() const {
    return {weight.as<const T>(),
            bias.as<const T>(),
            scale.as<const T>(),
            norm.as<const T>(),
            in_degrees.as<const int64_t>(),
            out_degrees.as<const int64_t>(),
            in_degrees.shape[0],
            out_degrees.shape[0],
            weight.stride[0]};
  }
};

template <class T>
Matrix<T> rows_of(const TensorView& t) {
  return {t.as<const T>(), t.stride[0]};
}

// A layer that is not masked: the kernels need no degrees.
inline LayerViews dense_views(nanobind::handle weight, nanobind::handle bias) {
  LayerViews layer{view(weight), view(bias), {}, {}, {}, {}};
  layer.in_degrees.shape[0] = layer.weight.shape[1];
  layer.out_degrees.shape[0] = layer.weight.shape[0];
  return layer;
}

}  // namespace
}  // namespace fastvae
