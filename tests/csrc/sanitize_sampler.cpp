// The cached sampler, with every op and every head.
#include <cstring>

#include "sanitize.h"

namespace fastvae {
namespace {

// A plan that grows buffer by buffer and node by node.
struct PlanBuilder {
  SamplerPlan plan{};

  PlanBuilder(int64_t n, int64_t h, int64_t w, int64_t channels, int64_t parameters, int64_t colors) {
    plan.sizes = {.images = n,
                  .channels = channels,
                  .height = h,
                  .width = w,
                  .parameters = parameters,
                  .colors = colors,
                  .image_numbers = 0};
    plan.temperature = 1;
  }

  template <class X>
  int64_t address(const X* data) {
    plan.addresses.push_back(reinterpret_cast<uint64_t>(data));
    return static_cast<int64_t>(plan.addresses.size()) - 1;
  }
  int64_t scalar(double value) {
    plan.scalars.push_back(value);
    return static_cast<int64_t>(plan.scalars.size()) - 1;
  }
  // Its number.
  int64_t buffer(int64_t channels, int64_t passes, int64_t rows = 2, int64_t margin = 1) {
    const int64_t row_numbers = (plan.sizes.width + 2 * margin) * channels;
    plan.buffers.push_back({.channels = channels,
                            .rows = rows,
                            .left = margin,
                            .row_numbers = row_numbers,
                            .first = plan.sizes.image_numbers,
                            .passes = passes});
    plan.sizes.image_numbers += rows * row_numbers;
    return static_cast<int64_t>(plan.buffers.size()) - 1;
  }
  // From all channels of a buffer to all of another.
  SamplerNode& node(SamplerOp op, int64_t when, int64_t dst, int64_t src) {
    SamplerNode& added = plan.nodes.emplace_back();
    std::memset(&added, 0xFF, sizeof(added));  // kAbsent in every field
    added.op = static_cast<int64_t>(op);
    added.when = when;
    added.dst = dst;
    added.dst_first = 0;
    added.channels = plan.buffers[static_cast<size_t>(dst)].channels;
    added.src = src;
    added.src_first = 0;
    return added;
  }
  SamplerNode& conv(int64_t when, int64_t dst, int64_t src, int64_t weight, int64_t area,
                    const std::vector<SamplerTap>& taps) {
    SamplerNode& added = node(SamplerOp::kConv, when, dst, src);
    added.src_channels = plan.buffers[static_cast<size_t>(src)].channels;
    added.weight = weight;
    added.kernel_area = area;
    added.first_tap = static_cast<int64_t>(plan.taps.size());
    added.taps = static_cast<int64_t>(taps.size());
    added.activation = static_cast<int64_t>(Activation::kIdentity);
    plan.taps.insert(plan.taps.end(), taps.begin(), taps.end());
    return added;
  }
};

// Those of a kernel of 3 x 3 before its centre, and with it.
const std::vector<SamplerTap> kBefore{{0, -1, -1}, {1, -1, 0}, {2, -1, 1}, {3, 0, -1}};
const std::vector<SamplerTap> kUpToCentre{{0, -1, -1}, {1, -1, 0}, {2, -1, 1}, {3, 0, -1}, {4, 0, 0}};

// A convolution of type A and one of type B, a sum, a gate, and a head that draws.
template <class T>
std::vector<T> run_sampler(const Kernels<T>& kernels, int64_t n, int64_t h, int64_t w, const SamplerHead& head,
                           int64_t parameters, const T* numbers) {
  const int64_t hidden = 6;
  Results<T> r;
  const auto copy = [&](int64_t size) {
    auto to = r.array(size);
    std::copy_n(numbers, size, to.get());
    return to;
  };
  const auto first = copy(hidden * 9), second = copy(hidden * hidden * 9), last = copy(parameters * hidden / 2);
  const int64_t pass_of_image = 1;
  const std::vector<int64_t> passes(static_cast<size_t>(std::max(hidden, parameters)), 0);
  const int64_t columns = head.columns;
  auto uniforms = r.array(n * h * w * columns), out = r.array(n * parameters * h * w), image = r.array(n * h * w);
  for (int64_t i = 0; i < n * h * w * columns; ++i) uniforms[i] = static_cast<T>((7 * i + 3) % 11 + 1) / 13;
  std::fill_n(image.get(), n * h * w, T(0));

  PlanBuilder builder(n, h, w, 1, parameters, 1);
  builder.plan.head = head;
  const int64_t given = builder.buffer(1, builder.address(&pass_of_image));
  const int64_t all = builder.address(passes.data());
  const int64_t map = builder.buffer(hidden, all), wide = builder.buffer(hidden, all),
                sum = builder.buffer(hidden, all);
  const int64_t half = builder.buffer(hidden / 2, all), params = builder.buffer(parameters, all);
  builder.conv(0, map, given, builder.address(first.get()), 9, kBefore).activation =
      static_cast<int64_t>(Activation::kRelu);
  builder.conv(0, wide, map, builder.address(second.get()), 9, kUpToCentre).activation =
      static_cast<int64_t>(Activation::kRelu);
  SamplerNode& added = builder.node(SamplerOp::kAdd, 0, sum, map);
  added.other = wide;
  added.other_first = 0;
  builder.node(SamplerOp::kGate, 0, half, sum).gate = static_cast<int64_t>(Gate::kTanh);
  builder.conv(0, params, half, builder.address(last.get()), 1, {{0, 0, 0}}).activation =
      static_cast<int64_t>(Activation::kRelu);

  SamplerPlan& plan = builder.plan;
  kernels.causal_sampler.run(plan, image.get(), nullptr, uniforms.get(), out.get());
  r.keep(image, n * h * w);
  r.keep(out, n * parameters * h * w);
  plan.all_given = true;
  kernels.causal_sampler.run(plan, image.get(), nullptr, nullptr, out.get());
  r.keep(out, n * parameters * h * w);
  return r.values;
}

// Three colours whose channels are interleaved, hence of several passes and not side by side; a gate whose condition is
// a map of constants; every third number given.
template <class T>
std::vector<T> run_colored_sampler(const Kernels<T>& kernels, int64_t n, int64_t h, int64_t w, const T* numbers) {
  const int64_t colors = 3, hidden = 6, size = n * colors * h * w;
  Results<T> r;
  const auto copy = [&](int64_t count) {
    auto to = r.array(count);
    std::copy_n(numbers, count, to.get());
    return to;
  };
  const auto first = copy(hidden * colors * 9), last = copy(colors * colors), condition = copy(n * hidden * h * w);
  const std::vector<int64_t> passes_of_image{1, 2, 3}, passes{0, 1, 2, 0, 1, 2};
  const std::vector<int64_t> degrees{0, 1, 2}, degrees_below{-1, 0, 1, -1, 0, 1};
  auto uniforms = r.array(size), out = r.array(size), image = r.array(size);
  std::vector<uint8_t> given(static_cast<size_t>(size));
  for (int64_t i = 0; i < size; ++i) {
    uniforms[i] = static_cast<T>((7 * i + 3) % 11 + 1) / 13;
    given[static_cast<size_t>(i)] = i % 3 == 0;
    image[i] = i % 6 == 0 ? T(1) : T(0);
  }

  PlanBuilder builder(n, h, w, colors, colors, colors);
  builder.plan.head = {.kind = static_cast<int64_t>(Head::kBernoulli), .columns = colors, .components = 1, .levels = 2};
  const int64_t seen = builder.buffer(colors, builder.address(passes_of_image.data()));
  const int64_t constants = builder.buffer(hidden, kAbsent, 1, 0), own = builder.address(passes.data());
  const int64_t map = builder.buffer(hidden, own, 1, 0), gated = builder.buffer(colors, own, 1, 0);
  const int64_t scaled = builder.buffer(colors, own, 1, 0), rectified = builder.buffer(colors, own, 1, 0);
  const int64_t params = builder.buffer(colors, own, 1, 0);
  SamplerNode& constant = builder.node(SamplerOp::kConstant, kRow, constants, kAbsent);
  constant.constant = builder.address(condition.get());
  constant.is_map = 1;
  const int64_t in = builder.address(degrees.data()), below = builder.address(degrees_below.data());
  SamplerNode& lower = builder.conv(kSeveral, map, seen, builder.address(first.get()), 9, kUpToCentre);
  lower.in_degrees = in;
  lower.out_degrees = below;
  lower.activation = static_cast<int64_t>(Activation::kElu);
  lower.origin_tap = 4;
  SamplerNode& gate = builder.node(SamplerOp::kGate, kSeveral, gated, map);
  gate.other = constants;
  gate.other_first = 0;
  gate.gate = static_cast<int64_t>(Gate::kTanh);
  SamplerNode& affine = builder.node(SamplerOp::kAffine, kSeveral, scaled, gated);
  affine.alpha = builder.scalar(0.5);
  affine.beta = builder.scalar(-0.25);
  SamplerNode& leaky = builder.node(SamplerOp::kActivation, kSeveral, rectified, scaled);
  leaky.activation = static_cast<int64_t>(Activation::kLeakyRelu);
  leaky.slope = builder.scalar(0.1);
  SamplerNode& upper = builder.conv(kSeveral, params, rectified, builder.address(last.get()), 1, {{0, 0, 0}});
  upper.in_degrees = in;
  upper.out_degrees = in;
  upper.origin_tap = 0;

  SamplerPlan& plan = builder.plan;
  kernels.causal_sampler.run(plan, image.get(), given.data(), uniforms.get(), out.get());
  r.keep(image, size);
  r.keep(out, size);
  plan.all_given = true;
  kernels.causal_sampler.run(plan, image.get(), nullptr, nullptr, out.get());
  r.keep(out, size);
  return r.values;
}

template <class T>
int check_type(const char* type, double tolerance) {
  int failures = 0;
  const auto numbers = random_array<T>(1 << 15);
  char name[96];
  const SamplerHead heads[3] = {{static_cast<int64_t>(Head::kBernoulli), 1, 1, 2},
                                {static_cast<int64_t>(Head::kCategorical), 1, 1, 5},
                                {static_cast<int64_t>(Head::kLogisticMixture), 2, 3, 256}};
  const int64_t parameters[3] = {1, 5, 9};
  for (int head = 0; head < 3; ++head)
    for (int64_t n : {1, 14}) {
      std::snprintf(name, sizeof(name), "%s sampler head=%d n=%ld", type, head, n);
      failures += compare<T>(name, tolerance, [&](const Kernels<T>& k) {
        return run_sampler(k, n, 5, 6, heads[head], parameters[head], numbers.get());
      });
    }
  for (int64_t n : {1, 14}) {
    std::snprintf(name, sizeof(name), "%s colored sampler n=%ld", type, n);
    failures += compare<T>(name, tolerance,
                           [&](const Kernels<T>& k) { return run_colored_sampler(k, n, 4, 5, numbers.get()); });
  }
  return failures;
}

}  // namespace

int check_samplers() { return check_type<float>("float", 2e-3) + check_type<double>("double", 1e-5); }

}  // namespace fastvae
