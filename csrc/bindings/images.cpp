// The functions on images (masked convolutions, gates, mixtures of logistics) take tensors, and return new ones.
// Python's launchers check device, dtype, layout and extent before a call.
#include <vector>

#include "bindings/bindings.h"
#include "bindings/tensors.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace fastvae {
namespace {

template <class T>
Images<T> images_of(const TensorView& t) {
  return {t.as<T>(), {t.stride[0], t.stride[1], t.stride[2], t.stride[3]}};
}

// New images, pixel by pixel or channel by channel.
struct NewImages {
  Output to;
  int64_t stride[4];

  NewImages() : stride{} {}
  NewImages(nb::handle like, const Numbers& of_like, int64_t n, int64_t c, int64_t h, int64_t w, bool channels_last) {
    if (!channels_last) {
      to = new_tensor(like, of_like, {n, c, h, w});
      set_strides(c * h * w, h * w, w, 1);
      return;
    }
    to = new_tensor(like, of_like, {n, h, w, c});
    set_strides(h * w * c, 1, w * c, c);
    to.tensor = to.tensor.attr("permute")(0, 3, 1, 2);
  }

  template <class T>
  Images<T> of() const {
    return {to.as<T>(), {stride[0], stride[1], stride[2], stride[3]}};
  }

 private:
  void set_strides(int64_t n, int64_t c, int64_t h, int64_t w) {
    stride[0] = n;
    stride[1] = c;
    stride[2] = h;
    stride[3] = w;
  }
};

NewImages new_like(nb::handle images, const TensorView& t, bool channels_last) {
  return {images, t, t.shape[0], t.shape[1], t.shape[2], t.shape[3], channels_last};
}

bool is_contiguous(const TensorView& t) {
  int64_t expected = 1;
  for (int i = t.dims - 1; i >= 0; --i) {
    if (t.shape[i] != 1 && t.stride[i] != expected) return false;
    expected *= t.shape[i];
  }
  return true;
}

// Whether channels are the fastest dimension and pixels the next, by the strides, as PyTorch decides it.
bool is_channels_last(const TensorView& t) {
  const int64_t channels = t.shape[1], height = t.shape[2], width = t.shape[3];
  const bool laid = t.stride[1] == 1 && t.stride[3] >= channels && t.stride[2] >= t.stride[3] * width;
  return laid && (channels > 1 || height > 1 || width > 1);
}

// The parameters of a convolution beside its tensors, in Python's order.
struct Convolution {
  ConvCall call;
  std::vector<int64_t> taps;
  TensorView weight, bias, in_degrees, out_degrees;

  Convolution(const TensorView& x, nb::handle of_weight, nb::handle of_bias, nb::handle of_in, nb::handle of_out,
              nb::handle of_taps, int64_t origin_tap, nb::handle padding, nb::handle dilation, int64_t groups,
              int64_t activation)
      : taps(Items(of_taps).integers()),
        weight(view(of_weight)),
        bias(view(of_bias)),
        in_degrees(view(of_in)),
        out_degrees(view(of_out)) {
    const Items zeros(padding), steps(dilation);
    const auto at = [](const Items& items, size_t i) { return nb::cast<int64_t>(items[i]); };
    const int64_t top = at(zeros, 0), left = at(zeros, 1), step_y = at(steps, 0), step_x = at(steps, 1);
    const int64_t kernel_height = weight.shape[2], kernel_width = weight.shape[3];
    const int64_t out_height = x.shape[2] + top + at(zeros, 2) - step_y * (kernel_height - 1);
    const int64_t out_width = x.shape[3] + left + at(zeros, 3) - step_x * (kernel_width - 1);
    call = {x.shape[0],   x.shape[1], x.shape[2], x.shape[3], weight.shape[0], out_height, out_width,  kernel_height,
            kernel_width, top,        left,       step_y,     step_x,          groups,     activation, origin_tap};
  }

