// The functions on layers take tensors, and return new ones. Python's launchers check device, dtype, layout and
// extent before a call.
#include "bindings/bindings.h"
#include "bindings/layer_views.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace fastvae {
namespace {

// A layer without bias and norms; callers that have them add them.
LayerViews layer_views(nb::handle weight, nb::handle scale, nb::handle in_degrees, nb::handle out_degrees) {
  return {view(weight), {}, view(scale), {}, view(in_degrees), view(out_degrees)};
}

// Returns the output, and with keep_pre the pre-activation.
nb::tuple masked_linear_fwd(nb::handle x, nb::handle weight, nb::handle bias, nb::handle scale, nb::handle in_degrees,
                            nb::handle out_degrees, int64_t activation, bool keep_pre) {
  LayerViews layer = layer_views(weight, scale, in_degrees, out_degrees);
  layer.bias = view(bias);
  const TensorView point = view(x);
  const int64_t samples = point.shape[0], outputs = layer.out_degrees.shape[0];
  const Output y = new_tensor(x, point, {samples, outputs});
  const Output pre = keep_pre ? new_tensor(x, point, {samples, outputs}) : Output();
  with_type(point.is_double(), [&]<class T>(T) {
    current().of<T>().masked_linear.fwd(layer.of<T>(), activation, rows_of<T>(point), y.as<T>(), pre.as<T>(), samples);
  });
  return nb::make_tuple(y.tensor, pre.tensor);
}

// Returns the gradients of x, weight, bias and factors; None for x that needs none, an absent bias or absent factors.
nb::tuple masked_linear_bwd(nb::handle d_y, nb::handle at, nb::handle x, nb::handle weight, nb::handle scale,
                            nb::handle in_degrees, nb::handle out_degrees, int64_t activation, bool has_bias,
                            bool needs_x) {
  const LayerViews layer = layer_views(weight, scale, in_degrees, out_degrees);
  const TensorView g = view(d_y), activations = view(at), point = view(x);
  const int64_t samples = g.shape[0], in = layer.in_degrees.shape[0], out = layer.out_degrees.shape[0];
  const Output d_x = needs_x ? new_tensor(d_y, g, {samples, in}) : Output();
  const Output d_weight = new_tensor(d_y, g, {out, in});
  const Output d_bias = has_bias ? new_tensor(d_y, g, {out}) : Output();
  const Output d_scale = layer.scale.given ? new_tensor(d_y, g, {out}) : Output();
  with_type(g.is_double(), [&]<class T>(T) {
    current().of<T>().masked_linear.bwd(layer.of<T>(), activation, g.as<const T>(), activations.as<const T>(),
                                        rows_of<T>(point), d_x.as<T>(),
                                        {d_weight.as<T>(), d_bias.as<T>(), d_scale.as<T>()}, samples);
  });
  return nb::make_tuple(d_x.tensor, d_weight.tensor, d_bias.tensor, d_scale.tensor);
}

nb::object masked_norm_fwd(nb::handle weight, nb::handle in_degrees, nb::handle out_degrees) {
  const LayerViews layer = layer_views(weight, nb::none(), in_degrees, out_degrees);
  const Output norm = new_tensor(weight, layer.weight, {layer.out_degrees.shape[0]});
  with_type(layer.weight.is_double(),
            [&]<class T>(T) { current().of<T>().masked_linear.norm_fwd(layer.of<T>(), norm.as<T>()); });
  return norm.tensor;
}

nb::object masked_norm_bwd(nb::handle d_norm, nb::handle norm, nb::handle weight, nb::handle in_degrees,
                           nb::handle out_degrees) {
  const LayerViews layer = layer_views(weight, nb::none(), in_degrees, out_degrees);
  const TensorView g = view(d_norm), norms = view(norm);
  const Output d_weight = new_tensor(d_norm, g, {layer.out_degrees.shape[0], layer.in_degrees.shape[0]});
  with_type(g.is_double(), [&]<class T>(T) {
    current().of<T>().masked_linear.norm_bwd(layer.of<T>(), g.as<const T>(), norms.as<const T>(), d_weight.as<T>());
  });
  return d_weight.tensor;
}

// Rows of h are samples, data points, and `inner` classes of each.
BernoulliSizes bernoulli_sizes(const TensorView& h, const TensorView& x, int64_t inner) {
  const int64_t points = x.shape[0], rows = points * inner;
  return {rows ? h.shape[0] / rows : 0, points, inner};
}

// Returns the log-likelihoods, and with `keep` what the backward pass reads.
nb::tuple linear_bernoulli_fwd(nb::handle h, nb::handle weight, nb::handle bias, nb::handle x, int64_t inner,
                               bool keep) {
  const LayerViews layer = dense_views(weight, bias);
  const TensorView hidden = view(h), points = view(x);
  const BernoulliSizes sizes = bernoulli_sizes(hidden, points, inner);
  const int64_t count = current().of<float>().linear_bernoulli.kept_count(layer.weight.shape[0], sizes);
  const Output log_p = new_tensor(h, hidden, {hidden.shape[0]});
  const Output kept = keep ? new_tensor(h, hidden, {count}) : Output();
  with_type(hidden.is_double(), [&]<class T>(T) {
    current().of<T>().linear_bernoulli.fwd(layer.of<T>(), rows_of<T>(hidden), rows_of<T>(points), log_p.as<T>(),
                                           kept.as<T>(), sizes);
  });
  return nb::make_tuple(log_p.tensor, kept.tensor);
}

// Returns the gradients of h, weight and bias; None for those that `needs` does not want.
nb::tuple linear_bernoulli_bwd(nb::handle d_log_p, nb::handle h, nb::handle weight, nb::handle bias, nb::handle x,
                               nb::handle kept, int64_t inner, nb::handle needs) {
  const LayerViews layer = dense_views(weight, bias);
  const TensorView hidden = view(h), points = view(x), &w = layer.weight;
  const FlatView g = flat_view(d_log_p), residuals = flat_view(kept);
  const Items wanted(needs);
  const auto wants = [&](size_t i) { return wanted[i].ptr() == Py_True; };
  const Output d_h = wants(0) ? new_tensor(h, hidden, {hidden.shape[0], hidden.shape[1]}) : Output();
  const Output d_weight = wants(1) ? new_tensor(h, hidden, {w.shape[0], w.shape[1]}) : Output();
  const Output d_bias = wants(2) ? new_tensor(h, hidden, {w.shape[0]}) : Output();
  with_type(hidden.is_double(), [&]<class T>(T) {
    current().of<T>().linear_bernoulli.bwd(layer.of<T>(), g.as<const T>(), rows_of<T>(hidden), rows_of<T>(points),
                                           residuals.as<const T>(), d_h.as<T>(), d_weight.as<T>(), d_bias.as<T>(),
                                           bernoulli_sizes(hidden, points, inner));
  });
  return nb::make_tuple(d_h.tensor, d_weight.tensor, d_bias.tensor);
}

// A decoder's layers come as one list: weights, then the biases that `has_bias` announces.
struct DecoderViews {
  std::vector<LayerViews> layers;

