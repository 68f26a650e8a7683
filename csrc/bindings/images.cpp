// The functions on images: masked convolutions, gates, mixtures of logistics, the cached sampler.
#include "bindings/bindings.h"

namespace fastvae {
namespace {

template <class T>
Images<T> images(Address data, const Integers& strides) {
  return {at<T>(data), {strides[0], strides[1], strides[2], strides[3]}};
}

// geometry: the numbers of ConvSpec in its order, then the taps.
template <class T>
ConvSpec<T> conv_spec(const Integers& g, Address weight, Address bias, Address in_degrees, Address out_degrees) {
  return {g[0],
          g[1],
          g[2],
          g[3],
          g[4],
          g[5],
          g[6],
          g[7],
          g[8],
          g[9],
          g[10],
          g[11],
          g[12],
          g[13],
          g[14],
          g[15],
          {g.begin() + 16, g.end()},
          at<const T>(weight),
          at<const T>(bias),
          at<const int64_t>(in_degrees),
          at<const int64_t>(out_degrees)};
}

void masked_conv2d_fwd(bool is_double, const Integers& geometry, Address x, const Integers& x_strides, Address weight,
                       Address bias, Address in_degrees, Address out_degrees, Address y, Address pre,
                       const Integers& y_strides) {
  typed(is_double, [&]<class T>(T) {
    current().of<T>().masked_conv2d.fwd(conv_spec<T>(geometry, weight, bias, in_degrees, out_degrees),
                                        images<const T>(x, x_strides), images<T>(y, y_strides), at<T>(pre));
  });
}

void masked_conv2d_bwd(bool is_double, const Integers& geometry, Address d_y, const Integers& d_y_strides,
                       Address activations, const Integers& activations_strides, Address x, const Integers& x_strides,
                       Address weight, Address in_degrees, Address out_degrees, Address d_x,
                       const Integers& d_x_strides, Address d_weight, Address d_bias) {
  typed(is_double, [&]<class T>(T) {
    current().of<T>().masked_conv2d.bwd(
        conv_spec<T>(geometry, weight, 0, in_degrees, out_degrees), images<const T>(d_y, d_y_strides),
        images<const T>(activations, activations_strides), images<const T>(x, x_strides), images<T>(d_x, d_x_strides),
        at<T>(d_weight), at<T>(d_bias));
  });
}

ImageExtent image_extent(const Integers& sizes) { return {sizes[0], sizes[1], sizes[2], sizes[3]}; }

void gated_activation_fwd(bool is_double, int64_t kind, const Integers& sizes, Address x, const Integers& x_strides,
                          Address condition, const Integers& condition_strides, Address y, const Integers& y_strides) {
  typed(is_double, [&]<class T>(T) {
    current().of<T>().gated_activation.fwd(kind, image_extent(sizes), images<const T>(x, x_strides),
                                           images<const T>(condition, condition_strides), images<T>(y, y_strides));
  });
}

void gated_activation_bwd(bool is_double, int64_t kind, const Integers& sizes, Address d_y, const Integers& d_y_strides,
                          Address x, const Integers& x_strides, Address condition, const Integers& condition_strides,
                          Address d_x, const Integers& d_x_strides) {
  typed(is_double, [&]<class T>(T) {
    current().of<T>().gated_activation.bwd(kind, image_extent(sizes), images<const T>(d_y, d_y_strides),
                                           images<const T>(x, x_strides), images<const T>(condition, condition_strides),
                                           images<T>(d_x, d_x_strides));
  });
}

MixtureSizes mixture_sizes(const Integers& s) { return {s[0], s[1], s[2], s[3], s[4], s[5]}; }

void logistic_mixture_fwd(bool is_double, const Integers& sizes, Address x, const Integers& x_strides, Address params,
                          const Integers& params_strides, Address log_prob, Address d_params,
                          const Integers& d_params_strides) {
  typed(is_double, [&]<class T>(T) {
    current().of<T>().logistic_mixture.fwd(mixture_sizes(sizes), images<const T>(x, x_strides),
                                           images<const T>(params, params_strides), at<T>(log_prob),
                                           images<T>(d_params, d_params_strides));
  });
}

void causal_sampler(bool is_double, const Integers& sizes, const Integers& buffers, const Integers& nodes,
                    const std::vector<uint64_t>& addresses, const std::vector<double>& scalars, const Integers& head,
                    Address images, Address given, Address uniforms, Address parameters) {
  const SamplerPlan plan{sizes[0],      sizes[1], sizes[2], sizes[3],  sizes[4], sizes[5],
                         sizes[6] != 0, buffers,  nodes,    addresses, scalars,  head};
  typed(is_double, [&]<class T>(T) {
    current().of<T>().causal_sampler.run(plan, at<T>(images), at<const uint8_t>(given), at<const T>(uniforms),
                                         at<T>(parameters));
  });
}

}  // namespace

void bind_images(nanobind::module_& m) {
  m.def("causal_sampler", causal_sampler);
  m.def("gated_activation_fwd", gated_activation_fwd);
  m.def("gated_activation_bwd", gated_activation_bwd);
  m.def("logistic_mixture_fwd", logistic_mixture_fwd);
  m.def("masked_conv2d_fwd", masked_conv2d_fwd);
  m.def("masked_conv2d_bwd", masked_conv2d_bwd);
}

}  // namespace fastvae