  template <class T>
  ConvSpec<T> spec() const {
    return {call,
            taps,
            weight.as<const T>(),
            bias.as<const T>(),
            in_degrees.as<const int64_t>(),
            out_degrees.as<const int64_t>()};
  }
};

// Returns the output, and the pre-activation where it is kept.
nb::tuple masked_conv2d_fwd(nb::handle x, nb::handle weight, nb::handle bias, nb::handle in_degrees,
                            nb::handle out_degrees, nb::handle taps, int64_t origin_tap, nb::handle padding,
                            nb::handle dilation, int64_t groups, int64_t activation, bool keep_pre) {
  const TensorView images = view(x);
  const Convolution conv(images, weight, bias, in_degrees, out_degrees, taps, origin_tap, padding, dilation, groups,
                         activation);
  const auto make = [&] {
    return NewImages(x, images, images.shape[0], conv.call.out, conv.call.out_height, conv.call.out_width,
                     is_channels_last(images));
  };
  const NewImages y = make(), pre = keep_pre ? make() : NewImages();
  with_type(images.is_double(), [&]<class T>(T) {
    current().of<T>().masked_conv2d.fwd(conv.spec<T>(), images_of<const T>(images), y.of<T>(), pre.to.as<T>());
  });
  return nb::make_tuple(y.to.tensor, pre.to.tensor);
}

// at: the pre-activation or the output; without an activation it is not read. Returns the gradients of x, weight and
// bias; None for those that `needs` does not want.
nb::tuple masked_conv2d_bwd(nb::handle d_y, nb::handle at, nb::handle x, nb::handle weight, nb::handle in_degrees,
                            nb::handle out_degrees, nb::handle taps, int64_t origin_tap, nb::handle padding,
                            nb::handle dilation, int64_t groups, int64_t activation, nb::handle needs) {
  const TensorView g = view(d_y), activations = view(at), images = view(x);
  const Convolution conv(images, weight, nb::none(), in_degrees, out_degrees, taps, origin_tap, padding, dilation,
                         groups, activation);
  const Items wanted(needs);
  const auto wants = [&](size_t i) { return wanted[i].ptr() == Py_True; };
  const TensorView& w = conv.weight;
  const NewImages d_x = wants(0) ? new_like(x, images, is_channels_last(images)) : NewImages();
  const NewImages d_weight = wants(1) ? new_like(x, w, false) : NewImages();
  const Output d_bias = wants(2) ? new_tensor(x, images, {w.shape[0]}) : Output();
  with_type(images.is_double(), [&]<class T>(T) {
    current().of<T>().masked_conv2d.bwd(conv.spec<T>(), images_of<const T>(g), images_of<const T>(activations),
                                        images_of<const T>(images), d_x.of<T>(), d_weight.to.as<T>(), d_bias.as<T>());
  });
  return nb::make_tuple(d_x.to.tensor, d_weight.to.tensor, d_bias.tensor);
}

// A condition, with stride 0 where one row, column, channel or image stands for all.
template <class T>
Images<const T> broadcast(const TensorView& condition) {
  Images<const T> images = images_of<const T>(condition);
  for (int i = 0; i < 4; ++i)
    if (condition.shape[i] == 1) images.stride[i] = 0;
  return images;
}

// Whether images, or a range of their channels, are laid out pixel by pixel.
bool is_by_pixel(const TensorView& t) { return t.stride[1] == 1 && !is_contiguous(t); }

ImageExtent gated_extent(const TensorView& x) { return {x.shape[0], x.shape[1] / 2, x.shape[2], x.shape[3]}; }

nb::object gated_activation_fwd(nb::handle x, nb::handle condition, int64_t kind) {
  const TensorView images = view(x), added = view(condition);
  const ImageExtent extent = gated_extent(images);
  const NewImages y(x, images, extent.images, extent.channels, extent.height, extent.width, is_by_pixel(images));
  with_type(images.is_double(), [&]<class T>(T) {
    current().of<T>().gated_activation.fwd(kind, extent, images_of<const T>(images), broadcast<T>(added), y.of<T>());
  });
  return y.to.tensor;
}

nb::object gated_activation_bwd(nb::handle d_y, nb::handle x, nb::handle condition, int64_t kind) {
  const TensorView g = view(d_y), images = view(x), added = view(condition);
  const NewImages d_x = new_like(x, images, is_by_pixel(images));
  with_type(images.is_double(), [&]<class T>(T) {
    current().of<T>().gated_activation.bwd(kind, gated_extent(images), images_of<const T>(g),
                                           images_of<const T>(images), broadcast<T>(added), d_x.of<T>());
  });
  return d_x.to.tensor;
}

// Returns the log-likelihoods, and with `keep` the derivatives of each by its own parameters.
nb::tuple logistic_mixture_fwd(nb::handle x, nb::handle params, int64_t levels, bool keep) {
  const TensorView images = view(x), maps = view(params);
  const int64_t channels = images.shape[1], components = maps.shape[1] / (channels == 3 ? 10 : 3);
  const Output log_prob = new_tensor(params, maps, {images.shape[0]});
  const NewImages kept = keep ? new_like(params, maps, maps.stride[1] == 1) : NewImages();
  const MixtureSizes sizes{images.shape[0], channels, images.shape[2], images.shape[3], components, levels};
  with_type(maps.is_double(), [&]<class T>(T) {
    current().of<T>().logistic_mixture.fwd(sizes, images_of<const T>(images), images_of<const T>(maps),
                                           log_prob.as<T>(), kept.of<T>());
  });
  return nb::make_tuple(log_prob.tensor, kept.to.tensor);
}

}  // namespace

void bind_images(nb::module_& m) {
  m.def("masked_conv2d_fwd", masked_conv2d_fwd, "x"_a, "weight"_a, "bias"_a.none(), "in_degrees"_a.none(),
        "out_degrees"_a.none(), "taps"_a, "origin_tap"_a, "padding"_a, "dilation"_a, "groups"_a, "activation"_a,
        "keep_pre"_a);
  m.def("masked_conv2d_bwd", masked_conv2d_bwd, "d_y"_a, "at"_a.none(), "x"_a, "weight"_a, "in_degrees"_a.none(),
        "out_degrees"_a.none(), "taps"_a, "origin_tap"_a, "padding"_a, "dilation"_a, "groups"_a, "activation"_a,
        "needs"_a);
  m.def("gated_activation_fwd", gated_activation_fwd, "x"_a, "condition"_a.none(), "kind"_a);
  m.def("gated_activation_bwd", gated_activation_bwd, "d_y"_a, "x"_a, "condition"_a.none(), "kind"_a);
  m.def("logistic_mixture_fwd", logistic_mixture_fwd, "x"_a, "params"_a, "levels"_a, "keep"_a);
}

}  // namespace fastvae
