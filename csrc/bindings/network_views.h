// A masked network's tensors and their gradients, as Python passes and gets them.
#pragma once

#include <initializer_list>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/layer_views.h"

namespace fastvae {
namespace {

namespace nb = nanobind;

// log |det| of each row, or with `by_dimension` the share of each of its dimensions.
inline Output new_log_det(nb::handle like, const TensorView& of_like, bool by_dimension) {
  return new_tensor(like, of_like, std::span<const int64_t>(of_like.shape, by_dimension ? 2 : 1));
}

// Gradients of it, of one or of two dimensions.
template <class T>
LogDet<const T> log_det_of(const FlatView& d_log_det) {
  return {d_log_det.as<const T>(), d_log_det.dims == 2};
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

}  // namespace
}  // namespace fastvae
