// The extension's face. Here, and for images: addresses and sizes in, nothing out; Python's launchers have checked
// device, dtype, layout and extent before a call comes here, and own all memory.
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <new>
#include <string>
#include <vector>

#include "base/memory.h"
#include "bindings/bindings.h"

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
  for (const size_t size : shape) bytes = checked_bytes(bytes, size);
  void* data = take_block(bytes);
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

}  // namespace

NB_MODULE(_C, m) {
  bind_images(m);
  bind_networks(m);
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
  m.def("affine_flow_fwd", affine_flow_fwd);
  m.def("affine_flow_bwd", affine_flow_bwd);
  m.def("tril_gaussian_fwd", tril_gaussian_fwd);
  m.def("tril_gaussian_bwd", tril_gaussian_bwd);
  m.def("tril_gaussian_log_prob_fwd", tril_gaussian_log_prob_fwd);
  m.def("tril_gaussian_log_prob_bwd", tril_gaussian_log_prob_bwd);
  m.def("tril_gaussian_kl_fwd", tril_gaussian_kl_fwd);
  m.def("tril_gaussian_kl_bwd", tril_gaussian_kl_bwd);
}
