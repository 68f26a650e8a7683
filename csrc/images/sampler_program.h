// A sampler's plan made ready to run: buffers, and the jobs of a row and of every pass over a pixel.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "images/conv_tiles.h"
#include "ops/causal_sampler.h"

namespace fastvae {
namespace {

enum class NodeOp : int64_t { kConv, kAdd, kSub, kMul, kAffine, kActivation, kGate, kCopy, kConstant };

// The last rows of a feature map, in a ring: row h stands at h mod rows; zeros stand beside every row.
struct RingBuffer {
  int64_t channels, rows, left, row_numbers, image_numbers, first;

  int64_t pixel(int64_t row, int64_t column) const {
    return first + row % rows * row_numbers + (column + left) * channels;
  }
};

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
  // Of each block, for each position of the row in the source's ring: how far the terms stand from the pixel.
  std::vector<std::vector<std::vector<int64_t>>> offsets;
};

// What a node computes in one go; `fields` follow the six that all nodes have.
struct Job {
  NodeOp op;
  int64_t dst, dst_offset, node_channels;
  ChannelSet channels;
  const int64_t* fields;
  int64_t conv;
};

template <class T>
class SamplerProgram {
 public:
  explicit SamplerProgram(const SamplerPlan& plan) : plan(plan), passes(plan.colors + 1) {
    for (size_t i = 0; i < plan.buffers.size(); i += 6) add_buffer(plan.buffers.data() + i);
    for (size_t i = 0; i < plan.nodes.size(); i += plan.nodes[i + 1]) add_node(plan.nodes.data() + i);
    const int64_t* colours = address<int64_t>(plan.buffers[5]);
    drawn.resize(plan.colors);
    for (int64_t c = 0; c < plan.channels; ++c) drawn[colours[c] - 1].push_back(c);
  }

  template <class U = T>
  const U* address(int64_t index) const {
    return index < 0 ? nullptr : reinterpret_cast<const U*>(plan.addresses[index]);
  }

  const SamplerPlan& plan;
  std::vector<RingBuffer> buffers;
  std::vector<Conv<T>> convs;
  std::vector<Job> row_jobs;
  std::vector<std::vector<Job>> passes;
  // The jobs of all passes in the order of their nodes, as pass and number: that in which whole rows of a known image
  // may be computed.
  struct JobOfPass {
    int64_t pass, job;
  };
  std::vector<JobOfPass> by_node;
  // The image channels drawn after each pass.
  std::vector<std::vector<int64_t>> drawn;
  int64_t image_numbers = 0;  // what all buffers of one image hold
  int64_t most_channels = 0;

 private:
  void add_buffer(const int64_t* b) {
    const int64_t row = (b[3] + plan.width + b[4]) * b[0];
    buffers.push_back({b[0], b[2], b[3], row, 0, image_numbers});
    image_numbers += b[2] * row;
    most_channels = std::max(most_channels, b[0]);
  }

  void add_node(const int64_t* node) {
    const int64_t when = node[2], dst = node[3], dst_offset = node[4], channels = node[5];
    const auto add = [&](std::vector<Job>& jobs, std::vector<int64_t> list) {
      if (list.empty()) return;
      Job job{static_cast<NodeOp>(node[0]), dst, dst_offset, channels, ChannelSet(std::move(list)), node + 6, -1};
      if (job.op == NodeOp::kConv) {
        job.conv = static_cast<int64_t>(convs.size());
        add_conv(job);
      }
      jobs.push_back(std::move(job));
    };
    const auto add_to_pass = [&](int64_t pass, std::vector<int64_t> list) {
      const size_t before = passes[pass].size();
      add(passes[pass], std::move(list));
      if (passes[pass].size() > before) by_node.push_back({pass, static_cast<int64_t>(before)});
    };
    if (when != -2) {
      std::vector<int64_t> all(channels);
      std::iota(all.begin(), all.end(), 0);
      if (when < 0)
        add(row_jobs, std::move(all));
      else
        add_to_pass(when, std::move(all));
      return;
    }
    const int64_t* colours = address<int64_t>(plan.buffers[6 * dst + 5]) + dst_offset;
    for (int64_t pass = 0; pass < static_cast<int64_t>(passes.size()); ++pass) {
      std::vector<int64_t> list;
      for (int64_t c = 0; c < channels; ++c)
        if (colours[c] == pass) list.push_back(c);
      add_to_pass(pass, std::move(list));
    }
  }

  void add_conv(const Job& job) {
    const int64_t *f = job.fields, in = f[2], area = f[8], origin_tap = f[9], taps = f[10];
    const T *weight = address(f[3]), *bias = address(f[4]);
    const int64_t *in_degrees = address<int64_t>(f[5]), *out_degrees = address<int64_t>(f[6]);
    const RingBuffer& source = buffers[f[0]];
    // A term's offset is its number here; where it stands depends on the row, see below.
    std::vector<Term> terms;
    for (int64_t t = 0; t < taps; ++t)
      for (int64_t i = 0; i < in; ++i) terms.push_back({t * in + i, f[11 + 3 * t], i});
    const auto& list = job.channels.list;
    Conv<T> conv{PackedProducts<T>(
                     job.channels.count(), terms,
                     [&](int64_t o, const Term& t) { return weight[(list[o] * in + t.channel) * area + t.tap]; },
                     [&](int64_t o, const Term& t) {
                       return t.tap != origin_tap || in_degrees[t.channel] <= out_degrees[list[o]];
                     },
                     [&](int64_t o) { return bias ? bias[list[o]] : T(0); }),
                 {}};
    for (const auto& block : conv.products.blocks) {
      std::vector<std::vector<int64_t>> by_row(source.rows);
      for (int64_t row = 0; row < source.rows; ++row)
        for (const int64_t term : block.offsets) {
          const int64_t *tap = f + 11 + 3 * (term / in), dy = tap[1], dx = tap[2];
          const int64_t at = (row + dy + source.rows) % source.rows;
          by_row[row].push_back((at - row) * source.row_numbers + dx * source.channels + term % in);
        }
      conv.offsets.push_back(std::move(by_row));
    }
    convs.push_back(std::move(conv));
  }
};

}  // namespace
}  // namespace fastvae