  DecoderViews(nb::handle tensors, nb::handle has_bias) {
    const Items given(tensors), there(has_bias);
    size_t next = there.size();
    for (size_t l = 0; l < there.size(); ++l)
      layers.push_back(dense_views(given[l], there[l].ptr() == Py_True ? given[next++] : nb::handle(Py_None)));
  }

  template <class T>
  std::vector<MaskedLayer<T>> of() const {
    std::vector<MaskedLayer<T>> found;
    for (const LayerViews& layer : layers) found.push_back(layer.of<T>());
    return found;
  }
};

// Returns the log-likelihoods of data under a decoder, and with `keep` what the backward pass reads.
nb::tuple mlp_bernoulli_fwd(nb::handle z, nb::handle layers, nb::handle has_bias, nb::handle x, int64_t inner,
                            int64_t activation, bool keep) {
  const DecoderViews decoder(layers, has_bias);
  const TensorView latents = view(z), points = view(x);
  const BernoulliSizes sizes = bernoulli_sizes(latents, points, inner);
  const int64_t count = current().of<float>().mlp_bernoulli.kept_count(decoder.of<float>(), activation, sizes);
  const Output log_p = new_tensor(z, latents, {latents.shape[0]});
  const Output kept = keep ? new_tensor(z, latents, {count}) : Output();
  with_type(latents.is_double(), [&]<class T>(T) {
    current().of<T>().mlp_bernoulli.fwd(decoder.of<T>(), activation, rows_of<T>(latents), rows_of<T>(points),
                                        log_p.as<T>(), kept.as<T>(), sizes);
  });
  return nb::make_tuple(log_p.tensor, kept.tensor);
}

// Returns the gradients of z, None unless it is wanted, and of the layers, an empty list unless they are wanted.
nb::tuple mlp_bernoulli_bwd(nb::handle d_log_p, nb::handle z, nb::handle layers, nb::handle has_bias, nb::handle x,
                            nb::handle kept, int64_t inner, int64_t activation, bool of_z, bool of_layers) {
  const DecoderViews decoder(layers, has_bias);
  const TensorView latents = view(z), points = view(x);
  const FlatView g = flat_view(d_log_p), saved = flat_view(kept);
  const Output d_z = of_z ? new_tensor(z, latents, {latents.shape[0], latents.shape[1]}) : Output();
  std::vector<Output> d_weights, d_biases;
  nb::list results;
  for (const LayerViews& layer : decoder.layers) {
    if (!of_layers) break;
    d_weights.push_back(new_tensor(z, latents, {layer.weight.shape[0], layer.weight.shape[1]}));
    d_biases.push_back(layer.bias.given ? new_tensor(z, latents, {layer.weight.shape[0]}) : Output());
    results.append(d_weights.back().tensor);
  }
  for (const Output& bias : d_biases)
    if (bias.data || !bias.tensor.is_none()) results.append(bias.tensor);
  with_type(latents.is_double(), [&]<class T>(T) {
    std::vector<LayerGradients<T>> gradients;
    for (size_t l = 0; l < d_weights.size(); ++l)
      gradients.push_back({d_weights[l].as<T>(), d_biases[l].as<T>(), nullptr});
    current().of<T>().mlp_bernoulli.bwd(decoder.of<T>(), activation, g.as<const T>(), rows_of<T>(latents),
                                        saved.as<const T>(), d_z.as<T>(), gradients,
                                        bernoulli_sizes(latents, points, inner));
  });
  return nb::make_tuple(d_z.tensor, results);
}

struct LatentOutputs {
  Output log_p, gradient, product;
};

void run_latent(nb::handle z, const TensorView& v, nb::handle layers, nb::handle has_bias, nb::handle x, int64_t inner,
                int64_t activation, int64_t likelihood, const FlatView& d_log_p, const LatentOutputs& to) {
  const DecoderViews decoder(layers, has_bias);
  const TensorView latents = view(z), points = view(x);
  with_type(latents.is_double(), [&]<class T>(T) {
    LatentProblem<T> problem{decoder.of<T>(),
                             activation,
                             likelihood,
                             rows_of<T>(latents),
                             rows_of<T>(v),
                             rows_of<T>(points),
                             d_log_p.as<const T>(),
                             latents.shape[0],
                             points.shape[0],
                             inner};
    current().of<T>().latent_gradient.run(problem, {to.log_p.as<T>(), to.gradient.as<T>(), to.product.as<T>()});
  });
}

// Returns the log-likelihoods and their gradients to z.
nb::tuple latent_gradient_fwd(nb::handle z, nb::handle layers, nb::handle has_bias, nb::handle x, int64_t inner,
                              int64_t activation, int64_t likelihood) {
  const TensorView latents = view(z);
  const int64_t rows = latents.shape[0];
  const LatentOutputs to{new_tensor(z, latents, {rows}), new_tensor(z, latents, {rows, latents.shape[1]}), {}};
  run_latent(z, {}, layers, has_bias, x, inner, activation, likelihood, {}, to);
  return nb::make_tuple(to.log_p.tensor, to.gradient.tensor);
}

// Returns the gradient of z out of those of the log-likelihoods, which may be absent, and of their gradients.
nb::object latent_gradient_bwd(nb::handle d_log_p, nb::handle d_gradient, nb::handle z, nb::handle layers,
                               nb::handle has_bias, nb::handle x, int64_t inner, int64_t activation,
                               int64_t likelihood) {
  const TensorView latents = view(z);
  const LatentOutputs to{{}, {}, new_tensor(z, latents, {latents.shape[0], latents.shape[1]})};
  run_latent(z, view(d_gradient), layers, has_bias, x, inner, activation, likelihood, flat_view(d_log_p), to);
  return to.product.tensor;
}

// Returns the log-likelihoods, their gradients to z, and the products of their Hessians and v.
nb::tuple latent_hessian_product_fwd(nb::handle z, nb::handle v, nb::handle layers, nb::handle has_bias, nb::handle x,
                                     int64_t inner, int64_t activation, int64_t likelihood) {
  const TensorView latents = view(z);
  const int64_t rows = latents.shape[0], columns = latents.shape[1];
  const LatentOutputs to{new_tensor(z, latents, {rows}), new_tensor(z, latents, {rows, columns}),
                         new_tensor(z, latents, {rows, columns})};
  run_latent(z, view(v), layers, has_bias, x, inner, activation, likelihood, {}, to);
  return nb::make_tuple(to.log_p.tensor, to.gradient.tensor, to.product.tensor);
}

// Terms of rows (M, H), of cells (M, C, H) and of classes (C, H): cells, or rows and classes, are there.
struct ClassViews {
  TensorView rows, cells, classes;
  ClassExtent extent;

