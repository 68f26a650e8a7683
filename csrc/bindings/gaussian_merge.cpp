// The merge of two Gaussians. Tensors are as in gaussians.cpp.
#include <span>
#include <vector>

#include "bindings/gaussian_views.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace fastvae {
namespace {

template <class T>
MergedGaussians<T> merged_of(std::span<const TensorView, 4> parameters) {
  return {rows_of<T>(parameters[0]), rows_of<T>(parameters[1]), rows_of<T>(parameters[2]), rows_of<T>(parameters[3])};
}

// Two Gaussians merged; the prior has K rows for each row of the first. noise, shape, `keep`: see above; normals that
// are given are not kept. Returns the points, log q, log p, the divergence of every point or of its dimensions, the
// normals.
nb::tuple gaussian_merge_fwd(nb::handle mu, nb::handle log_sigma, nb::handle prior_mu, nb::handle prior_log_sigma,
                             nb::handle noise, nb::handle shape, int64_t row_offset, bool by_dimension, bool keep) {
  const TensorView p[] = {view(mu), view(log_sigma), view(prior_mu), view(prior_log_sigma)};
  const FlatView source = flat_view(noise);
  const Sample sample(prior_mu, p[2], shape, keep && source.dims == 0);
  const std::vector<int64_t> of_points = Items(shape).integers();
  const std::span<const int64_t> points(of_points.data(), of_points.size() - 1);
  const Output log_p = new_tensor(prior_mu, p[2], points);
  const Output kl = new_tensor(prior_mu, p[2], by_dimension ? std::span<const int64_t>(of_points) : points);
  with_type(p[0].is_double(), [&]<class T>(T) {
    current().of<T>().gaussian_merge.fwd(merged_of<T>(p), noise_of<T>(source, row_offset), sample.z.as<T>(),
                                         sample.log_q.as<T>(), log_p.as<T>(), {kl.as<T>(), by_dimension},
                                         sample.kept.as<T>(), extent_of(sample.count, p[0]));
  });
  return nb::make_tuple(sample.z.tensor, sample.log_q.tensor, log_p.tensor, kl.tensor, sample.kept.tensor);
}

// noise: the normals. The gradients of all points, also those of the first Gaussian.
nb::tuple gaussian_merge_bwd(nb::handle d_z, nb::handle d_log_q, nb::handle d_log_p, nb::handle d_kl, nb::handle mu,
                             nb::handle log_sigma, nb::handle prior_mu, nb::handle prior_log_sigma, nb::handle noise) {
  const FlatView g = flat_view(d_z), g_log_q = flat_view(d_log_q), g_log_p = flat_view(d_log_p), g_kl = flat_view(d_kl),
                 eps = flat_view(noise);
  const TensorView p[] = {view(mu), view(log_sigma), view(prior_mu), view(prior_log_sigma)};
  Output to[4];
  for (Output& gradient : to) gradient = new_like(prior_mu, p[2]);
  with_type(p[0].is_double(), [&]<class T>(T) {
    current().of<T>().gaussian_merge.bwd(g.as<const T>(), g_log_q.as<const T>(), g_log_p.as<const T>(),
                                         {g_kl.as<const T>(), g_kl.dims == g.dims}, merged_of<T>(p), eps.as<const T>(),
                                         {to[0].as<T>(), to[1].as<T>(), to[2].as<T>(), to[3].as<T>()},
                                         extent_of(g.count, p[0]));
  });
  return nb::make_tuple(to[0].tensor, to[1].tensor, to[2].tensor, to[3].tensor);
}

}  // namespace

void bind_gaussian_merge(nb::module_& m) {
  m.def("gaussian_merge_fwd", gaussian_merge_fwd, "mu"_a, "log_sigma"_a, "prior_mu"_a, "prior_log_sigma"_a, "noise"_a,
        "shape"_a, "row_offset"_a, "by_dimension"_a, "keep"_a);
  m.def("gaussian_merge_bwd", gaussian_merge_bwd, "d_z"_a, "d_log_q"_a, "d_log_p"_a, "d_kl"_a, "mu"_a, "log_sigma"_a,
        "prior_mu"_a, "prior_log_sigma"_a, "noise"_a);
}

}  // namespace fastvae
