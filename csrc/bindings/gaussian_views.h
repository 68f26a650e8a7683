// What the bindings of Gaussians share.
#pragma once

#include <span>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/layer_views.h"
#include "bindings/sample_views.h"

namespace fastvae {
namespace {

namespace nb = nanobind;

// What a kernel that draws returns: the points, their log-densities, a divergence where one is wanted, and what the
// backward pass reads.
struct Sample {
  Output z, log_q, kl, kept;
  bool by_dimension = false;
  int64_t count = 1;

  Sample(nb::handle like, const Numbers& of_like, nb::handle of_shape, bool keep) {
    const std::vector<int64_t> shape = Items(of_shape).integers();
    if (shape.empty()) throw nb::value_error("a sample has a dimension of features");
    for (const int64_t size : shape) count *= size;
    z = new_tensor(like, of_like, shape);
    log_q = new_tensor(like, of_like, std::span(shape.data(), shape.size() - 1));
    if (keep) kept = new_tensor(like, of_like, shape);
  }
  void add_kl(nb::handle mu, const TensorView& of_mu, bool each) {
    by_dimension = each;
    kl = each ? new_tensor(mu, of_mu, {of_mu.shape[0], of_mu.shape[1]}) : new_tensor(mu, of_mu, {of_mu.shape[0]});
  }
  template <class T>
  Divergence<T> divergence() const {
    return {kl.as<T>(), by_dimension};
  }
  nb::tuple results() const { return nb::make_tuple(z.tensor, log_q.tensor, kept.tensor); }
  nb::tuple results_with_kl() const { return nb::make_tuple(z.tensor, log_q.tensor, kl.tensor, kept.tensor); }
};

Output new_like(nb::handle matrix, const TensorView& of_matrix) {
  return new_tensor(matrix, of_matrix, {of_matrix.shape[0], of_matrix.shape[1]});
}

}  // namespace
}  // namespace fastvae