  ClassViews(nb::handle of_rows, nb::handle of_cells, nb::handle of_classes)
      : rows(view(of_rows)), cells(view(of_cells)), classes(view(of_classes)) {
    extent = cells.given ? ClassExtent{cells.shape[0], cells.shape[1], cells.shape[2]}
                         : ClassExtent{rows.shape[0], classes.shape[0], rows.shape[1]};
  }

  template <class T>
  ClassTerms<T> of() const {
    return {rows_of<T>(rows), {cells.as<const T>(), extent.columns}, rows_of<T>(classes)};
  }
};

// Returns the output, and with keep_pre the pre-activation.
nb::tuple class_linear_fwd(nb::handle rows, nb::handle cells, nb::handle classes, int64_t activation, bool keep_pre) {
  const ClassViews terms(rows, cells, classes);
  const ClassExtent& e = terms.extent;
  const nb::handle like = terms.cells.given ? cells : rows;
  const TensorView& of_like = terms.cells.given ? terms.cells : terms.rows;
  const Output y = new_tensor(like, of_like, {e.rows, e.classes, e.columns});
  const Output pre = keep_pre ? new_tensor(like, of_like, {e.rows, e.classes, e.columns}) : Output();
  with_type(of_like.is_double(), [&]<class T>(T) {
    current().of<T>().class_linear.fwd(activation, e, terms.of<T>(), y.as<T>(), pre.as<T>());
  });
  return nb::make_tuple(y.tensor, pre.tensor);
}

// Returns the gradients of the terms of rows, cells and classes; None for those that `needs` does not want.
nb::tuple class_linear_bwd(nb::handle d_y, nb::handle at, int64_t activation, nb::handle needs) {
  const TensorView g = view(d_y), activations = view(at);
  const ClassExtent e{g.shape[0], g.shape[1], g.shape[2]};
  const Items wanted(needs);
  const auto wants = [&](size_t i) { return wanted[i].ptr() == Py_True; };
  const Output d_rows = wants(0) ? new_tensor(d_y, g, {e.rows, e.columns}) : Output();
  const Output d_cells = wants(1) ? new_tensor(d_y, g, {e.rows, e.classes, e.columns}) : Output();
  const Output d_classes = wants(2) ? new_tensor(d_y, g, {e.classes, e.columns}) : Output();
  with_type(g.is_double(), [&]<class T>(T) {
    current().of<T>().class_linear.bwd(activation, e, g.as<const T>(), activations.as<const T>(),
                                       {d_rows.as<T>(), d_cells.as<T>(), d_classes.as<T>()});
  });
  return nb::make_tuple(d_rows.tensor, d_cells.tensor, d_classes.tensor);
}

}  // namespace

