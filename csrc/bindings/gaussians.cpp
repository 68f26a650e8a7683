// The functions on Gaussians take tensors, and return new ones. Python's launchers check device, dtype, layout and
// extent before a call. Points, noise and their gradients are contiguous; parameters are matrices of contiguous rows.
#include "bindings/gaussian_views.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace fastvae {
namespace {

template <class T>
Tril<const T> tril_of(const TensorView& tril) {
  return {tril.as<const T>(), tril.stride[0], tril.dims == 3 ? tril.stride[1] : Tril<const T>::kPacked};
}

// The gradient of a factor, packed or dense.
struct TrilGradient {
  int64_t stride, row_stride;
  Output to;

  TrilGradient(nb::handle like, const Numbers& of_like, int64_t rows, int64_t columns, bool dense)
      : stride(dense ? columns * columns : columns * (columns - 1) / 2),
        row_stride(dense ? columns : Tril<float>::kPacked),
        to(dense ? new_tensor(like, of_like, {rows, columns, columns}) : new_tensor(like, of_like, {rows, stride})) {}

  template <class T>
  Tril<T> of() const {
    return {to.as<T>(), stride, row_stride};
  }
};

template <class T>
Divergence<const T> divergence_of(const FlatView& d_kl) {
  return {d_kl.as<const T>(), d_kl.dims == 2};
}

void sample_diagonal(const TensorView& m, const TensorView& s, const FlatView& noise, int64_t row_offset,
                     const Sample& sample) {
  with_type(m.is_double(), [&]<class T>(T) {
    current().of<T>().diag_gaussian.fwd(rows_of<T>(m), rows_of<T>(s), noise_of<T>(noise, row_offset), sample.z.as<T>(),
                                        sample.log_q.as<T>(), sample.kept.as<T>(), sample.divergence<T>(),
                                        extent_of(sample.count, m));
  });
}

// noise: a seed or the normals. shape: that of the sample, (*sample_shape, *batch, D). With `keep` sigma eps is kept.
nb::tuple diag_gaussian_fwd(nb::handle mu, nb::handle log_sigma, nb::handle noise, nb::handle shape, int64_t row_offset,
                            bool keep) {
  const TensorView m = view(mu), s = view(log_sigma);
  const Sample sample(mu, m, shape, keep);
  sample_diagonal(m, s, flat_view(noise), row_offset, sample);
  return sample.results();
}

// The same with the divergence from N(0, I): of every row, or of each of its dimensions.
nb::tuple diag_gaussian_with_kl_fwd(nb::handle mu, nb::handle log_sigma, nb::handle noise, nb::handle shape,
                                    int64_t row_offset, bool by_dimension, bool keep) {
  const TensorView m = view(mu), s = view(log_sigma);
  Sample sample(mu, m, shape, keep);
  sample.add_kl(mu, m, by_dimension);
  sample_diagonal(m, s, flat_view(noise), row_offset, sample);
  return sample.results_with_kl();
}

// Returns the gradients of mu, None unless it is wanted, and of log_sigma.
nb::tuple diag_gaussian_bwd(nb::handle d_z, nb::handle d_log_q, nb::handle kept, int64_t rows, int64_t columns,
                            bool with_mu) {
  const FlatView g = flat_view(d_z), g_log_q = flat_view(d_log_q), moved = flat_view(kept);
  const Output d_mu = with_mu ? new_tensor(kept, moved, {rows, columns}) : Output();
  const Output d_log_sigma = new_tensor(kept, moved, {rows, columns});
  with_type(moved.is_double(), [&]<class T>(T) {
    current().of<T>().diag_gaussian.bwd(g.as<const T>(), g_log_q.as<const T>(), moved.as<const T>(), {}, {}, {},
                                        d_mu.as<T>(), d_log_sigma.as<T>(), extent_of(g.count, rows, columns));
  });
  return nb::make_tuple(d_mu.tensor, d_log_sigma.tensor);
}

// The gradient of log_sigma of one sample for each row, where nothing stands between autograd and the kernel; None
// where torch's machinery must see the op, or a gradient is absent, not real, of other dimensions or not contiguous.
// What the forward pass kept is the second of `ctx.saved_tensors`. They are taken only here: a checkpoint hands them
// out once.
nb::object diag_gaussian_bwd_at_once(nb::handle d_z, nb::handle d_log_q, nb::handle ctx) {
  TensorView g, g_log_q;
  if (is_watched() || !is_plain(d_z) || !is_plain(d_log_q) || !try_readable_view(d_z, g) ||
      !try_readable_view(d_log_q, g_log_q))
    return nb::none();
  if (!g.is_real() || g_log_q.scalar != g.scalar || g.dims != 2 || g_log_q.dims != 1 || !g.contiguous() ||
      !g_log_q.contiguous())
    return nb::none();
  const nb::object saved = ctx.attr("saved_tensors");
  const nb::handle kept = Items(saved)[1];
  const TensorView moved = view(kept);
  if (moved.scalar != g.scalar || moved.dims != 2 || moved.shape[0] != g.shape[0] || moved.shape[1] != g.shape[1])
    throw nb::value_error("what a sample kept is not of its gradient's shape and dtype");
  const Output d_log_sigma = new_tensor(kept, moved, {moved.shape[0], moved.shape[1]});
  with_type(moved.is_double(), [&]<class T>(T) {
    current().of<T>().diag_gaussian.bwd(g.as<const T>(), g_log_q.as<const T>(), moved.as<const T>(), {}, {}, {},
                                        nullptr, d_log_sigma.as<T>(), extent_of(g.shape[0] * g.shape[1], g));
  });
  return d_log_sigma.tensor;
}

// d_log_q may be None; d_kl has the dimensions of the divergence.
nb::tuple diag_gaussian_with_kl_bwd(nb::handle d_z, nb::handle d_log_q, nb::handle d_kl, nb::handle mu,
                                    nb::handle log_sigma, nb::handle kept) {
  const FlatView g = flat_view(d_z), g_log_q = flat_view(d_log_q), g_kl = flat_view(d_kl), moved = flat_view(kept);
  const TensorView m = view(mu), s = view(log_sigma);
  const Output d_mu = new_like(mu, m), d_log_sigma = new_like(mu, m);
  with_type(m.is_double(), [&]<class T>(T) {
    current().of<T>().diag_gaussian.bwd(g.as<const T>(), g_log_q.as<const T>(), moved.as<const T>(),
                                        divergence_of<T>(g_kl), rows_of<T>(m), rows_of<T>(s), d_mu.as<T>(),
                                        d_log_sigma.as<T>(), extent_of(g.count, m));
  });
  return nb::make_tuple(d_mu.tensor, d_log_sigma.tensor);
}

nb::object diag_gaussian_log_prob_fwd(nb::handle z, nb::handle mu, nb::handle log_sigma, nb::handle shape) {
  const FlatView points = flat_view(z);
  const TensorView m = view(mu), s = view(log_sigma);
  const Output log_q = new_tensor(mu, m, Items(shape).integers());
  with_type(m.is_double(), [&]<class T>(T) {
    current().of<T>().diag_gaussian.log_prob_fwd(points.as<const T>(), rows_of<T>(m), rows_of<T>(s), log_q.as<T>(),
                                                 extent_of(points.count, m));
  });
  return log_q.tensor;
}

nb::tuple diag_gaussian_log_prob_bwd(nb::handle d_log_q, nb::handle z, nb::handle mu, nb::handle log_sigma,
                                     nb::handle shape) {
  const FlatView g = flat_view(d_log_q), points = flat_view(z);
  const TensorView m = view(mu), s = view(log_sigma);
  const Output d_z = new_tensor(mu, m, Items(shape).integers()), d_mu = new_like(mu, m), d_log_sigma = new_like(mu, m);
  with_type(m.is_double(), [&]<class T>(T) {
    current().of<T>().diag_gaussian.log_prob_bwd(g.as<const T>(), points.as<const T>(), rows_of<T>(m), rows_of<T>(s),
                                                 d_z.as<T>(), d_mu.as<T>(), d_log_sigma.as<T>(),
                                                 extent_of(points.count, m));
  });
  return nb::make_tuple(d_z.tensor, d_mu.tensor, d_log_sigma.tensor);
}

nb::object diag_gaussian_kl_fwd(nb::handle mu, nb::handle log_sigma) {
  const TensorView m = view(mu), s = view(log_sigma);
  const Output kl = new_tensor(mu, m, {m.shape[0]});
  with_type(m.is_double(), [&]<class T>(T) {
    current().of<T>().diag_gaussian.kl_fwd(rows_of<T>(m), rows_of<T>(s), kl.as<T>(), m.shape[0], m.shape[1]);
  });
  return kl.tensor;
}

nb::tuple diag_gaussian_kl_bwd(nb::handle d_kl, nb::handle mu, nb::handle log_sigma) {
  const FlatView g = flat_view(d_kl);
  const TensorView m = view(mu), s = view(log_sigma);
  const Output d_mu = new_like(mu, m), d_log_sigma = new_like(mu, m);
  with_type(m.is_double(), [&]<class T>(T) {
    current().of<T>().diag_gaussian.kl_bwd(g.as<const T>(), rows_of<T>(m), rows_of<T>(s), d_mu.as<T>(),
                                           d_log_sigma.as<T>(), m.shape[0], m.shape[1]);
  });
  return nb::make_tuple(d_mu.tensor, d_log_sigma.tensor);
}

nb::object diag_gaussian_kl_prior_fwd(nb::handle mu, nb::handle log_sigma, nb::handle prior_mu,
                                      nb::handle prior_log_sigma) {
  const TensorView m = view(mu), s = view(log_sigma), prior_m = view(prior_mu), prior_s = view(prior_log_sigma);
  const Output kl = new_tensor(mu, m, {m.shape[0]});
  with_type(m.is_double(), [&]<class T>(T) {
    current().of<T>().diag_gaussian.kl_prior_fwd(rows_of<T>(m), rows_of<T>(s), rows_of<T>(prior_m), rows_of<T>(prior_s),
                                                 kl.as<T>(), m.shape[0], m.shape[1]);
  });
  return kl.tensor;
}

nb::tuple diag_gaussian_kl_prior_bwd(nb::handle d_kl, nb::handle mu, nb::handle log_sigma, nb::handle prior_mu,
                                     nb::handle prior_log_sigma) {
  const FlatView g = flat_view(d_kl);
  const TensorView m = view(mu), s = view(log_sigma), prior_m = view(prior_mu), prior_s = view(prior_log_sigma);
  const Output d_mu = new_like(mu, m), d_log_sigma = new_like(mu, m);
  const Output d_prior_mu = new_like(mu, m), d_prior_log_sigma = new_like(mu, m);
  with_type(m.is_double(), [&]<class T>(T) {
    current().of<T>().diag_gaussian.kl_prior_bwd(g.as<const T>(), rows_of<T>(m), rows_of<T>(s), rows_of<T>(prior_m),
                                                 rows_of<T>(prior_s), d_mu.as<T>(), d_log_sigma.as<T>(),
                                                 d_prior_mu.as<T>(), d_prior_log_sigma.as<T>(), m.shape[0], m.shape[1]);
  });
  return nb::make_tuple(d_mu.tensor, d_log_sigma.tensor, d_prior_mu.tensor, d_prior_log_sigma.tensor);
}

void sample_triangular(const TensorView& m, const TensorView& s, const TensorView& t, const FlatView& noise,
                       int64_t row_offset, const Sample& sample) {
  with_type(m.is_double(), [&]<class T>(T) {
    current().of<T>().tril_gaussian.fwd(rows_of<T>(m), rows_of<T>(s), tril_of<T>(t), noise_of<T>(noise, row_offset),
                                        sample.z.as<T>(), sample.log_q.as<T>(), sample.kept.as<T>(),
                                        sample.divergence<T>(), extent_of(sample.count, m));
  });
}

// As diag_gaussian_fwd. With `keep` eps is kept.
nb::tuple tril_gaussian_fwd(nb::handle mu, nb::handle log_sigma, nb::handle tril, nb::handle noise, nb::handle shape,
                            int64_t row_offset, bool keep) {
  const TensorView m = view(mu), s = view(log_sigma);
  const Sample sample(mu, m, shape, keep);
  sample_triangular(m, s, view(tril), flat_view(noise), row_offset, sample);
  return sample.results();
}

nb::tuple tril_gaussian_with_kl_fwd(nb::handle mu, nb::handle log_sigma, nb::handle tril, nb::handle noise,
                                    nb::handle shape, int64_t row_offset, bool by_dimension, bool keep) {
  const TensorView m = view(mu), s = view(log_sigma);
  Sample sample(mu, m, shape, keep);
  sample.add_kl(mu, m, by_dimension);
  sample_triangular(m, s, view(tril), flat_view(noise), row_offset, sample);
  return sample.results_with_kl();
}

// Returns the gradients of mu, None unless it is wanted, of log_sigma and of the factor.
nb::tuple tril_gaussian_bwd(nb::handle d_z, nb::handle d_log_q, nb::handle log_sigma, nb::handle eps, bool dense,
                            bool with_mu) {
  const FlatView g = flat_view(d_z), g_log_q = flat_view(d_log_q), drawn = flat_view(eps);
  const TensorView s = view(log_sigma);
  const Output d_mu = with_mu ? new_like(log_sigma, s) : Output(), d_log_sigma = new_like(log_sigma, s);
  const TrilGradient d_tril(log_sigma, s, s.shape[0], s.shape[1], dense);
  with_type(s.is_double(), [&]<class T>(T) {
    current().of<T>().tril_gaussian.bwd(g.as<const T>(), g_log_q.as<const T>(), {}, {}, rows_of<T>(s), {},
                                        drawn.as<const T>(), d_mu.as<T>(), d_log_sigma.as<T>(), d_tril.of<T>(),
                                        extent_of(g.count, s));
  });
  return nb::make_tuple(d_mu.tensor, d_log_sigma.tensor, d_tril.to.tensor);
}

// d_log_q may be None; d_kl has the dimensions of the divergence.
nb::tuple tril_gaussian_with_kl_bwd(nb::handle d_z, nb::handle d_log_q, nb::handle d_kl, nb::handle mu,
                                    nb::handle log_sigma, nb::handle tril, nb::handle eps) {
  const FlatView g = flat_view(d_z), g_log_q = flat_view(d_log_q), g_kl = flat_view(d_kl), drawn = flat_view(eps);
  const TensorView m = view(mu), s = view(log_sigma), t = view(tril);
  const Output d_mu = new_like(mu, m), d_log_sigma = new_like(mu, m);
  const TrilGradient d_tril(mu, m, m.shape[0], m.shape[1], t.dims == 3);
  with_type(m.is_double(), [&]<class T>(T) {
    current().of<T>().tril_gaussian.bwd(g.as<const T>(), g_log_q.as<const T>(), divergence_of<T>(g_kl), rows_of<T>(m),
                                        rows_of<T>(s), tril_of<T>(t), drawn.as<const T>(), d_mu.as<T>(),
                                        d_log_sigma.as<T>(), d_tril.of<T>(), extent_of(g.count, m));
  });
  return nb::make_tuple(d_mu.tensor, d_log_sigma.tensor, d_tril.to.tensor);
}

// Returns the log-density, and the whitened points in the shape of z.
nb::tuple tril_gaussian_log_prob_fwd(nb::handle z, nb::handle mu, nb::handle log_sigma, nb::handle tril,
                                     nb::handle shape) {
  const FlatView points = flat_view(z);
  const TensorView m = view(mu), s = view(log_sigma), t = view(tril);
  const Sample sample(mu, m, shape, false);
  with_type(m.is_double(), [&]<class T>(T) {
    current().of<T>().tril_gaussian.log_prob_fwd(points.as<const T>(), rows_of<T>(m), rows_of<T>(s), tril_of<T>(t),
                                                 sample.log_q.as<T>(), sample.z.as<T>(), extent_of(points.count, m));
  });
  return nb::make_tuple(sample.log_q.tensor, sample.z.tensor);
}

nb::tuple tril_gaussian_log_prob_bwd(nb::handle d_log_q, nb::handle eps, nb::handle log_sigma, nb::handle tril,
                                     nb::handle shape) {
  const FlatView g = flat_view(d_log_q), points = flat_view(eps);
  const TensorView s = view(log_sigma), t = view(tril);
  const Output d_z = new_tensor(log_sigma, s, Items(shape).integers());
  const Output d_mu = new_like(log_sigma, s), d_log_sigma = new_like(log_sigma, s);
  const TrilGradient d_tril(log_sigma, s, s.shape[0], s.shape[1], t.dims == 3);
  with_type(s.is_double(), [&]<class T>(T) {
    current().of<T>().tril_gaussian.log_prob_bwd(g.as<const T>(), points.as<const T>(), rows_of<T>(s), tril_of<T>(t),
                                                 d_z.as<T>(), d_mu.as<T>(), d_log_sigma.as<T>(), d_tril.of<T>(),
                                                 extent_of(points.count, s));
  });
  return nb::make_tuple(d_z.tensor, d_mu.tensor, d_log_sigma.tensor, d_tril.to.tensor);
}

nb::object tril_gaussian_kl_fwd(nb::handle mu, nb::handle log_sigma, nb::handle tril) {
  const TensorView m = view(mu), s = view(log_sigma), t = view(tril);
  const Output kl = new_tensor(mu, m, {m.shape[0]});
  with_type(m.is_double(), [&]<class T>(T) {
    current().of<T>().tril_gaussian.kl_fwd(rows_of<T>(m), rows_of<T>(s), tril_of<T>(t), kl.as<T>(), m.shape[0],
                                           m.shape[1]);
  });
  return kl.tensor;
}

nb::tuple tril_gaussian_kl_bwd(nb::handle d_kl, nb::handle mu, nb::handle log_sigma, nb::handle tril) {
  const FlatView g = flat_view(d_kl);
  const TensorView m = view(mu), s = view(log_sigma), t = view(tril);
  const Output d_mu = new_like(mu, m), d_log_sigma = new_like(mu, m);
  const TrilGradient d_tril(mu, m, m.shape[0], m.shape[1], t.dims == 3);
  with_type(m.is_double(), [&]<class T>(T) {
    current().of<T>().tril_gaussian.kl_bwd(g.as<const T>(), rows_of<T>(m), rows_of<T>(s), tril_of<T>(t), d_mu.as<T>(),
                                           d_log_sigma.as<T>(), d_tril.of<T>(), m.shape[0], m.shape[1]);
  });
  return nb::make_tuple(d_mu.tensor, d_log_sigma.tensor, d_tril.to.tensor);
}

}  // namespace

