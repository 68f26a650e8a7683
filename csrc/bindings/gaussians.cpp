// The functions on Gaussians take addresses and sizes, and return nothing. Python's launchers own all memory, and check
// device, dtype, layout and extent before a call.
#include "bindings/bindings.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace fastvae {
namespace {

void diag_gaussian_fwd(bool is_double, Address mu, int64_t mu_stride, Address log_sigma, int64_t log_sigma_stride,
                       Address noise, bool given, Address z, Address log_q, Address kept, int64_t samples, int64_t rows,
                       int64_t columns, int64_t row_offset) {
  with_type(is_double, [&]<class T>(T) {
    current().of<T>().diag_gaussian.fwd(matrix<T>(mu, mu_stride), matrix<T>(log_sigma, log_sigma_stride),
                                        noise_source<T>(noise, given, row_offset), at<T>(z), at<T>(log_q), at<T>(kept),
                                        {samples, rows, columns});
  });
}

void diag_gaussian_bwd(bool is_double, Address d_z, Address d_log_q, Address kept, Address d_mu, Address d_log_sigma,
                       int64_t samples, int64_t rows, int64_t columns) {
  with_type(is_double, [&]<class T>(T) {
    current().of<T>().diag_gaussian.bwd(at<const T>(d_z), at<const T>(d_log_q), at<const T>(kept), at<T>(d_mu),
                                        at<T>(d_log_sigma), {samples, rows, columns});
  });
}

void diag_gaussian_log_prob_fwd(bool is_double, Address z, Address mu, int64_t mu_stride, Address log_sigma,
                                int64_t log_sigma_stride, Address log_q, int64_t samples, int64_t rows,
                                int64_t columns) {
  with_type(is_double, [&]<class T>(T) {
    current().of<T>().diag_gaussian.log_prob_fwd(at<const T>(z), matrix<T>(mu, mu_stride),
                                                 matrix<T>(log_sigma, log_sigma_stride), at<T>(log_q),
                                                 {samples, rows, columns});
  });
}

void diag_gaussian_log_prob_bwd(bool is_double, Address d_log_q, Address z, Address mu, int64_t mu_stride,
                                Address log_sigma, int64_t log_sigma_stride, Address d_z, Address d_mu,
                                Address d_log_sigma, int64_t samples, int64_t rows, int64_t columns) {
  with_type(is_double, [&]<class T>(T) {
    current().of<T>().diag_gaussian.log_prob_bwd(at<const T>(d_log_q), at<const T>(z), matrix<T>(mu, mu_stride),
                                                 matrix<T>(log_sigma, log_sigma_stride), at<T>(d_z), at<T>(d_mu),
                                                 at<T>(d_log_sigma), {samples, rows, columns});
  });
}

void diag_gaussian_kl_fwd(bool is_double, Address mu, int64_t mu_stride, Address log_sigma, int64_t log_sigma_stride,
                          Address kl, int64_t rows, int64_t columns) {
  with_type(is_double, [&]<class T>(T) {
    current().of<T>().diag_gaussian.kl_fwd(matrix<T>(mu, mu_stride), matrix<T>(log_sigma, log_sigma_stride), at<T>(kl),
                                           rows, columns);
  });
}

void diag_gaussian_kl_bwd(bool is_double, Address d_kl, Address mu, int64_t mu_stride, Address log_sigma,
                          int64_t log_sigma_stride, Address d_mu, Address d_log_sigma, int64_t rows, int64_t columns) {
  with_type(is_double, [&]<class T>(T) {
    current().of<T>().diag_gaussian.kl_bwd(at<const T>(d_kl), matrix<T>(mu, mu_stride),
                                           matrix<T>(log_sigma, log_sigma_stride), at<T>(d_mu), at<T>(d_log_sigma),
                                           rows, columns);
  });
}

void diag_gaussian_kl_prior_fwd(bool is_double, Address mu, int64_t mu_stride, Address log_sigma,
                                int64_t log_sigma_stride, Address prior_mu, int64_t prior_mu_stride,
                                Address prior_log_sigma, int64_t prior_log_sigma_stride, Address kl, int64_t rows,
                                int64_t columns) {
  with_type(is_double, [&]<class T>(T) {
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
  with_type(is_double, [&]<class T>(T) {
    current().of<T>().diag_gaussian.kl_prior_bwd(
        at<const T>(d_kl), matrix<T>(mu, mu_stride), matrix<T>(log_sigma, log_sigma_stride),
        matrix<T>(prior_mu, prior_mu_stride), matrix<T>(prior_log_sigma, prior_log_sigma_stride), at<T>(d_mu),
        at<T>(d_log_sigma), at<T>(d_prior_mu), at<T>(d_prior_log_sigma), rows, columns);
  });
}

void tril_gaussian_fwd(bool is_double, Address mu, int64_t mu_stride, Address log_sigma, int64_t log_sigma_stride,
                       Address tril, int64_t tril_stride, int64_t tril_row_stride, Address noise, bool given, Address z,
                       Address log_q, Address eps, int64_t samples, int64_t rows, int64_t columns, int64_t row_offset) {
  with_type(is_double, [&]<class T>(T) {
    current().of<T>().tril_gaussian.fwd(matrix<T>(mu, mu_stride), matrix<T>(log_sigma, log_sigma_stride),
                                        {at<const T>(tril), tril_stride, tril_row_stride},
                                        noise_source<T>(noise, given, row_offset), at<T>(z), at<T>(log_q), at<T>(eps),
                                        {samples, rows, columns});
  });
}

void tril_gaussian_bwd(bool is_double, Address d_z, Address d_log_q, Address log_sigma, int64_t log_sigma_stride,
                       Address eps, Address d_mu, Address d_log_sigma, Address d_tril, int64_t d_tril_stride,
                       int64_t d_tril_row_stride, int64_t samples, int64_t rows, int64_t columns) {
  with_type(is_double, [&]<class T>(T) {
    current().of<T>().tril_gaussian.bwd(at<const T>(d_z), at<const T>(d_log_q), matrix<T>(log_sigma, log_sigma_stride),
                                        at<const T>(eps), at<T>(d_mu), at<T>(d_log_sigma),
                                        {at<T>(d_tril), d_tril_stride, d_tril_row_stride}, {samples, rows, columns});
  });
}

void tril_gaussian_log_prob_fwd(bool is_double, Address z, Address mu, int64_t mu_stride, Address log_sigma,
                                int64_t log_sigma_stride, Address tril, int64_t tril_stride, int64_t tril_row_stride,
                                Address log_q, Address eps, int64_t samples, int64_t rows, int64_t columns) {
  with_type(is_double, [&]<class T>(T) {
    current().of<T>().tril_gaussian.log_prob_fwd(
        at<const T>(z), matrix<T>(mu, mu_stride), matrix<T>(log_sigma, log_sigma_stride),
        {at<const T>(tril), tril_stride, tril_row_stride}, at<T>(log_q), at<T>(eps), {samples, rows, columns});
  });
}

void tril_gaussian_log_prob_bwd(bool is_double, Address d_log_q, Address eps, Address log_sigma,
                                int64_t log_sigma_stride, Address tril, int64_t tril_stride, int64_t tril_row_stride,
                                Address d_z, Address d_mu, Address d_log_sigma, Address d_tril, int64_t d_tril_stride,
                                int64_t d_tril_row_stride, int64_t samples, int64_t rows, int64_t columns) {
  with_type(is_double, [&]<class T>(T) {
    current().of<T>().tril_gaussian.log_prob_bwd(
        at<const T>(d_log_q), at<const T>(eps), matrix<T>(log_sigma, log_sigma_stride),
        {at<const T>(tril), tril_stride, tril_row_stride}, at<T>(d_z), at<T>(d_mu), at<T>(d_log_sigma),
        {at<T>(d_tril), d_tril_stride, d_tril_row_stride}, {samples, rows, columns});
  });
}

void tril_gaussian_kl_fwd(bool is_double, Address mu, int64_t mu_stride, Address log_sigma, int64_t log_sigma_stride,
                          Address tril, int64_t tril_stride, int64_t tril_row_stride, Address kl, int64_t rows,
                          int64_t columns) {
  with_type(is_double, [&]<class T>(T) {
    current().of<T>().tril_gaussian.kl_fwd(matrix<T>(mu, mu_stride), matrix<T>(log_sigma, log_sigma_stride),
                                           {at<const T>(tril), tril_stride, tril_row_stride}, at<T>(kl), rows, columns);
  });
}

void tril_gaussian_kl_bwd(bool is_double, Address d_kl, Address mu, int64_t mu_stride, Address log_sigma,
                          int64_t log_sigma_stride, Address tril, int64_t tril_stride, int64_t tril_row_stride,
                          Address d_mu, Address d_log_sigma, Address d_tril, int64_t d_tril_stride,
                          int64_t d_tril_row_stride, int64_t rows, int64_t columns) {
  with_type(is_double, [&]<class T>(T) {
    current().of<T>().tril_gaussian.kl_bwd(
        at<const T>(d_kl), matrix<T>(mu, mu_stride), matrix<T>(log_sigma, log_sigma_stride),
        {at<const T>(tril), tril_stride, tril_row_stride}, at<T>(d_mu), at<T>(d_log_sigma),
        {at<T>(d_tril), d_tril_stride, d_tril_row_stride}, rows, columns);
  });
}

}  // namespace

void bind_gaussians(nb::module_& m) {
  m.def("diag_gaussian_fwd", diag_gaussian_fwd, "is_double"_a, "mu"_a, "mu_stride"_a, "log_sigma"_a,
        "log_sigma_stride"_a, "noise"_a, "given"_a, "z"_a, "log_q"_a, "kept"_a, "samples"_a, "rows"_a, "columns"_a,
        "row_offset"_a);
  m.def("diag_gaussian_bwd", diag_gaussian_bwd, "is_double"_a, "d_z"_a, "d_log_q"_a, "kept"_a, "d_mu"_a,
        "d_log_sigma"_a, "samples"_a, "rows"_a, "columns"_a);
  m.def("diag_gaussian_log_prob_fwd", diag_gaussian_log_prob_fwd, "is_double"_a, "z"_a, "mu"_a, "mu_stride"_a,
        "log_sigma"_a, "log_sigma_stride"_a, "log_q"_a, "samples"_a, "rows"_a, "columns"_a);
  m.def("diag_gaussian_log_prob_bwd", diag_gaussian_log_prob_bwd, "is_double"_a, "d_log_q"_a, "z"_a, "mu"_a,
        "mu_stride"_a, "log_sigma"_a, "log_sigma_stride"_a, "d_z"_a, "d_mu"_a, "d_log_sigma"_a, "samples"_a, "rows"_a,
        "columns"_a);
  m.def("diag_gaussian_kl_fwd", diag_gaussian_kl_fwd, "is_double"_a, "mu"_a, "mu_stride"_a, "log_sigma"_a,
        "log_sigma_stride"_a, "kl"_a, "rows"_a, "columns"_a);
  m.def("diag_gaussian_kl_bwd", diag_gaussian_kl_bwd, "is_double"_a, "d_kl"_a, "mu"_a, "mu_stride"_a, "log_sigma"_a,
        "log_sigma_stride"_a, "d_mu"_a, "d_log_sigma"_a, "rows"_a, "columns"_a);
  m.def("diag_gaussian_kl_prior_fwd", diag_gaussian_kl_prior_fwd, "is_double"_a, "mu"_a, "mu_stride"_a, "log_sigma"_a,
        "log_sigma_stride"_a, "prior_mu"_a, "prior_mu_stride"_a, "prior_log_sigma"_a, "prior_log_sigma_stride"_a,
        "kl"_a, "rows"_a, "columns"_a);
  m.def("diag_gaussian_kl_prior_bwd", diag_gaussian_kl_prior_bwd, "is_double"_a, "d_kl"_a, "mu"_a, "mu_stride"_a,
        "log_sigma"_a, "log_sigma_stride"_a, "prior_mu"_a, "prior_mu_stride"_a, "prior_log_sigma"_a,
        "prior_log_sigma_stride"_a, "d_mu"_a, "d_log_sigma"_a, "d_prior_mu"_a, "d_prior_log_sigma"_a, "rows"_a,
        "columns"_a);
  m.def("tril_gaussian_fwd", tril_gaussian_fwd, "is_double"_a, "mu"_a, "mu_stride"_a, "log_sigma"_a,
        "log_sigma_stride"_a, "tril"_a, "tril_stride"_a, "tril_row_stride"_a, "noise"_a, "given"_a, "z"_a, "log_q"_a,
        "eps"_a, "samples"_a, "rows"_a, "columns"_a, "row_offset"_a);
  m.def("tril_gaussian_bwd", tril_gaussian_bwd, "is_double"_a, "d_z"_a, "d_log_q"_a, "log_sigma"_a,
        "log_sigma_stride"_a, "eps"_a, "d_mu"_a, "d_log_sigma"_a, "d_tril"_a, "d_tril_stride"_a, "d_tril_row_stride"_a,
        "samples"_a, "rows"_a, "columns"_a);
  m.def("tril_gaussian_log_prob_fwd", tril_gaussian_log_prob_fwd, "is_double"_a, "z"_a, "mu"_a, "mu_stride"_a,
        "log_sigma"_a, "log_sigma_stride"_a, "tril"_a, "tril_stride"_a, "tril_row_stride"_a, "log_q"_a, "eps"_a,
        "samples"_a, "rows"_a, "columns"_a);
  m.def("tril_gaussian_log_prob_bwd", tril_gaussian_log_prob_bwd, "is_double"_a, "d_log_q"_a, "eps"_a, "log_sigma"_a,
        "log_sigma_stride"_a, "tril"_a, "tril_stride"_a, "tril_row_stride"_a, "d_z"_a, "d_mu"_a, "d_log_sigma"_a,
        "d_tril"_a, "d_tril_stride"_a, "d_tril_row_stride"_a, "samples"_a, "rows"_a, "columns"_a);
  m.def("tril_gaussian_kl_fwd", tril_gaussian_kl_fwd, "is_double"_a, "mu"_a, "mu_stride"_a, "log_sigma"_a,
        "log_sigma_stride"_a, "tril"_a, "tril_stride"_a, "tril_row_stride"_a, "kl"_a, "rows"_a, "columns"_a);
  m.def("tril_gaussian_kl_bwd", tril_gaussian_kl_bwd, "is_double"_a, "d_kl"_a, "mu"_a, "mu_stride"_a, "log_sigma"_a,
        "log_sigma_stride"_a, "tril"_a, "tril_stride"_a, "tril_row_stride"_a, "d_mu"_a, "d_log_sigma"_a, "d_tril"_a,
        "d_tril_stride"_a, "d_tril_row_stride"_a, "rows"_a, "columns"_a);
}

}  // namespace fastvae
