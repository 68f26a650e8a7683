// The extension's face: addresses and sizes in, nothing out. Python's launchers have checked device, dtype, layout and
// extent before a call comes here, and own all memory.
#include "bindings.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <new>
#include <string>
#include <vector>

#include "memory.h"

namespace nb = nanobind;
using namespace fastvae;

namespace {

void diag_gaussian_fwd(bool is_double, Address mu, int64_t mu_stride, Address log_sigma, int64_t log_sigma_stride,
                       Address noise, bool given, Address z, Address log_q, Address kept, int64_t samples, int64_t rows,
                       int64_t columns, int64_t row_offset) {
  typed(is_double, [&]<class T>(T) {
    current().of<T>().diag_gaussian.fwd(matrix<T>(mu, mu_stride), matrix<T>(log_sigma, log_sigma_stride),
                                        noise_source<T>(noise, given, row_offset), at<T>(z), at<T>(log_q), at<T>(kept),
                                        {samples, rows, columns});
  });
}

void diag_gaussian_bwd(bool is_double, Address d_z, Address d_log_q, Address kept, Address d_mu, Address d_log_sigma,
                       int64_t samples, int64_t rows, int64_t columns) {
  typed(is_double, [&]<class T>(T) {
    current().of<T>().diag_gaussian.bwd(at<const T>(d_z), at<const T>(d_log_q), at<const T>(kept), at<T>(d_mu),
                                        at<T>(d_log_sigma), {samples, rows, columns});
  });
}

void diag_gaussian_log_prob_fwd(bool is_double, Address z, Address mu, int64_t mu_stride, Address log_sigma,
                                int64_t log_sigma_stride, Address log_q, int64_t samples, int64_t rows,
                                int64_t columns) {
  typed(is_double, [&]<class T>(T) {
    current().of<T>().diag_gaussian.log_prob_fwd(at<const T>(z), matrix<T>(mu, mu_stride),
                                                 matrix<T>(log_sigma, log_sigma_stride), at<T>(log_q),
                                                 {samples, rows, columns});
  });
}

void diag_gaussian_log_prob_bwd(bool is_double, Address d_log_q, Address z, Address mu, int64_t mu_stride,
                                Address log_sigma, int64_t log_sigma_stride, Address d_z, Address d_mu,
                                Address d_log_sigma, int64_t samples, int64_t rows, int64_t columns) {
  typed(is_double, [&]<class T>(T) {
    current().of<T>().diag_gaussian.log_prob_bwd(at<const T>(d_log_q), at<const T>(z), matrix<T>(mu, mu_stride),
                                                 matrix<T>(log_sigma, log_sigma_stride), at<T>(d_z), at<T>(d_mu),
                                                 at<T>(d_log_sigma), {samples, rows, columns});
  });
}

void diag_gaussian_kl_fwd(bool is_double, Address mu, int64_t mu_stride, Address log_sigma, int64_t log_sigma_stride,
                          Address kl, int64_t rows, int64_t columns) {
  typed(is_double, [&]<class T>(T) {
    current().of<T>().diag_gaussian.kl_fwd(matrix<T>(mu, mu_stride), matrix<T>(log_sigma, log_sigma_stride), at<T>(kl),
                                           rows, columns);
  });
}

void diag_gaussian_kl_bwd(bool is_double, Address d_kl, Address mu, int64_t mu_stride, Address log_sigma,
                          int64_t log_sigma_stride, Address d_mu, Address d_log_sigma, int64_t rows, int64_t columns) {
  typed(is_double, [&]<class T>(T) {
    current().of<T>().diag_gaussian.kl_bwd(at<const T>(d_kl), matrix<T>(mu, mu_stride),
                                           matrix<T>(log_sigma, log_sigma_stride), at<T>(d_mu), at<T>(d_log_sigma),
                                           rows, columns);
  });
}

void diag_gaussian_kl_prior_fwd(bool is_double, Address mu, int64_t mu_stride, Address log_sigma,
                                int64_t log_sigma_stride, Address prior_mu, int64_t prior_mu_stride,
                                Address prior_log_sigma, int64_t prior_log_sigma_stride, Address kl, int64_t rows,
                                int64_t columns) {
  typed(is_double, [&]<class T>(T) {
    current().of<T>().diag_gaussian.kl_prior_fwd(
        matrix<T>(mu, mu_stride), matrix<T>(log_sigma, log_sigma_stride), matrix<T>(prior_mu, prior_mu_stride),
        matrix<T>(prior_log_sigma, prior_log_sigma_stride), at<T>(kl), rows, columns);
  });
}

void diag_gaussian_kl_prior_bwd(bool is_double, Address d_kl, Address mu, int64_t mu_stride, Address log_sigma,
                                int64_t log_sigma_stride, Address prior_mu, int64_t prior_mu_stride,
                                Address prior_log_sigma, int64_t prior_log_sigma_stride, Address d_mu,
                                Address d_log_sigma, Address d_prior_mu, Address d_prior_log_sigma, int64_t rows,
                                int64_t columns) {
  typed(is_double, [&]<class T>(T) {
    current().of<T>().diag_gaussian.kl_prior_bwd(
        at<const T>(d_kl), matrix<T>(mu, mu_stride), matrix<T>(log_sigma, log_sigma_stride),
        matrix<T>(prior_mu, prior_mu_stride), matrix<T>(prior_log_sigma, prior_log_sigma_stride), at<T>(d_mu),
        at<T>(d_log_sigma), at<T>(d_prior_mu), at<T>(d_prior_log_sigma), rows, columns);
  });
}

void tril_gaussian_fwd(bool is_double, Address mu, int64_t mu_stride, Address log_sigma, int64_t log_sigma_stride,
                       Address tril, int64_t tril_stride, int64_t tril_row_stride, Address noise, bool given, Address z,
                       Address log_q, Address eps, int64_t samples, int64_t rows, int64_t columns, int64_t row_offset) {
  typed(is_double, [&]<class T>(T) {
    current().of<T>().tril_gaussian.fwd(matrix<T>(mu, mu_stride), matrix<T>(log_sigma, log_sigma_stride),
                                        {at<const T>(tril), tril_stride, tril_row_stride},
                                        noise_source<T>(noise, given, row_offset), at<T>(z), at<T>(log_q), at<T>(eps),
                                        {samples, rows, columns});
  });
}

void tril_gaussian_bwd(bool is_double, Address d_z, Address d_log_q, Address log_sigma, int64_t log_sigma_stride,
                       Address eps, Address d_mu, Address d_log_sigma, Address d_tril, int64_t d_tril_stride,
                       int64_t d_tril_row_stride, int64_t samples, int64_t rows, int64_t columns) {
  typed(is_double, [&]<class T>(T) {
    current().of<T>().tril_gaussian.bwd(at<const T>(d_z), at<const T>(d_log_q), matrix<T>(log_sigma, log_sigma_stride),
                                        at<const T>(eps), at<T>(d_mu), at<T>(d_log_sigma),
                                        {at<T>(d_tril), d_tril_stride, d_tril_row_stride}, {samples, rows, columns});
  });
}

void tril_gaussian_log_prob_fwd(bool is_double, Address z, Address mu, int64_t mu_stride, Address log_sigma,
                                int64_t log_sigma_stride, Address tril, int64_t tril_stride, int64_t tril_row_stride,
                                Address log_q, Address eps, int64_t samples, int64_t rows, int64_t columns) {
  typed(is_double, [&]<class T>(T) {
    current().of<T>().tril_gaussian.log_prob_fwd(
        at<const T>(z), matrix<T>(mu, mu_stride), matrix<T>(log_sigma, log_sigma_stride),
        {at<const T>(tril), tril_stride, tril_row_stride}, at<T>(log_q), at<T>(eps), {samples, rows, columns});
  });
}

void tril_gaussian_log_prob_bwd(bool is_double, Address d_log_q, Address eps, Address log_sigma,
                                int64_t log_sigma_stride, Address tril, int64_t tril_stride, int64_t tril_row_stride,
                                Address d_z, Address d_mu, Address d_log_sigma, Address d_tril, int64_t d_tril_stride,
                                int64_t d_tril_row_stride, int64_t samples, int64_t rows, int64_t columns) {
  typed(is_double, [&]<class T>(T) {
    current().of<T>().tril_gaussian.log_prob_bwd(
        at<const T>(d_log_q), at<const T>(eps), matrix<T>(log_sigma, log_sigma_stride),
        {at<const T>(tril), tril_stride, tril_row_stride}, at<T>(d_z), at<T>(d_mu), at<T>(d_log_sigma),
        {at<T>(d_tril), d_tril_stride, d_tril_row_stride}, {samples, rows, columns});
  });
}

void tril_gaussian_kl_fwd(bool is_double, Address mu, int64_t mu_stride, Address log_sigma, int64_t log_sigma_stride,
                          Address tril, int64_t tril_stride, int64_t tril_row_stride, Address kl, int64_t rows,
                          int64_t columns) {
  typed(is_double, [&]<class T>(T) {
    current().of<T>().tril_gaussian.kl_fwd(matrix<T>(mu, mu_stride), matrix<T>(log_sigma, log_sigma_stride),
                                           {at<const T>(tril), tril_stride, tril_row_stride}, at<T>(kl), rows, columns);
  });
}

void tril_gaussian_kl_bwd(bool is_double, Address d_kl, Address mu, int64_t mu_stride, Address log_sigma,
                          int64_t log_sigma_stride, Address tril, int64_t tril_stride, int64_t tril_row_stride,
                          Address d_mu, Address d_log_sigma, Address d_tril, int64_t d_tril_stride,
                          int64_t d_tril_row_stride, int64_t rows, int64_t columns) {
  typed(is_double, [&]<class T>(T) {
    current().of<T>().tril_gaussian.kl_bwd(
        at<const T>(d_kl), matrix<T>(mu, mu_stride), matrix<T>(log_sigma, log_sigma_stride),
        {at<const T>(tril), tril_stride, tril_row_stride}, at<T>(d_mu), at<T>(d_log_sigma),
        {at<T>(d_tril), d_tril_stride, d_tril_row_stride}, rows, columns);
  });
}

// An uninitialised tensor in a block of its own.
nb::ndarray<nb::pytorch, nb::c_contig> empty(bool is_double, const std::vector<size_t>& shape) {
  size_t bytes = is_double ? sizeof(double) : sizeof(float);
  for (const size_t size : shape) bytes *= size;
  void* data = take_block(bytes);
  if (!data) throw std::bad_alloc();
  const nb::capsule owner(data, [](void* block) noexcept { give_back(block); });
  return {data, shape.size(), shape.data(), owner, nullptr, is_double ? nb::dtype<double>() : nb::dtype<float>()};
}

std::vector<std::string> available_isas() {
  const Table* tables[4];
  const int count = available(tables, 4);
  std::vector<std::string> names;
  for (int i = 0; i < count; ++i) names.emplace_back(tables[i]->isa);
  return names;
}

void set_isa(const std::string& name) {
  if (!select(name.c_str()))
    throw nb::value_error("isa must be one of available_isas(); this processor cannot run the one asked for");
}

// What a masked layer is made of, in the order of MaskedLayer; Python hands over one run of integers for each layer.
constexpr size_t kLayerFields = 9;

template <class T>
MaskedLayer<T> masked_layer(const int64_t* f) {
  return {at<const T>(f[0]),
          at<const T>(f[1]),
          at<const T>(f[2]),
          at<const T>(f[3]),
          at<const int64_t>(f[4]),
          at<const int64_t>(f[5]),
          f[6],
          f[7],
          f[8]};
}

// structure: features, parameters of each, activation, kind, residual, interleaved.
template <class T>
NetworkSpec<T> network_spec(const Integers& layers, const Integers& structure) {
  NetworkSpec<T> spec{{}, structure[0], structure[1], structure[2], structure[3], structure[4] != 0, structure[5] != 0};
  for (size_t i = 0; i < layers.size(); i += kLayerFields) spec.layers.push_back(masked_layer<T>(layers.data() + i));
  return spec;
}

void masked_linear_fwd(bool is_double, const Integers& layer, int64_t activation, Address x, int64_t x_stride,
                       Address y, Address pre, int64_t samples) {
  typed(is_double, [&]<class T>(T) {
    current().of<T>().masked_linear.fwd(masked_layer<T>(layer.data()), activation, matrix<T>(x, x_stride), at<T>(y),
                                        at<T>(pre), samples);
  });
}

void masked_linear_bwd(bool is_double, const Integers& layer, int64_t activation, Address d_y, Address y, Address x,
                       int64_t x_stride, Address d_x, Address d_weight, Address d_bias, Address d_scale,
                       int64_t samples) {
  typed(is_double, [&]<class T>(T) {
    current().of<T>().masked_linear.bwd(masked_layer<T>(layer.data()), activation, at<const T>(d_y), at<const T>(y),
                                        matrix<T>(x, x_stride), at<T>(d_x),
                                        {at<T>(d_weight), at<T>(d_bias), at<T>(d_scale)}, samples);
  });
}

void masked_norm_fwd(bool is_double, const Integers& layer, Address norm) {
  typed(is_double,
        [&]<class T>(T) { current().of<T>().masked_linear.norm_fwd(masked_layer<T>(layer.data()), at<T>(norm)); });
}

void masked_norm_bwd(bool is_double, const Integers& layer, Address d_norm, Address norm, Address d_weight) {
  typed(is_double, [&]<class T>(T) {
    current().of<T>().masked_linear.norm_bwd(masked_layer<T>(layer.data()), at<const T>(d_norm), at<const T>(norm),
                                             at<T>(d_weight));
  });
}

void affine_flow_fwd(bool is_double, int64_t kind, bool inverse, Address z, int64_t z_stride, Address shift,
                     int64_t shift_stride, Address scale_logit, int64_t scale_logit_stride, Address out,
                     Address log_det, int64_t rows, int64_t columns) {
  typed(is_double, [&]<class T>(T) {
    current().of<T>().affine_flow.fwd(kind, inverse, matrix<T>(z, z_stride), matrix<T>(shift, shift_stride),
                                      matrix<T>(scale_logit, scale_logit_stride), at<T>(out), at<T>(log_det), rows,
                                      columns);
  });
}

void affine_flow_bwd(bool is_double, int64_t kind, bool inverse, Address d_out, Address d_log_det, Address z,
                     int64_t z_stride, Address shift, int64_t shift_stride, Address scale_logit,
                     int64_t scale_logit_stride, Address d_z, Address d_shift, Address d_scale_logit, int64_t rows,
                     int64_t columns) {
  typed(is_double, [&]<class T>(T) {
    current().of<T>().affine_flow.bwd(kind, inverse, at<const T>(d_out), at<const T>(d_log_det), matrix<T>(z, z_stride),
                                      matrix<T>(shift, shift_stride), matrix<T>(scale_logit, scale_logit_stride),
                                      at<T>(d_z), at<T>(d_shift), at<T>(d_scale_logit), rows, columns);
  });
}

void autoregressive_flow_fwd(bool is_double, const Integers& layers, const Integers& structure, Address x,
                             int64_t x_stride, Address context_term, Address out, Address log_det, Address saved,
                             int64_t samples) {
  typed(is_double, [&]<class T>(T) {
    current().of<T>().autoregressive_flow.fwd(network_spec<T>(layers, structure), matrix<T>(x, x_stride),
                                              at<const T>(context_term), at<T>(out), at<T>(log_det), at<T>(saved),
                                              samples);
  });
}

// gradients: of each layer where its weight's, bias's and factors' go.
void autoregressive_flow_bwd(bool is_double, const Integers& layers, const Integers& structure, Address d_out,
                             Address d_log_det, Address saved, Address d_x, Address d_context_term,
                             const Integers& gradients, int64_t samples) {
  typed(is_double, [&]<class T>(T) {
    std::vector<LayerGradients<T>> to;
    for (size_t i = 0; i < gradients.size(); i += 3)
      to.push_back({at<T>(gradients[i]), at<T>(gradients[i + 1]), at<T>(gradients[i + 2])});
    current().of<T>().autoregressive_flow.bwd(network_spec<T>(layers, structure), at<const T>(d_out),
                                              at<const T>(d_log_det), at<const T>(saved), at<T>(d_x),
                                              at<T>(d_context_term), to, samples);
  });
}

void autoregressive_inverse_fwd(bool is_double, const Integers& layers, const Integers& structure, Address z,
                                int64_t z_stride, Address context_term, Address x, Address log_det, Address saved,
                                int64_t samples) {
  typed(is_double, [&]<class T>(T) {
    current().of<T>().autoregressive_flow.inverse(network_spec<T>(layers, structure), matrix<T>(z, z_stride),
                                                  at<const T>(context_term), at<T>(x), at<T>(log_det), at<T>(saved),
                                                  samples);
  });
}

void autoregressive_inverse_bwd(bool is_double, const Integers& layers, const Integers& structure, Address d_x,
                                Address d_log_det, Address saved, Address d_z, int64_t samples) {
  typed(is_double, [&]<class T>(T) {
    current().of<T>().autoregressive_flow.inverse_bwd(network_spec<T>(layers, structure), at<const T>(d_x),
                                                      at<const T>(d_log_det), at<const T>(saved), at<T>(d_z), samples);
  });
}

}  // namespace