void bind_layers(nb::module_& m) {
  m.def("masked_linear_fwd", masked_linear_fwd, "x"_a, "weight"_a, "bias"_a.none(), "scale"_a.none(), "in_degrees"_a,
        "out_degrees"_a, "activation"_a, "keep_pre"_a);
  m.def("masked_linear_bwd", masked_linear_bwd, "d_y"_a, "at"_a, "x"_a, "weight"_a, "scale"_a.none(), "in_degrees"_a,
        "out_degrees"_a, "activation"_a, "has_bias"_a, "needs_x"_a = true);
  m.def("linear_bernoulli_fwd", linear_bernoulli_fwd, "h"_a, "weight"_a, "bias"_a.none(), "x"_a, "inner"_a, "keep"_a);
  m.def("linear_bernoulli_bwd", linear_bernoulli_bwd, "d_log_p"_a, "h"_a, "weight"_a, "bias"_a.none(), "x"_a,
        "kept"_a.none(), "inner"_a, "needs"_a);
  m.def("latent_gradient_fwd", latent_gradient_fwd, "z"_a, "layers"_a, "has_bias"_a, "x"_a, "inner"_a, "activation"_a,
        "likelihood"_a);
  m.def("latent_gradient_bwd", latent_gradient_bwd, "d_log_p"_a.none(), "d_gradient"_a, "z"_a, "layers"_a, "has_bias"_a,
        "x"_a, "inner"_a, "activation"_a, "likelihood"_a);
  m.def("latent_hessian_product_fwd", latent_hessian_product_fwd, "z"_a, "v"_a, "layers"_a, "has_bias"_a, "x"_a,
        "inner"_a, "activation"_a, "likelihood"_a);
  m.def("mlp_bernoulli_fwd", mlp_bernoulli_fwd, "z"_a, "layers"_a, "has_bias"_a, "x"_a, "inner"_a, "activation"_a,
        "keep"_a);
  m.def("mlp_bernoulli_bwd", mlp_bernoulli_bwd, "d_log_p"_a, "z"_a, "layers"_a, "has_bias"_a, "x"_a, "kept"_a,
        "inner"_a, "activation"_a, "of_z"_a, "of_layers"_a);
  m.def("class_linear_fwd", class_linear_fwd, "rows"_a.none(), "cells"_a.none(), "classes"_a.none(), "activation"_a,
        "keep_pre"_a);
  m.def("class_linear_bwd", class_linear_bwd, "d_y"_a, "at"_a, "activation"_a, "needs"_a);
  m.def("masked_norm_fwd", masked_norm_fwd, "weight"_a, "in_degrees"_a, "out_degrees"_a);
  m.def("masked_norm_bwd", masked_norm_bwd, "d_norm"_a, "norm"_a, "weight"_a, "in_degrees"_a, "out_degrees"_a);
}

}  // namespace fastvae
