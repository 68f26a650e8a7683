// Kernels on images: masked convolutions, gates and mixtures of logistics.
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
  const ConvCall call{.images = c.images,
                      .in = c.in,
                      .height = c.height,
                      .width = c.width,
                      .out = c.out,
                      .out_height = out_height,
                      .out_width = out_width,
                      .kernel_height = c.kernel,
                      .kernel_width = c.kernel,
                      .top = c.padding,
                      .left = c.padding,
                      .dilation_y = c.dilation,
                      .dilation_x = c.dilation,
                      .groups = c.groups,
                      .activation = c.activation,
                      .origin_tap = center};
  ConvSpec<T> spec{call, {}, weight.get(), bias.get(), degrees, degrees};
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

// What windows read of two images and write, and all gradients; the numbers serve as images, patches and windows.
template <class T>
std::vector<T> run_window(const Kernels<T>& kernels, WindowExtent e, const T* numbers) {
  const int64_t pixels = e.windows * e.height * e.width, of_patch = e.windows * e.points * e.points, stride = 6;
  const auto copy = [&](int64_t count, int64_t from) {
    auto array = std::make_unique<T[]>(count);
    std::copy_n(numbers + from, count, array.get());
    return array;
  };
  const auto x = copy(pixels, 0), other = copy(pixels, 7), patches = copy(2 * of_patch, 3);
  const auto windows = copy(e.windows * stride, 5);
  const Matrix<T> window{windows.get(), stride};
  Results<T> r;
  auto read = r.array(2 * of_patch), image = r.array(pixels), d_other = r.array(pixels), d_patch = r.array(of_patch);
  auto d_window = r.array(e.windows * 5);
  const auto& op = kernels.attention_window;
  op.read_fwd({x.get(), other.get()}, window, read.get(), e);
  r.keep(read, 2 * of_patch);
  T* const d_images[] = {nullptr, d_other.get()};
  op.read_bwd(patches.get(), {x.get(), other.get()}, window, d_images, d_window.get(), e);
  r.keep(d_other, pixels);
  r.keep(d_window, e.windows * 5);
  op.write_fwd(patches.get(), window, image.get(), e);
  r.keep(image, pixels);
  op.write_bwd(x.get(), patches.get(), window, d_patch.get(), d_window.get(), e);
  r.keep(d_patch, of_patch);
  r.keep(d_window, e.windows * 5);
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
    for (const WindowExtent& extent : {WindowExtent{3, 2, 28, 28}, WindowExtent{2, 5, 3, 67}, WindowExtent{1, 1, 1, 1},
                                       WindowExtent{0, 2, 4, 4}, WindowExtent{2, 7, 33, 16}}) {
      std::snprintf(name, sizeof(name), "%s window n=%ld h=%ld w=%ld", type, extent.points, extent.height,
                    extent.width);
      failures +=
          compare<T>(name, tolerance, [&](const Kernels<T>& k) { return run_window(k, extent, numbers.get()); });
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
  return failures;
}

}  // namespace

int check_images() { return check_type<float>("float", 2e-3) + check_type<double>("double", 1e-5); }

}  // namespace fastvae
