// Cached sampling of causal image networks: every activation is computed once.
#pragma once

#include <cstdint>
#include <vector>

namespace fastvae {

// A plan as fastvae/ops/causal_sampler.py encodes it; where memory is named by its index in `addresses`, -1 is none.
struct SamplerPlan {
  int64_t images, channels, height, width, parameters, colors;
  bool all_given;
  std::vector<int64_t> buffers, nodes;
  std::vector<uint64_t> addresses;
  std::vector<double> scalars;
  std::vector<int64_t> head;
};

template <class T>
struct CausalSampler {
  // images (N, C, H, W) are read where given, written elsewhere; given and parameters, (N, P, H, W), may be null.
  void (*run)(const SamplerPlan& plan, T* images, const uint8_t* given, const T* uniforms, T* parameters);
};

}  // namespace fastvae
