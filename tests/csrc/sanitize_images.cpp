// Kernels on images: masked convolutions, gates and the cached sampler.
#include "sanitize.h"

namespace fastvae {
namespace {

// Strides of (N, C, H, W), the channels of a pixel together or not.
Images<float> strides_only(int64_t c, int64_t h, int64_t w, bool channels_last) {
  if (channels_last) return {nullptr, {c * h * w, 1, w * c, c}};
  return {nullptr, {c * h * w, h * w, w, 1}};
}

template <class T>
Images<T> images(T* data, int64_t c, int64_t h, int64_t w, bool channels_last) {
  const auto like = strides_only(c, h, w, channels_last);
  return {data, {like.stride[0], like.stride[1], like.stride[2], like.stride[3]}};
}

struct ConvCase {
  int64_t images, in, height, width, out, kernel, padding, dilation, groups, activation;
  bool channels_last;
};

template <class T>
std::vector<T> run_conv(const Kernels<T>& kernels, const ConvCase& c, const T* numbers, const int64_t* degrees) {
  const int64_t span = (c.kernel - 1) * c.dilation, out_height = c.height + 2 * c.padding - span,
                out_width = c.width + 2 * c.padding - span;
  const int64_t x_size = c.images * c.in * c.height * c.width, y_size = c.images * c.out * out_height * out_width;
  const int64_t w_size = c.out * (c.in / c.groups) * c.kernel * c.kernel, center = c.kernel * c.kernel / 2;
  Results<T> r;
  const auto copy = [&](int64_t size) {
    auto to = r.array(size);
    std::copy_n(numbers, size, to.get());
    return to;
  };
  const auto x = copy(x_size), weight = copy(w_size), bias = copy(c.out), d_y = copy(y_size);
  ConvSpec<T> spec{c.images,     c.in,     c.height,  c.width,      c.out,      out_height, out_width,
                   c.kernel,     c.kernel, c.padding, c.padding,    c.dilation, c.dilation, c.groups,
                   c.activation, center,   {},        weight.get(), bias.get(), degrees,    degrees};
  for (int64_t tap = 0; tap <= center; ++tap) spec.taps.push_back(tap);
  auto y = r.array(y_size), pre = r.array(y_size), d_x = r.array(x_size), d_weight = r.array(w_size),
       d_bias = r.array(c.out);
  const auto at = [&](T* data, int64_t channels, int64_t h, int64_t w) {
    return images<T>(data, channels, h, w, c.channels_last);
  };
  const auto input = images<const T>(x.get(), c.in, c.height, c.width, c.channels_last);
  const auto adjoint = images<const T>(d_y.get(), c.out, out_height, out_width, c.channels_last);
  const auto kept = images<const T>(pre.get(), c.out, out_height, out_width, c.channels_last);
  kernels.masked_conv2d.fwd(spec, input, at(y.get(), c.out, out_height, out_width), pre.get());
  kernels.masked_conv2d.bwd(spec, adjoint, kept, input, at(d_x.get(), c.in, c.height, c.width), d_weight.get(),
                            d_bias.get());
  r.keep(y, y_size);
  r.keep(pre, y_size);
  r.keep(d_x, x_size);
  r.keep(d_weight, w_size);
  r.keep(d_bias, c.out);
  // Each gradient alone.
  kernels.masked_conv2d.bwd(spec, adjoint, kept, input, at(d_x.get(), c.in, c.height, c.width), nullptr, nullptr);
  kernels.masked_conv2d.bwd(spec, adjoint, kept, input, {}, d_weight.get(), nullptr);
  kernels.masked_conv2d.bwd(spec, adjoint, kept, input, {}, nullptr, d_bias.get());
  r.keep(d_x, x_size);
  r.keep(d_weight, w_size);
  r.keep(d_bias, c.out);
  return r.values;
}

template <class T>
std::vector<T> run_gate(const Kernels<T>& kernels, int64_t kind, bool conditioned, bool channels_last, int64_t f,
                        int64_t h, int64_t w, const T* numbers) {
  const int64_t n = 2, y_size = n * f * h * w, x_size = 2 * y_size;
  Results<T> r;
  auto x = r.array(x_size), y = r.array(y_size), d_x = r.array(x_size), condition = r.array(n * 2 * f);
  std::copy_n(numbers, x_size, x.get());
  std::copy_n(numbers, n * 2 * f, condition.get());
  const ImageExtent extent{n, f, h, w};
  const auto from = images<const T>(x.get(), 2 * f, h, w, channels_last);
  const Images<const T> with{conditioned ? condition.get() : nullptr, {2 * f, 1, 0, 0}};
  kernels.gated_activation.fwd(kind, extent, from, with, images<T>(y.get(), f, h, w, channels_last));
  kernels.gated_activation.bwd(kind, extent, images<const T>(y.get(), f, h, w, channels_last), from, with,
                               images<T>(d_x.get(), 2 * f, h, w, channels_last));
  r.keep(y, y_size);
  r.keep(d_x, x_size);
  return r.values;
}

template <class T>
std::vector<T> run_mixture(const Kernels<T>& kernels, MixtureSizes sizes, bool channels_last, const T* numbers) {
  const int64_t area = sizes.height * sizes.width, maps = sizes.params();
  const int64_t x_size = sizes.images * sizes.channels * area, params_size = sizes.images * maps * area;
  Results<T> r;
  auto x = r.array(x_size), params = r.array(params_size), log_prob = r.array(sizes.images), d = r.array(params_size);
  auto log_prob_alone = r.array(sizes.images);
  std::copy_n(numbers, params_size, params.get());
  // Levels, the lowest and the highest among them.
  for (int64_t i = 0; i < x_size; ++i)
    x[i] = static_cast<T>(i * 5 % sizes.levels) * 2 / static_cast<T>(sizes.levels - 1) - 1;
  const auto from = images<const T>(x.get(), sizes.channels, sizes.height, sizes.width, channels_last);
  const auto with = images<const T>(params.get(), maps, sizes.height, sizes.width, channels_last);
  kernels.logistic_mixture.fwd(sizes, from, with, log_prob_alone.get(), {});
  kernels.logistic_mixture.fwd(sizes, from, with, log_prob.get(),
                               images<T>(d.get(), maps, sizes.height, sizes.width, channels_last));
  r.keep(log_prob_alone, sizes.images);
  r.keep(log_prob, sizes.images);
  r.keep(d, params_size);
  return r.values;
}

// A convolution of type A and one of type B, a sum, a gate, and a head that draws.
template <class T>
std::vector<T> run_sampler(const Kernels<T>& kernels, int64_t n, int64_t h, int64_t w, const int64_t* head,
                           int64_t parameters, const T* numbers) {
  const int64_t hidden = 6;
  Results<T> r;
  const auto copy = [&](int64_t size) {
    auto to = r.array(size);
    std::copy_n(numbers, size, to.get());
    return to;
  };
  const auto first = copy(hidden * 9), second = copy(hidden * hidden * 9), last = copy(parameters * hidden / 2);
  const int64_t color = 1, known = 0;
  std::vector<int64_t> colors(hidden, known);
  colors.resize(std::max(hidden, parameters), known);
  const int64_t columns = head[1];
  auto uniforms = r.array(n * h * w * columns), out = r.array(n * parameters * h * w), image = r.array(n * h * w);
  for (int64_t i = 0; i < n * h * w * columns; ++i) uniforms[i] = static_cast<T>((7 * i + 3) % 11 + 1) / 13;
  std::fill_n(image.get(), n * h * w, T(0));
  const auto address = [](const auto* p) { return reinterpret_cast<uint64_t>(p); };
  SamplerPlan plan{n, 1, h, w, parameters, 1, false, {}, {}, {}, {1.0}, {head, head + 4}};
  plan.addresses = {address(&color), address(colors.data()), address(first.get()), address(second.get()),
                    address(last.get())};
  // Image, first map, second map, their sum, gated, parameters.
  for (const int64_t channels : {int64_t{1}, hidden, hidden, hidden, hidden / 2, parameters})
    plan.buffers.insert(plan.buffers.end(), {channels, 1, 2, 1, 1, plan.buffers.empty() ? 0 : 1});
  const auto conv = [&](int64_t from, int64_t in, int64_t to, int64_t count, int64_t weight, int64_t area,
                        std::vector<int64_t> taps) {
    std::vector<int64_t> node{0, 0, 0, to, 0, count, from, 0, in, weight, -1, -1, -1, 1, area, -1};
    node.push_back(static_cast<int64_t>(taps.size()) / 3);
    node.insert(node.end(), taps.begin(), taps.end());
    node[1] = static_cast<int64_t>(node.size());
    plan.nodes.insert(plan.nodes.end(), node.begin(), node.end());
  };
  conv(0, 1, 1, hidden, 2, 9, {0, -1, -1, 1, -1, 0, 2, -1, 1, 3, 0, -1});
  conv(1, hidden, 2, hidden, 3, 9, {0, -1, -1, 1, -1, 0, 2, -1, 1, 3, 0, -1, 4, 0, 0});
  plan.nodes.insert(plan.nodes.end(), {1, 10, 0, 3, 0, hidden, 1, 0, 2, 0});
  plan.nodes.insert(plan.nodes.end(), {6, 11, 0, 4, 0, hidden / 2, 3, 0, -1, 0, 0});
  conv(4, hidden / 2, 5, parameters, 4, 1, {0, 0, 0});
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
  const std::vector<int64_t> drawn{1, 2, 3}, passes{0, 1, 2, 0, 1, 2}, degrees{0, 1, 2}, below{-1, 0, 1, -1, 0, 1};
  auto uniforms = r.array(size), out = r.array(size), image = r.array(size);
  std::vector<uint8_t> given(static_cast<size_t>(size));
  for (int64_t i = 0; i < size; ++i) {
    uniforms[i] = static_cast<T>((7 * i + 3) % 11 + 1) / 13;
    given[static_cast<size_t>(i)] = i % 3 == 0;
    image[i] = i % 6 == 0 ? T(1) : T(0);
  }
  const auto address = [](const auto* p) { return reinterpret_cast<uint64_t>(p); };
  SamplerPlan plan{n, colors, h, w, colors, colors, false, {}, {}, {}, {1.0, 0.5, -0.25, 0.1}, {0, colors, 1, 2}};
  plan.addresses = {address(drawn.data()), address(passes.data()), address(degrees.data()), address(below.data()),
                    address(first.get()),  address(last.get()),    address(condition.get())};
  const auto buffer = [&](std::initializer_list<int64_t> b) { plan.buffers.insert(plan.buffers.end(), b); };
  buffer({colors, 1, 2, 1, 1, 0});                              // image
  buffer({hidden, 0, 1, 0, 0, -1});                             // constants
  buffer({hidden, 1, 1, 0, 0, 1});                              // first map
  for (int i = 0; i < 4; ++i) buffer({colors, 1, 1, 0, 0, 1});  // gated, scaled, rectified, parameters
  plan.nodes = {8, 8, -1, 1, 0, hidden, 6, 1};
  const auto add = [&](std::initializer_list<int64_t> node) { plan.nodes.insert(plan.nodes.end(), node); };
  add({0, 32, -2, 2, 0, hidden, 0, 0, colors, 4, -1, 2, 3, 2, 9, 4, 5});
  add({0, -1, -1, 1, -1, 0, 2, -1, 1, 3, 0, -1, 4, 0, 0});  // its taps
  add({6, 11, -2, 3, 0, colors, 2, 0, 1, 0, 0});
  add({4, 10, -2, 4, 0, colors, 3, 0, 1, 2});
  add({5, 10, -2, 5, 0, colors, 4, 0, 8, 3});
  add({0, 20, -2, 6, 0, colors, 5, 0, colors, 5, -1, 2, 2, 0, 1, 0, 1, 0, 0, 0});
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
  std::vector<int64_t> degrees(256);
  for (size_t i = 0; i < degrees.size(); ++i) degrees[i] = static_cast<int64_t>(i % 3);
  char name[96];
  for (bool channels_last : {false, true}) {
    for (const ConvCase& c :
         {ConvCase{2, 3, 5, 7, 4, 3, 1, 1, 1, 0, channels_last},
          ConvCase{1, 17, 6, 19, 70, 3, 1, 1, 1, 2, channels_last},
          ConvCase{3, 6, 9, 4, 9, 3, 2, 2, 3, 5, channels_last}, ConvCase{2, 1, 8, 8, 33, 7, 3, 1, 1, 1, channels_last},
          ConvCase{0, 2, 4, 4, 2, 3, 1, 1, 1, 0, channels_last},
          ConvCase{1, 5, 11, 3, 16, 1, 4, 1, 1, 6, channels_last}}) {
      std::snprintf(name, sizeof(name), "%s conv in=%ld out=%ld kernel=%ld last=%d", type, c.in, c.out, c.kernel,
                    channels_last);
      failures += compare<T>(name, tolerance,
                             [&](const Kernels<T>& k) { return run_conv(k, c, numbers.get(), degrees.data()); });
    }
    for (const MixtureSizes& sizes :
         {MixtureSizes{2, 3, 5, 7, 4, 256}, MixtureSizes{1, 1, 3, 67, 3, 2}, MixtureSizes{3, 1, 1, 1, 1, 16},
          MixtureSizes{0, 3, 4, 4, 2, 256}, MixtureSizes{1, 3, 17, 17, 1, 256}}) {
      std::snprintf(name, sizeof(name), "%s mixture c=%ld w=%ld last=%d", type, sizes.channels, sizes.width,
                    channels_last);
      failures += compare<T>(name, tolerance,
                             [&](const Kernels<T>& k) { return run_mixture(k, sizes, channels_last, numbers.get()); });
    }
    for (int64_t kind : {0, 1})
      for (bool conditioned : {false, true})
        for (int64_t w : {1, 5, 33}) {
          std::snprintf(name, sizeof(name), "%s gate kind=%ld width=%ld last=%d", type, kind, w, channels_last);
          failures += compare<T>(name, tolerance, [&](const Kernels<T>& k) {
            return run_gate(k, kind, conditioned, channels_last, 7, 3, w, numbers.get());
          });
        }
  }
  const int64_t heads[3][4] = {{0, 1, 1, 2}, {1, 1, 1, 5}, {2, 2, 3, 256}}, parameters[3] = {1, 5, 9};
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

int check_images() { return check_type<float>("float", 2e-3) + check_type<double>("double", 1e-5); }

}  // namespace fastvae
