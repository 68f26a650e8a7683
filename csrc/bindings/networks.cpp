// The functions on masked layers and networks: tensors in, new tensors out. Python's launchers have checked device,
// dtype, layout and extent before a call comes here.
#include <initializer_list>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/tensors.h"

namespace nb = nanobind;

namespace fastvae {
namespace {

struct LayerViews {
  TensorView weight, bias, scale, norm, in_degrees, out_degrees;

  template <class T>
  MaskedLayer<T> of() const {
    return {weight.as<const T>(),
            bias.as<const T>(),
            scale.as<const T>(),
            norm.as<const T>(),
            in_degrees.as<const int64_t>(),
            out_degrees.as<const int64_t>(),
            in_degrees.shape[0],
            out_degrees.shape[0],
            weight.stride[0]};
  }
};

// A network out of one run of tensors, weights first. `present` says of the context's term, of each bias and of each
// row's factors whether there is one.
struct NetworkViews {
  std::vector<LayerViews> layers;
  TensorView context_term;
  std::vector<bool> present;
  int64_t structure[6];

  // What follows the weights: context term, biases and factors, or else factors, and with `normalized` norms.
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

template <class T>
Matrix<T> rows_of(const TensorView& t) {
  return {t.as<const T>(), t.stride[0]};
}

// What a look at the tensors of a call, of which None is an absent one, and at what goes on around tells.
enum class Look {
  kNotPlain,  // somebody must see the op, or the kernels cannot read a tensor as it is
  kPlain,     // the kernels can be called without torch's dispatcher
  kAlike,     // also, the first `required` ones are there, and the first `floats` ones of one floating-point type
  kRows,      // also, those are matrices of one shape with contiguous rows, which are not empty
};

int look(nb::handle tensors, size_t floats, size_t required) {
  if (is_watched()) return static_cast<int>(Look::kNotPlain);
  const Items given(tensors);
  Kind first;
  bool alike = true, rows = true;
  for (size_t i = 0; i < given.size(); ++i) {
    if (given[i].is_none()) {
      alike &= i >= required;
      continue;
    }
    Kind kind;
    if (!is_plain(given[i]) || !is_readable(given[i], kind)) return static_cast<int>(Look::kNotPlain);
    if (i >= floats) continue;
    if (i == 0) first = kind;
    alike &= kind.floating != 0 && kind.floating == first.floating;
    rows &= kind.is_matrix() && kind == first;
  }
  return static_cast<int>(!alike ? Look::kPlain : rows ? Look::kRows : Look::kAlike);
}

// The tensors of a call as one tuple - weights, then of context term, biases and factors those that are there - with a
// tuple that says which; None where they must be checked, cast or laid out first. They are ready where all are float32,
// or all float64, in the memory of the CPU, of the sizes that the degrees say, and their rows contiguous.
nb::object network_tensors(nb::handle x, nb::handle context_term, nb::handle weights, nb::handle biases,
                           nb::handle scales, nb::handle degrees, nb::handle structure) {
  TensorView point, t;
  if (is_watched()) return nb::none();
  const auto seen = [](nb::handle tensor, TensorView& to) {
    return tensor.is_none() ? try_view(tensor, to) : is_plain(tensor) && try_readable_view(tensor, to);
  };
  if (!seen(x, point) || !point.given || !point.is_real() || point.dims != 2 || !point.contiguous_rows())
    return nb::none();
  const Items w(weights), d(degrees), b(biases), s(scales), of_structure(structure);
  const size_t layers = w.size();
  if (layers == 0 || d.size() != layers + 1 || b.size() != layers || s.size() != layers) return nb::none();
  const int64_t features = nb::cast<int64_t>(of_structure[0]), params = nb::cast<int64_t>(of_structure[1]);
  const auto ready = [&](int dims) { return t.scalar == point.scalar && t.dims == dims && t.contiguous_rows(); };
  std::vector<int64_t> sizes(layers + 1);
  for (size_t l = 0; l <= layers; ++l) {
    if (!seen(d[l], t) || t.scalar != Scalar::kInt64 || t.dims != 1 || !t.contiguous_rows()) return nb::none();
    sizes[l] = t.shape[0];
  }
  if (point.shape[1] != features || sizes[0] != features || sizes[layers] != features * params) return nb::none();
  std::vector<nb::handle> found;
  found.reserve(3 * layers + 1);
  for (size_t l = 0; l < layers; ++l) {
    if (!seen(w[l], t) || !ready(2) || t.shape[0] != sizes[l + 1] || t.shape[1] != sizes[l]) return nb::none();
    found.push_back(w[l]);
  }
  nb::object present = nb::steal(PyTuple_New(static_cast<Py_ssize_t>(1 + 2 * layers)));
  const auto add = [&](size_t place, nb::handle tensor) {
    PyTuple_SET_ITEM(present.ptr(), static_cast<Py_ssize_t>(place), nb::bool_(t.given).release().ptr());
    if (t.given) found.push_back(tensor);
  };
  if (!seen(context_term, t)) return nb::none();
  // Its rows lie one after the other.
  if (t.given && (!ready(2) || t.shape[0] != point.shape[0] || t.shape[1] != sizes[1] ||
                  (t.stride[0] != sizes[1] && t.shape[0] > 1)))
    return nb::none();
  add(0, context_term);
  for (size_t part = 0; part < 2; ++part)
    for (size_t l = 0; l < layers; ++l) {
      const nb::handle item = part == 0 ? b[l] : s[l];
      if (!seen(item, t) || (t.given && (!ready(1) || t.shape[0] != sizes[l + 1]))) return nb::none();
      add(1 + part * layers + l, item);
    }
  nb::object tensors = nb::steal(PyTuple_New(static_cast<Py_ssize_t>(found.size())));
  for (size_t i = 0; i < found.size(); ++i)
    PyTuple_SET_ITEM(tensors.ptr(), static_cast<Py_ssize_t>(i), found[i].inc_ref().ptr());
  return nb::make_tuple(tensors, present);
}

// The step, or its inverse: the output, log_det (empty for a network alone), and with keep the saved activations.
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

// Gradients of the input, and a list of those of the forward pass's tensors in their order; `needs` says which are
// wanted. That of a context's term is None where it is not, those of the layers where none of them is.
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
  const auto added = [&](bool is_wanted, std::initializer_list<int64_t> shape) {
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
    to[l].weight = added(of_layers, {network.width(l), network.layers[l].in_degrees.shape[0]});
  if (network.present[0]) to_context = added(wants(count), {samples, network.width(0)});
  for (size_t l = 0; l < count; ++l)
    if (network.has_bias(l)) to[l].bias = added(of_layers, {network.width(l)});
  for (size_t l = 0; l < count; ++l)
    if (network.has_scale(l)) to[l].scale = added(of_layers, {network.width(l)});
  const TensorView to_x = view(d_x);
  typed(g.is_double(), [&]<class T>(T) {
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
  typed(g.is_double(), [&]<class T>(T) {
    current().of<T>().autoregressive_flow.inverse_bwd(network.spec<T>(), g.as<const T>(), g_log_det.as<const T>(),
                                                      kept.as<const T>(), to.as<T>(), g.shape[0]);
  });
  return d_z;
}

// A layer without bias and norms, of which forward passes and gradients add what they have.
LayerViews layer_views(nb::handle weight, nb::handle scale, nb::handle in_degrees, nb::handle out_degrees) {
  return {view(weight), {}, view(scale), {}, view(in_degrees), view(out_degrees)};
}

// The output, and with keep_pre the pre-activation.
nb::tuple masked_linear_fwd(nb::handle x, nb::handle weight, nb::handle bias, nb::handle scale, nb::handle in_degrees,
                            nb::handle out_degrees, int64_t activation, bool keep_pre) {
  LayerViews layer = layer_views(weight, scale, in_degrees, out_degrees);
  layer.bias = view(bias);
  const TensorView point = view(x);
  const int64_t samples = point.shape[0], outputs = layer.out_degrees.shape[0];
  const nb::object y = new_tensor(x, point, {samples, outputs});
  const nb::object pre = keep_pre ? new_tensor(x, point, {samples, outputs}) : nb::none();
  const TensorView y_view = view(y), pre_view = view(pre);
  typed(point.is_double(), [&]<class T>(T) {
    current().of<T>().masked_linear.fwd(layer.of<T>(), activation, rows_of<T>(point), y_view.as<T>(), pre_view.as<T>(),
                                        samples);
  });
  return nb::make_tuple(y, pre);
}

// Gradients of x, weight, bias (None unless it has one) and factors (None where there are none).
nb::tuple masked_linear_bwd(nb::handle d_y, nb::handle at, nb::handle x, nb::handle weight, nb::handle scale,
                            nb::handle in_degrees, nb::handle out_degrees, int64_t activation, bool has_bias) {
  const LayerViews layer = layer_views(weight, scale, in_degrees, out_degrees);
  const TensorView g = view(d_y), activations = view(at), point = view(x);
  const int64_t samples = g.shape[0], in = layer.in_degrees.shape[0], out = layer.out_degrees.shape[0];
  const nb::object d_x = new_tensor(d_y, g, {samples, in}), d_weight = new_tensor(d_y, g, {out, in});
  const nb::object d_bias = has_bias ? new_tensor(d_y, g, {out}) : nb::none();
  const nb::object d_scale = layer.scale.given ? new_tensor(d_y, g, {out}) : nb::none();
  const TensorView to_x = view(d_x), to_weight = view(d_weight), to_bias = view(d_bias), to_scale = view(d_scale);
  typed(g.is_double(), [&]<class T>(T) {
    current().of<T>().masked_linear.bwd(layer.of<T>(), activation, g.as<const T>(), activations.as<const T>(),
                                        rows_of<T>(point), to_x.as<T>(),
                                        {to_weight.as<T>(), to_bias.as<T>(), to_scale.as<T>()}, samples);
  });
  return nb::make_tuple(d_x, d_weight, d_bias, d_scale);
}

nb::object masked_norm_fwd(nb::handle weight, nb::handle in_degrees, nb::handle out_degrees) {
  const LayerViews layer = layer_views(weight, nb::none(), in_degrees, out_degrees);
  const nb::object norm = new_tensor(weight, layer.weight, {layer.out_degrees.shape[0]});
  const TensorView to = view(norm);
  typed(layer.weight.is_double(),
        [&]<class T>(T) { current().of<T>().masked_linear.norm_fwd(layer.of<T>(), to.as<T>()); });
  return norm;
}

nb::object masked_norm_bwd(nb::handle d_norm, nb::handle norm, nb::handle weight, nb::handle in_degrees,
                           nb::handle out_degrees) {
  const LayerViews layer = layer_views(weight, nb::none(), in_degrees, out_degrees);
  const TensorView g = view(d_norm), norms = view(norm);
  const nb::object d_weight = new_tensor(d_norm, g, {layer.out_degrees.shape[0], layer.in_degrees.shape[0]});
  const TensorView to = view(d_weight);
  typed(g.is_double(), [&]<class T>(T) {
    current().of<T>().masked_linear.norm_bwd(layer.of<T>(), g.as<const T>(), norms.as<const T>(), to.as<T>());
  });
  return d_weight;
}

}  // namespace

void bind_networks(nb::module_& m) {
  const nb::arg a;
  const auto maybe = nb::arg().none();  // a tensor, or a list of them, that may be None
  m.def("use_exchange", use_exchange);
  m.def("look", look);
  m.def("network_tensors", network_tensors, maybe, maybe, maybe, maybe, maybe, maybe, a);
  m.def("autoregressive_flow_fwd", autoregressive_flow_fwd);
  m.def("autoregressive_flow_bwd", autoregressive_flow_bwd);
  m.def("autoregressive_inverse_bwd", autoregressive_inverse_bwd);
  m.def("masked_linear_fwd", masked_linear_fwd, a, a, maybe, maybe, a, a, a, a);
  m.def("masked_linear_bwd", masked_linear_bwd, a, a, a, a, maybe, a, a, a, a);
  m.def("masked_norm_fwd", masked_norm_fwd);
  m.def("masked_norm_bwd", masked_norm_bwd);
}

}  // namespace fastvae
