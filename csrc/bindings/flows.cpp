// The functions on flows' steps, of given parameters or of those that a network makes, take tensors and return new
// ones. Python's launchers check device, dtype, layout and extent before a call.
#include <algorithm>
#include <functional>

#include "bindings/bindings.h"
#include "bindings/network_views.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace fastvae {
namespace {

nb::tuple affine_flow_fwd(nb::handle z, nb::handle shift, nb::handle scale_logit, int64_t kind, bool inverse,
                          bool log_det_map) {
  const TensorView x = view(z), m = view(shift), s = view(scale_logit);
  const int64_t rows = x.shape[0], columns = x.shape[1];
  const Output out = new_tensor(z, x, {rows, columns}), log_det = new_log_det(z, x, log_det_map);
  with_type(x.is_double(), [&]<class T>(T) {
    current().of<T>().affine_flow.fwd(kind, inverse, rows_of<T>(x), rows_of<T>(m), rows_of<T>(s), out.as<T>(),
                                      LogDet<T>{log_det.as<T>(), log_det_map}, rows, columns);
  });
  return nb::make_tuple(out.tensor, log_det.tensor);
}

// Returns the gradients of z, shift and scale_logit; None for an absent one.
nb::tuple affine_flow_bwd(nb::handle d_out, nb::handle d_log_det, nb::handle z, nb::handle shift,
                          nb::handle scale_logit, int64_t kind, bool inverse) {
  const FlatView g = flat_view(d_out), g_log_det = flat_view(d_log_det);
  const TensorView x = view(z), m = view(shift), s = view(scale_logit);
  const int64_t rows = x.shape[0], columns = x.shape[1];
  const Output d_z = new_tensor(z, x, {rows, columns}), d_shift = new_tensor(z, x, {rows, columns});
  const Output d_scale_logit = s.given ? new_tensor(z, x, {rows, columns}) : Output();
  with_type(x.is_double(), [&]<class T>(T) {
    current().of<T>().affine_flow.bwd(kind, inverse, g.as<const T>(), log_det_of<T>(g_log_det), rows_of<T>(x),
                                      rows_of<T>(m), rows_of<T>(s), d_z.as<T>(), d_shift.as<T>(), d_scale_logit.as<T>(),
                                      rows, columns);
  });
  return nb::make_tuple(d_z.tensor, d_shift.tensor, d_scale_logit.tensor);
}

// The step, or its inverse. Returns the output, log_det (empty for a network alone), and with `keep` the saved
// activations. With `log_det_map` log_det has every feature's share.
nb::tuple autoregressive_flow_fwd(bool inverse, nb::handle x, nb::handle tensors, nb::handle present,
                                  nb::handle degrees, nb::handle structure, bool keep, bool log_det_map) {
  const NetworkViews network(NetworkViews::Content::kParameters, tensors, present, false, degrees, structure);
  const TensorView point = view(x);
  const int64_t samples = point.shape[0];
  const int64_t outputs = network.alone() ? network.width(network.layers.size() - 1) : point.shape[1];
  const Output out = new_tensor(x, point, {samples, outputs});
  const Output log_det = network.alone() ? new_tensor(x, point, {0}) : new_log_det(x, point, log_det_map);
  Output saved;
  const auto run = [&]<class T>(T) {
    const auto& kernels = current().of<T>().autoregressive_flow;
    const NetworkSpec<T> spec = network.spec<T>();
    if (keep) saved = new_tensor(x, point, {(samples + kLanes - 1) / kLanes, kernels.saved_rows(spec), kLanes});
    const nb::gil_scoped_release release;
    (inverse ? kernels.inverse : kernels.fwd)(spec, rows_of<T>(point), network.context_term.as<const T>(), out.as<T>(),
                                              LogDet<T>{log_det.as<T>(), log_det_map}, saved.as<T>(), samples);
  };
  point.is_double() ? run(double{}) : run(float{});
  return nb::make_tuple(out.tensor, log_det.tensor, saved.tensor);
}

// Returns the gradient of the input, or None where it is not needed, and the network's gradients.
nb::tuple autoregressive_flow_bwd(nb::handle d_out, nb::handle d_log_det, nb::handle saved, nb::handle tensors,
                                  nb::handle present, bool normalized, nb::handle degrees, nb::handle structure,
                                  nb::handle needs, bool needs_x) {
  const NetworkViews network(NetworkViews::Content::kFactors, tensors, present, normalized, degrees, structure);
  const TensorView g = view(d_out);
  const FlatView g_log_det = flat_view(d_log_det), kept = flat_view(saved);
  const Output d_x = needs_x ? new_tensor(d_out, g, {g.shape[0], network.structure[0]}) : Output();
  const NetworkGradients gradients(network, d_out, g, needs);
  with_type(g.is_double(), [&]<class T>(T) {
    gradients.compute<T>(network.spec<T>(), g.as<const T>(), log_det_of<T>(g_log_det), kept.as<const T>(), d_x.as<T>(),
                         g.shape[0]);
  });
  return nb::make_tuple(d_x.tensor, gradients.tensors());
}

// The same of the inverse. By the implicit function theorem the network's gradients are those of the step for the
// upstream gradients (-d_z, -d_log_det).
nb::tuple autoregressive_inverse_bwd(nb::handle d_x, nb::handle d_log_det, nb::handle saved, nb::handle tensors,
                                     nb::handle present, bool normalized, nb::handle degrees, nb::handle structure,
                                     nb::handle needs) {
  const NetworkViews network(NetworkViews::Content::kFactors, tensors, present, normalized, degrees, structure);
  const TensorView g = view(d_x);
  const FlatView g_log_det = flat_view(d_log_det), kept = flat_view(saved);
  const int64_t samples = g.shape[0], points = samples * g.shape[1];
  const Output d_z = new_tensor(d_x, g, {samples, g.shape[1]});
  const NetworkGradients gradients(network, d_x, g, needs);
  const Output negated = gradients.any() ? new_tensor(d_x, g, {points + g_log_det.count}) : Output();
  with_type(g.is_double(), [&]<class T>(T) {
    const NetworkSpec<T> spec = network.spec<T>();
    current().of<T>().autoregressive_flow.inverse_bwd(spec, g.as<const T>(), log_det_of<T>(g_log_det),
                                                      kept.as<const T>(), d_z.as<T>(), samples);
    if (!gradients.any()) return;
    T* const upstream = negated.as<T>();
    std::transform(d_z.as<T>(), d_z.as<T>() + points, upstream, std::negate<>());
    std::transform(g_log_det.as<T>(), g_log_det.as<T>() + g_log_det.count, upstream + points, std::negate<>());
    gradients.compute<T>(spec, upstream, {upstream + points, g_log_det.dims == 2}, kept.as<const T>(), nullptr,
                         samples);
  });
  return nb::make_tuple(d_z.tensor, gradients.tensors());
}

}  // namespace

void bind_flows(nb::module_& m) {
  m.def("affine_flow_fwd", affine_flow_fwd, "z"_a, "shift"_a, "scale_logit"_a.none(), "kind"_a, "inverse"_a,
        "log_det_map"_a);
  m.def("affine_flow_bwd", affine_flow_bwd, "d_out"_a, "d_log_det"_a, "z"_a, "shift"_a, "scale_logit"_a.none(),
        "kind"_a, "inverse"_a);
  m.def("autoregressive_flow_fwd", autoregressive_flow_fwd, "inverse"_a, "x"_a, "tensors"_a, "present"_a, "degrees"_a,
        "structure"_a, "keep"_a, "log_det_map"_a);
  m.def("autoregressive_flow_bwd", autoregressive_flow_bwd, "d_out"_a, "d_log_det"_a, "saved"_a, "tensors"_a,
        "present"_a, "normalized"_a, "degrees"_a, "structure"_a, "needs"_a, "needs_x"_a = true);
  m.def("autoregressive_inverse_bwd", autoregressive_inverse_bwd, "d_x"_a, "d_log_det"_a, "saved"_a, "tensors"_a,
        "present"_a, "normalized"_a, "degrees"_a, "structure"_a, "needs"_a);
}

}  // namespace fastvae
