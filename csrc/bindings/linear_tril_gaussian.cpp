// A full-covariance Gaussian behind its linear layer. Tensors are as in gaussians.cpp and layers.cpp.
#include "bindings/gaussian_views.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace fastvae {
namespace {

// What a head is besides its layer.
struct HeadOptions {
  int64_t latents;
  double tril_scale, lower, upper;

  template <class T>
  GaussianHead<T> of(const LayerViews& layer) const {
    return {layer.of<T>(), latents, static_cast<T>(lower), static_cast<T>(upper), static_cast<T>(tril_scale)};
  }
};

// noise: a seed or the normals. Returns the points, log q, the divergence of every row or of its dimensions, and with
// `keep` what the backward pass reads.
nb::tuple linear_tril_gaussian_fwd(nb::handle h, nb::handle weight, nb::handle bias, nb::handle noise, int64_t latents,
                                   double tril_scale, double lower, double upper, int64_t row_offset, bool by_dimension,
                                   bool keep) {
  const LayerViews layer = dense_views(weight, bias);
  const TensorView features = view(h);
  const FlatView source = flat_view(noise);
  const int64_t rows = features.shape[0];
  const int64_t count = current().of<float>().linear_tril_gaussian.kept_count(rows, latents);
  const Output z = new_tensor(h, features, {rows, latents}), log_q = new_tensor(h, features, {rows});
  const Output kl = by_dimension ? new_tensor(h, features, {rows, latents}) : new_tensor(h, features, {rows});
  const Output kept = keep ? new_tensor(h, features, {count}) : Output();
  const HeadOptions options{latents, tril_scale, lower, upper};
  with_type(features.is_double(), [&]<class T>(T) {
    current().of<T>().linear_tril_gaussian.fwd(options.of<T>(layer), rows_of<T>(features),
                                               noise_of<T>(source, row_offset), z.as<T>(), log_q.as<T>(),
                                               {kl.as<T>(), by_dimension}, kept.as<T>(), rows);
  });
  return nb::make_tuple(z.tensor, log_q.tensor, kl.tensor, kept.tensor);
}

// d_log_q and d_kl may be None. Returns the gradients of h, weight and bias; None for those that `needs` does not want.
nb::tuple linear_tril_gaussian_bwd(nb::handle d_z, nb::handle d_log_q, nb::handle d_kl, nb::handle h, nb::handle weight,
                                   nb::handle bias, nb::handle kept, int64_t latents, double tril_scale, double lower,
                                   double upper, nb::handle needs) {
  const LayerViews layer = dense_views(weight, bias);
  const TensorView features = view(h);
  const FlatView g = flat_view(d_z), g_log_q = flat_view(d_log_q), g_kl = flat_view(d_kl), known = flat_view(kept);
  const int64_t rows = features.shape[0], in = layer.weight.shape[1], out = layer.weight.shape[0];
  const Items wanted(needs);
  const auto wants = [&](size_t i) { return wanted[i].ptr() == Py_True; };
  const Output d_h = wants(0) ? new_tensor(h, features, {rows, in}) : Output();
  const Output d_weight = wants(1) ? new_tensor(h, features, {out, in}) : Output();
  const Output d_bias = wants(2) ? new_tensor(h, features, {out}) : Output();
  const HeadOptions options{latents, tril_scale, lower, upper};
  with_type(features.is_double(), [&]<class T>(T) {
    current().of<T>().linear_tril_gaussian.bwd(
        options.of<T>(layer), rows_of<T>(features), known.as<const T>(), g.as<const T>(), g_log_q.as<const T>(),
        {g_kl.as<const T>(), g_kl.dims == 2}, d_h.as<T>(), {d_weight.as<T>(), d_bias.as<T>(), nullptr}, rows);
  });
  return nb::make_tuple(d_h.tensor, d_weight.tensor, d_bias.tensor);
}

}  // namespace

void bind_linear_tril_gaussian(nb::module_& m) {
  m.def("linear_tril_gaussian_fwd", linear_tril_gaussian_fwd, "h"_a, "weight"_a, "bias"_a.none(), "noise"_a,
        "latents"_a, "tril_scale"_a, "lower"_a, "upper"_a, "row_offset"_a, "by_dimension"_a, "keep"_a);
  m.def("linear_tril_gaussian_bwd", linear_tril_gaussian_bwd, "d_z"_a, "d_log_q"_a.none(), "d_kl"_a.none(), "h"_a,
        "weight"_a, "bias"_a.none(), "kept"_a, "latents"_a, "tril_scale"_a, "lower"_a, "upper"_a, "needs"_a);
}

}  // namespace fastvae
