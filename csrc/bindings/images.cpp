// The functions on images (masked convolutions, gates, mixtures of logistics) take addresses, strides and sizes, and
// return nothing. Python's launchers own all memory, and check device, dtype, layout and extent before a call.
#include "bindings/bindings.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace fastvae {
namespace {

template <class T>
Images<T> images(Address data, const Integers& strides) {
  return {at<T>(data), {strides[0], strides[1], strides[2], strides[3]}};
}

// call: the numbers of ConvCall, then the taps.
template <class T>
ConvSpec<T> conv_spec(const Integers& call, Address weight, Address bias, Address in_degrees, Address out_degrees) {
  constexpr size_t sizes = fields_of<ConvCall>;
  return {record<ConvCall>(call.data()), {call.begin() + sizes, call.end()}, at<const T>(weight), at<const T>(bias),
          at<const int64_t>(in_degrees), at<const int64_t>(out_degrees)};
}

void masked_conv2d_fwd(bool is_double, const Integers& call, Address x, const Integers& x_strides, Address weight,
                       Address bias, Address in_degrees, Address out_degrees, Address y, Address pre,
                       const Integers& y_strides) {
  with_type(is_double, [&]<class T>(T) {
    current().of<T>().masked_conv2d.fwd(conv_spec<T>(call, weight, bias, in_degrees, out_degrees),
                                        images<const T>(x, x_strides), images<T>(y, y_strides), at<T>(pre));
  });
}

void masked_conv2d_bwd(bool is_double, const Integers& call, Address d_y, const Integers& d_y_strides,
                       Address activations, const Integers& activations_strides, Address x, const Integers& x_strides,
                       Address weight, Address in_degrees, Address out_degrees, Address d_x,
                       const Integers& d_x_strides, Address d_weight, Address d_bias) {
  with_type(is_double, [&]<class T>(T) {
    current().of<T>().masked_conv2d.bwd(
        conv_spec<T>(call, weight, 0, in_degrees, out_degrees), images<const T>(d_y, d_y_strides),
        images<const T>(activations, activations_strides), images<const T>(x, x_strides), images<T>(d_x, d_x_strides),
        at<T>(d_weight), at<T>(d_bias));
  });
}

void gated_activation_fwd(bool is_double, int64_t kind, const Integers& sizes, Address x, const Integers& x_strides,
                          Address condition, const Integers& condition_strides, Address y, const Integers& y_strides) {
  with_type(is_double, [&]<class T>(T) {
    current().of<T>().gated_activation.fwd(kind, record<ImageExtent>(sizes.data()), images<const T>(x, x_strides),
                                           images<const T>(condition, condition_strides), images<T>(y, y_strides));
  });
}

void gated_activation_bwd(bool is_double, int64_t kind, const Integers& sizes, Address d_y, const Integers& d_y_strides,
                          Address x, const Integers& x_strides, Address condition, const Integers& condition_strides,
                          Address d_x, const Integers& d_x_strides) {
  with_type(is_double, [&]<class T>(T) {
    current().of<T>().gated_activation.bwd(kind, record<ImageExtent>(sizes.data()), images<const T>(d_y, d_y_strides),
                                           images<const T>(x, x_strides), images<const T>(condition, condition_strides),
                                           images<T>(d_x, d_x_strides));
  });
}

void logistic_mixture_fwd(bool is_double, const Integers& sizes, Address x, const Integers& x_strides, Address params,
                          const Integers& params_strides, Address log_prob, Address d_params,
                          const Integers& d_params_strides) {
  with_type(is_double, [&]<class T>(T) {
    current().of<T>().logistic_mixture.fwd(record<MixtureSizes>(sizes.data()), images<const T>(x, x_strides),
                                           images<const T>(params, params_strides), at<T>(log_prob),
                                           images<T>(d_params, d_params_strides));
  });
}

}  // namespace

void bind_images(nb::module_& m) {
  m.def("masked_conv2d_fwd", masked_conv2d_fwd, "is_double"_a, "call"_a, "x"_a, "x_strides"_a, "weight"_a, "bias"_a,
        "in_degrees"_a, "out_degrees"_a, "y"_a, "pre"_a, "y_strides"_a);
  m.def("masked_conv2d_bwd", masked_conv2d_bwd, "is_double"_a, "call"_a, "d_y"_a, "d_y_strides"_a, "activations"_a,
        "activations_strides"_a, "x"_a, "x_strides"_a, "weight"_a, "in_degrees"_a, "out_degrees"_a, "d_x"_a,
        "d_x_strides"_a, "d_weight"_a, "d_bias"_a);
  m.def("gated_activation_fwd", gated_activation_fwd, "is_double"_a, "kind"_a, "sizes"_a, "x"_a, "x_strides"_a,
        "condition"_a, "condition_strides"_a, "y"_a, "y_strides"_a);
  m.def("gated_activation_bwd", gated_activation_bwd, "is_double"_a, "kind"_a, "sizes"_a, "d_y"_a, "d_y_strides"_a,
        "x"_a, "x_strides"_a, "condition"_a, "condition_strides"_a, "d_x"_a, "d_x_strides"_a);
  m.def("logistic_mixture_fwd", logistic_mixture_fwd, "is_double"_a, "sizes"_a, "x"_a, "x_strides"_a, "params"_a,
        "params_strides"_a, "log_prob"_a, "d_params"_a, "d_params_strides"_a);
}

}  // namespace fastvae
