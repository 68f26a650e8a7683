// Several autoregressive flow steps in one call. Between calls of small networks Python takes as long as they do, and
// its code is far from the processor after a large one.
#include "base/parallel.h"
#include "bindings/network_views.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace fastvae {
namespace {

// What a step's call says of its network, as NetworkCall of _network_call.py has it.
struct StepCall {
  Items fields;

  nb::handle present() const { return fields[1]; }
  nb::handle degrees() const { return fields[2]; }
  nb::handle structure() const { return fields[3]; }
  bool normalized() const { return fields[4].ptr() == Py_True; }
};

// Returns the output of the last step, the sum of all log_det, and a list of saved activations. `tensors` are lists,
// one for each call.
nb::tuple flow_steps_fwd(nb::handle x, nb::handle calls, nb::handle tensors, bool log_det_map) {
  const Items of_calls(calls), of_tensors(tensors);
  nb::object input = nb::borrow(x);
  Output total;
  nb::list blocks;
  for (size_t i = 0; i < of_calls.size(); ++i) {
    const StepCall call{Items(of_calls[i])};
    const NetworkViews network(NetworkViews::Content::kParameters, of_tensors[i], call.present(), false, call.degrees(),
                               call.structure());
    const TensorView point = view(input);
    const int64_t samples = point.shape[0], shares = samples * (log_det_map ? point.shape[1] : 1);
    const Output out = new_tensor(x, point, {samples, point.shape[1]}), log_det = new_log_det(x, point, log_det_map);
    const auto run = [&]<class T>(T) {
      const auto& kernels = current().of<T>().autoregressive_flow;
      const NetworkSpec<T> spec = network.spec<T>();
      const Output saved = new_tensor(x, point, {(samples + kLanes - 1) / kLanes, kernels.saved_rows(spec), kLanes});
      blocks.append(saved.tensor);
      const nb::gil_scoped_release release;
      kernels.fwd(spec, rows_of<T>(point), network.context_term.as<const T>(), out.as<T>(),
                  LogDet<T>{log_det.as<T>(), log_det_map}, saved.as<T>(), samples);
      if (i == 0) return;
      T* const sum = total.as<T>();
      const T* const term = log_det.as<T>();
      parallel_ranges(shares, 1, [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; ++k) sum[k] += term[k];
      });
    };
    point.is_double() ? run(double{}) : run(float{});
    if (i == 0) total = log_det;
    input = out.tensor;
  }
  return nb::make_tuple(input, total.tensor, blocks);
}

// Returns the gradient of the first step's input, or None where it is not needed, and one list of the gradients of all
// networks. `kept` and `needs` are lists, one for each call.
nb::tuple flow_steps_bwd(nb::handle d_out, nb::handle d_log_det, nb::handle blocks, nb::handle kept, nb::handle calls,
                         bool needs_x, nb::handle needs) {
  const Items of_calls(calls), of_blocks(blocks), of_kept(kept), of_needs(needs);
  const FlatView g_log_det = flat_view(d_log_det);
  nb::object upstream = nb::borrow(d_out);
  std::vector<nb::list> found(of_calls.size());
  for (size_t i = of_calls.size(); i-- > 0;) {
    const StepCall call{Items(of_calls[i])};
    const NetworkViews network(NetworkViews::Content::kFactors, of_kept[i], call.present(), call.normalized(),
                               call.degrees(), call.structure());
    const TensorView g = view(upstream);
    const FlatView saved = flat_view(of_blocks[i]);
    const Output d_x = i > 0 || needs_x ? new_tensor(d_out, g, {g.shape[0], g.shape[1]}) : Output();
    const NetworkGradients gradients(network, d_out, g, of_needs[i]);
    with_type(g.is_double(), [&]<class T>(T) {
      gradients.compute<T>(network.spec<T>(), g.as<const T>(), log_det_of<T>(g_log_det), saved.as<const T>(),
                           d_x.as<T>(), g.shape[0]);
    });
    found[i] = gradients.tensors();
    upstream = d_x.tensor;
  }
  nb::list all;
  for (const nb::list& of_step : found)
    for (const nb::handle gradient : of_step) all.append(gradient);
  return nb::make_tuple(upstream, all);
}

}  // namespace

void bind_flow_steps(nb::module_& m) {
  m.def("autoregressive_flow_steps_fwd", flow_steps_fwd, "x"_a, "calls"_a, "tensors"_a, "log_det_map"_a);
  m.def("autoregressive_flow_steps_bwd", flow_steps_bwd, "d_out"_a, "d_log_det"_a, "blocks"_a, "kept"_a, "calls"_a,
        "needs_x"_a, "needs"_a);
}

}  // namespace fastvae
