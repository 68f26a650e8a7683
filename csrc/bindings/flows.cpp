// The functions on flows' steps. A step with given parameters takes addresses and sizes and returns nothing; one whose
// network makes the parameters takes tensors and returns new ones. Python's launchers check device, dtype, layout and
// extent before a call.
#include <initializer_list>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/layer_views.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace fastvae {
namespace {

void affine_flow_fwd(bool is_double, int64_t kind, bool inverse, Address z, int64_t z_stride, Address shift,
                     int64_t shift_stride, Address scale_logit, int64_t scale_logit_stride, Address out,
                     Address log_det, int64_t rows, int64_t columns) {
  with_type(is_double, [&]<class T>(T) {
    current().of<T>().affine_flow.fwd(kind, inverse, matrix<T>(z, z_stride), matrix<T>(shift, shift_stride),
                                      matrix<T>(scale_logit, scale_logit_stride), at<T>(out), at<T>(log_det), rows,
                                      columns);
  });
}

void affine_flow_bwd(bool is_double, int64_t kind, bool inverse, Address d_out, Address d_log_det, Address z,
                     int64_t z_stride, Address shift, int64_t shift_stride, Address scale_logit,
                     int64_t scale_logit_stride, Address d_z, Address d_shift, Address d_scale_logit, int64_t rows,
                     int64_t columns) {
  with_type(is_double, [&]<class T>(T) {
    current().of<T>().affine_flow.bwd(kind, inverse, at<const T>(d_out), at<const T>(d_log_det), matrix<T>(z, z_stride),
                                      matrix<T>(shift, shift_stride), matrix<T>(scale_logit, scale_logit_stride),
                                      at<T>(d_z), at<T>(d_shift), at<T>(d_scale_logit), rows, columns);
  });
}

// A network's tensors, which come as one list, weights first. `present` says whether there is a context's term, each
// bias and each layer's factors.
struct NetworkViews {
  std::vector<LayerViews> layers;
  TensorView context_term;
  std::vector<bool> present;
  int64_t structure[6];

  // The tensors after the weights: context term, biases and factors; or factors, and with `normalized` norms.
  enum class Content { kParameters, kFactors };

  // numbers: features, parameters of each, activation, kind, residual, interleaved.
  NetworkViews(Content content, nb::handle tensors, nb::handle presence, bool normalized, nb::handle degrees,
               nb::handle numbers) {
    const Items given(tensors), there(presence), d(degrees), of_structure(numbers);
    const size_t count = d.size() - 1;
    if (count == 0 || there.size() != 1 + 2 * count || of_structure.size() != 6)
      throw nb::value_error("the network's lists differ in length");
    for (size_t i = 0; i < there.size(); ++i) present.push_back(there[i].ptr() == Py_True);
    layers.resize(count);
    size_t next = 0;
    layers[0].in_degrees = view(d[0]);
    for (size_t l = 0; l < count; ++l) {
      layers[l].out_degrees = view(d[l + 1]);
      if (l + 1 < count) layers[l + 1].in_degrees = layers[l].out_degrees;
      layers[l].weight = view(given[next++]);
    }
    if (content == Content::kParameters) {
      if (present[0]) context_term = view(given[next++]);
      for (size_t l = 0; l < count; ++l)
        if (present[1 + l]) layers[l].bias = view(given[next++]);
    }
    for (size_t l = 0; l < count; ++l)
      if (present[1 + count + l]) layers[l].scale = view(given[next++]);
    for (size_t l = 0; l < count && normalized; ++l)
      if (present[1 + count + l]) layers[l].norm = view(given[next++]);
    for (size_t i = 0; i < 6; ++i) structure[i] = nb::cast<int64_t>(of_structure[i]);
  }

  template <class T>
  NetworkSpec<T> spec() const {
    NetworkSpec<T> spec{{},           structure[0],      structure[1],     structure[2],
                        structure[3], structure[4] != 0, structure[5] != 0};
    spec.layers.reserve(layers.size());
    for (const LayerViews& layer : layers) spec.layers.push_back(layer.of<T>());
    return spec;
  }

