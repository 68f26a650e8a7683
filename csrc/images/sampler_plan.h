// A sampler's plan as Python passes it: records of 64-bit integers, whose fields fastvae/structure/sampling_records.py
// names in the same order and explains. The extension exports the names, and a test compares both sides.
#pragma once

#include <cstdint>
#include <vector>

#include "base/codes.h"

namespace fastvae {

// In a field that says where something is: there is nothing.
constexpr int64_t kAbsent = -1;
// Where a node has no pass of its own: it runs for whole rows; its channels belong to several passes.
constexpr int64_t kRow = -1, kSeveral = -2;

// A struct of integers that knows its fields' names, which are separated by commas.
#define FASTVAE_RECORD(Name, ...)                        \
  struct Name {                                          \
    int64_t __VA_ARGS__;                                 \
    static constexpr const char* kFields = #__VA_ARGS__; \
  }

FASTVAE_RECORD(SamplerSizes, images, channels, height, width, parameters, colors, image_numbers);
FASTVAE_RECORD(SamplerHead, kind, columns, components, levels);
FASTVAE_RECORD(SamplerBuffer, channels, rows, left, row_numbers, first, passes);
FASTVAE_RECORD(SamplerTap, flat, dy, dx);
FASTVAE_RECORD(SamplerNode, op, when, dst, dst_first, channels, src, src_first, src_channels, other, other_first,
               weight, bias, in_degrees, out_degrees, kernel_area, origin_tap, first_tap, taps, activation, slope, gate,
               alpha, beta, constant, is_map);

struct SamplerPlan {
  SamplerSizes sizes;
  SamplerHead head;
  std::vector<SamplerBuffer> buffers;
  std::vector<SamplerNode> nodes;
  std::vector<SamplerTap> taps;
  // Memory and numbers; the records hold places in these lists.
  std::vector<uint64_t> addresses;
  std::vector<double> scalars;
  double temperature;
  bool all_given;
};

}  // namespace fastvae
