// A sampler's plan made ready to run: the jobs of a row and of every pass over a pixel, and packed weights.
#pragma once

#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "images/conv_tiles.h"
#include "images/sampler_plan.h"

namespace fastvae {
inline namespace FASTVAE_ISA {

// Where a pixel begins in an image's memory. A buffer keeps its last rows in a ring; zeros are beside every row.
inline int64_t locate(const SamplerBuffer& buffer, int64_t row, int64_t column) {
  return buffer.first + row % buffer.rows * buffer.row_numbers + (column + buffer.left) * buffer.channels;
}

// Channels of a node, contiguous or not.
struct ChannelSet {
  std::vector<int64_t> list;
  bool contiguous;

  explicit ChannelSet(std::vector<int64_t> channels) : list(std::move(channels)) {
    contiguous = list.back() - list.front() + 1 == static_cast<int64_t>(list.size());
  }
  int64_t first() const { return list.front(); }
  int64_t count() const { return static_cast<int64_t>(list.size()); }
};

template <class T>
struct Conv {
  PackedProducts<T> products;
  // For each block, and each place of the row in the source's ring: how far the terms are from the pixel.
  std::vector<std::vector<std::vector<int64_t>>> offsets;
};

// The channels of a node that are computed at once, and the number of its convolution.
struct Job {
  const SamplerNode& node;
  ChannelSet channels;
  int64_t conv = kAbsent;

  SamplerOp op() const { return static_cast<SamplerOp>(node.op); }
};

template <class T>
class SamplerProgram {
 public:
  explicit SamplerProgram(const SamplerPlan& plan) : plan(plan), passes(plan.sizes.colors + 1) {
    for (const SamplerBuffer& buffer : plan.buffers) most_channels = std::max(most_channels, buffer.channels);
    for (const SamplerNode& node : plan.nodes) add_node(node);
    const int64_t* passes_of_image = address<int64_t>(plan.buffers.front().passes);
    drawn.resize(plan.sizes.colors);
    // The network can read a channel of the image from the pass after its colour on.
    for (int64_t c = 0; c < plan.sizes.channels; ++c) drawn[passes_of_image[c] - 1].push_back(c);
  }

  template <class U = T>
  const U* address(int64_t index) const {
    return index == kAbsent ? nullptr : reinterpret_cast<const U*>(plan.addresses[index]);
  }

  const SamplerPlan& plan;
  std::vector<Conv<T>> convs;
  std::vector<Job> row_jobs;
  std::vector<std::vector<Job>> passes;
  // The jobs of all passes in the order of their nodes, the order for whole rows of a known image.
  struct JobOfPass {
    int64_t pass, job;
  };
  std::vector<JobOfPass> by_node;
  // The image channels drawn after each pass.
  std::vector<std::vector<int64_t>> drawn;
  int64_t most_channels = 0;

 private:
  void add_node(const SamplerNode& node) {
    if (node.when == kSeveral) {
      const int64_t* own_passes = address<int64_t>(plan.buffers[node.dst].passes) + node.dst_first;
      for (int64_t pass = 0; pass < static_cast<int64_t>(passes.size()); ++pass) {
        std::vector<int64_t> list;
        for (int64_t c = 0; c < node.channels; ++c)
          if (own_passes[c] == pass) list.push_back(c);
        if (!list.empty()) add_to_pass(pass, node, std::move(list));
      }
      return;
    }
    if (node.channels == 0) return;
    std::vector<int64_t> all(node.channels);
    std::iota(all.begin(), all.end(), 0);
    if (node.when == kRow)
      add_job(row_jobs, node, std::move(all));
    else
      add_to_pass(node.when, node, std::move(all));
  }

  void add_to_pass(int64_t pass, const SamplerNode& node, std::vector<int64_t> channels) {
    by_node.push_back({pass, static_cast<int64_t>(passes[pass].size())});
    add_job(passes[pass], node, std::move(channels));
  }

  void add_job(std::vector<Job>& jobs, const SamplerNode& node, std::vector<int64_t> channels) {
    Job job{node, ChannelSet(std::move(channels))};
    if (job.op() == SamplerOp::kConv) {
      job.conv = static_cast<int64_t>(convs.size());
      add_conv(node, job.channels);
    }
    jobs.push_back(std::move(job));
  }

  void add_conv(const SamplerNode& node, const ChannelSet& channels) {
    const SamplerTap* taps = plan.taps.data() + node.first_tap;
    const int64_t in = node.src_channels;
    const T *weight = address(node.weight), *bias = address(node.bias);
    const int64_t *in_degrees = address<int64_t>(node.in_degrees), *out_degrees = address<int64_t>(node.out_degrees);
    const SamplerBuffer& source = plan.buffers[node.src];
    // A term's offset is its number here; how far it is from the pixel depends on the row, see below.
    std::vector<Term> terms;
    for (int64_t t = 0; t < node.taps; ++t)
      for (int64_t i = 0; i < in; ++i) terms.push_back({t * in + i, taps[t].flat, i});
    const auto& list = channels.list;
    Conv<T> conv{
        PackedProducts<T>(
            channels.count(), terms,
            [&](int64_t o, const Term& t) { return weight[(list[o] * in + t.channel) * node.kernel_area + t.tap]; },
            [&](int64_t o, const Term& t) {
              return t.tap != node.origin_tap || in_degrees[t.channel] <= out_degrees[list[o]];
            },
            [&](int64_t o) { return bias ? bias[list[o]] : T(0); }),
        {}};
    for (const auto& block : conv.products.blocks) {
      std::vector<std::vector<int64_t>> by_row(source.rows);
      for (int64_t row = 0; row < source.rows; ++row)
        for (const int64_t term : block.offsets) {
          const SamplerTap& tap = taps[term / in];
          const int64_t at = (row + tap.dy + source.rows) % source.rows;
          by_row[row].push_back((at - row) * source.row_numbers + tap.dx * source.channels + term % in);
        }
      conv.offsets.push_back(std::move(by_row));
    }
    convs.push_back(std::move(conv));
  }
};

}  // namespace FASTVAE_ISA
}  // namespace fastvae