  int64_t width(size_t layer) const { return layers[layer].out_degrees.shape[0]; }
  bool alone() const { return structure[3] == 0; }
  bool has_bias(size_t layer) const { return present[1 + layer]; }
  bool has_scale(size_t layer) const { return present[1 + layers.size() + layer]; }
};

// The step, or its inverse. Returns the output, log_det (empty for a network alone), and with `keep` the saved
// activations.
nb::tuple autoregressive_flow_fwd(bool inverse, nb::handle x, nb::handle tensors, nb::handle present,
                                  nb::handle degrees, nb::handle structure, bool keep) {
  const NetworkViews network(NetworkViews::Content::kParameters, tensors, present, false, degrees, structure);
  const TensorView point = view(x);
  const int64_t samples = point.shape[0];
  const int64_t outputs = network.alone() ? network.width(network.layers.size() - 1) : point.shape[1];
  const nb::object out = new_tensor(x, point, {samples, outputs});
  const nb::object log_det = new_tensor(x, point, {network.alone() ? 0 : samples});
  const TensorView to_out = view(out), to_log_det = view(log_det);
  nb::object saved = nb::none();
  const auto run = [&]<class T>(T) {
    const auto& kernels = current().of<T>().autoregressive_flow;
    const NetworkSpec<T> spec = network.spec<T>();
    if (keep) saved = new_tensor(x, point, {(samples + kLanes - 1) / kLanes, kernels.saved_rows(spec), kLanes});
    const TensorView to_saved = view(saved);
    const nb::gil_scoped_release release;
    (inverse ? kernels.inverse : kernels.fwd)(spec, rows_of<T>(point), network.context_term.as<const T>(),
                                              to_out.as<T>(), to_log_det.as<T>(), to_saved.as<T>(), samples);
  };
  point.is_double() ? run(double{}) : run(float{});
  return nb::make_tuple(out, log_det, saved);
}

// Returns the gradient of the input, and a list of the gradients of the forward pass's tensors in their order; `needs`
// says which are wanted. The context's term has None where its gradient is not wanted; the layers have None where none
// of theirs is.
nb::tuple autoregressive_flow_bwd(nb::handle d_out, nb::handle d_log_det, nb::handle saved, nb::handle tensors,
                                  nb::handle present, bool normalized, nb::handle degrees, nb::handle structure,
                                  nb::handle needs) {
  const NetworkViews network(NetworkViews::Content::kFactors, tensors, present, normalized, degrees, structure);
  const TensorView g = view(d_out), g_log_det = view(d_log_det), kept = view(saved);
  const Items wanted(needs);
  const size_t count = network.layers.size();
  const int64_t samples = g.shape[0];
  const auto wants = [&](size_t i) { return wanted[i].ptr() == Py_True; };
  bool of_layers = false;
  for (size_t i = 0; i < wanted.size(); ++i) of_layers |= wants(i) && !(network.present[0] && i == count);
  const nb::object d_x = new_tensor(d_out, g, {samples, network.structure[0]});
  nb::list gradients;
  const auto add_gradient = [&](bool is_wanted, std::initializer_list<int64_t> shape) {
    const nb::object made = is_wanted ? new_tensor(d_out, g, shape) : nb::none();
    gradients.append(made);
    return view(made);
  };
  struct Targets {
    TensorView weight, bias, scale;
  };
  std::vector<Targets> to(count);
  TensorView to_context;
  for (size_t l = 0; l < count; ++l)
    to[l].weight = add_gradient(of_layers, {network.width(l), network.layers[l].in_degrees.shape[0]});
  if (network.present[0]) to_context = add_gradient(wants(count), {samples, network.width(0)});
  for (size_t l = 0; l < count; ++l)
    if (network.has_bias(l)) to[l].bias = add_gradient(of_layers, {network.width(l)});
  for (size_t l = 0; l < count; ++l)
    if (network.has_scale(l)) to[l].scale = add_gradient(of_layers, {network.width(l)});
  const TensorView to_x = view(d_x);
  with_type(g.is_double(), [&]<class T>(T) {
    std::vector<LayerGradients<T>> of_each;
    for (const Targets& t : to) of_each.push_back({t.weight.as<T>(), t.bias.as<T>(), t.scale.as<T>()});
    current().of<T>().autoregressive_flow.bwd(network.spec<T>(), g.as<const T>(), g_log_det.as<const T>(),
                                              kept.as<const T>(), to_x.as<T>(), to_context.as<T>(), of_each, samples);
  });
  return nb::make_tuple(d_x, gradients);
}

nb::object autoregressive_inverse_bwd(nb::handle d_x, nb::handle d_log_det, nb::handle saved, nb::handle tensors,
                                      nb::handle present, nb::handle degrees, nb::handle structure) {
  const NetworkViews network(NetworkViews::Content::kFactors, tensors, present, false, degrees, structure);
  const TensorView g = view(d_x), g_log_det = view(d_log_det), kept = view(saved);
  const nb::object d_z = new_tensor(d_x, g, {g.shape[0], g.shape[1]});
  const TensorView to = view(d_z);
  with_type(g.is_double(), [&]<class T>(T) {
    current().of<T>().autoregressive_flow.inverse_bwd(network.spec<T>(), g.as<const T>(), g_log_det.as<const T>(),
                                                      kept.as<const T>(), to.as<T>(), g.shape[0]);
  });
  return d_z;
}

}  // namespace

void bind_flows(nb::module_& m) {
  m.def("affine_flow_fwd", affine_flow_fwd, "is_double"_a, "kind"_a, "inverse"_a, "z"_a, "z_stride"_a, "shift"_a,
        "shift_stride"_a, "scale_logit"_a, "scale_logit_stride"_a, "out"_a, "log_det"_a, "rows"_a, "columns"_a);
  m.def("affine_flow_bwd", affine_flow_bwd, "is_double"_a, "kind"_a, "inverse"_a, "d_out"_a, "d_log_det"_a, "z"_a,
        "z_stride"_a, "shift"_a, "shift_stride"_a, "scale_logit"_a, "scale_logit_stride"_a, "d_z"_a, "d_shift"_a,
        "d_scale_logit"_a, "rows"_a, "columns"_a);
  m.def("autoregressive_flow_fwd", autoregressive_flow_fwd, "inverse"_a, "x"_a, "tensors"_a, "present"_a, "degrees"_a,
        "structure"_a, "keep"_a);
  m.def("autoregressive_flow_bwd", autoregressive_flow_bwd, "d_out"_a, "d_log_det"_a, "saved"_a, "tensors"_a,
        "present"_a, "normalized"_a, "degrees"_a, "structure"_a, "needs"_a);
  m.def("autoregressive_inverse_bwd", autoregressive_inverse_bwd, "d_x"_a, "d_log_det"_a, "saved"_a, "tensors"_a,
        "present"_a, "degrees"_a, "structure"_a);
}

}  // namespace fastvae
