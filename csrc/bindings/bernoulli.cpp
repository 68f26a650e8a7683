// The functions on Bernoulli units, as those on Gaussians: see gaussians.cpp.
#include <span>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/layer_views.h"
#include "bindings/sample_views.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace fastvae {
namespace {

// noise: a seed or the uniform numbers. shape: that of the sample, (*sample_shape, *batch, D); with `antithetic` it has
// a dimension of 2 in front.
nb::tuple bernoulli_fwd(nb::handle logits, nb::handle noise, nb::handle shape, int64_t row_offset, bool antithetic) {
  const TensorView l = view(logits);
  const FlatView uniforms = flat_view(noise);
  const std::vector<int64_t> sizes = Items(shape).integers();
  if (sizes.empty()) throw nb::value_error("a sample has a dimension of units");
  int64_t count = 1;
  for (const int64_t size : sizes) count *= size;
  const Output b = new_tensor(logits, l, sizes);
  const Output log_q = new_tensor(logits, l, std::span(sizes.data(), sizes.size() - 1));
  with_type(l.is_double(), [&]<class T>(T) {
    current().of<T>().bernoulli.fwd(rows_of<T>(l), noise_of<T>(uniforms, row_offset), antithetic, b.as<T>(),
                                    log_q.as<T>(), extent_of(antithetic ? count / 2 : count, l));
  });
  return nb::make_tuple(b.tensor, log_q.tensor);
}

nb::object bernoulli_bwd(nb::handle d_log_q, nb::handle b, nb::handle logits) {
  const FlatView g = flat_view(d_log_q), units = flat_view(b);
  const TensorView l = view(logits);
  const Output d_logits = new_tensor(logits, l, {l.shape[0], l.shape[1]});
  with_type(l.is_double(), [&]<class T>(T) {
    current().of<T>().bernoulli.bwd(g.as<const T>(), units.as<const T>(), rows_of<T>(l), d_logits.as<T>(),
                                    extent_of(units.count, l));
  });
  return d_logits.tensor;
}

}  // namespace

void bind_bernoulli(nb::module_& m) {
  m.def("bernoulli_fwd", bernoulli_fwd, "logits"_a, "noise"_a, "shape"_a, "row_offset"_a, "antithetic"_a);
  m.def("bernoulli_bwd", bernoulli_bwd, "d_log_q"_a, "b"_a, "logits"_a);
}

}  // namespace fastvae