void bind_gaussians(nb::module_& m) {
  m.def("diag_gaussian_fwd", diag_gaussian_fwd, "mu"_a, "log_sigma"_a, "noise"_a, "shape"_a, "row_offset"_a, "keep"_a);
  m.def("diag_gaussian_bwd", diag_gaussian_bwd, "d_z"_a, "d_log_q"_a, "kept"_a, "rows"_a, "columns"_a, "with_mu"_a);
  m.def("diag_gaussian_bwd_at_once", diag_gaussian_bwd_at_once, "d_z"_a.none(), "d_log_q"_a.none(), "ctx"_a);
  m.def("diag_gaussian_with_kl_fwd", diag_gaussian_with_kl_fwd, "mu"_a, "log_sigma"_a, "noise"_a, "shape"_a,
        "row_offset"_a, "by_dimension"_a, "keep"_a);
  m.def("diag_gaussian_with_kl_bwd", diag_gaussian_with_kl_bwd, "d_z"_a, "d_log_q"_a.none(), "d_kl"_a, "mu"_a,
        "log_sigma"_a, "kept"_a);
  m.def("diag_gaussian_log_prob_fwd", diag_gaussian_log_prob_fwd, "z"_a, "mu"_a, "log_sigma"_a, "shape"_a);
  m.def("diag_gaussian_log_prob_bwd", diag_gaussian_log_prob_bwd, "d_log_q"_a, "z"_a, "mu"_a, "log_sigma"_a, "shape"_a);
  m.def("diag_gaussian_kl_fwd", diag_gaussian_kl_fwd, "mu"_a, "log_sigma"_a);
  m.def("diag_gaussian_kl_bwd", diag_gaussian_kl_bwd, "d_kl"_a, "mu"_a, "log_sigma"_a);
  m.def("diag_gaussian_kl_prior_fwd", diag_gaussian_kl_prior_fwd, "mu"_a, "log_sigma"_a, "prior_mu"_a,
        "prior_log_sigma"_a);
  m.def("diag_gaussian_kl_prior_bwd", diag_gaussian_kl_prior_bwd, "d_kl"_a, "mu"_a, "log_sigma"_a, "prior_mu"_a,
        "prior_log_sigma"_a);
  m.def("tril_gaussian_fwd", tril_gaussian_fwd, "mu"_a, "log_sigma"_a, "tril"_a, "noise"_a, "shape"_a, "row_offset"_a,
        "keep"_a);
  m.def("tril_gaussian_bwd", tril_gaussian_bwd, "d_z"_a, "d_log_q"_a, "log_sigma"_a, "eps"_a, "dense"_a, "with_mu"_a);
  m.def("tril_gaussian_with_kl_fwd", tril_gaussian_with_kl_fwd, "mu"_a, "log_sigma"_a, "tril"_a, "noise"_a, "shape"_a,
        "row_offset"_a, "by_dimension"_a, "keep"_a);
  m.def("tril_gaussian_with_kl_bwd", tril_gaussian_with_kl_bwd, "d_z"_a, "d_log_q"_a.none(), "d_kl"_a, "mu"_a,
        "log_sigma"_a, "tril"_a, "eps"_a);
  m.def("tril_gaussian_log_prob_fwd", tril_gaussian_log_prob_fwd, "z"_a, "mu"_a, "log_sigma"_a, "tril"_a, "shape"_a);
  m.def("tril_gaussian_log_prob_bwd", tril_gaussian_log_prob_bwd, "d_log_q"_a, "eps"_a, "log_sigma"_a, "tril"_a,
        "shape"_a);
  m.def("tril_gaussian_kl_fwd", tril_gaussian_kl_fwd, "mu"_a, "log_sigma"_a, "tril"_a);
  m.def("tril_gaussian_kl_bwd", tril_gaussian_kl_bwd, "d_kl"_a, "mu"_a, "log_sigma"_a, "tril"_a);
}

}  // namespace fastvae