NB_MODULE(_C, m) {
  bind_images(m);
  m.def("isa", [] { return std::string(current().isa); });
  m.def("available_isas", available_isas);
  m.def("set_isa", set_isa);
  m.def("empty", empty);
  m.def("release_blocks", release_blocks);
  m.def("diag_gaussian_fwd", diag_gaussian_fwd);
  m.def("diag_gaussian_bwd", diag_gaussian_bwd);
  m.def("diag_gaussian_log_prob_fwd", diag_gaussian_log_prob_fwd);
  m.def("diag_gaussian_log_prob_bwd", diag_gaussian_log_prob_bwd);
  m.def("diag_gaussian_kl_fwd", diag_gaussian_kl_fwd);
  m.def("diag_gaussian_kl_bwd", diag_gaussian_kl_bwd);
  m.def("diag_gaussian_kl_prior_fwd", diag_gaussian_kl_prior_fwd);
  m.def("diag_gaussian_kl_prior_bwd", diag_gaussian_kl_prior_bwd);
  m.def("masked_linear_fwd", masked_linear_fwd);
  m.def("masked_linear_bwd", masked_linear_bwd);
  m.def("masked_norm_fwd", masked_norm_fwd);
  m.def("masked_norm_bwd", masked_norm_bwd);
  m.def("affine_flow_fwd", affine_flow_fwd);
  m.def("affine_flow_bwd", affine_flow_bwd);
  m.def("autoregressive_flow_fwd", autoregressive_flow_fwd);
  m.def("autoregressive_flow_bwd", autoregressive_flow_bwd);
  m.def("autoregressive_inverse_fwd", autoregressive_inverse_fwd);
  m.def("autoregressive_inverse_bwd", autoregressive_inverse_bwd);
  m.def("tril_gaussian_fwd", tril_gaussian_fwd);
  m.def("tril_gaussian_bwd", tril_gaussian_bwd);
  m.def("tril_gaussian_log_prob_fwd", tril_gaussian_log_prob_fwd);
  m.def("tril_gaussian_log_prob_bwd", tril_gaussian_log_prob_bwd);
  m.def("tril_gaussian_kl_fwd", tril_gaussian_kl_fwd);
  m.def("tril_gaussian_kl_bwd", tril_gaussian_kl_bwd);
}
