// A masked network on samples (N, D), alone or with the affine flow step that it parametrises, and its inverse.
#pragma once

#include "ops/affine_flow.h"

namespace fastvae {

template <class T>
struct AutoregressiveFlow {
  // Rows of a block of saved activations, as network/network.h lays them out.
  int64_t (*saved_rows)(const NetworkSpec<T>& network);
  // `saved` is (ceil(N / kLanes), saved_rows, kLanes), or null.
  // out is (N, D) with log_det, or (N, P D) for a network alone; context_term, (N, H), may be null.
  void (*fwd)(const NetworkSpec<T>& network, Matrix<T> x, const T* context_term, T* out, LogDet<T> log_det, T* saved,
              int64_t samples);
  // d_x and d_context_term may be null, and so may the gradients of all layers, and d_log_det for a network alone.
  void (*bwd)(const NetworkSpec<T>& network, const T* d_out, LogDet<const T> d_log_det, const T* saved, T* d_x,
              T* d_context_term, const std::vector<LayerGradients<T>>& layers, int64_t samples);
  // Finds x such that its flow step is z, and log |det| of that map.
  void (*inverse)(const NetworkSpec<T>& network, Matrix<T> z, const T* context_term, T* x, LogDet<T> log_det, T* saved,
                  int64_t samples);
  // The gradient d_z of the inverse. bwd with the upstream gradients (-d_z, -d_log_det) gives those of the parameters.
  void (*inverse_bwd)(const NetworkSpec<T>& network, const T* d_x, LogDet<const T> d_log_det, const T* saved, T* d_z,
                      int64_t samples);
};

}  // namespace fastvae
