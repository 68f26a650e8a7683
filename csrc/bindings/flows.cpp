// The functions on flows' steps, of given parameters or of those that a network makes, take tensors and return new
// ones. Python's launchers check device, dtype, layout and extent before a call.
#include <algorithm>
#include <functional>
#include <initializer_list>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/layer_views.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace fastvae {
namespace {

// log |det| of each row, or with `by_dimension` the share of each of its dimensions.
Output new_log_det(nb::handle like, const TensorView& of_like, bool by_dimension) {
  return new_tensor(like, of_like, std::span<const int64_t>(of_like.shape, by_dimension ? 2 : 1));
}

// Gradients of it, of one or of two dimensions.
template <class T>
LogDet<const T> log_det_of(const FlatView& d_log_det) {
  return {d_log_det.as<const T>(), d_log_det.dims == 2};
}

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

// The gradients of a network's tensors, in the order of the forward pass; `needs` says which are wanted. The context's
// term has None where its gradient is not wanted; the layers have None where none of theirs is.
class NetworkGradients {
 public:
  NetworkGradients(const NetworkViews& network, nb::handle like, const TensorView& of_like, nb::handle needs) {
    const Items wanted(needs);
    const size_t count = network.layers.size();
    const bool has_context = network.present[0];
    const auto wants = [&](size_t i) { return wanted[i].ptr() == Py_True; };
    bool of_layers = false;
    for (size_t i = 0; i < wanted.size(); ++i) of_layers |= wants(i) && !(has_context && i == count);
    any_ = of_layers || (has_context && wants(count));
    const auto add = [&](bool is_wanted, std::initializer_list<int64_t> shape) {
      const Output made = is_wanted ? new_tensor(like, of_like, shape) : Output();
      tensors_.append(made.tensor);
      return made;
    };
    layers_.resize(count);
    for (size_t l = 0; l < count; ++l)
      layers_[l].weight = add(of_layers, {network.width(l), network.layers[l].in_degrees.shape[0]});
    if (has_context) context_term_ = add(wants(count), {of_like.shape[0], network.width(0)});
    for (size_t l = 0; l < count; ++l)
      if (network.has_bias(l)) layers_[l].bias = add(of_layers, {network.width(l)});
    for (size_t l = 0; l < count; ++l)
      if (network.has_scale(l)) layers_[l].scale = add(of_layers, {network.width(l)});
  }

  bool any() const { return any_; }
  const nb::list& tensors() const { return tensors_; }

  template <class T>
  void compute(const NetworkSpec<T>& spec, const T* d_out, LogDet<const T> d_log_det, const T* saved, T* d_x,
               int64_t samples) const {
    std::vector<LayerGradients<T>> of_each;
    for (const Layer& to : layers_) of_each.push_back({to.weight.as<T>(), to.bias.as<T>(), to.scale.as<T>()});
    current().of<T>().autoregressive_flow.bwd(spec, d_out, d_log_det, saved, d_x, context_term_.as<T>(), of_each,
                                              samples);
  }

 private:
  struct Layer {
    Output weight, bias, scale;
  };

  bool any_;
  nb::list tensors_;
  std::vector<Layer> layers_;
  Output context_term_;
};

// Returns the gradient of the input, and the network's gradients.
nb::tuple autoregressive_flow_bwd(nb::handle d_out, nb::handle d_log_det, nb::handle saved, nb::handle tensors,
                                  nb::handle present, bool normalized, nb::handle degrees, nb::handle structure,
                                  nb::handle needs) {
  const NetworkViews network(NetworkViews::Content::kFactors, tensors, present, normalized, degrees, structure);
  const TensorView g = view(d_out);
  const FlatView g_log_det = flat_view(d_log_det), kept = flat_view(saved);
  const Output d_x = new_tensor(d_out, g, {g.shape[0], network.structure[0]});
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
  Output negated, unused;
  if (gradients.any()) {
    negated = new_tensor(d_x, g, {points + g_log_det.count});
    unused = new_tensor(d_x, g, {points});
  }
  with_type(g.is_double(), [&]<class T>(T) {
    const NetworkSpec<T> spec = network.spec<T>();
    current().of<T>().autoregressive_flow.inverse_bwd(spec, g.as<const T>(), log_det_of<T>(g_log_det),
                                                      kept.as<const T>(), d_z.as<T>(), samples);
    if (!gradients.any()) return;
    T* const upstream = negated.as<T>();
    std::transform(d_z.as<T>(), d_z.as<T>() + points, upstream, std::negate<>());
    std::transform(g_log_det.as<T>(), g_log_det.as<T>() + g_log_det.count, upstream + points, std::negate<>());
    gradients.compute<T>(spec, upstream, {upstream + points, g_log_det.dims == 2}, kept.as<const T>(), unused.as<T>(),
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
        "present"_a, "normalized"_a, "degrees"_a, "structure"_a, "needs"_a);
  m.def("autoregressive_inverse_bwd", autoregressive_inverse_bwd, "d_x"_a, "d_log_det"_a, "saved"_a, "tensors"_a,
        "present"_a, "normalized"_a, "degrees"_a, "structure"_a, "needs"_a);
}

}  // namespace fastvae
