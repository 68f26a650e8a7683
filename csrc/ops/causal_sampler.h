// Cached sampling of causal image networks: every activation is computed once.
#pragma once

#include "images/sampler_plan.h"

namespace fastvae {

template <class T>
struct CausalSampler {
  // images (N, C, H, W) are read where given, written elsewhere; given and parameters, (N, P, H, W), may be null.
  void (*run)(const SamplerPlan& plan, T* images, const uint8_t* given, const T* uniforms, T* parameters);
};

}  // namespace fastvae
